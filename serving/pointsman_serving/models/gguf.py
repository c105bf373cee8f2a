"""Import of a GGUF file of the llama architecture into a Hugging Face model folder.

The file is read with the ``gguf`` package and numpy: weights are dequantised, rounded to bfloat16
and renamed; no model is built and torch is not imported, which makes it a matter of seconds. The
queries' and keys' rows go back into Hugging Face's order: llama.cpp stores each head's two halves
of the rotary embedding interleaved.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pointsman_serving.models.bfloat16 import BFloat16Array, Float32Array, to_bfloat16
from pointsman_serving.models.catalog import (
    ModelSourceError,
    PackagedModel,
    locate_packaged_model,
    verify_file,
)
from pointsman_serving.models.folder import ModelFolder, make_model_folder
from pointsman_serving.models.gguf_tokenizer import (
    Vocabulary,
    tokenizer_document,
    tokenizer_settings,
)
from pointsman_serving.models.safetensors_file import TensorEntry, write_safetensors

if TYPE_CHECKING:
    from pathlib import Path

    from gguf import GGUFReader

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""

_FORMAT_VERSION = 1
"""Part of the recipe: folders made by an older importer are told apart."""

_GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


def import_packaged_model(
    model: PackagedModel, target: Path, *, force: bool = False, progress: Progress | None = None
) -> ModelFolder:
    """Turn a packaged GGUF file into a model folder, once.

    Args:
        model: an entry of :data:`~pointsman_serving.models.catalog.PACKAGED_MODELS`.
        target: the folder to make.
        force: make it again where it is there.
        progress: called as tensors are written.

    Raises:
        ModelSourceError: the package is missing or its file is not the one that is expected.
        ModelFolderError: the target holds something else, or the disk refuses.
    """
    recipe = {
        "kind": "gguf-import",
        "version": _FORMAT_VERSION,
        "source": model.file_name,
        "sha256": model.sha256,
        "dtype": "bfloat16",
    }

    def build(folder: Path) -> None:
        source = locate_packaged_model(model)
        verify_file(source, size_bytes=model.size_bytes, sha256=model.sha256)
        write_model_folder(source, folder, progress=progress)

    return make_model_folder(target, recipe, build, force=force)


def write_model_folder(source: Path, folder: Path, *, progress: Progress | None = None) -> None:
    """Write a GGUF file's model as Hugging Face files into a folder that exists.

    Raises:
        ModelSourceError: the file is not GGUF, or of another architecture or tokenizer.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(source)
    except (ValueError, IndexError, OSError) as error:
        message = f"{source} is not a readable GGUF file: {error}; name a .gguf file"
        raise ModelSourceError(message) from error
    fields = {name: field.contents() for name, field in reader.fields.items()}
    _require(source, fields, "general.architecture", "llama")
    _require(source, fields, "tokenizer.ggml.model", "gpt2")
    vocabulary = _vocabulary(fields)
    entries = _entries(reader, fields)
    tied = all(entry.name != "lm_head.weight" for entry in entries)
    _write_json(folder / "config.json", llama_configuration(fields, vocabulary, tied=tied))
    _write_json(folder / "generation_config.json", _generation_configuration(vocabulary))
    _write_json(folder / "tokenizer.json", tokenizer_document(vocabulary), indent=None)
    _write_json(folder / "tokenizer_config.json", tokenizer_settings(vocabulary))
    (folder / "chat_template.jinja").write_text(vocabulary.chat_template, encoding="utf-8")
    write_safetensors(folder / "model.safetensors", entries, progress=progress)


def llama_configuration(
    fields: Mapping[str, Any], vocabulary: Vocabulary, *, tied: bool
) -> dict[str, object]:
    """The content of ``config.json`` for a GGUF file's metadata."""
    heads = int(fields["llama.attention.head_count"])
    hidden = int(fields["llama.embedding_length"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": vocabulary.beginning_id,
        "eos_token_id": vocabulary.end_id,
        "pad_token_id": vocabulary.padding_id,
        "dtype": "bfloat16",
        "head_dim": int(fields.get("llama.rope.dimension_count", hidden // heads)),
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": int(fields["llama.feed_forward_length"]),
        "max_position_embeddings": vocabulary.context_tokens,
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": int(fields["llama.block_count"]),
        "num_key_value_heads": int(fields.get("llama.attention.head_count_kv", heads)),
        # GGUF keeps it in single precision, which would show as 9.999999747378752e-06.
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": float(fields.get("llama.rope.freq_base", 10_000.0)),
        },
        "tie_word_embeddings": tied,
        "use_cache": True,
        "vocab_size": len(vocabulary.tokens),
    }


def hugging_face_name(name: str) -> str:
    """The name that Hugging Face's llama gives to a GGUF tensor.

    Raises:
        ModelSourceError: a dense llama has no such tensor.
    """
    if name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[name]
    prefix, _, rest = name.partition(".")
    number, _, part = rest.partition(".")
    if prefix == "blk" and number.isdigit() and part in _LAYER_NAMES:
        return f"model.layers.{number}.{_LAYER_NAMES[part]}"
    message = (
        f"GGUF tensor {name!r} belongs to no dense llama model; allowed are "
        f"{', '.join([*_GLOBAL_NAMES, *(f'blk.N.{part}' for part in _LAYER_NAMES)])}"
    )
    raise ModelSourceError(message)


def split_rotary_halves(rows: Float32Array, heads: int) -> Float32Array:
    """Reorder projection rows from interleaved pairs to two halves in each head.

    Args:
        rows: [heads * head_dim, hidden], as llama.cpp stores queries and keys.
        heads: how many heads the rows are of.
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _entries(reader: GGUFReader, fields: Mapping[str, Any]) -> list[TensorEntry]:
    from gguf import dequantize

    heads = int(fields["llama.attention.head_count"])
    key_heads = int(fields.get("llama.attention.head_count_kv", heads))

    def entry(tensor: Any) -> TensorEntry:
        name = hugging_face_name(tensor.name)

        def load() -> BFloat16Array:
            values = dequantize(tensor.data, tensor.tensor_type)
            if name.endswith("q_proj.weight"):
                values = split_rotary_halves(values, heads)
            elif name.endswith("k_proj.weight"):
                values = split_rotary_halves(values, key_heads)
            return to_bfloat16(np.asarray(values, dtype=np.float32))

        # GGUF counts dimensions from the innermost.
        shape = tuple(int(size) for size in reversed(tensor.shape))
        return TensorEntry(name=name, shape=shape, load=load)

    return [entry(tensor) for tensor in reader.tensors if tensor.name != "rope_freqs.weight"]


def _vocabulary(fields: Mapping[str, Any]) -> Vocabulary:
    template = fields.get("tokenizer.chat_template")
    if not template:
        message = (
            "the GGUF file has no tokenizer.chat_template, so chats could not be served; "
            "import an instruct model"
        )
        raise ModelSourceError(message)
    return Vocabulary(
        tokens=fields["tokenizer.ggml.tokens"],
        types=fields["tokenizer.ggml.token_type"],
        merges=fields["tokenizer.ggml.merges"],
        pre_tokenizer=str(fields.get("tokenizer.ggml.pre", "gpt-2")),
        beginning_id=fields.get("tokenizer.ggml.bos_token_id"),
        end_id=int(fields["tokenizer.ggml.eos_token_id"]),
        unknown_id=fields.get("tokenizer.ggml.unknown_token_id"),
        padding_id=fields.get("tokenizer.ggml.padding_token_id"),
        chat_template=str(template),
        context_tokens=int(fields["llama.context_length"]),
    )


def _generation_configuration(vocabulary: Vocabulary) -> dict[str, object]:
    return {
        "bos_token_id": vocabulary.beginning_id,
        "eos_token_id": vocabulary.end_id,
        "pad_token_id": vocabulary.padding_id,
    }


def _require(source: Path, fields: Mapping[str, Any], key: str, allowed: str) -> None:
    found = fields.get(key)
    if found != allowed:
        message = f"{source}: {key} is {found!r}, allowed is {allowed!r}; import such a model"
        raise ModelSourceError(message)


def _write_json(path: Path, document: object, *, indent: int | None = 2) -> None:
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
