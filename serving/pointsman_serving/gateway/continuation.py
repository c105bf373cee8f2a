"""A stream that is continued on another replica when its own has failed.

The next replica gets the same request with the ids of the tokens that were said. It answers
as if it had generated them itself (see ``engines/continuation.py`` for what engines promise),
so its stream repeats what the client has and goes on; ``said.Said`` cuts the repetition away.
"""

from __future__ import annotations

import math
from dataclasses import replace

import structlog

from pointsman_api.route_table import Route, Rule
from pointsman_serving.engines.continuation import refusal
from pointsman_serving.gateway.body import RequestBody
from pointsman_serving.gateway.failure import STALLED, Failure
from pointsman_serving.gateway.kv.lessons import is_text_alone, learn_answer, learn_prompt
from pointsman_serving.gateway.leg import Leg
from pointsman_serving.gateway.plane import DataPlane
from pointsman_serving.gateway.said import Said
from pointsman_serving.routing.types import Api, ReplicaKey, RouteRequest, Usage

log = structlog.get_logger(__name__)

CONTINUING_ENGINES = frozenset({"VLLM", "Transformers", "Simulated"})

# A replica that brings a stream this many tokens further has not died of it. One that merely
# stops to speak has not died at all.
_PROGRESS_TOKENS = 16


class Continuation:
    """What is needed to go on with one stream.

    Args:
        policy, rule: what holds for the request.
        request: as it came.
        body: as it came; its bytes are kept while the stream runs.
        teaches: which tokens the prompt is, is worth knowing.
    """

    __slots__ = (
        "_body",
        "_broke_at",
        "_kept",
        "_original",
        "_plane",
        "_policy",
        "_rule",
        "_said",
        "_teaches",
        "_tokens_before",
        "begun",
        "pool",
        "request",
        "revision",
    )

    def __init__(
        self,
        plane: DataPlane,
        policy: str,
        rule: Rule,
        request: RouteRequest,
        body: RequestBody,
        *,
        teaches: bool,
    ) -> None:
        self._plane = plane
        self._policy = policy
        self._rule = rule
        self._original = request
        self._body = body
        self._teaches = teaches
        self._said = Said(hide_tokens=not body.asks_token_ids, keep_prompt=teaches)
        self._kept = 0
        self._tokens_before = 0
        self._broke_at: float | None = None
        self.begun = False
        """Whether a replica has failed and another one is to go on."""
        self.request = request
        """What the scheduler is asked to place: the prompt and what was said."""
        self.pool = ""
        self.revision = ""

    @classmethod
    def of(
        cls, plane: DataPlane, policy: str, rule: Rule, request: RouteRequest, body: RequestBody
    ) -> tuple[Continuation | None, str]:
        """The continuation of a request's stream, or why it could not be right."""
        if (
            not rule.resilience.continues
            or not request.stream
            or request.api is Api.EMBEDDINGS
            or not any(plane.engine(target.pool) in CONTINUING_ENGINES for target in rule.targets)
        ):
            return None, ""
        refused = refusal(body.fields)
        if refused is not None:
            return None, refused.partition(";")[0]
        teaches = any(
            plane.kv_feeds.wants(target.pool) for target in rule.targets
        ) and is_text_alone(body.fields)
        return cls(plane, policy, rule, request, body, teaches=teaches), ""

    def covers(self, pool: str) -> bool:
        """Whether streams of a pool's replicas can be continued: the engine tells token ids."""
        return self.begun or self._plane.engine(pool) in CONTINUING_ENGINES

    def notes(self) -> Said:
        """What notes the stream that begins now."""
        if self.begun:
            # What comes is a repetition from the beginning, whatever others have repeated.
            self._said.resume()
        return self._said

    @property
    def tokens(self) -> list[int] | None:
        """The ids after which the next replica goes on; None where none is to."""
        return self._said.tokens.tolist() if self.begun else None

    @property
    def flaw(self) -> str:
        """Why it cannot go on; empty where it can."""
        return self._said.flaw

    @property
    def finished(self) -> bool:
        """Whether everything but the end of the stream was said."""
        return self._said.finished

    def closing(self, leg: Leg) -> tuple[bytes, Usage]:
        """The end of a stream that is finished, and its usage.

        Args:
            leg: the attempt that broke; it may have brought the usage.
        """
        told = None if leg.reading is None else leg.reading.usage()
        said = self._said
        counted = self.counted or Usage()
        end = said.closing(usage=told is None and self._body.asks_usage)
        return end, counted if told is None else told

    @property
    def counted(self) -> Usage | None:
        """The tokens that the client has got; None where that is not known."""
        if not self._said.tokens:
            return None
        return Usage(
            prompt_tokens=self._said.prompt_tokens, completion_tokens=len(self._said.tokens)
        )

    def goes_on(self, leg: Leg) -> None:
        """Note that another replica has brought something new."""
        log.info(
            "stream goes on",
            request_id=self._original.request_id,
            replica="/".join(leg.key),
            tokens=len(self._said.tokens),
            pause_seconds=round(self._plane.clock() - (self._broke_at or 0.0), 2),
        )
        self._broke_at = None

    @property
    def within(self) -> tuple[Route, Rule, str]:
        """Its own rule, for the prompt grows and the route table may change, and its pool."""
        return Route(policy=self._policy, rules=(self._rule,)), self._rule, self.pool

    def others(self) -> set[ReplicaKey]:
        """The replicas of the pool that are known to be of another revision."""
        return self._plane.of_other_revisions(self.pool, self.revision)

    def keep(self, leg: Leg) -> bool:
        """Keep what a continuation needs, from the first byte on; False where there is no way."""
        size = len(self._body.raw)
        head = leg.reply
        if (
            head is None
            or not head.streams
            or not head.revision
            or not leg.notes
            or not self._plane.kept_bodies.take(size)
        ):
            self._said.spoil("the replica cannot, or too much is kept for others")
            return False
        self._plane.note_revision(leg.key, head.revision)
        self._kept = size
        self._body.keep_bytes()
        self.pool = leg.key.pool
        self.revision = head.revision
        if self._teaches:
            learn_prompt(self._plane.scheduler.kv, self.pool, self.request, self._said)
        return True

    def got_on(self, failure: Failure) -> bool:
        """Whether the stream had come further since this was asked last, when it failed."""
        count = len(self._said.tokens)
        least = 1 if failure.label == STALLED else _PROGRESS_TOKENS
        if count - self._tokens_before < least:
            return False
        self._tokens_before = count
        return True

    def begin(self, now: float) -> None:
        """Its replica has failed: another one is to go on."""
        self._broke_at = now if self._broke_at is None else self._broke_at
        self.begun = True
        original = self._original
        count = len(self._said.tokens)
        limit = original.max_output_tokens
        self.request = replace(
            original,
            prompt=replace(
                original.prompt,
                total_bytes=original.prompt.total_bytes + self._said.bytes,
                estimated_tokens=original.prompt.estimated_tokens + count,
            ),
            max_output_tokens=None if limit is None else max(1, limit - count),
            # Its first token has come.
            ttft_slo_seconds=math.inf,
            arrived_at=now,
        )

    def end(self) -> None:
        """The request has ended."""
        if self._teaches and not self.begun:
            index = self._plane.scheduler.kv
            learn_answer(index, self.pool, self._original, self._body.raw, self._said)
        self._plane.kept_bodies.give_back(self._kept)
        self._kept = 0
