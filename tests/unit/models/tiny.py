"""A llama of a few thousand parameters as a GGUF file, so that no test needs a download."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

HIDDEN, HEADS, KEY_HEADS, WIDTH, LAYERS = 64, 4, 2, 96, 2
CONTEXT = 128
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level_alphabet() -> list[str]:
    """The 256 characters that byte-level BPE writes bytes as, in the order of the bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(extra)) for byte in range(256)]


def vocabulary() -> list[str]:
    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_level_alphabet(), "he", "ll"]


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """By GGUF name, rows outermost as numpy has them."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.3).astype(np.float32)

    head = HIDDEN // HEADS
    made = {
        "token_embd.weight": normal(len(vocabulary()), HIDDEN),
        "output_norm.weight": 1 + normal(HIDDEN),
    }
    for layer in range(LAYERS):
        made |= {
            f"blk.{layer}.attn_norm.weight": 1 + normal(HIDDEN),
            f"blk.{layer}.attn_q.weight": normal(HEADS * head, HIDDEN),
            f"blk.{layer}.attn_k.weight": normal(KEY_HEADS * head, HIDDEN),
            f"blk.{layer}.attn_v.weight": normal(KEY_HEADS * head, HIDDEN),
            f"blk.{layer}.attn_output.weight": normal(HIDDEN, HEADS * head),
            f"blk.{layer}.ffn_norm.weight": 1 + normal(HIDDEN),
            f"blk.{layer}.ffn_gate.weight": normal(WIDTH, HIDDEN),
            f"blk.{layer}.ffn_up.weight": normal(WIDTH, HIDDEN),
            f"blk.{layer}.ffn_down.weight": normal(HIDDEN, WIDTH),
        }
    return made


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    pre_tokenizer: str = "smollm",
    template: str | None = TEMPLATE,
    quantise: bool = True,
    extra: dict[str, np.ndarray] | None = None,
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    tokens = vocabulary()
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["h e", "l l"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    if template is not None:
        writer.add_chat_template(template)
    for name, data in {**tensors(), **(extra or {})}.items():
        if quantise and name.endswith("attn_v.weight"):
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
