"""Reads the JSON that a pod answers, and no more of it than fits.

What runs in a pod may be broken or hostile: it must not fill the operator's memory, whatever it
sends, and however it wraps it.
"""

from __future__ import annotations

import json

import aiohttp

MOST_BYTES = 8 * 1024 * 1024
"""Tens of thousands of replicas fit into it. Python's objects may take twenty times as much."""

REQUEST_HEADERS = {"accept": "application/json", "accept-encoding": "identity"}
"""To be sent with the question: a compressed answer says nothing about its true size."""


class PodAnswerError(ValueError):
    """The answer is too large, or cannot be read; says which and whose."""


def session_for_pods(**options: object) -> aiohttp.ClientSession:
    """A session whose answers :func:`read_json` can take: nothing is decompressed unasked.

    Args:
        options: of :class:`aiohttp.ClientSession`.
    """
    return aiohttp.ClientSession(
        auto_decompress=False,
        headers=REQUEST_HEADERS,
        # A pod has no business with cookies, and could make them pile up.
        cookie_jar=aiohttp.DummyCookieJar(),
        **options,  # type: ignore[arg-type]
    )


async def read_json(response: aiohttp.ClientResponse, *, most_bytes: int = MOST_BYTES) -> object:
    """The document that an answer holds.

    Time is limited by the session's timeout, which spans the body.

    Args:
        response: of a session of :func:`session_for_pods`.
        most_bytes: a longer answer is refused as soon as that is known.

    Raises:
        PodAnswerError: it is longer, compressed, or no JSON.
    """
    url = response.url
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise PodAnswerError(
            f"{url}: the answer is compressed ({encoding[:20]}), which was not asked for: its true "
            "size is unknown, so it is not read; see what answers there"
        )
    declared = response.content_length
    if declared is not None and declared > most_bytes:
        raise PodAnswerError(_too_long(url, f"has {declared} bytes", most_bytes))
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > most_bytes:
            seen = f"had {len(content)} bytes so far and went on"
            raise PodAnswerError(_too_long(url, seen, most_bytes))
    try:
        return json.loads(content)
    except RecursionError:
        raise PodAnswerError(f"{url}: the answer is nested too deeply") from None
    except ValueError as error:
        begins = bytes(content[:60])
        raise PodAnswerError(f"{url}: the answer is no JSON ({error}): {begins!r}") from error


def _too_long(url: object, seen: str, most_bytes: int) -> str:
    return (
        f"{url}: the answer {seen}; at most {most_bytes} are read; see what answers there, for "
        "neither Ray nor a gateway says that much"
    )
