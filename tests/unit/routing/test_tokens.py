from __future__ import annotations

import pytest

from pointsman_serving.routing.tokens import TokenModel


def test_four_bytes_are_a_token_when_nothing_was_learned() -> None:
    assert TokenModel().prompt_tokens(4_000) == pytest.approx(1_000.0)
    assert TokenModel().prompt_tokens(0) == 1.0


def test_ratio_and_template_are_learned_when_the_engine_counts() -> None:
    tokens = TokenModel()
    for number in range(100):
        size = 200 + 37 * number
        tokens.learn_prompt(size, 30 + size // 3)
    assert tokens.prompt_tokens(3_000) == pytest.approx(1_030, rel=0.03)
    assert tokens.prompt_tokens(48_000) == pytest.approx(16_030, rel=0.05)


def test_long_prompts_are_not_overestimated_when_only_short_ones_were_seen() -> None:
    tokens = TokenModel()
    for _ in range(100):
        tokens.learn_prompt(60, 45)
    assert tokens.prompt_tokens(60) == pytest.approx(45, rel=0.3)
    assert tokens.prompt_tokens(48_000) < 20_000


def test_answers_are_expected_as_long_as_allowed_when_nothing_was_learned() -> None:
    assert TokenModel().output_tokens(None) == 256.0
    assert TokenModel().output_tokens(16) == 16.0
    assert TokenModel().output_tokens(4_096) == 256.0


def test_length_of_answers_is_learned_when_they_end() -> None:
    tokens = TokenModel()
    for _ in range(200):
        tokens.learn_output(40)
    assert tokens.output_tokens(None) == pytest.approx(40.0, rel=0.05)


def test_unknown_pool_is_taken_for_the_fleet() -> None:
    fleet = TokenModel()
    known, unknown = TokenModel(fleet), TokenModel(fleet)
    for _ in range(50):
        known.learn_output(40)
        known.learn_prompt(3_000, 1_000)
    assert unknown.output_tokens(None) == known.output_tokens(None)
    assert unknown.prompt_tokens(3_000) == known.prompt_tokens(3_000)


def test_counts_that_say_nothing_are_ignored() -> None:
    tokens = TokenModel()
    tokens.learn_output(0)
    tokens.learn_prompt(0, 10)
    tokens.learn_prompt(10, 0)
    assert tokens.output_tokens(None) == 256.0
    assert tokens.prompt_tokens(4_000) == pytest.approx(1_000.0)
