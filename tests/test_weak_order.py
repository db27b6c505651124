"""The barriers are in the code of a weakly ordered machine: aarch64, compiled here, inspected, and run under an emulator.

tests/test_latch_model.py tells which barriers are needed; here the compiler's output must have them, and the inspection
must notice when one is taken out of the source.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import ttmem

SOURCE = Path(ttmem.__file__).parent
COMPILER, OBJDUMP, EMULATOR = "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-objdump", "qemu-aarch64-static"
LATCH = Path(__file__).parent / "native" / "latch.c"

pytestmark = [
    pytest.mark.skipif(
        not (SOURCE / "_segment.pyx").exists(), reason="the installed package holds no .pyx files to compile"
    ),
    pytest.mark.skipif(
        shutil.which(COMPILER) is None, reason="no compiler for aarch64: apt-get install gcc-aarch64-linux-gnu"
    ),
]


def run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C that Cython makes of the two sides of the latch."""
    pytest.importorskip("Cython", reason="Cython is missing: python -m pip install cython")
    place = tmp_path_factory.mktemp("generated")
    directives = "boundscheck=False,wraparound=False,initializedcheck=False,cdivision=True"
    for name in ("_segment", "_reading"):
        command = (sys.executable, "-m", "cython", "-3", "-I", SOURCE.parent, "-X", directives)
        run(*command, "--module-name", f"ttmem.{name}", "-o", place / f"{name}.c", SOURCE / f"{name}.pyx")
    return place


def code(generated: Path, name: str, headers: Path, function: str) -> list[str]:
    """Return a function's instructions on aarch64."""
    target = generated / f"{name}.o"
    # The interpreter's headers are this machine's; what they say of sizes holds there, too.
    flags = ("-O2", "-std=c11", "-fPIC", "-w", "-DNDEBUG", f"-I{headers}", f"-I{sysconfig.get_path('include')}")
    run(COMPILER, *flags, "-c", generated / f"{name}.c", "-o", target)
    text = run(OBJDUMP, "-d", "--no-show-raw-insn", target)
    (body,) = re.findall(rf"<\w*{function}(?:\.\w+)*>:\n(.*?)\n\n", text + "\n\n", re.DOTALL)
    return [line.partition("\t")[2].strip() for line in body.splitlines()]


def order(instructions: list[str]) -> list[str]:
    """Return the barriers and system calls in order of address."""
    kinds = {
        r"stlr\b": "store release",
        r"ldar\b": "load acquire",
        r"dmb\s+ish$": "fence",
        r"dmb\s+ishld": "load fence",
        r"bl\s.*<pread": "pread",
    }
    found = []
    for instruction in instructions:
        found += [kind for pattern, kind in kinds.items() if re.match(pattern, instruction)]
    return found


def writer_is_ordered(generated: Path, headers: Path) -> bool:
    # Two turns of the latch for a single line, and one in the loop for all else: at each the number is stored with
    # release, and a fence stands before the image. One more stands before rows and classes, after what goes first.
    found = order(code(generated, "_segment", headers, "DeviceBlock_commit"))
    turns = [first for first, second in itertools.pairwise(found) if (first, second) == ("store release", "fence")]
    return (len(turns), found.count("store release"), found.count("fence")) == (3, 3, 4)


def reader_is_ordered(generated: Path, headers: Path) -> bool:
    cut = order(code(generated, "_reading", headers, "BlockReading_read_cut"))
    # The third and fourth: classes are read after the last image's map, and what belongs to rows is read after them.
    images = order(code(generated, "_reading", headers, "BlockReading_read_images"))
    return (cut, images) == (["pread", "load fence", "load fence", "pread"], ["load fence"] * 2)


def without(place: Path, file: str, line: str, replacement: str) -> Path:
    """Return a directory with the headers in which one line is another."""
    for header in SOURCE.glob("*.h"):
        shutil.copy(header, place)
    text = (place / file).read_text()
    assert text.count(line) == 1
    (place / file).write_text(text.replace(line, replacement))
    return place


def test_a_writers_barriers_are_in_its_code(generated: Path) -> None:
    assert writer_is_ordered(generated, SOURCE)


def test_a_readers_barriers_are_in_its_code(generated: Path) -> None:
    assert reader_is_ordered(generated, SOURCE)


RELAXED = "__ATOMIC_RELAXED"
ATOMIC_STORE = "__atomic_store_n(word, value, __ATOMIC_RELEASE)"


@pytest.mark.parametrize(
    ("file", "line", "replacement"),
    [
        ("_latch.h", "    ttm_fence_release();\n", ""),
        ("_atomic.h", ATOMIC_STORE, ATOMIC_STORE.replace("__ATOMIC_RELEASE", RELAXED)),
    ],
    ids=["fence", "release"],
)
def test_a_barrier_taken_out_of_the_writer_is_noticed(
    generated: Path, tmp_path: Path, file: str, line: str, replacement: str
) -> None:
    assert not writer_is_ordered(generated, without(tmp_path, file, line, replacement))


def test_a_fence_taken_out_of_the_reader_is_noticed(generated: Path, tmp_path: Path) -> None:
    headers = without(tmp_path, "_atomic.h", "__atomic_thread_fence(__ATOMIC_ACQUIRE)", "(void)0")
    assert not reader_is_ordered(generated, headers)


@pytest.mark.skipif(
    shutil.which(EMULATOR) is None,
    reason="no emulator of aarch64: apt-get install qemu-user-static libc6-dev-arm64-cross",
)
def test_threads_on_an_emulated_aarch64_see_whole_versions_only(tmp_path: Path) -> None:
    program = tmp_path / "latch"
    run(COMPILER, "-O2", "-std=c11", f"-I{SOURCE}", LATCH, "-o", program, "-pthread", "-static")
    found = dict(re.findall(r"(\w+) (\d+)", run(EMULATOR, program, 2, 2, 5000)))
    assert found["committed"] == "10000"
    assert found["torn"] == "0"
