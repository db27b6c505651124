"""Fuzz the reader with libFuzzer, through Atheris: ``python tests/fuzz.py [RUNS]``.

The compiled modules are built with clang for coverage, the address and the undefined behaviour sanitizers; what the fuzzer
mutates are the instructions of :mod:`forge`. RUNS is how many files are forged, 10,000 unless told; the inputs that found
something new are kept in build/fuzz/corpus, where the next run goes on. An input that fails is named, and goes to
PINNED in tests/test_fuzz.py once what it shows is mended.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import sanitize

RUNS = 10_000
CORPUS = sanitize.BUILD / "fuzz" / "corpus"


def start(runs: int) -> int:
    """Build what is fuzzed and run the fuzzer; return its exit code."""
    if shutil.which("clang") is None:
        sys.exit("the fuzzer needs clang and its runtime: apt-get install clang libclang-rt-14-dev")
    found = importlib.util.find_spec("atheris")
    if found is None or found.origin is None:
        sys.exit("the fuzzer needs atheris: python -m pip install atheris")
    os.environ["CC"] = "clang"
    place = sanitize.package("fuzz")
    runtime = Path(found.origin).parents[1] / "asan_with_fuzzer.so"
    CORPUS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"ttmem-fuzz-{os.getpid()}-", dir="/dev/shm") as directory:
        environment = {
            **os.environ,
            # The parser's memory comes from malloc, the interpreter's from its own arenas, which is much faster.
            "ASAN_OPTIONS": "detect_leaks=0:malloc_context_size=4:quarantine_size_mb=16",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "LD_PRELOAD": str(runtime),
            "PYTHONPATH": str(place),
        }
        # A fixed seed: the same tree and corpus give the same run.
        options = (
            f"-runs={runs}",
            "-seed=4",
            "-max_len=160",
            "-len_control=0",
            "-timeout=20",
            f"-artifact_prefix={CORPUS.parent}/",
        )
        return subprocess.run(
            [sys.executable, __file__, "--here", directory, *options, str(CORPUS)],
            env=environment,
            check=False,
        ).returncode


def fuzz(directory: Path, arguments: list[str]) -> None:
    """Run the fuzzer in this process, which has the runtime loaded."""
    import atheris

    with atheris.instrument_imports(include=["ttmem.reader", "ttmem.snapshot"]):
        from forge import forger

    with forger(directory) as forge:
        atheris.Setup([sys.argv[0], *arguments], forge.run)
        atheris.Fuzz()


def main() -> int:
    """Run it; return 0 if no reading broke a promise."""
    if sys.argv[1:2] == ["--here"]:
        fuzz(Path(sys.argv[2]), sys.argv[3:])
        return 0
    return start(int(sys.argv[1]) if len(sys.argv) > 1 else RUNS)


if __name__ == "__main__":
    sys.exit(main())
