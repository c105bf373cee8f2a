"""Model folders appear whole or not at all."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING

import pytest

from pointsman_serving.models.folder import (
    ModelFolderError,
    is_model_folder,
    make_model_folder,
    recipe_of,
)

if TYPE_CHECKING:
    import threading
    from pathlib import Path

RECIPE = {"kind": "test", "seed": 1}


def write(folder: Path, text: str = "weights") -> None:
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_text(text, encoding="utf-8")


def visible(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir() if not path.name.endswith(".lock"))


def test_folder_is_made_with_its_recipe(tmp_path: Path) -> None:
    made = make_model_folder(tmp_path / "models" / "m", RECIPE, write)

    assert made.made
    assert is_model_folder(made.path)
    assert recipe_of(made.path) == RECIPE
    assert visible(tmp_path / "models") == ["m"]


def test_folder_is_kept_when_it_is_there_already(tmp_path: Path) -> None:
    make_model_folder(tmp_path / "m", RECIPE, write)

    again = make_model_folder(tmp_path / "m", RECIPE, lambda folder: write(folder, "other"))

    assert not again.made
    assert (tmp_path / "m" / "model.safetensors").read_text(encoding="utf-8") == "weights"


def test_folder_is_replaced_when_forced(tmp_path: Path) -> None:
    make_model_folder(tmp_path / "m", RECIPE, write)

    again = make_model_folder(
        tmp_path / "m", RECIPE, lambda folder: write(folder, "other"), force=True
    )

    assert again.made
    assert (tmp_path / "m" / "model.safetensors").read_text(encoding="utf-8") == "other"
    assert visible(tmp_path) == ["m"]


def test_folder_of_another_recipe_is_refused(tmp_path: Path) -> None:
    make_model_folder(tmp_path / "m", RECIPE, write)

    with pytest.raises(ModelFolderError, match="seed is 1, wanted 2; use --force"):
        make_model_folder(tmp_path / "m", {**RECIPE, "seed": 2}, write)


def test_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "precious").write_text("", encoding="utf-8")

    with pytest.raises(ModelFolderError, match="did not make"):
        make_model_folder(tmp_path / "m", RECIPE, write)
    assert (tmp_path / "m" / "precious").exists()


def test_folder_with_files_missing_is_refused(tmp_path: Path) -> None:
    make_model_folder(tmp_path / "m", RECIPE, write)
    (tmp_path / "m" / "model.safetensors").unlink()

    with pytest.raises(ModelFolderError, match="files missing"):
        make_model_folder(tmp_path / "m", RECIPE, write)


def test_nothing_is_left_when_the_build_fails(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        write(folder)
        raise KeyError("no such tensor")

    with pytest.raises(KeyError):
        make_model_folder(tmp_path / "m", RECIPE, fail)
    assert visible(tmp_path) == []


def test_the_old_folder_stays_when_a_forced_build_fails(tmp_path: Path) -> None:
    make_model_folder(tmp_path / "m", RECIPE, write)

    def fail(folder: Path) -> None:
        raise KeyError("no such tensor")

    with pytest.raises(KeyError):
        make_model_folder(tmp_path / "m", RECIPE, fail, force=True)
    assert is_model_folder(tmp_path / "m")


def test_leftovers_of_a_crash_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".m.0123.draft").mkdir()
    (tmp_path / ".other.0123.draft").mkdir()

    make_model_folder(tmp_path / "m", RECIPE, write)

    assert visible(tmp_path) == [".other.0123.draft", "m"]


def test_the_disk_is_named_when_it_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")

    with pytest.raises(ModelFolderError, match="cannot make the model folder"):
        make_model_folder(tmp_path / "file" / "m", RECIPE, write)


def _build_in_another_process(target: Path, log: Path, barrier: threading.Barrier) -> None:
    def build(folder: Path) -> None:
        with log.open("a", encoding="utf-8") as file:
            file.write("built\n")
        write(folder)

    barrier.wait(timeout=30)
    make_model_folder(target, RECIPE, build)


def test_one_process_builds_when_several_ask_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    log = tmp_path / "log"
    processes = [
        context.Process(
            target=_build_in_another_process, args=(tmp_path / "models" / "m", log, barrier)
        )
        for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=30)

    assert [process.exitcode for process in processes] == [0] * 4
    assert log.read_text(encoding="utf-8") == "built\n"
    assert is_model_folder(tmp_path / "models" / "m")
