"""Sets up environments in which the real ttnn runs on a mock cluster, and runs scripts in them.

TTMEM_TTNN_VENV names ready virtual environments with ttnn (several with ``:`` between them). TTMEM_TTNN_CACHE names a
folder in which the kit makes what is missing, from PyPI. Without either the tests are skipped.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from clusters import descriptor

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LINKER = "riscv64-unknown-elf-ld"
COMPILER = "riscv64-unknown-elf-gcc"
NEEDED = ("cython>=3.1,<4", "ijson>=3.2", "numpy", "setuptools>=77")
"""What ttmem needs of a Python with ttnn: to be built, and to follow."""


class UnavailableError(Exception):
    """No environment can be had; the text says what is missing."""


def _output(*command: str | Path) -> str:
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@functools.lru_cache
def namespace_command() -> tuple[str, ...]:
    """Return the command that runs another one in a mount namespace of its own."""
    for flags in (("-m",), ("-r", "-m")):
        command = ("unshare", *flags)
        if subprocess.run([*command, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0:
            return command
    raise UnavailableError("this user may not make a mount namespace (unshare -m): TT-Metal would write to /dev/shm")


def _python() -> str:
    for name in filter(None, (os.environ.get("TTMEM_TTNN_PYTHON"), "python3.12", "python3.10")):
        if _output(name, "-c", "import venv, ensurepip; print('yes')") == "yes":
            return name
    raise UnavailableError("ttnn has wheels for Python 3.12 and 3.10 only: name one in TTMEM_TTNN_PYTHON")


def _site(venv: Path) -> Path:
    return Path(_output(venv / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"))


def _version(venv: Path) -> str:
    return _output(venv / "bin" / "python", "-c", "import importlib.metadata as m; print(m.version('ttnn'))")


def _find_or_make(version: str) -> Path:
    given = [Path(part) for part in os.environ.get("TTMEM_TTNN_VENV", "").split(":") if part]
    for venv in given:
        if _version(venv) == version:
            return venv
    cache = os.environ.get("TTMEM_TTNN_CACHE")
    if not cache:
        raise UnavailableError(
            f"no environment with ttnn {version}: name one in TTMEM_TTNN_VENV, or a folder for it in TTMEM_TTNN_CACHE"
        )
    venv = Path(cache) / f"ttnn-{version}"
    if _version(venv) != version:
        subprocess.run([_python(), "-m", "venv", "--clear", venv], check=True)
        subprocess.run([venv / "bin" / "pip", "install", "-q", f"ttnn=={version}"], check=True)
    return venv


def _put_stand_in(venv: Path) -> None:
    """Put the stand-in compiler where TT-Metal looks for its own, unless one is there."""
    folder = _site(venv) / "ttnn" / "runtime" / "sfpi" / "compiler" / "bin"
    if (folder / "riscv-tt-elf-g++").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["-march=rv32im", "-mabi=ilp32", "-O1", "-ffreestanding", "-mno-relax"]
    subprocess.run([COMPILER, *flags, "-c", HERE / "standin" / "kernel.c", "-o", folder / "kernel.o"], check=True)
    shutil.copy(HERE / "standin" / "riscv-tt-elf-g++", folder)


@dataclass(frozen=True)
class Environment:
    """A Python with ttnn, and ttmem built for it.

    Attributes:
        venv: the virtual environment.
        version: of ttnn.
        library: the folder with the built ttmem.
        caches: the folder for TT-Metal's kernel caches.
    """

    venv: Path
    version: str
    library: Path
    caches: Path

    def variables(self, folder: Path, cluster: str, *, slow: bool = False, knows_ttmem: bool = True) -> dict[str, str]:
        """Return the environment variables of a ttnn process on a cluster, of which the folder gets a description."""
        description = folder / f"{cluster}.yaml"
        description.write_text(descriptor(cluster))
        paths = [HERE, HERE / "standin", *([self.library] if knows_ttmem else [])]
        environment = {
            **os.environ,
            "TT_METAL_MOCK_CLUSTER_DESC_PATH": str(description),
            "TT_METAL_CACHE": str(self.caches / f"{cluster}-{self.version}"),
            "TT_METAL_LOGGER_LEVEL": "error",
            "TT_LOGGER_LEVEL": "error",
            # Otherwise the MPI in ttnn leaves 16 MiB in /dev/shm.
            "OMPI_MCA_btl": "self",
            "PYTHONPATH": ":".join(map(str, paths)),
        }
        for name in ("TTMEM_SHM_DIR", "TTMEM_DISABLE", "TTMEM_NAMESPACE", "PYTHONWARNINGS"):
            environment.pop(name, None)
        if slow:
            environment["TT_METAL_SLOW_DISPATCH_MODE"] = "1"
        return environment

    def run(self, folder: Path, cluster: str, script: str, *arguments: str, slow: bool = False) -> dict[str, object]:
        """Run a scene on a cluster in its own /dev/shm, and return its answer; what it printed, if it is any other script.

        Raises:
            AssertionError: it failed or did not answer; the text has its output.
        """
        environment = self.variables(folder, cluster, slow=slow)
        shell = 'mount -t tmpfs none /dev/shm && exec "$@"'
        command = [
            *namespace_command(),
            "sh",
            "-c",
            shell,
            "sh",
            self.venv / "bin" / "python",
            HERE / script,
            *arguments,
        ]
        done = subprocess.run(
            [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
        )
        if Path(script).is_absolute() and not done.returncode:
            return {"printed": done.stdout.splitlines(), "stderr": done.stderr}
        found = [line[7:] for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
        if done.returncode or not found:
            raise AssertionError(
                f"{script} {arguments} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            )
        answer: dict[str, object] = json.loads(found[-1])
        return answer


def environment(version: str, work: Path) -> Environment:
    """Return an environment with this ttnn, made if it may be.

    Args:
        version: of ttnn.
        work: a folder for the build of ttmem and TT-Metal's caches.

    Raises:
        UnavailableError: there is none, and the text says why.
    """
    namespace_command()
    venv = _find_or_make(version)
    for tool in (LINKER, COMPILER):
        if not shutil.which(tool):
            raise UnavailableError(
                f"{tool} is missing: apt-get install gcc-riscv64-unknown-elf binutils-riscv64-unknown-elf"
            )
    _put_stand_in(venv)
    python = venv / "bin" / "python"
    if not _output(python, "-c", "import Cython, ijson, numpy, setuptools; print('yes')"):
        subprocess.run([venv / "bin" / "pip", "install", "-q", *NEEDED], check=True)
    tag = _output(python, "-c", "import sys; print(sys.implementation.cache_tag)")
    library = work / f"library-{tag}"
    if not library.exists():
        build = ["build", "--build-base", work / f"build-{tag}", "--build-lib", library]
        done = subprocess.run([python, "setup.py", "-q", *build], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise AssertionError(f"ttmem does not build for {python}:\n{done.stderr[-3000:]}")
    caches = Path(os.environ.get("TTMEM_TTNN_CACHE") or work) / "kernels"
    caches.mkdir(parents=True, exist_ok=True)
    return Environment(venv, version, library, caches)
