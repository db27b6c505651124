"""The hook on other machines: it compiles for aarch64, redirects calls there, and its absence harms nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import ttmem

SOURCE = Path(ttmem.__file__).parent
NATIVE = Path(__file__).parent / "native" / "slots.c"
CROSS, EMULATOR, LOADER = "aarch64-linux-gnu-gcc", "qemu-aarch64-static", Path("/usr/aarch64-linux-gnu")

needs_compiler = pytest.mark.skipif(
    shutil.which(CROSS) is None, reason="no compiler for aarch64: apt-get install gcc-aarch64-linux-gnu"
)
needs_emulator = pytest.mark.skipif(
    shutil.which(EMULATOR) is None or not (LOADER / "lib").exists(),
    reason="no emulator of aarch64: apt-get install qemu-user-static libc6-dev-arm64-cross",
)
needs_sources = pytest.mark.skipif(
    not (SOURCE / "_ttnn_hook.pyx").exists(), reason="the installed package holds no .pyx files to compile"
)


def run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@needs_sources
@needs_compiler
def test_the_hook_compiles_for_aarch64_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("Cython", reason="Cython is missing: python -m pip install cython")
    made = tmp_path / "_ttnn_hook.c"
    cython = (sys.executable, "-m", "cython", "-3", "-I", SOURCE.parent, "--module-name", "ttmem._ttnn_hook")
    run(*cython, "-o", made, SOURCE / "_ttnn_hook.pyx")
    # The interpreter's headers are this machine's; what they say of sizes holds there, too.
    flags = ("-O2", "-std=c11", "-fPIC", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-sign-compare", "-Werror")
    run(CROSS, *flags, f"-I{SOURCE}", f"-I{sysconfig.get_path('include')}", "-c", made, "-o", tmp_path / "hook.o")


@pytest.mark.parametrize("binding", ["lazy", "now"])
@pytest.mark.parametrize(
    "machine",
    [
        pytest.param("here", marks=pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")),
        pytest.param("aarch64", marks=[needs_compiler, needs_emulator]),
    ],
)
def test_a_librarys_call_of_its_own_function_is_redirected_and_put_back(
    tmp_path: Path, machine: str, binding: str
) -> None:
    compiler, *emulate = ("gcc",) if machine == "here" else (CROSS, EMULATOR, "-L", str(LOADER))
    library, program = tmp_path / "libasked.so", tmp_path / "program"
    # With -z now the slots lie in pages that the loader has made read-only.
    link = ("-Wl,-z,relro", f"-Wl,-z,{binding}")
    run(compiler, "-O1", "-std=gnu11", "-fPIC", "-shared", "-DLIBRARY", *link, NATIVE, "-o", library)
    rpath = f"-Wl,-rpath,{tmp_path}"
    run(compiler, "-O1", "-std=gnu11", f"-I{SOURCE}", NATIVE, "-o", program, f"-L{tmp_path}", "-lasked", "-ldl", rpath)
    found = {name: int(value) for name, value in re.findall(r"(\w+) (\d+)", run(*emulate, program))}
    assert found["slots"] == found["held"] >= 1
    assert (found["before"], found["redirected"], found["after"], found["left"]) == (10, 20, 10, 0)


def test_where_the_hook_is_not_built_everything_else_is_there() -> None:
    script = """
import sys, warnings
sys.modules["ttmem._ttnn_hook"] = None
import ttmem, ttmem.ttnn
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    tracker = ttmem.ttnn.track(object(), method="hook")
print(tracker.active, tracker.reason, [str(one.message) for one in said])
tracker.stop()
"""
    reason = "the hook is not built for this machine"
    assert run(sys.executable, "-c", script) == f"False {reason} ['ttmem does not follow ttnn: {reason}']\n"
