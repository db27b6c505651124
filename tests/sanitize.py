"""Run what reads foreign bytes and what shares memory under gcc's sanitizers: ``python tests/sanitize.py [address] [thread]``.

address: the compiled modules, built with the address and undefined behaviour sanitizers, run the tests of hostile files,
TT-Metal's regions, the engine and the publisher. thread: threads without the GIL share a block, and the latch alone. Both
first show that the sanitizer is at work. Leaks are not looked for: the interpreter leaves what it does not need to free.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
NATIVE = TESTS / "native"
BUILD = ROOT / "build"
UNDER_ADDRESS = ("hostile_files", "fuzz", "region", "core", "publisher")

SETTINGS = {
    # The interpreter's own allocator would hide overruns within its arenas.
    "PYTHONMALLOC": "malloc",
    "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=0:exitcode=66",
}


def library(name: str) -> str:
    """Return the path of a sanitizer's runtime library.

    Raises:
        SystemExit: gcc or the library is missing.
    """
    if shutil.which("gcc") is None:
        sys.exit("the sanitizers need gcc: apt-get install gcc")
    path = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(path).is_absolute():
        sys.exit(f"gcc has no {name}: apt-get install libgcc-12-dev, or the one of gcc's version")
    return path


def run(*command: str | Path, expected: int | None = 0, **environment: str) -> str:
    """Run a command to its end and return what it printed; end with its output if its exit code is another."""
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if expected is not None and done.returncode != expected:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}")
    return done.stdout


def package(mode: str) -> Path:
    """Build the package in a mode of setup.py beside the tree, and return the directory to import it from."""
    place = BUILD / mode / "lib"
    arguments = ("--build-lib", place, "--build-temp", BUILD / mode / "temp")
    run(sys.executable, "setup.py", "-q", "build", *arguments, TTMEM_BUILD=mode)
    return place


def interpreter(mode: str, place: Path) -> dict[str, str]:
    """Return the environment in which a plain interpreter takes up instrumented modules."""
    runtime = library({"sanitize": "libasan.so", "tsan": "libtsan.so"}[mode])
    return {"LD_PRELOAD": runtime, "PYTHONPATH": str(place), **SETTINGS}


def address() -> None:
    """Run the tests with the address and undefined behaviour sanitizers."""
    place = package("sanitize")
    environment = interpreter("sanitize", place)
    # One byte too many, read where the interpreter cannot notice: if that passes, nothing here means anything.
    overrun = "import ctypes; ctypes.string_at(ctypes.create_string_buffer(64), 4096)"
    if "AddressSanitizer" not in run(sys.executable, "-c", overrun, expected=None, **environment):
        sys.exit("the address sanitizer did not see an overrun")
    for module in sorted(place.glob("ttmem/*.so")):
        data = module.read_bytes()
        if b"__asan_report" not in data or b"__ubsan_handle" not in data:
            sys.exit(f"{module.name} is not instrumented")
    modules = [TESTS / f"test_{name}.py" for name in UNDER_ADDRESS]
    # The script, not -m: that would put the working directory, and the modules built in place, first.
    pytest = Path(sys.executable).with_name("pytest")
    where = "import ttmem._reading; print(ttmem._reading.__file__)"
    if not run(sys.executable, "-c", f"import sys; sys.path.remove(''); {where}", **environment).startswith(str(place)):
        sys.exit("the tests would not run the instrumented modules")
    options = ("-q", "-n", "2", "--dist", "worksteal", "-p", "no:cacheprovider")
    print(run(pytest, *options, *modules, **environment).strip().splitlines()[-1])


def thread() -> None:
    """Run threads with the thread sanitizer: the latch in C, and a block as the package compiles it."""
    flags = ("-O2", "-g", "-std=c11", "-Wall", "-fsanitize=thread", "-Wno-tsan", f"-I{ROOT / 'ttmem'}", "-pthread")
    (BUILD / "tsan").mkdir(parents=True, exist_ok=True)
    # Address space layouts of newer kernels are too random for some versions of the sanitizer.
    plain = ("setarch", "-R") if shutil.which("setarch") else ()
    for name, options, code in (("latch", (), 0), ("latch-unlocked", ("-DWITHOUT_LOCK",), 66)):
        program = BUILD / "tsan" / name
        run("gcc", *flags, *options, NATIVE / "latch.c", "-o", program)
        print(f"{name}: {run(*plain, program, '3', '2', '20000', expected=code).strip().splitlines()[-1]}")
    place = package("tsan")
    source = BUILD / "tsan" / "threads.c"
    directives = "boundscheck=False,wraparound=False,initializedcheck=False,cdivision=True"
    cython = (sys.executable, "-m", "cython", "-3", "-I", place, "-X", directives, "--module-name", "threads")
    run(*cython, "-o", source, NATIVE / "threads.pyx")
    target = place / f"threads{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = f"-I{sysconfig.get_path('include')}"
    run("gcc", *flags, "-std=gnu11", "-fPIC", "-shared", include, source, "-o", target)
    environment = interpreter("tsan", place)
    main = NATIVE / "threads_main.py"
    run(*plain, sys.executable, main, **environment)
    print("block and ledger: no race")
    if "data race" not in run(*plain, sys.executable, main, "unlocked", expected=None, **environment):
        sys.exit("the thread sanitizer did not see what the lock is for")
    print("block-unlocked: the race was seen")


def main() -> int:
    """Run the sanitizers that are named, or all."""
    known = {"address": address, "thread": thread}
    for name in sys.argv[1:] or known:
        known[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
