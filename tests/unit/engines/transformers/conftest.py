"""A tiny mixture of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pointsman_serving.models.gguf import write_model_folder
from pointsman_serving.models.upcycle import UpcycleOptions, upcycle_model
from tests.unit.models import tiny

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("transformers")
    (path / "dense").mkdir()
    write_model_folder(tiny.write_gguf(path / "tiny.gguf"), path / "dense")
    upcycle_model(path / "dense", path / "moe", UpcycleOptions(experts=3, top_k=2))
    return path / "moe"
