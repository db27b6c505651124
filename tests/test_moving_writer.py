"""A reader that its writer outruns: what it gives is never called damaged, and no row gets another one's name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

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
        return done, [seen.consistent, list(seen.warnings), {row["name"]: row["size_bytes"] for row in seen.buffers()}]

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
READS = 60
"""More than the reads that a reader makes after its last try but one to get one cut."""
BETWEEN = 4
SIZES = {"weights": 1000, "activations": 20, "mask": 3}


def body() -> None:
    publisher = ttmem.publish(0, arch="wormhole_b0", grid=(2, 2))
    weights = publisher.allocate("DRAM", 1000, name="weights")
    mark()
    # The freed row is marked before its next name is, and the totals before the row of the mask.
    with publisher.batch():
        publisher.deallocate(weights)
        activations = publisher.allocate("DRAM", 20, name="activations")
        mask = publisher.allocate("DRAM", 3, name="mask")
    mark()
    with publisher.batch():
        publisher.deallocate(activations)
        publisher.deallocate(mask)
        publisher.allocate("DRAM", 1000, name="weights")
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


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing: apt-get install gcc")
@pytest.mark.parametrize("commits", [1, 2], ids=["in one commit", "in the one after"])
def test_a_writer_that_outran_its_reader_and_stopped_anywhere_is_read_right(
    commits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "shm"
    directory.mkdir()
    monkeypatch.setenv("TTMEM_SHM_DIR", str(directory))
    monkeypatch.delenv("TTMEM_NAMESPACE", raising=False)
    shim = tmp_path / "moving.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", str(SOURCE), "-o", str(shim)], check=True)
    with Tracee(body) as writer:
        (path,) = directory.iterdir()
        begun = [path.read_bytes()]
        states: list[bytes] = []
        for _ in range(commits):
            states = states_of(writer, path)
            begun.append(path.read_bytes())
        files = []
        for number, state in enumerate([begun[0], begun[commits - 1], *states]):
            files.append(tmp_path / str(number))
            files[-1].write_bytes(state)
        between = BETWEEN if commits == 2 else 0
        done = subprocess.run(
            [sys.executable, "-c", READ, str(READS), str(between), *map(str, files)],
            env={**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    never, *readings = json.loads(done.stdout)
    assert never == [False, [], {"weights": 1000}]
    # Two images of several records each: fewer changes would mean that the stepping missed them.
    assert len(states) > 20
    assert len(readings) == (READS + 1) * (between + 1) * len(states)
    for number, (consistent, warnings, named) in enumerate(readings):
        where = f"state {number % len(states)}, reading {number // len(states)}"
        assert warnings == [], where
        assert named.items() <= SIZES.items(), where
        if consistent:
            assert named in ({"weights": 1000}, {"activations": 20, "mask": 3}), where
    assert {consistent for consistent, _, _ in readings} == {True, False}
