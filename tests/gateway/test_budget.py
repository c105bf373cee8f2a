from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pointsman_serving.gateway.budget import Budget


def test_budget_gives_its_reserve_once_when_there_is_no_traffic() -> None:
    budget = Budget(percent=20.0, reserve=3.0, most=100.0)
    assert [True, True, True, False] == [budget.withdraw(1.0, 0.0) for _ in range(4)]
    assert budget.withdraw(1.0, 10.0)


def test_budget_gives_nothing_when_it_is_zero_percent() -> None:
    budget = Budget(percent=0.0, reserve=3.0, most=100.0)
    budget.deposit(1000.0)
    assert not budget.withdraw(1.0, 0.0)


@given(st.lists(st.booleans(), max_size=400))
def test_budget_spends_no_more_than_its_share_and_its_reserve(steps: list[bool]) -> None:
    budget = Budget(percent=20.0, reserve=5.0, most=50.0)
    deposits = spent = 0
    for deposits_one in steps:
        if deposits_one:
            budget.deposit(1.0)
            deposits += 1
        else:
            spent += budget.withdraw(1.0, 0.0)
    assert spent <= 5 + 0.2 * deposits + 1e-6
