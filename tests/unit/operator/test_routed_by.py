from __future__ import annotations

from pointsman_api.compile import RouteProblem
from pointsman_api.conditions import Reason
from pointsman_api.routepolicy import RoutePolicy
from pointsman_operator.routed_by import routed_by
from tests.unit.operator.scenes import made_policy, made_pool

NAME_TAKEN = RouteProblem(
    kind="ModelPool",
    key="team/chat",
    field=("spec", "servedModelName"),
    value="chat",
    reason=Reason.MODEL_NAME_CONFLICT,
    message="taken",
)


def routes(
    *policies: RoutePolicy,
    gateways: tuple[str, ...] = ("default", "edge"),
    problems: tuple[RouteProblem, ...] = (),
) -> set[str]:
    found = routed_by(
        made_pool(), policies, gateways=gateways, labels_of=lambda _: {}, problems=problems
    )
    return set(found)


def test_a_pool_has_a_route_on_the_default_gateway_when_it_answers_to_its_own_name() -> None:
    assert {"default"} == routes()
    assert set() == routes(gateways=("edge",))


def test_a_pool_has_no_route_when_another_answers_to_its_name() -> None:
    assert set() == routes(problems=(NAME_TAKEN,))
    assert set() == routes(made_policy("taker", pools=("other",), names=("chat",)))


def test_a_pool_has_a_route_where_a_policy_names_it() -> None:
    policy = made_policy(gateway="edge")
    assert {"edge"} == routes(policy, problems=(NAME_TAKEN,))
    assert {"default", "edge"} == routes(policy)


def test_a_policy_is_no_route_when_it_may_not_name_the_pool_or_does_not_own_its_name() -> None:
    stranger = RoutePolicy.model_validate(
        {
            "metadata": {"name": "s", "namespace": "elsewhere"},
            "spec": {
                "gatewayRef": {"name": "edge"},
                "modelNames": ["x"],
                "rules": [
                    {
                        "name": "r",
                        "targets": [{"poolRef": {"name": "chat", "namespace": "team"}}],
                    }
                ],
            },
        }
    )
    assert set() == routes(stranger, gateways=("edge",))
    older = made_policy("older", pools=("other",), names=("assistant",), gateway="edge")
    younger = made_policy(gateway="edge", created="2026-02-01T00:00:00Z")
    assert set() == routes(older, younger, gateways=("edge",))
