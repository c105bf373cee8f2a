"""The images of the test cluster."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cluster.node.images import Recipe, build
from tests.cluster.node.layout import cache_folder
from tests.cluster.node.process import ClusterError, run

if TYPE_CHECKING:
    from collections.abc import Mapping

CHECKOUT = Path(__file__).resolve().parents[3]
SUITE = "bookworm"
"""Of Debian. Its Python is 3.11, as in the images that users start from."""
_PACKAGES = ("python3", "python3-venv", "ca-certificates", "libnuma1", "libgomp1", "tini")

_PAUSE_SOURCE = """
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int s) { (void)s; _exit(0); }
static void reap(int s) { (void)s; while (waitpid(-1, 0, WNOHANG) > 0) {} }
int main(void) {
  signal(SIGINT, end); signal(SIGTERM, end); signal(SIGCHLD, reap);
  for (;;) pause();
}
"""

_FROM_BASE = "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n"

# KubeRay runs Ray through a login shell, whose PATH is the profile's. No links: through one Python
# does not find the environment that it belongs to.
_OFFER_PROGRAMS = (
    "RUN for program in ray python python3 serve; do "
    'printf \'#!/bin/sh\\nexec %s "$@"\\n\' "{venv}/bin/$program" '
    '> "/usr/local/bin/$program" && chmod 755 "/usr/local/bin/$program"; done\n'
)


def pause_image() -> Recipe:
    """The container that holds a pod's network: ten lines of C, linked statically."""
    program = cache_folder() / "pause"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "pause.c"
            source.write_text(_PAUSE_SOURCE)
            run([_compiler(), "-Os", "-static", "-s", "-o", f"{program}.partial", source])
        Path(f"{program}.partial").replace(program)
    return Recipe(
        name="pause",
        containerfile='FROM scratch\nCOPY pause /pause\nENTRYPOINT ["/pause"]\n',
        context={"pause": program},
    )


def base_image() -> Recipe:
    """Debian with Python: what the images of the tests start from."""
    name = f"rootfs-{SUITE}-{'-'.join(_PACKAGES)}.tar"
    archive = cache_folder() / name
    if not archive.exists():
        _bootstrap(archive)
    return Recipe(
        name="base",
        containerfile='FROM scratch\nADD rootfs.tar /\nCMD ["bash"]\n',
        context={"rootfs.tar": archive},
    )


def build_base() -> Recipe:
    """The base image, built: its archive is a `BASE_IMAGE` for other Containerfiles."""
    recipe = base_image()
    build(recipe)
    return recipe


def engine_image() -> Recipe:
    """Ray Serve and what the Simulated engine needs; our own packages come from outside."""
    lock = CHECKOUT / "requirements" / "dev.txt"
    return Recipe(
        name="engine",
        base=base_image(),
        containerfile=_FROM_BASE
        + "ARG SSL_CERT_FILE UV_SYSTEM_CERTS UV_LINK_MODE UV_CACHE_DIR\n"
        + "COPY dev.txt /tmp/dev.txt\n"
        + "RUN python3 -m venv --without-pip /opt/venv && /build-tools/uv pip install --quiet "
        + "--python /opt/venv/bin/python --constraint /tmp/dev.txt 'ray[serve]' starlette xxhash "
        + "prometheus-client pydantic PyYAML google-re2 uvloop httptools && rm /tmp/dev.txt && "
        + "find /opt/venv -name '*.pyi' -delete\n"
        + _OFFER_PROGRAMS.format(venv="/opt/venv"),
        context={"dev.txt": lock},
        volumes=uv_volumes(),
    )


def host_environment_image(environment: Path) -> Recipe:
    """A slim image that runs what ``environment``, mounted from the node, has installed.

    For engines whose packages are gigabytes. The pod mounts :func:`host_environment_folders`, each
    at its own path.
    """
    return Recipe(
        name="host-environment",
        base=base_image(),
        # vLLM compiles on first use. The folders above the mounts must be open to any user.
        containerfile=_FROM_BASE
        + "ARG SSL_CERT_FILE\n"
        + f"RUN {_install('g++')} && chmod 755 /root\n"
        + _OFFER_PROGRAMS.format(venv=environment),
        volumes=uv_volumes(),
    )


def host_environment_folders(environment: Path) -> list[Path]:
    """The virtual environment, and the interpreter's own folder where that is elsewhere."""
    interpreter = (environment / "bin" / "python").resolve().parents[1]
    return (
        [environment] if interpreter in (environment, Path("/usr")) else [environment, interpreter]
    )


def redis_image() -> Recipe:
    """Debian's Redis."""
    return Recipe(
        name="redis",
        base=base_image(),
        containerfile=_FROM_BASE
        + "ARG SSL_CERT_FILE\n"
        + f"RUN {_install('redis-server')}\n"
        + 'USER redis\nENTRYPOINT ["redis-server"]\n',
        volumes=uv_volumes(),
    )


def kuberay_image(binaries: Mapping[str, Path]) -> Recipe:
    """KubeRay's operator: one static program."""
    return Recipe(
        name="kuberay-operator",
        containerfile="FROM scratch\nCOPY manager /manager\nUSER 65532:65532\n"
        'ENTRYPOINT ["/manager"]\n',
        context={"manager": binaries["kuberay-operator"]},
    )


def _install(package: str) -> str:
    return (
        f"apt-get update -qq && apt-get install -y -qq --no-install-recommends {package} && "
        "apt-get clean && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin"
    )


def _bootstrap(archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pointsman-rootfs-") as folder:
        root = Path(folder) / "root"
        include = f"--include={','.join(_PACKAGES)}"
        run(["debootstrap", "--variant=minbase", include, SUITE, root], timeout_seconds=1200)
        for stale in ("var/cache/apt/archives", "var/lib/apt/lists"):
            shutil.rmtree(root / stale)
            (root / stale / "partial").mkdir(parents=True)
        for cache in (root / "var/cache/apt").glob("*.bin"):
            cache.unlink()
        partial = archive.with_suffix(".partial")
        run(["tar", "--numeric-owner", "--exclude=./dev/*", "-C", root, "-cf", partial, "."])
        partial.replace(archive)


def uv_volumes() -> dict[Path, str]:
    uv = next((path for path in _uv_places() if path.exists()), None)
    if uv is None:
        raise ClusterError("uv is neither in .cache/tools/bin nor on the PATH: run `make install`")
    cache = cache_folder() / "uv"
    cache.mkdir(parents=True, exist_ok=True)
    return {uv.parent: "/build-tools:ro", cache: "/build-cache/uv"}


def _uv_places() -> list[Path]:
    found = shutil.which("uv")
    places = [CHECKOUT / ".cache" / "tools" / "bin" / "uv", Path(sys.executable).parent / "uv"]
    return [*places, Path(found)] if found else places


def _compiler() -> str:
    found = shutil.which("cc") or shutil.which("gcc")
    if found is None:
        raise ClusterError("no C compiler on the PATH: apt-get install gcc libc6-dev")
    return found
