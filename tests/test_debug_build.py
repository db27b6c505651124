"""A debug build verifies the engine after every operation: it is built here, outside of the package, used and broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("errors.py", "cores.py", "_core.pyx", "_core.pxd", "_invariants.pxd", "_engine.pyx")

DAMAGE = """
from libc.stdint cimport int64_t, uint32_t

from ttmem._core cimport CoreClass, Footprint, Intervals, tail, ttm_cover, ttm_pool


cdef extern from "_cover.h" nogil:
    int ttm_pool_reserve(ttm_pool *pool, uint32_t begin, uint32_t end)
    int64_t ttm_cover_update(ttm_pool *pool, ttm_cover *cover, uint32_t begin, uint32_t end, int step)


def damage(Intervals core, str what):
    cdef CoreClass *group = core.classes[core.class_of_core[0]]
    cdef Footprint *entry = NULL
    cdef uint32_t i = 0
    while entry == NULL or not entry.live or entry.cores == NULL:
        if entry != NULL and entry.next != NULL:
            entry = entry.next
        else:
            entry = <Footprint *>core.footprints.buckets[i]
            i += 1
    if what == "device":
        core.physical += 1
    elif what == "logical":
        group.logical += 1
        core.logical += group.num_cores
    elif what == "class":
        group.physical += 1
        group.peak += 1
        core.physical += group.num_cores
    elif what == "cover":
        ttm_pool_reserve(&core.pool, 7, 3001)
        ttm_cover_update(&core.pool, &group.cover, 7, 3001, 1)
    elif what == "peak":
        group.peak = group.physical - 1
    elif what == "signature":
        group.sign0 += 1
    elif what == "map":
        core.class_of_core[0] = core.class_of_core[core.num_cores - 1]
    elif what == "live":
        entry.live += 1
    elif what == "ranges":
        tail(entry)[0] += 1
    elif what == "core set":
        entry.cores.live += 1
    elif what == "resident":
        core.resident += 1
    elif what == "layer":
        core.visible[0] = 0
    else:
        raise ValueError(what)
"""

FAULTS = {
    "device": "the physical bytes of the device are not the sum over its classes",
    "logical": "the logical bytes of the device are not the sum over its programs",
    "class": "the physical bytes of a class are not the union of its programs",
    "cover": "the cover of a class does not count what its programs add up to",
    "peak": "the peak of a class is below its physical bytes",
    "signature": "the signature of a class is not that of the core sets around it",
    "map": "class_of_core names a class that does not have the core",
    "live": "the logical bytes of the device are not the sum over its programs",
    "ranges": "a footprint counts other bytes than its ranges have",
    "core set": "core sets count other live footprints than there are",
    "resident": "the resident bytes are not the sum over the layers",
    "layer": "a layer holds no core",
}

WORKLOAD = """
import random
from ttmem import _engine

assert _engine.DEBUG
chance = random.Random(11)
for width, height, hash_bits in ((3, 2, 2), (8, 8, 64), (13, 10, 64)):
    engine = _engine.IntervalEngine(width, height, hash_bits=hash_bits)
    known, live = [], []
    for step in range(600):
        deed = chance.random()
        if deed < 0.4 or not known:
            cbs = []
            for _ in range(chance.randrange(5)):
                begin = chance.choice((1, 16, 1024, 65536)) * chance.randrange(20) + chance.choice((0, 0, 1, 5))
                cbs.append((begin, begin + chance.randrange(100000), chance.getrandbits(width * height)))
            known.append(engine.footprint(cbs))
        elif deed < 0.65:
            engine.fail_after(chance.randrange(30) if chance.random() < 0.3 else None)
            try:
                engine.add(known[-1 - chance.randrange(min(8, len(known)))])
                live.append(known[-1])
            except MemoryError:
                pass
            engine.fail_after(None)
        elif deed < 0.8 and live:
            try:
                engine.remove(live.pop(chance.randrange(len(live))))
            except KeyError:
                pass
        elif deed < 0.9:
            engine.dispatch(chance.choice(known))
        elif deed < 0.95:
            engine.dispatch(engine.peak(chance.choices(known, k=3)))
        else:
            engine.changes()
            engine.reset_peaks()
            del known[: len(known) // 2]
    engine.check()
crowded = _engine.IntervalEngine(2, 1, limit=3000)
live = []
for step in range(700):
    if step < 400 or not live:
        begin = chance.randrange(0, 1200)
        live.append(crowded.footprint([(begin, begin + chance.randrange(1, 900), chance.choice((1, 3)))]))
        crowded.add(live[-1])
    else:
        crowded.remove(live.pop(chance.randrange(len(live))))
assert crowded.physical_bytes > 0
print("every operation held")
"""

BREAK = """
import resource, sys
from ttmem import _engine, _damage

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
engine = _engine.IntervalEngine(2, 2)
first = engine.footprint([(0, 5000, 15)])
other = engine.footprint([(100, 9000, 3)])
for footprint in (first, other):
    engine.add(footprint)
    engine.dispatch(footprint)
engine.footprint([])
_damage.damage(engine.core, sys.argv[1])
engine.footprint([])
print("nothing was noticed")
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Path:
    """The engine's modules, built for debugging beside a module that damages them."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing: apt-get install gcc")
    where = tmp_path_factory.mktemp("debug")
    package = where / "ttmem"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in PARTS:
        shutil.copy(ROOT / "ttmem" / name, package)
    for header in (ROOT / "ttmem").glob("*.h"):
        shutil.copy(header, package)
    (package / "_damage.pyx").write_text(DAMAGE)
    shutil.copy(ROOT / "setup.py", where)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(
        command,
        cwd=where,
        env={**os.environ, "TTMEM_BUILD": "debug"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return where


def run(build: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=build,
        env={**os.environ, "PYTHONPATH": str(build)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_a_random_workload_runs_through_a_debug_build(build: Path):
    done = run(build, WORKLOAD)
    assert (done.returncode, done.stdout, done.stderr) == (0, "every operation held\n", "")


@pytest.mark.parametrize("what", FAULTS)
def test_a_debug_build_stops_at_the_operation_after_which_the_state_is_broken(build: Path, what: str):
    done = run(build, BREAK, what)
    assert done.returncode == -6, "SIGABRT"
    assert done.stdout == ""
    assert done.stderr.startswith("ttmem: the interval engine is broken after intern: ")
    assert FAULTS[what] in done.stderr
