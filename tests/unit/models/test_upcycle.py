"""Upcycling: a mixture of experts that computes what the dense model computes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman_serving.models.folder import ModelFolderError
from pointsman_serving.models.gguf import write_model_folder
from pointsman_serving.models.upcycle import (
    MoeShape,
    UpcycleError,
    UpcycleOptions,
    upcycle_model,
)
from tests.unit.models import tiny

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dense")
    (path / "model").mkdir()
    write_model_folder(tiny.write_gguf(path / "tiny.gguf"), path / "model")
    return path / "model"


@pytest.fixture(scope="module")
def dense_qwen3(tmp_path_factory: pytest.TempPathFactory, dense: Path) -> Path:
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

    path = tmp_path_factory.mktemp("qwen3")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(path)
    AutoTokenizer.from_pretrained(dense, local_files_only=True).save_pretrained(path)
    return path


def logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    ).eval()
    with torch.inference_mode():
        found: torch.Tensor = model(torch.tensor([[1, 40, 90, 3, 200, 77, 12]])).logits
    return found


@pytest.mark.parametrize("name", ["dense", "dense_qwen3"])
def test_moe_says_what_the_dense_model_says_when_there_is_no_noise(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source: Path = request.getfixturevalue(name)

    upcycle_model(source, tmp_path / "moe", UpcycleOptions(noise=0.0))

    torch.testing.assert_close(logits(tmp_path / "moe"), logits(source), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("dense", "MixtralForCausalLM"), ("dense_qwen3", "Qwen3MoeForCausalLM")],
)
def test_moe_has_the_shape_that_fits_its_source(
    name: str, architecture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    options = UpcycleOptions(experts=3, top_k=1)
    upcycle_model(request.getfixturevalue(name), tmp_path / "moe", options)

    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "moe", local_files_only=True)

    assert architecture == type(model).__name__
    assert model.config.num_experts_per_tok == 1
    experts = model.model.layers[1].mlp.experts
    assert experts.gate_up_proj.shape[0] == experts.down_proj.shape[0] == 3


def test_moe_differs_a_little_from_the_dense_model_when_there_is_noise(
    dense: Path, tmp_path: Path
) -> None:
    upcycle_model(dense, tmp_path / "moe", UpcycleOptions(noise=0.01))

    error = (logits(tmp_path / "moe") - logits(dense)).abs().max()

    assert 0 < float(error) < 0.2 * float(logits(dense).abs().max())


def test_moe_keeps_the_tokenizer_and_the_template(dense: Path, tmp_path: Path) -> None:
    upcycle_model(dense, tmp_path / "moe", UpcycleOptions())

    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (dense / name).read_bytes() == (tmp_path / "moe" / name).read_bytes()


@given(st.integers(0, 2**40))
@settings(max_examples=5, deadline=None)
def test_moe_is_the_same_when_the_seed_is(
    dense: Path, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    path = tmp_path_factory.mktemp("seeds")
    for name, number in (("a", seed), ("b", seed), ("c", seed + 1)):
        upcycle_model(dense, path / name, UpcycleOptions(seed=number))

    a, b, c = ((path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_moe_is_made_once_and_another_is_refused(dense: Path, tmp_path: Path) -> None:
    assert upcycle_model(dense, tmp_path / "moe", UpcycleOptions()).made
    assert not upcycle_model(dense, tmp_path / "moe", UpcycleOptions()).made
    with pytest.raises(ModelFolderError, match="experts is 4, wanted 8"):
        upcycle_model(dense, tmp_path / "moe", UpcycleOptions(experts=8))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (UpcycleOptions(experts=1), "experts is 1; allowed are 2 to 256"),
        (UpcycleOptions(top_k=5), "top-k is 5; allowed are 1 to the number of experts, 4"),
        (UpcycleOptions(top_k=0), "top-k is 0"),
        (UpcycleOptions(noise=-1.0), "noise is -1.0"),
        (UpcycleOptions(seed=-1), "seed is -1"),
        (UpcycleOptions(shape=MoeShape.QWEN3_MOE), "use --shape mixtral"),
    ],
)
def test_upcycling_says_what_is_allowed_when_an_option_is_wrong(
    dense: Path, options: UpcycleOptions, says: str, tmp_path: Path
) -> None:
    with pytest.raises(UpcycleError, match=says):
        upcycle_model(dense, tmp_path / "moe", options)
    assert not (tmp_path / "moe").exists()


@pytest.mark.parametrize(
    ("configuration", "says"),
    [
        (None, "is no model folder"),
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ({"model_type": "bert"}, "model_type is 'bert'; allowed are the dense types"),
        ({"model_type": "llama", "mlp_bias": True}, "has mlp_bias"),
        ({"model_type": "llama", "num_hidden_layers": 3}, "has no tensor model.layers.2"),
    ],
)
def test_upcycling_says_what_is_wrong_when_the_source_does_not_fit(
    dense: Path, configuration: object, says: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.safetensors").symlink_to(dense / "model.safetensors")
    if configuration is not None:
        text = configuration if isinstance(configuration, str) else json.dumps(configuration)
        (source / "config.json").write_text(text, encoding="utf-8")

    with pytest.raises(UpcycleError, match=says):
        upcycle_model(source, tmp_path / "moe", UpcycleOptions())


def test_upcycling_onto_itself_is_refused(dense: Path) -> None:
    with pytest.raises(UpcycleError, match="the same folder"):
        upcycle_model(dense, dense, UpcycleOptions(), force=True)
