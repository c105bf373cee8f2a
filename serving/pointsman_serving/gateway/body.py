"""Request bodies: decoded once to route them, passed on as the bytes that came.

Where a replica must read another value (its model name, ``include_usage``, a cache salt), only
that member is written anew; all others keep their bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from pointsman_serving.engines.continuation import ARGUMENTS_FIELD, CONTINUE_ARGUMENT
from pointsman_serving.gateway.openai import (
    BadRequestError,
    invalid_request,
    nested_too_deeply,
)

# What the members that are read again say, where the content itself is kept as bytes alone.
_SMALL = ("stream", "stream_options", "cache_salt", "return_token_ids", ARGUMENTS_FIELD)

# More than any engine gives; JSON has no limit of its own.
_MOST_TOKENS = 100_000_000

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass(slots=True, kw_only=True)
class RequestBody:
    """One decoded request body and its bytes."""

    raw: bytes
    fields: dict[str, object]
    model: str
    _members: dict[str, msgspec.Raw] | None = field(default=None, init=False, repr=False)

    @property
    def streams(self) -> bool:
        """Whether the client asked for a stream."""
        return self.fields.get("stream") is True

    @property
    def asks_usage(self) -> bool:
        """Whether the client itself wants the stream's usage event."""
        options = self.fields.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True

    @property
    def can_add_usage(self) -> bool:
        """Whether the usage event can be asked for: a stream whose options are well-formed."""
        options = self.fields.get("stream_options")
        return self.streams and not self.asks_usage and (options is None or type(options) is dict)

    @property
    def cache_salt(self) -> str:
        """The client's own ``cache_salt``, or empty."""
        salt = self.fields.get("cache_salt")
        return salt if isinstance(salt, str) else ""

    def max_output_tokens(self) -> int | None:
        """``max_completion_tokens`` or its older name ``max_tokens``."""
        for name in ("max_completion_tokens", "max_tokens"):
            value = self.fields.get(name)
            if type(value) is int and value > 0:
                return min(value, _MOST_TOKENS)
        return None

    @property
    def asks_token_ids(self) -> bool:
        """Whether the client itself wants the token ids."""
        return self.fields.get("return_token_ids") is True

    def rewritten(
        self,
        *,
        model: str,
        add_usage: bool,
        cache_salt: str,
        add_token_ids: bool = False,
        after: Sequence[int] | None = None,
    ) -> bytes:
        """The bytes for a replica.

        Args:
            model: the name that the replica knows.
            add_usage: ask for the stream's usage event.
            cache_salt: keeps the engine's cache of one tenant apart; empty: as the client says.
            add_token_ids: ask for the ids of the output's tokens.
            after: the ids of the output's first tokens, after which the replica shall go on.
        """
        if model == self.model and after is None and not (add_usage or cache_salt or add_token_ids):
            return self.raw
        if self._members is None:
            self._members = _decode_members(self.raw)
        changed: dict[str, bytes] = {"model": msgspec.json.encode(model)}
        if add_usage:
            options = self.fields.get("stream_options")
            kept = options if isinstance(options, dict) else {}
            changed["stream_options"] = msgspec.json.encode({**kept, "include_usage": True})
        if cache_salt:
            changed["cache_salt"] = msgspec.json.encode(cache_salt)
        if add_token_ids:
            changed["return_token_ids"] = b"true"
        if after is not None:
            changed[ARGUMENTS_FIELD] = msgspec.json.encode({CONTINUE_ARGUMENT: list(after)})
        parts = [
            msgspec.json.encode(name) + b":" + changed.pop(name, raw)
            for name, raw in self._members.items()
        ]
        parts += [b'"' + name.encode() + b'":' + raw for name, raw in changed.items()]
        return b"{" + b",".join(parts) + b"}"

    def keep_bytes(self) -> None:
        """Keep what is needed to send it again, and let go of the decoded content."""
        self.fields = {name: self.fields[name] for name in _SMALL if name in self.fields}
        self._members = None

    def release(self) -> None:
        """Let go of the content: the request will not be sent again."""
        self.raw = b""
        self.fields = {}
        self._members = None


def goes_on(body: RequestBody) -> bool:
    """Whether a body has the token ids with which the gateway continues streams."""
    arguments = body.fields.get(ARGUMENTS_FIELD)
    return isinstance(arguments, dict) and CONTINUE_ARGUMENT in arguments


def parse_body(raw: bytes) -> RequestBody:
    """Decode a request body.

    Raises:
        BadRequestError: it is no JSON object with a string ``model``; says which.
    """
    try:
        fields = msgspec.json.decode(raw)
    except RecursionError as error:
        raise BadRequestError(nested_too_deeply()) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequestError(
            invalid_request(f"The request body is not valid JSON: {error}.", code="invalid_json")
        ) from error
    if type(fields) is not dict:
        raise BadRequestError(
            invalid_request(
                f"The request body is {_kind(fields)}; it must be an object.",
                code="invalid_body",
            )
        )
    model = fields.get("model")
    if type(model) is not str:
        stated = "is missing" if model is None else f"is {_kind(model)}"
        raise BadRequestError(
            invalid_request(
                f"The field 'model' {stated}; it must be a string, one of GET /v1/models.",
                param="model",
                code="invalid_model",
            )
        )
    return RequestBody(raw=raw, fields=fields, model=model)


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"
