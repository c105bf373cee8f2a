from __future__ import annotations

import pytest

from pointsman_serving.simulator.arms import ArmContext, Family
from pointsman_serving.simulator.catalog import KNOWN_ARMS, ArmChoice, parse_arm
from pointsman_serving.simulator.ours import Pointsman


def test_arm_is_read_with_its_parameters() -> None:
    choice = parse_arm("x:a=1,b=0.5,c=true,d=none,e=word,f=inf")

    expected = {"a": 1, "b": 0.5, "c": True, "d": None, "e": "word", "f": float("inf")}
    assert ArmChoice(name="x", parameters=expected) == choice
    assert "x:a=1,b=0.5,c=True,d=None,e=word,f=inf" == str(choice)


def test_arm_is_refused_when_a_parameter_has_no_value() -> None:
    with pytest.raises(ValueError, match="'b' in arm 'x:b' is not of the form PARAMETER=VALUE"):
        parse_arm("x:b")


def test_close_name_is_offered_when_there_is_no_such_arm() -> None:
    with pytest.raises(ValueError, match=r"no arm 'lmetrics' \(did you mean 'lmetric'\?\)"):
        parse_arm("lmetrics").make(ArmContext())


def test_parameters_are_named_when_one_is_unknown() -> None:
    with pytest.raises(ValueError, match=r"'pointsman' has no parameter 'slo'.*'queue_seconds'"):
        parse_arm("pointsman:slo=3").make(ArmContext())


@pytest.mark.parametrize(
    "name", [spec.name for spec in KNOWN_ARMS.values() if spec.family is Family.AFFINITY]
)
@pytest.mark.parametrize("ending", ["", "+reject"])
def test_every_arm_of_one_model_can_be_made_by_its_name(name: str, ending: str) -> None:
    arm = parse_arm(name + ending).make(ArmContext(seed=3))

    assert arm is not parse_arm(name + ending).make(ArmContext(seed=3))


def test_ours_rejects_by_its_own_rule() -> None:
    assert isinstance(parse_arm("pointsman+reject").make(ArmContext()), Pointsman)
