"""Whether the installed vLLM is one whose internals we know."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import OutputProcessor

from pointsman_serving.engines.vllm_continuation import unsupported_reason

pytestmark = pytest.mark.slow


class OtherClient:
    """An AsyncLLM that takes requests in another way."""

    async def _add_request(self, request: Any, queue: Any) -> None:
        """Nothing."""


class ForgetfulProcessor(OutputProcessor):
    """An output processor that keeps its state where we do not find it."""

    def add_request(self, *args: Any, **more: Any) -> None:
        super().add_request(*args, **more)
        self.request_states.clear()


class LosingProcessor(OutputProcessor):
    """An output processor that shows nothing where no queue is."""

    def process_outputs(self, *args: Any, **more: Any) -> Any:
        processed = super().process_outputs(*args, **more)
        processed.request_outputs.clear()
        return processed


def test_continuing_is_supported_when_vllm_is_the_one_we_install() -> None:
    assert unsupported_reason() is None


@pytest.mark.parametrize(
    ("client", "processor", "message"),
    [
        (OtherClient, OutputProcessor, "_add_request takes self, request, queue, not self"),
        (AsyncLLM, ForgetfulProcessor, "a replay failed with KeyError"),
        (AsyncLLM, LosingProcessor, "a replay failed with AttributeError"),
    ],
)
def test_continuing_is_unsupported_when_vllm_works_otherwise(
    client: type, processor: type, message: str
) -> None:
    reason = unsupported_reason(client, processor)
    assert reason is not None
    assert message in reason
