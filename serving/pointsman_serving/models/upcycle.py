"""A mixture of experts from a dense model: sparse upcycling.

Each layer's MLP is copied into E experts with a little noise, and a random router is put over
them (Komatsuzaki et al., "Sparse Upcycling", 2022). The router's top-k weights add up to one and
the experts are nearly equal, so the model says what the dense one says, through real MoE code
paths and without a download. It is no better than its source: it is there to be served and tested.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from pointsman_serving.models.bfloat16 import BFloat16Array, from_bfloat16, to_bfloat16
from pointsman_serving.models.folder import (
    ModelFolder,
    ModelFolderError,
    is_model_folder,
    make_model_folder,
    recipe_of,
)
from pointsman_serving.models.safetensors_file import (
    TensorEntry,
    read_safetensors,
    write_safetensors,
)

if TYPE_CHECKING:
    from pathlib import Path

Progress = Callable[[int, int], None]

_FORMAT_VERSION = 1
_COPIED_FILES = (
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_ROUTER_DEVIATION = 0.02
_MAX_EXPERTS = 256
_NOISE_LIMIT = 0.5


class UpcycleError(ValueError):
    """A source, shape or number that cannot be upcycled."""


class MoeShape(StrEnum):
    """Whose checkpoint layout the result has."""

    MIXTRAL = "mixtral"
    QWEN3_MOE = "qwen3-moe"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    source_types: tuple[str, ...]
    """Dense model types whose attention the shape can express without a change."""
    model_type: str
    architecture: str
    block: str
    """Path of the MoE block inside a layer."""
    gate: str
    up: str
    down: str


# Qwen3 normalises queries and keys in each head and llama does not, so the one's attention cannot
# be written as the other's.
_LAYOUTS = {
    MoeShape.MIXTRAL: _Layout(
        source_types=("llama", "mistral"),
        model_type="mixtral",
        architecture="MixtralForCausalLM",
        block="block_sparse_moe",
        gate="w1",
        up="w3",
        down="w2",
    ),
    MoeShape.QWEN3_MOE: _Layout(
        source_types=("qwen3",),
        model_type="qwen3_moe",
        architecture="Qwen3MoeForCausalLM",
        block="mlp",
        gate="gate_proj",
        up="up_proj",
        down="down_proj",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UpcycleOptions:
    """What to make of the dense model."""

    experts: int = 4
    top_k: int = 2
    shape: MoeShape | None = None
    """None: the one that fits the source."""
    seed: int = 0
    noise: float = 0.01
    """Standard deviation of the noise on each expert, relative to that of the weights."""


def upcycle_model(
    source: Path,
    target: Path,
    options: UpcycleOptions,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> ModelFolder:
    """Make a mixture of experts of a dense model folder, once.

    The same source, options and seed give the same bytes.

    Args:
        source: a Hugging Face folder with bfloat16 weights in one or more safetensors files.
        target: the folder to make.
        force: make it again where it is there.
        progress: called with (tensors written, tensors in all).

    Raises:
        UpcycleError: the source or an option does not fit; says what is allowed.
        ModelFolderError: the target holds something else, or the disk refuses.
        SafetensorsError: the source's weights cannot be read.
    """
    _check_options(options)
    configuration = _dense_configuration(source)
    layout, shape = _layout(configuration, options.shape)
    recipe: dict[str, object] = {
        "kind": "upcycle",
        "version": _FORMAT_VERSION,
        "source": _identity(source),
        "shape": shape.value,
        "experts": options.experts,
        "top_k": options.top_k,
        "seed": options.seed,
        "noise": options.noise,
    }
    if source.resolve() == target.resolve():
        message = f"{target}: source and target are the same folder; choose another target name"
        raise UpcycleError(message)

    def build(folder: Path) -> None:
        for name in _COPIED_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        document = moe_configuration(configuration, layout_name=shape, options=options)
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
        tensors: dict[str, BFloat16Array] = {}
        for file in sorted(source.glob("*.safetensors")):
            tensors.update(read_safetensors(file))
        entries = _entries(tensors, layout, options, layers=configuration["num_hidden_layers"])
        write_safetensors(folder / "model.safetensors", entries, progress=progress)

    return make_model_folder(target, recipe, build, force=force)


def moe_configuration(
    dense: Mapping[str, Any], *, layout_name: MoeShape, options: UpcycleOptions
) -> dict[str, object]:
    """The content of ``config.json``: the dense one with the MoE fields of the shape."""
    layout = _LAYOUTS[layout_name]
    dropped = {"architectures", "model_type", "mlp_bias", "attention_bias", "pretraining_tp"}
    kept = {key: value for key, value in dense.items() if key not in dropped}
    common: dict[str, object] = {
        "architectures": [layout.architecture],
        "model_type": layout.model_type,
        **kept,
        "num_experts_per_tok": options.top_k,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }
    if layout_name is MoeShape.MIXTRAL:
        return {**common, "num_local_experts": options.experts, "sliding_window": None}
    return {
        **common,
        "attention_bias": dense.get("attention_bias", False),
        "num_experts": options.experts,
        "moe_intermediate_size": dense["intermediate_size"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        # Without it the top-k weights would not add up to one and the sum would shrink.
        "norm_topk_prob": True,
    }


def _check_options(options: UpcycleOptions) -> None:
    if not 2 <= options.experts <= _MAX_EXPERTS:
        message = f"experts is {options.experts}; allowed are 2 to {_MAX_EXPERTS}; try 4"
        raise UpcycleError(message)
    if not 1 <= options.top_k <= options.experts:
        message = (
            f"top-k is {options.top_k}; allowed are 1 to the number of experts, "
            f"{options.experts}; try 2"
        )
        raise UpcycleError(message)
    if not 0 <= options.noise <= _NOISE_LIMIT:
        message = f"noise is {options.noise}; allowed are 0 to {_NOISE_LIMIT}; try 0.01"
        raise UpcycleError(message)
    if options.seed < 0:
        message = f"seed is {options.seed}; allowed are 0 and above; try 0"
        raise UpcycleError(message)


def _dense_configuration(source: Path) -> dict[str, Any]:
    if not is_model_folder(source):
        message = (
            f"{source} is no model folder (config.json and *.safetensors are needed); "
            "make it first, for example with `pointsman model import smollm2`"
        )
        raise UpcycleError(message)
    try:
        configuration = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        message = f"{source / 'config.json'} is not JSON: {error}; make the source again"
        raise UpcycleError(message) from error
    if not isinstance(configuration, dict):
        message = f"{source / 'config.json'} is not a JSON object; make the source again"
        raise UpcycleError(message)
    return configuration


def _layout(configuration: Mapping[str, Any], wanted: MoeShape | None) -> tuple[_Layout, MoeShape]:
    kind = configuration.get("model_type")
    fitting = [shape for shape, layout in _LAYOUTS.items() if kind in layout.source_types]
    if not fitting:
        allowed = sorted(kind for layout in _LAYOUTS.values() for kind in layout.source_types)
        message = (
            f"the source's model_type is {kind!r}; allowed are the dense types "
            f"{', '.join(allowed)}; choose such a source"
        )
        raise UpcycleError(message)
    if wanted is not None and wanted not in fitting:
        message = (
            f"shape {wanted.value} cannot express the attention of a {kind} model; allowed here "
            f"is {fitting[0].value}; use --shape {fitting[0].value}"
        )
        raise UpcycleError(message)
    for field in ("attention_bias", "mlp_bias"):
        if configuration.get(field):
            message = f"the source has {field}, which no shape has; choose a source without"
            raise UpcycleError(message)
    return _LAYOUTS[fitting[0]], fitting[0]


def _identity(source: Path) -> object:
    recipe = recipe_of(source)
    if recipe is not None:
        return recipe
    files = sorted(source.glob("*.safetensors"))
    return {"folder": source.name, "bytes": {file.name: file.stat().st_size for file in files}}


def _entries(
    tensors: Mapping[str, BFloat16Array],
    layout: _Layout,
    options: UpcycleOptions,
    *,
    layers: int,
) -> list[TensorEntry]:
    entries = [
        TensorEntry(name=name, shape=data.shape, load=_constant(data))
        for name, data in tensors.items()
        if ".mlp." not in name
    ]
    projections = {"gate_proj": layout.gate, "up_proj": layout.up, "down_proj": layout.down}
    for layer in range(layers):
        block = f"model.layers.{layer}.{layout.block}"
        for dense_name, name in projections.items():
            source_name = f"model.layers.{layer}.mlp.{dense_name}.weight"
            if source_name not in tensors:
                message = (
                    f"the source has no tensor {source_name}; its files do not fit its "
                    "config.json; make the source again"
                )
                raise UpcycleError(message)
            data = tensors[source_name]
            for expert in range(options.experts):
                entry = f"{block}.experts.{expert}.{name}.weight"
                load = _noisy(data, entry, options)
                entries.append(TensorEntry(name=entry, shape=data.shape, load=load))
        hidden = tensors[f"model.layers.{layer}.mlp.gate_proj.weight"].shape[1]
        router = f"{block}.gate.weight"
        shape = (options.experts, hidden)
        entries.append(TensorEntry(name=router, shape=shape, load=_router(router, shape, options)))
    return entries


def _generator(options: UpcycleOptions, name: str) -> np.random.Generator:
    # By name, so that the order in which threads ask changes nothing.
    return np.random.default_rng([options.seed, zlib.crc32(name.encode())])


def _constant(data: BFloat16Array) -> Callable[[], BFloat16Array]:
    return lambda: data


def _noisy(data: BFloat16Array, name: str, options: UpcycleOptions) -> Callable[[], BFloat16Array]:
    def load() -> BFloat16Array:
        if options.noise == 0:
            return data
        values = from_bfloat16(data)
        noise = _generator(options, name).standard_normal(data.shape, dtype=np.float32)
        noise *= np.float32(options.noise * float(values.std()))
        noise += values
        return to_bfloat16(noise)

    return load


def _router(
    name: str, shape: tuple[int, ...], options: UpcycleOptions
) -> Callable[[], BFloat16Array]:
    def load() -> BFloat16Array:
        values = _generator(options, name).standard_normal(shape, dtype=np.float32)
        return to_bfloat16(values * np.float32(_ROUTER_DEVIATION))

    return load


__all__ = [
    "ModelFolderError",
    "MoeShape",
    "UpcycleError",
    "UpcycleOptions",
    "moe_configuration",
    "upcycle_model",
]
