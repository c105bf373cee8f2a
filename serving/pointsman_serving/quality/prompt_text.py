"""Which text of a request tells how hard it is to answer: what the user last said.

A system prompt is alike in all requests of an application, and so are the tools; earlier turns
chose their model already. Files of scores should hold the same: the user's text alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def prompt_text(body: Mapping[str, object]) -> str:
    """The last user message of a chat, or the prompt of a completion; empty where there is none.

    Args:
        body: the decoded JSON body; what is malformed in it is passed over.
    """
    messages = body.get("messages")
    if isinstance(messages, list):
        for message in reversed(messages):
            if isinstance(message, dict) and message.get("role") == "user":
                return _content(message.get("content"))
        return ""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt:
        prompt = prompt[0]
    return prompt if isinstance(prompt, str) else ""


def _content(content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str))
