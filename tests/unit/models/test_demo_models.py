"""The two models of the demo, made as the demo makes them, answer in a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from pointsman_kernels.integrations.transformers import count_expert_calls, register
from pointsman_serving.models.catalog import SMOLLM2
from pointsman_serving.models.gguf import import_packaged_model
from pointsman_serving.models.upcycle import UpcycleOptions, upcycle_model

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    import_packaged_model(SMOLLM2, path / "smollm2")
    upcycle_model(path / "smollm2", path / "smollm2-moe", UpcycleOptions(experts=4, top_k=2))
    return path


@pytest.mark.parametrize("name", ["smollm2", "smollm2-moe"])
def test_demo_model_names_the_capital_of_france(models: Path, name: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(
        models / name, dtype=torch.float32, local_files_only=True
    ).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(models / name, local_files_only=True)
    calls = None
    if name == "smollm2-moe":
        model.set_experts_implementation(register())
        calls = count_expert_calls(model)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    plain = tokenizer("The capital of France is", return_tensors="pt")

    for inputs in (chat, plain):
        output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        prompt = inputs["input_ids"].shape[1]
        assert "Paris" in tokenizer.decode(output[0, prompt:])
    if calls is not None:
        assert all(min(layer) > 0 for layer in calls.snapshot())
