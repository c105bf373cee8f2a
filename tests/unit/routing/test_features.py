from __future__ import annotations

import pytest

from pointsman_serving.routing.features import features_of, refused_by


@pytest.mark.parametrize(
    ("body", "features"),
    [
        ({"model": "m", "messages": [], "temperature": 1, "stream": True}, set()),
        ({"n": 1, "tools": [], "response_format": {"type": "text"}, "logprobs": False}, set()),
        ({"n": None, "presence_penalty": 0.0, "repetition_penalty": 1.0}, set()),
        ({"n": 2}, {"n"}),
        ({"tools": [{"type": "function"}], "tool_choice": "auto"}, {"tools"}),
        ({"response_format": {"type": "json_object"}}, {"response_format"}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs"}),
        ({"presence_penalty": 0.5, "frequency_penalty": -1}, {"penalties"}),
    ],
)
def test_features_are_those_that_are_asked_for(body: dict[str, object], features: set[str]) -> None:
    assert features_of(body) == features


def test_features_are_refused_by_the_engines_that_lack_them() -> None:
    assert {"tools", "n", "penalties", "logprobs"} <= refused_by("Transformers")
    assert "tools" not in refused_by("Simulated")
    assert refused_by("VLLM") == refused_by("") == frozenset()
