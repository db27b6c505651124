"""A reader that its writer outruns: nothing is called damaged, no row gets another one's name, no core another one's bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tracing import Tracee, bytes_in_use, mark

import ttmem

SOURCE = Path(__file__).parent / "native" / "moving.c"
READ = """
import ctypes, json, os, sys, ttmem
moving = ctypes.CDLL(os.environ["LD_PRELOAD"])
moving.moving_reads.restype = ctypes.c_int64

def look(reads, more, *files):
    with ttmem.attach(0) as reader:
        moving.moving_start(ctypes.c_int64(reads), ctypes.c_int64(more), *files)
        seen = reader.snapshot()
        done = moving.moving_reads()
        moving.moving_end()
        named = {row["name"]: row["size_bytes"] for row in seen.buffers()}
        cores = {f"{x}-{y}": size for x, y, size in seen.cores[["x", "y", "cb_physical_bytes"]].tolist()}
        peak = [seen.memory.dram.peak_bytes, seen.memory.dram.peak_by]
        return done, [seen.consistent, list(seen.warnings), named, cores, peak]

last, most_between = map(int, sys.argv[1:3])
first, second, *stopped = [os.open(path, os.O_RDONLY) for path in sys.argv[3:]]
never, told = look(10**6, 0, first, first, first)
readings = [told]
# The tries to get one cut fail, all but perhaps the last one: from there to the end the writer may get on anywhere.
for reads in range(never - last, never + 1):
    for more in range(most_between + 1):
        readings += [look(reads, more, first, second, file)[1] for file in stopped]
print(json.dumps(readings))
"""
READS = 64
"""More than the reads that a reader makes after its last try but one to get one cut."""
BETWEEN = 4
PEAKS = [[1000, "weights"], [2003, "mask"]]
SIZES = {"weights": 1000, "activations": 2000, "mask": 3}


def body() -> None:
    publisher = ttmem.publish(0, arch="wormhole_b0", grid=(2, 2))
    weights = publisher.allocate("DRAM", 1000, name="weights")
    mark()
    # The freed row is marked before its next name is, and the totals before the row of the mask.
    with publisher.batch():
        publisher.deallocate(weights)
        activations = publisher.allocate("DRAM", 2000, name="activations")
        mask = publisher.allocate("DRAM", 3, name="mask")
    mark()
    with publisher.batch():
        publisher.deallocate(activations)
        publisher.deallocate(mask)
        publisher.allocate("DRAM", 1000, name="weights")
    mark()


def body_of_classes() -> None:
    def program(cores: str, size: int) -> int:
        return publisher.add_program([ttmem.CircularBuffer(4096, size, cores)])

    publisher = ttmem.publish(0, arch="wormhole_b0", grid=(2, 2))
    programs = [program("{[0-0 - 0-0]}", 100), program("{[1-0 - 1-0]}", 200)]
    mark()
    # With the last program all cores are of one class again; the next ones get the places of the former classes.
    with publisher.batch():
        for number in programs:
            publisher.remove_program(number)
        program("{[1-1 - 1-1]}", 3000)
        program("{[0-1 - 0-1]}", 4000)
    mark()


def states_of(writer: Tracee, path: Path) -> list[bytes]:
    """Return what the file is after each instruction that changes it, up to the writer's next mark."""
    parts = bytes_in_use(path)
    fd = os.open(path, os.O_RDONLY)
    try:
        states, before = [], [os.pread(fd, count, offset) for offset, count in parts]
        while writer.step():
            now = [os.pread(fd, count, offset) for offset, count in parts]
            if now != before:
                before = now
                states.append(path.read_bytes())
    finally:
        os.close(fd)
    return states


@pytest.fixture(name="directory")
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "shm"
    directory.mkdir()
    monkeypatch.setenv("TTMEM_SHM_DIR", str(directory))
    monkeypatch.delenv("TTMEM_NAMESPACE", raising=False)
    return directory


def look_at(states: list[bytes], between: int, place: Path) -> list[Any]:
    """Return what a reader gives of a writer that goes on for ever, then of one that gets from the first state to the second
    and stops in any of the others, wherever the reader is then.
    """
    shim = place / "moving.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", str(SOURCE), "-o", str(shim)], check=True)
    files = []
    for number, state in enumerate(states):
        files.append(place / str(number))
        files[-1].write_bytes(state)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(READS), str(between), *map(str, files)],
        env={**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    readings: list[Any] = json.loads(done.stdout)
    assert len(readings) == 1 + (READS + 1) * (between + 1) * (len(states) - 2)
    return readings


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing: apt-get install gcc")
@pytest.mark.parametrize("commits", [1, 2], ids=["in one commit", "in the one after"])
def test_a_writer_that_outran_its_reader_and_stopped_anywhere_is_read_right(
    commits: int, directory: Path, tmp_path: Path
) -> None:
    with Tracee(body) as writer:
        (path,) = directory.iterdir()
        begun = [path.read_bytes()]
        states: list[bytes] = []
        for _ in range(commits):
            states = states_of(writer, path)
            begun.append(path.read_bytes())
        between = BETWEEN if commits == 2 else 0
        never, *readings = look_at([begun[0], begun[commits - 1], *states], between, tmp_path)
    assert never[:3] == [False, [], {"weights": 1000}]
    # Two images of several records each: fewer changes would mean that the stepping missed them.
    assert len(states) > 20
    for number, (consistent, warnings, named, _cores, peak) in enumerate(readings):
        where = f"state {number % len(states)}, reading {number // len(states)}"
        assert warnings == [], where
        assert named.items() <= SIZES.items(), where
        assert peak in PEAKS or (peak in [[highest, None] for highest, _ in PEAKS] and not consistent), where
        if consistent:
            assert named in ({"weights": 1000}, {"activations": 2000, "mask": 3}), where
    assert {consistent for consistent, *_ in readings} == {True, False}


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing: apt-get install gcc")
def test_no_core_gets_the_bytes_of_another_one(directory: Path, tmp_path: Path) -> None:
    with Tracee(body_of_classes) as writer:
        (path,) = directory.iterdir()
        begun = path.read_bytes()
        states = states_of(writer, path)
        never, *readings = look_at([begun, begun, *states], 0, tmp_path)
    before = {"0-0": 100, "1-0": 200, "0-1": 0, "1-1": 0}
    after = {"0-0": 0, "1-0": 0, "0-1": 4000, "1-1": 3000}
    assert never[:4] == [False, [], {}, before]
    assert len(states) > 20
    for number, (consistent, warnings, _named, cores, _peak) in enumerate(readings):
        where = f"state {number % len(states)}, reading {number // len(states)}"
        assert warnings == [], where
        if consistent:
            assert cores in (before, after), where
        for core, size in cores.items():
            assert size in (before[core], after[core]) or (size == -1 and not consistent), (where, cores)
    assert {consistent for consistent, *_ in readings} == {True, False}
