from __future__ import annotations

import pytest

from pointsman_serving.quality.prompt_text import prompt_text

PICTURE = {"type": "image_url", "image_url": {"url": "data:,"}}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"messages": [{"role": "user", "content": "one"}]}, "one"),
        (
            {
                "messages": [
                    {"role": "system", "content": "be brief"},
                    {"role": "user", "content": "one"},
                    {"role": "assistant", "content": "1"},
                    {"role": "user", "content": "two"},
                    {"role": "tool", "content": "found"},
                ]
            },
            "two",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a"}, PICTURE, 3]},
                ]
            },
            "a",
        ),
        (
            {"messages": [{"role": "user", "content": [{"text": "a"}, {"text": "b"}]}]},
            "a\nb",
        ),
        ({"prompt": "complete this"}, "complete this"),
        ({"prompt": ["first", "second"]}, "first"),
        ({"prompt": [1, 2, 3]}, ""),
        ({"prompt": []}, ""),
        ({"messages": []}, ""),
        ({"messages": ["x", None, {"role": "user"}]}, ""),
        ({"messages": [{"role": "assistant", "content": "hello"}]}, ""),
        ({"messages": "text"}, ""),
        ({"input": "embed this"}, ""),
        ({}, ""),
    ],
)
def test_text_is_what_the_user_said_last(body: dict[str, object], text: str) -> None:
    assert text == prompt_text(body)
