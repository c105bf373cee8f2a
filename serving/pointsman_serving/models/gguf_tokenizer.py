"""From a GGUF file's vocabulary to the tokenizer files of a Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pointsman_serving.models.catalog import ModelSourceError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CONTROL = 3
"""GGUF's token type for tokens that no text spells."""

_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}

# The vocabulary does not say how text is cut before merging: GGUF names the rule, and a wrong rule
# still decodes to the same text but tokenises numbers as the model has never seen them.
_PRE_TOKENIZERS: dict[str, dict[str, object]] = {
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
    },
    "gpt-2": _BYTE_LEVEL,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """A byte-level BPE vocabulary; ids are positions in ``tokens``."""

    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]
    """Pairs joined by a space, best first."""
    pre_tokenizer: str
    beginning_id: int | None
    end_id: int
    unknown_id: int | None
    padding_id: int | None
    chat_template: str
    context_tokens: int


def tokenizer_document(vocabulary: Vocabulary) -> dict[str, object]:
    """The content of ``tokenizer.json``.

    Raises:
        ModelSourceError: the rule for cutting text is not known here.
    """
    if vocabulary.pre_tokenizer not in _PRE_TOKENIZERS:
        known = ", ".join(sorted(_PRE_TOKENIZERS))
        message = (
            f"tokenizer.ggml.pre is {vocabulary.pre_tokenizer!r}; allowed are: {known}; "
            "import a model with one of these"
        )
        raise ModelSourceError(message)
    specials = [index for index, kind in enumerate(vocabulary.types) if kind == _CONTROL]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": vocabulary.tokens[index],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index in specials
        ],
        "normalizer": None,
        "pre_tokenizer": _PRE_TOKENIZERS[vocabulary.pre_tokenizer],
        "post_processor": None,
        "decoder": {**_BYTE_LEVEL, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(vocabulary.tokens)},
            "merges": [merge.split(" ", 1) for merge in vocabulary.merges],
        },
    }


def tokenizer_settings(vocabulary: Vocabulary) -> Mapping[str, object]:
    """The content of ``tokenizer_config.json``."""
    named = {
        "bos_token": vocabulary.beginning_id,
        "eos_token": vocabulary.end_id,
        "unk_token": vocabulary.unknown_id,
        "pad_token": vocabulary.padding_id,
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": vocabulary.context_tokens,
        **{key: vocabulary.tokens[index] for key, index in named.items() if index is not None},
    }
