"""The flags of a simulated engine; where vLLM has a flag for the same thing, its name is used."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, NamedTuple

from pointsman_serving.engines.simulated.text import LengthModel
from pointsman_serving.engines.timing import EngineProfile

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedOptions:
    """Everything that describes a simulated engine."""

    model_name: str = "simulated"
    """The name that requests ask for."""
    profile: EngineProfile = field(default_factory=EngineProfile)
    lengths: LengthModel = field(default_factory=LengthModel)
    max_model_len: int = 131_072
    """Tokens of prompt and answer together."""
    seed: int = 0
    """Engines with the same seed and model name say the same."""
    speed: float = 1.0
    """Seconds of the model that pass in one second; 10 is ten times as fast."""

    def __post_init__(self) -> None:
        """Refuse what could not be served.

        Raises:
            ValueError: a context that the cache cannot hold, or a speed that is no speed.
        """
        if not self.model_name:
            raise ValueError("the model name is empty: give the name that requests ask for")
        if not 0 < self.speed < float("inf"):
            raise ValueError(f"speed is {self.speed}: give a number above 0; 1 is real time")
        blocks = self.profile.kv_capacity_tokens // self.profile.block_tokens
        capacity = blocks * self.profile.block_tokens
        if not 2 <= self.max_model_len <= capacity:
            raise ValueError(
                f"max_model_len is {self.max_model_len}: give 2 to {capacity}, the tokens that "
                "the cache holds, or raise kv_capacity_tokens"
            )


class Flag(NamedTuple):
    """One flag of the command line and the field that it sets."""

    name: str
    kind: type[int] | type[float] | type[str] | type[bool]
    owner: type[EngineProfile] | type[LengthModel] | type[SimulatedOptions]
    field_name: str
    help: str


FLAGS: tuple[Flag, ...] = (
    Flag("--served-model-name", str, SimulatedOptions, "model_name", "name requests ask for"),
    Flag("--max-model-len", int, SimulatedOptions, "max_model_len", "tokens, prompt and answer"),
    Flag("--max-num-seqs", int, EngineProfile, "max_sequences", "sequences at once"),
    Flag(
        "--max-num-batched-tokens", int, EngineProfile, "max_batched_tokens", "tokens an iteration"
    ),
    Flag("--block-size", int, EngineProfile, "block_tokens", "tokens of a cache block"),
    Flag("--kv-capacity-tokens", int, EngineProfile, "kv_capacity_tokens", "tokens cached"),
    Flag("--enable-prefix-caching", bool, EngineProfile, "prefix_caching", "share prefixes"),
    Flag("--iteration-seconds", float, EngineProfile, "iteration_seconds", "each iteration"),
    Flag(
        "--prefill-token-seconds", float, EngineProfile, "prefill_token_seconds", "a prompt token"
    ),
    Flag(
        "--attention-pair-seconds",
        float,
        EngineProfile,
        "attention_pair_seconds",
        "a prompt token times a token of its context",
    ),
    Flag(
        "--decode-sequence-seconds",
        float,
        EngineProfile,
        "decode_sequence_seconds",
        "a decoding sequence",
    ),
    Flag(
        "--decode-context-token-seconds",
        float,
        EngineProfile,
        "decode_context_token_seconds",
        "a token of a decoding sequence's context",
    ),
    Flag("--output-mean-tokens", float, LengthModel, "mean_tokens", "mean length of answers"),
    Flag("--output-sigma", float, LengthModel, "sigma", "spread of the lengths' logarithm"),
    Flag("--seed", int, SimulatedOptions, "seed", "same seed, same answers"),
    Flag("--speed", float, SimulatedOptions, "speed", "model seconds per second"),
)
_BY_NAME = {flag.name: flag for flag in FLAGS}


def parse_simulated_args(args: Sequence[str]) -> SimulatedOptions:
    """Read ``--flag value`` or ``--flag=value``; booleans as ``--flag`` and ``--no-flag``.

    ``-`` and ``_`` are alike in names, as in vLLM. The last of a repeated flag counts.

    Raises:
        ValueError: an unknown flag, a value missing or of the wrong type, or values that do not
            go together; the message lists what is known or allowed.
    """
    values: dict[type, dict[str, object]] = {
        EngineProfile: {},
        LengthModel: {},
        SimulatedOptions: {},
    }
    rest = list(args)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.partition("=")
        name = name.replace("_", "-")
        negated = name.startswith("--no-")
        flag = _BY_NAME.get(f"--{name[5:]}" if negated else name)
        if flag is None or (negated and flag.kind is not bool):
            known = ", ".join(_spelling(known) for known in FLAGS)
            raise ValueError(f"{word!r} is no flag of the Simulated engine; known: {known}")
        if flag.kind is bool:
            if equals:
                raise ValueError(f"{word!r}: give {flag.name} or --no-{flag.name[2:]}, no value")
            values[flag.owner][flag.field_name] = not negated
            continue
        if not equals:
            if not rest:
                raise ValueError(f"{flag.name} has no value: give {_KINDS[flag.kind]} after it")
            text = rest.pop(0)
        try:
            values[flag.owner][flag.field_name] = flag.kind(text)
        except ValueError:
            raise ValueError(f"{flag.name} is {text!r}: give {_KINDS[flag.kind]}") from None
    return SimulatedOptions(
        profile=EngineProfile(**values[EngineProfile]),  # type: ignore[arg-type]
        lengths=LengthModel(**values[LengthModel]),  # type: ignore[arg-type]
        **values[SimulatedOptions],  # type: ignore[arg-type]
    )


_KINDS: dict[type, str] = {int: "a whole number", float: "a number", str: "a name"}


def _spelling(flag: Flag) -> str:
    return f"{flag.name} / --no-{flag.name[2:]}" if flag.kind is bool else flag.name


def describe_flags() -> str:
    """One line for each flag with its default, for help texts."""
    defaults = {
        (type(owner), item.name): getattr(owner, item.name)
        for owner in (EngineProfile(), LengthModel(), SimulatedOptions())
        for item in fields(owner)
    }
    return "\n".join(
        f"{_spelling(flag)}: {flag.help} (default {defaults[flag.owner, flag.field_name]})"
        for flag in FLAGS
    )
