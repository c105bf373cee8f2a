"""What of the node cluster can be tried without root; the rest is `tests/e2e_cluster`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.node import host, init
from tests.cluster.node.images import Recipe
from tests.cluster.node.layout import Layout, cache_folder
from tests.cluster.node.node_agents import dns_objects
from tests.cluster.node.phases import Phases
from tests.cluster.node.process import ClusterError, child_ids, run, start, start_time, wait_for
from tests.cluster.node.recipes import host_environment_folders


def test_digest_changes_when_a_file_of_the_context_does(tmp_path: Path) -> None:
    (tmp_path / "program").write_text("one")
    recipe = Recipe(name="a", containerfile="FROM scratch", context={"program": tmp_path})
    before = recipe.digest
    assert before == recipe.digest
    (tmp_path / "program").write_text("two")
    assert before != recipe.digest


@pytest.mark.parametrize(
    "other",
    [
        Recipe(name="a", containerfile="FROM scratch\nUSER 1"),
        Recipe(name="a", containerfile="FROM scratch", arguments={"VERSION": "2"}),
        Recipe(
            name="a",
            containerfile="FROM scratch",
            base=Recipe(name="base", containerfile="FROM scratch"),
        ),
    ],
)
def test_digest_differs_when_the_recipe_does(other: Recipe) -> None:
    assert Recipe(name="a", containerfile="FROM scratch").digest != other.digest


def test_digest_differs_when_only_the_base_of_the_base_does() -> None:
    def image(text: str) -> Recipe:
        root = Recipe(name="root", containerfile=text)
        base = Recipe(name="base", containerfile="ARG BASE_IMAGE\nFROM $BASE_IMAGE", base=root)
        return Recipe(name="top", containerfile="ARG BASE_IMAGE\nFROM $BASE_IMAGE", base=base)

    assert image("FROM scratch").digest != image("FROM scratch\nUSER 1").digest


def test_images_are_kept_below_xdg_cache_home_when_it_is_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tmp_path / "pointsman" / "cluster" == cache_folder()


@pytest.mark.parametrize("name", ["", "Node", "a/b", "-a", "a" * 21])
def test_layout_refuses_when_the_name_fits_no_path(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 20 lower-case letters"):
        Layout.named(name)


def test_missing_programs_are_named_by_their_debian_package_when_the_path_is_empty(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for program in ("ip", "nsenter"):
        tool = tmp_path / program
        tool.write_text("#!/bin/sh\n")
        tool.chmod(0o755)
    monkeypatch.setattr(host, "PATH_FALLBACK", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    packages = host.missing_packages()
    assert {"containerd", "runc", "buildah", "debootstrap", "conntrack"} <= set(packages)
    assert "iproute2" not in packages
    assert any("apt-get install" in line and "buildah" in line for line in host.what_is_missing())


def test_too_little_disk_is_refused_when_images_would_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host, "LEAST_FREE_GIB", 10_000_000)
    with pytest.raises(ClusterError, match=r"GiB are free at .*make room"):
        host.require(install=False)


def test_cluster_names_resolve_at_the_node_when_pods_ask_the_dns_service() -> None:
    service, endpoints = dns_objects()
    assert service["metadata"] == {"name": "kube-dns", "namespace": "kube-system"}
    labels = endpoints["metadata"]
    assert isinstance(labels, dict)
    assert {"kubernetes.io/service-name": "kube-dns"} == labels["labels"]


def test_interpreter_is_mounted_too_when_it_lies_outside_the_environment(tmp_path: Path) -> None:
    interpreter = tmp_path / "versions" / "3.11" / "bin" / "python3.11"
    interpreter.parent.mkdir(parents=True)
    interpreter.touch()
    environment = tmp_path / "venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to(interpreter)
    assert [environment, interpreter.parents[1]] == host_environment_folders(environment)


def test_run_tells_what_the_command_said_when_it_fails() -> None:
    with pytest.raises(ClusterError, match=r"(?s)exit status 3.*no such thing"):
        run([sys.executable, "-c", "print('no such thing'); raise SystemExit(3)"])


def test_wait_shows_the_log_when_a_process_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('port is taken'); raise SystemExit(1)"]
    daemon = start("server", command, tmp_path / "log")
    with pytest.raises(ClusterError, match=r"(?s)server ended while .*port is taken"):
        wait_for("it answers", lambda: False, timeout_seconds=30, daemons=[daemon])


def test_start_time_tells_a_process_from_one_that_is_gone() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert [child.pid] == [pid for pid in child_ids(os.getpid()) if pid == child.pid]
        assert start_time(child.pid) is not None
    finally:
        child.kill()
        child.wait()
    assert start_time(child.pid) is None


def test_first_process_ends_when_its_starter_does() -> None:
    process = subprocess.Popen([sys.executable, init.__file__], stdin=subprocess.PIPE)
    time.sleep(0.3)
    assert process.poll() is None
    assert process.stdin is not None
    process.stdin.close()
    assert 0 == process.wait(10)


def test_phases_keep_their_seconds_when_done_and_tell_of_failures() -> None:
    told: list[str] = []
    phases = Phases(told.append)
    with phases.phase("one"):
        pass
    with pytest.raises(ValueError), phases.phase("two"):
        raise ValueError
    assert ["one"] == list(phases.seconds)
    assert told[1].startswith("✗ two")
