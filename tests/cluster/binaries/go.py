"""Building programs from Go modules, once for each combination of pins, Go version and flags."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests.cluster.binaries.cache import cache_folder, one_at_a_time, say
from tests.cluster.binaries.errors import BinaryMissingError
from tests.cluster.binaries.recipes import GoProgram
from tests.cluster.binaries.wheels import go_toolchain

HERE = Path(__file__).parent
FLAGS = ("-mod=readonly", "-trimpath", "-buildvcs=false")
OLDEST_GO = (1, 25)


def built(name: str, program: GoProgram) -> Path:
    """The built program, from the cache or built now."""
    path = cache_folder() / _key(program) / name
    if path.exists():
        return path
    with one_at_a_time("go"):
        if not path.exists():
            _build(name, program, path)
    return path


def module_folder(module: str, path: str) -> Path:
    """The source of a Go module that one of our go.mod files pins, fetched where it is not."""
    result = _go("list", "-m", "-f", "{{.Dir}}", path, module=module)
    if not result:
        _go("mod", "download", path, module=module)
        result = _go("list", "-m", "-f", "{{.Dir}}", path, module=module)
    return Path(result)


@functools.cache
def go_command() -> Path:
    """``go`` of this machine if it is new enough, else one that is fetched."""
    found = shutil.which("go")
    if found and _version(Path(found)) >= OLDEST_GO:
        return Path(found)
    try:
        return go_toolchain()
    except BinaryMissingError as error:
        oldest = ".".join(map(str, OLDEST_GO))
        raise BinaryMissingError(
            f"The test cluster is built with Go {oldest} or newer, and this machine has "
            f"{'an older one' if found else 'none'}; fetching one failed too: {error}. "
            "Install Go and have it in PATH"
        ) from error


def _version(go: Path) -> tuple[int, ...]:
    # GOTOOLCHAIN=local: how old the installed one is, not what it would fetch.
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    command = [str(go), "env", "GOVERSION"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    parts = done.stdout.strip().removeprefix("go").split(" ")[0].split(".")
    return tuple(int(part) for part in parts[:2] if part.isdigit())


@functools.cache
def _environment() -> dict[str, str]:
    # Without cgo no C compiler is needed and the programs run in any image. Flags of the user's
    # own, such as -mod=mod, would come before ours and could change the pins.
    return {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}


def _go(*arguments: str, module: str) -> str:
    done = subprocess.run(
        [str(go_command()), *arguments],
        cwd=HERE / module,
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )
    if done.returncode:
        raise BinaryMissingError(
            f"go {' '.join(arguments)} failed in {HERE.name}/{module}: "
            f"{done.stderr.strip()[-3000:]}"
        )
    return done.stdout.strip()


@functools.cache
def _key(program: GoProgram) -> str:
    """Names the build: the same pins, sources, compiler and flags give the same programs."""
    digest = hashlib.sha256()
    for path in sorted((HERE / program.module).iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(_go("env", "GOVERSION", "GOOS", "GOARCH", module=program.module).encode())
    digest.update(" ".join((*FLAGS, program.linker_flags)).encode())
    return f"{program.module}-{digest.hexdigest()[:16]}"


def _build(name: str, program: GoProgram, path: Path) -> None:
    minutes = f"{program.minutes:g} minute" + ("s" if program.minutes > 1 else "")
    say(f"Building {name} from its Go module: about {minutes} on two cores, once")
    started = time.monotonic()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / name
        linker = f"-ldflags={program.linker_flags}"
        _go("build", *FLAGS, linker, "-o", str(made), program.package, module=program.module)
        made.rename(path)
    say(f"Built {name} in {time.monotonic() - started:.0f} s")
