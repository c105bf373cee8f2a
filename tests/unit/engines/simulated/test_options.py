"""The flags of the Simulated engine."""

from __future__ import annotations

import pytest

from pointsman_serving.engines.simulated.options import (
    FLAGS,
    SimulatedOptions,
    describe_flags,
    parse_simulated_args,
)


def test_parse_gives_the_defaults_when_nothing_is_stated() -> None:
    assert SimulatedOptions() == parse_simulated_args([])


def test_parse_reads_every_form_when_flags_are_given() -> None:
    options = parse_simulated_args(
        [
            *("--max-num-seqs", "32", "--max_model_len=4096", "--speed=2.5"),
            *("--no-enable-prefix-caching", "--served-model-name", "m", "--output-sigma", "0"),
        ]
    )
    assert (32, 4096, 2.5, False, "m", 0.0) == (
        options.profile.max_sequences,
        options.max_model_len,
        options.speed,
        options.profile.prefix_caching,
        options.model_name,
        options.lengths.sigma,
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--max-seqs", "3"], "'--max-seqs' is no flag of the Simulated engine; known: --served"),
        (["3"], "'3' is no flag"),
        (["--no-seed"], "'--no-seed' is no flag"),
        (["--seed"], "--seed has no value: give a whole number after it"),
        (["--seed", "x"], "--seed is 'x': give a whole number"),
        (["--speed", "fast"], "--speed is 'fast': give a number"),
        (["--speed", "0"], "speed is 0.0: give a number above 0"),
        (["--enable-prefix-caching=yes"], "no value"),
        (["--block-size", "0"], "block_tokens is 0"),
        (["--kv-capacity-tokens", "1600"], "max_model_len is 131072: give 2 to 1600"),
        (["--served-model-name="], "the model name is empty"),
        (["--output-sigma", "-1"], "sigma is -1.0"),
        (["--output-mean-tokens", "0"], "mean_tokens is 0.0"),
    ],
)
def test_parse_says_what_is_allowed_when_a_flag_is_wrong(args: list[str], message: str) -> None:
    with pytest.raises(ValueError) as failure:
        parse_simulated_args(args)
    assert message in str(failure.value)


def test_describe_names_every_flag_with_its_default() -> None:
    text = describe_flags()
    assert all(flag.name in text for flag in FLAGS)
    assert "--max-num-seqs: sequences at once (default 256)" in text
