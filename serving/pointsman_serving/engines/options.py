"""What a replica is told: the arguments of its Ray Serve application, as a type."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from pointsman_api.modelpool import EngineType, ExpertsImplementation
from pointsman_api.route_table import PrefixIndex

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOptions:
    """One replica of one pool. Survives a round trip through JSON."""

    pool: str
    """Name of the pool; its application's too."""
    engine: EngineType
    served_model_name: str
    """The name that requests ask for."""
    model_path: str = ""
    """A folder, or what the engine understands as the name of a model. Empty for Simulated."""
    max_sequences: int = 64
    """How many requests the engine runs at once."""
    context_tokens: int | None = None
    """Prompt and answer together; None: the engine's own limit."""
    experts: ExpertsImplementation = ExpertsImplementation.DEFAULT
    prefix_index: PrefixIndex = PrefixIndex.ESTIMATE
    """Whether the engine publishes what is in its prefix cache."""
    hosts: int = 1
    """Pods that the replica spreads over; see :mod:`pointsman_serving.engines.group`."""
    arguments: tuple[str, ...] = ()
    """The engine's command line. The last of a repeated flag counts, so a pool's own arguments
    come after those that were derived."""
    revision: str = ""
    """Digest of what decides on the tokens; replicas that share it can go on with each other's
    answers. Empty: unknown."""

    def to_args(self) -> dict[str, object]:
        """The ``args`` of a Ray Serve application: JSON types only, defaults left out."""
        values = asdict(self) | {"arguments": list(self.arguments)}
        return {
            field.name: str(value) if isinstance(value, str) else value
            for field in fields(self)
            if (value := values[field.name]) not in (None, "", [])
            and value is not PrefixIndex.ESTIMATE
            and (field.name, value) != ("hosts", 1)
        }

    @classmethod
    def from_args(cls, args: Mapping[str, Any]) -> ReplicaOptions:
        """Read what :meth:`to_args` wrote.

        Raises:
            ValueError: an argument is missing, unknown or not of its type.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(args) - known):
            raise ValueError(
                f"the replica does not know the argument {unknown[0]!r}: it takes "
                f"{', '.join(sorted(known))}; deploy with the same version of pointsman-serving "
                "as the replica's image has"
            )
        try:
            values = dict(args)
            values["engine"] = EngineType(values["engine"])
            if "experts" in values:
                values["experts"] = ExpertsImplementation(values["experts"])
            if "prefix_index" in values:
                values["prefix_index"] = PrefixIndex(values["prefix_index"])
            values["arguments"] = tuple(values.get("arguments", ()))
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"the replica's arguments are incomplete: {error}") from error
