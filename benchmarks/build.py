"""Builds what the benchmarks measure with: loops in Cython around the package, and the peers in C++.

Both go to build/benchmarks, by the names of their contents, and are built again when a source changes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TARGET = ROOT / "build" / "benchmarks"
ICL_HEADER = "boost/icl/interval_map.hpp"


def _digest(*paths: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        digest.update(path.read_bytes())
    digest.update(sys.version.encode())
    return digest.hexdigest()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def loops() -> ModuleType:
    """Return the extension of timed loops, built against the package in this tree.

    Raises:
        RuntimeError: there is no compiler, or it failed.
    """
    package = ROOT / "ttmem"
    sources = [HERE / "_loops.pyx", *sorted(package.glob("*.pxd")), *sorted(package.glob("*.h"))]
    name = f"_loops_{_digest(*sources)}"
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    library = TARGET / f"{name}{suffix}"
    if not library.exists():
        if shutil.which("gcc") is None:
            raise RuntimeError("the benchmarks need gcc")
        TARGET.mkdir(parents=True, exist_ok=True)
        source = TARGET / f"{name}.pyx"
        shutil.copyfile(HERE / "_loops.pyx", source)
        cython = [sys.executable, "-m", "cython", "-3", "-I", str(ROOT)]
        directives = ["-X", "boundscheck=False,wraparound=False,initializedcheck=False,cdivision=True"]
        _run([*cython, *directives, "--module-name", name, "-o", str(source.with_suffix(".c")), str(source)])
        include = sysconfig.get_path("include")
        flags = ["-O2", "-DNDEBUG", "-std=gnu11", "-fPIC", "-shared", f"-I{include}", f"-I{package}"]
        _run(["gcc", *flags, str(source.with_suffix(".c")), "-o", str(library)])
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def has_icl() -> bool:
    """Tell whether the compiler finds boost's interval containers."""
    compiler = shutil.which("g++")
    if compiler is None:
        return False
    probe = subprocess.run(
        [compiler, "-x", "c++", "-E", "-o", "/dev/null", "-"],
        input=f"#include <{ICL_HEADER}>\n",
        text=True,
        capture_output=True,
        check=False,
    )
    return probe.returncode == 0


def peers() -> Path:
    """Return the library of C++ peers, built; with boost's if its headers are there.

    Raises:
        RuntimeError: there is no compiler, or it failed.
    """
    if shutil.which("g++") is None:
        raise RuntimeError("the C++ peers need g++")
    source = HERE / "peers" / "engines.cpp"
    icl = has_icl()
    library = TARGET / f"peers_{_digest(source)}{'_icl' if icl else ''}.so"
    if not library.exists():
        TARGET.mkdir(parents=True, exist_ok=True)
        flags = ["-O3", "-DNDEBUG", "-std=c++17", "-fPIC", "-shared"]
        _run(["g++", *flags, *(["-DWITH_ICL"] if icl else []), str(source), "-o", str(library)])
    return library
