"""The CRDs on a real API server: each rule, each bound, and what users see of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from pointsman_api.meta import GROUP, VERSION
from tests.api.schema_paths import (
    Bound,
    bounds,
    minimal,
    places,
    rule_fields,
    with_value,
    without_indexes,
)
from tests.cluster.cluster import MERGE_PATCH, Cluster, Reply
from tests.cluster.fixtures import CRDS
from tests.contract.api_server import problems
from tests.contract.samples import (
    EXTERNAL,
    POLICY_SAMPLES,
    POOL_SAMPLES,
    RICH_POLICY,
    RICH_POOL,
    policy_document,
    pool_document,
)
from tests.contract.test_rules import CASES

if TYPE_CHECKING:
    from tests.api.schema_paths import Schema

KINDS = {"ModelPool": "modelpools", "RoutePolicy": "routepolicies"}
SCHEMAS: dict[str, Schema] = {
    kind: yaml.safe_load((CRDS / f"{plural}.yaml").read_text(encoding="utf-8"))["spec"]["versions"][
        0
    ]["schema"]["openAPIV3Schema"]
    for kind, plural in KINDS.items()
}
SAMPLES = {"ModelPool": pool_document(), "RoutePolicy": policy_document()}

# The rule's message -> an object, and the same with the change that the rule refuses.
TRANSITIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "servedModelName is immutable: make a new object instead": (
        pool_document(servedModelName="a"),
        pool_document(servedModelName="b"),
    ),
    "backend.type is immutable: make a new object instead": (
        pool_document(),
        pool_document(backend=EXTERNAL),
    ),
}


def collection(kind: str, namespace: str) -> str:
    return f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{KINDS[kind]}"


def in_namespace(document: dict[str, Any], namespace: str) -> dict[str, Any]:
    """The document as it is sent: without what only the server writes."""
    metadata = {"name": document["metadata"]["name"], "namespace": namespace}
    return {**document, "metadata": metadata}


def create(
    server: Cluster, document: dict[str, Any], namespace: str = "default", *, dry: bool = True
) -> Reply:
    query = "?fieldValidation=Strict" + ("&dryRun=All" if dry else "")
    body = in_namespace(document, namespace)
    return server.request("POST", collection(document["kind"], namespace) + query, body)


def replace(server: Cluster, document: dict[str, Any], namespace: str) -> Reply:
    path = f"{collection(document['kind'], namespace)}/{document['metadata']['name']}"
    version = server.request("GET", path).body["metadata"]["resourceVersion"]
    body = in_namespace(document, namespace)
    body["metadata"]["resourceVersion"] = version
    return server.request("PUT", f"{path}?fieldValidation=Strict&dryRun=All", body)


@pytest.fixture(scope="module")
def created(api_server: Cluster) -> str:
    """A namespace with one object of each kind."""
    api_server.create_namespace("crds")
    for document in (*SAMPLES.values(), RICH_POOL, RICH_POLICY):
        assert create(api_server, document, "crds", dry=False).status in (201, 409)
    return "crds"


def rules(kind: str) -> dict[str, set[str]]:
    return rule_fields(SCHEMAS[kind])


def test_server_serves_the_schema_of_the_file_when_applied(api_server: Cluster) -> None:
    for kind, plural in KINDS.items():
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.{GROUP}"
        definition = api_server.request("GET", path).body
        assert SCHEMAS[kind] == definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        conditions = {each["type"]: each for each in definition["status"]["conditions"]}
        assert "True" == conditions["Established"]["status"]
        # Says so where the schema is not structural; then nothing would be pruned or defaulted.
        assert "NonStructuralSchema" not in conditions


def test_every_rule_has_an_object_that_it_refuses_on_the_server() -> None:
    assert {message for kind in KINDS for message in rules(kind)} == set(CASES) | set(TRANSITIONS)


@pytest.mark.parametrize("message", CASES)
def test_rule_is_kept_by_good_objects_when_created(api_server: Cluster, message: str) -> None:
    for document in CASES[message][0]:
        assert "" == create(api_server, document).message


@pytest.mark.parametrize("message", CASES)
def test_rule_refuses_and_names_the_field_when_broken(api_server: Cluster, message: str) -> None:
    for document in CASES[message][1]:
        reply = create(api_server, document)
        assert 422 == reply.status
        named = [cause for cause in reply.causes if message in cause.message]
        assert named
        for cause in named:
            fields = rules(document["kind"])[message]
            if "evaluating rule" in cause.message:
                # A rule that ends in an error is told at the object that it stands on.
                fields = {field.rpartition(".")[0] for field in fields}
            assert without_indexes(cause.field) in fields


@pytest.mark.parametrize("message", TRANSITIONS)
def test_rule_refuses_the_change_when_it_is_a_transition(
    api_server: Cluster, namespace: str, message: str
) -> None:
    before, after = TRANSITIONS[message]
    assert "" == create(api_server, before, namespace, dry=False).message
    assert "" == replace(api_server, before, namespace).message
    reply = replace(api_server, after, namespace)
    assert 422 == reply.status
    named = {cause.field for cause in reply.causes if message in cause.message}
    assert named == rules(before["kind"])[message]


def kind_bounds(kind: str) -> list[Bound]:
    return [
        bound
        for place in places(SCHEMAS[kind])
        # apiVersion and kind are the server's own; of metadata we bound the name alone.
        if place.path[:1] in (("spec",), ("status",)) or place.path == ("metadata", "name")
        for bound in bounds(place)
        # The server itself wants a name that is a text.
        if not (place.path[0] == "metadata" and bound.keyword in ("type", "required"))
    ]


BOUNDS = {f"{kind}-{bound.name}": (kind, bound) for kind in KINDS for bound in kind_bounds(kind)}
INSIDE = {name: each for name, each in BOUNDS.items() if each[1].kept is not None}


def send(server: Cluster, kind: str, bound: Bound, value: Any, namespace: str) -> Reply:
    """Write an object that is good but for one value; the status through its subresource."""
    schema, path = SCHEMAS[kind], bound.place.path
    if path[0] != "status":
        document = with_value(_sample_with(kind, path), schema, path, value)
        document.setdefault("metadata", {}).setdefault("name", "x")
        query = "?fieldValidation=Strict&dryRun=All"
        return server.request("POST", collection(kind, "default") + query, document)
    document = {"status": minimal(schema["properties"]["status"])}
    body = with_value(document, schema, path, value)
    name = SAMPLES[kind]["metadata"]["name"]
    url = f"{collection(kind, namespace)}/{name}/status?fieldValidation=Strict&dryRun=All"
    return server.request("PATCH", url, body, content_type=MERGE_PATCH)


def _sample_with(kind: str, path: tuple[str, ...]) -> dict[str, Any]:
    """The sample that has most of the path, so that little must be made."""

    def depth(document: Any) -> int:
        for count, part in enumerate(path):
            if part == "[]":
                if not document:
                    return count
                document = document[0]
            elif part in document:
                document = document[part]
            else:
                return count
        return len(path)

    kept = [document for good, _ in CASES.values() for document in good if document["kind"] == kind]
    samples = POOL_SAMPLES if kind == "ModelPool" else POLICY_SAMPLES
    best = max([*samples, *kept], key=depth)
    return in_namespace(best, "default")


@pytest.mark.parametrize(("kind", "bound"), BOUNDS.values(), ids=BOUNDS)
def test_bound_refuses_and_names_the_field_when_passed(
    api_server: Cluster, created: str, kind: str, bound: Bound
) -> None:
    reply = send(api_server, kind, bound, bound.broken, created)
    assert 422 == reply.status
    fields = {bound.place.field}
    if bound.keyword == "duplicates":
        fields = {f"{bound.place.field}[1]"}
    said = {"pattern": "should match"}.get(bound.keyword, "")
    found = {
        cause.field
        for cause in reply.causes
        if cause.reason == bound.reason and said in cause.message
    }
    assert found & fields, reply.body


@pytest.mark.parametrize(("kind", "bound"), INSIDE.values(), ids=INSIDE)
def test_bound_takes_the_value_when_it_is_just_inside(
    api_server: Cluster, created: str, kind: str, bound: Bound
) -> None:
    outside = send(api_server, kind, bound, bound.broken, created)
    inside = send(api_server, kind, bound, bound.kept, created)
    refused = {(cause.field, _words(cause.message)) for cause in outside.causes}
    still = {(cause.field, _words(cause.message)) for cause in inside.causes}
    # Other bounds and rules may speak up about the made-up value, this one may not.
    assert {each for each in refused if each[0] == bound.place.field} - still


def _words(message: str) -> str:
    """What a fault says of the bound, without the value."""
    return message.rpartition(": ")[2]


@pytest.mark.parametrize("sample", [*POOL_SAMPLES, *POLICY_SAMPLES])
def test_server_and_its_imitation_agree_when_one_field_is_changed(
    api_server: Cluster, sample: dict[str, Any]
) -> None:
    schema = SCHEMAS[sample["kind"]]
    sample = in_namespace(sample, "default")
    for place in places(schema["properties"]["spec"], ("spec",)):
        for value in _REPLACEMENTS:
            if not _is_there(sample, place.path[:-1]):
                continue
            document = with_value(sample, schema, place.path, value)
            expected = [] == problems({"spec": document["spec"]}, _only_spec(schema))
            reply = create(api_server, document)
            assert expected == (reply.status == 201), (place.field, value, reply.message)


_REPLACEMENTS: tuple[Any, ...] = (
    -1,
    0,
    1,
    5000,
    True,
    "",
    "0",
    "1.5",
    "0s",
    "5m",
    "50%",
    "a/b",
    [],
    {},
    ["a"],
)


def _only_spec(schema: Schema) -> Schema:
    return {"type": "object", "properties": {"spec": schema["properties"]["spec"]}}


def _is_there(document: Any, path: tuple[str, ...]) -> bool:
    for part in path:
        if part == "[]":
            if not document:
                return False
            document = document[0]
        elif isinstance(document, dict) and part in document:
            document = document[part]
        else:
            return False
    return True
