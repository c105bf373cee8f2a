"""Where models are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from pointsman_serving.models.cache import (
    ModelNameError,
    cache_root,
    model_directory,
    models_directory,
)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"POINTSMAN_CACHE": "/c", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/c"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/pointsman"),
        ({"HOME": "/h"}, "/h/.cache/pointsman"),
        ({"POINTSMAN_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/pointsman"),
    ],
)
def test_cache_root_is_the_first_that_is_stated(environment: dict[str, str], expected: str) -> None:
    assert Path(expected) == cache_root(environment)
    assert Path(expected) / "models" == models_directory(environment)


def test_model_directory_is_below_the_given_folder() -> None:
    assert Path("/m/smollm2-moe") == model_directory("smollm2-moe", models=Path("/m"))


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "-a", "a-", "a" * 64, "a b"])
def test_model_directory_refuses_when_the_name_is_no_folder_name(name: str) -> None:
    with pytest.raises(ModelNameError, match="allowed are 1 to 63"):
        model_directory(name)
