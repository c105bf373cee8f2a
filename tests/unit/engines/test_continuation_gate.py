"""What comes between a client and an engine that is not ours."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pointsman_serving.engines.continuation_gate import ContinuationGate

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

CHAT = "/v1/chat/completions"
PLAIN = {"model": "m", "messages": []}
CONTINUED = {**PLAIN, "vllm_xargs": {"pointsman_continue": [1, 2]}}


class Listener:
    """Reads the body to its end and then what follows; answers 200."""

    def __init__(self) -> None:
        self.body = b""
        self.after = ""
        self.paths: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        more = True
        while more:
            message = await receive()
            self.body += message.get("body", b"")
            more = message.get("more_body", False)
        self.after = (await receive())["type"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def ask(
    body: bytes, *, path: str = CHAT, unsupported: str | None = None, part: int = 7
) -> tuple[int, dict[str, Any], Listener]:
    listener = Listener()
    parts = [body[start : start + part] for start in range(0, len(body), part)] or [b""]
    messages = [
        {"type": "http.request", "body": each, "more_body": index < len(parts) - 1}
        for index, each in enumerate(parts)
    ]
    waiting = iter([*messages, {"type": "http.disconnect"}])
    sent: list[Message] = []

    async def receive() -> Message:
        return next(waiting)

    async def send(message: Message) -> None:
        sent.append(message)

    gate = ContinuationGate(listener, unsupported=unsupported)
    await gate({"type": "http", "path": path, "headers": []}, receive, send)
    answer = json.loads(sent[1]["body"] or b"{}")
    return sent[0]["status"], answer.get("error", {}), listener


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(PLAIN).encode(),
        json.dumps(CONTINUED).encode(),
        json.dumps({**PLAIN, "messages": ["say pointsman_continue"], "n": 2}).encode(),
        b'{"pointsman_continue"',
        b'["pointsman_continue"]',
        b"",
    ],
)
async def test_application_gets_the_same_body_when_nothing_forbids_it(body: bytes) -> None:
    status, _, listener = await ask(body)
    assert (200, body, "http.disconnect") == (status, listener.body, listener.after)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({**CONTINUED, "n": 2}, "n=2"),
        ({**PLAIN, "vllm_xargs": {"pointsman_continue": {}}}, "give a list of token ids"),
    ],
)
async def test_application_sees_nothing_when_the_answer_cannot_be_continued(
    path: str, body: dict[str, object], message: str
) -> None:
    status, error, listener = await ask(json.dumps(body).encode(), path=path)
    assert (400, "BadRequestError", "vllm_xargs", []) == (
        status,
        error["type"],
        error["param"],
        listener.paths,
    )
    assert message in error["message"]


async def test_nothing_is_continued_when_the_engine_cannot() -> None:
    status, error, _ = await ask(json.dumps(CONTINUED).encode(), unsupported="too old")
    assert (400, "too old") == (status, error["message"])
    status, _, _ = await ask(json.dumps(PLAIN).encode(), unsupported="too old")
    assert 200 == status


async def test_other_paths_are_left_alone_when_they_have_the_word() -> None:
    status, _, listener = await ask(json.dumps({**CONTINUED, "n": 2}).encode(), path="/tokenize")
    assert (200, ["/tokenize"]) == (status, listener.paths)
