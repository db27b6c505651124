"""The benchmarks run, and every engine that they time is right. What they measure is looked at nowhere here."""

import importlib.util
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ttmem._engine import IntervalEngine

pytest.importorskip("benchmarks", reason="the benchmarks are in the repository, not in the package")
from benchmarks import report, workloads
from benchmarks.peers import libraries

ROOT = Path(__file__).resolve().parent.parent
TINY = workloads.Grid(3, 2, 64, 4096)


def bytes_covered(programs: list[list[tuple[int, int, int]]], cores: int) -> int:
    """Count (core, byte) pairs one by one."""
    return len(
        {
            (core, byte)
            for program in programs
            for begin, end, mask in program
            for core in range(cores)
            if mask >> core & 1
            for byte in range(begin, end)
        }
    )


def test_the_model_counts_each_byte_of_each_core_once():
    chance = random.Random(1)
    programs = [
        [
            (begin, begin + chance.randrange(0, 200), chance.randrange(1, 64))
            for begin in (chance.randrange(64, 3800) for _ in range(3))
        ]
        for _ in range(20)
    ]
    workload = workloads.pack("made", TINY, 12, programs)
    assert [workload.program(i) for i in range(20)] == programs
    assert workload.physical(12) == bytes_covered(programs[:12], 6)
    assert workload.physical(20) == bytes_covered(programs, 6)


@pytest.mark.parametrize("name", list(workloads.ALL))
@pytest.mark.parametrize("grid", [workloads.WORMHOLE, workloads.BLACKHOLE], ids=["8x8", "13x10"])
def test_every_workload_stays_inside_the_grid_and_l1(name, grid):
    workload = workloads.ALL[name](grid, 30, 4)
    assert workload.cached == 30
    assert workload.num_programs == 30 + workloads.ROUND_PROGRAMS
    assert (workload.begin < workload.end).all()
    assert int(workload.begin.min()) >= grid.base
    assert int(workload.end.max()) <= grid.limit
    engine = IntervalEngine(grid.width, grid.height, limit=grid.limit)
    for number in range(30):
        engine.add(engine.footprint(workload.program(number)))
    assert engine.physical_bytes == workload.physical(30)


@pytest.mark.parametrize("name", list(libraries.PEERS))
def test_a_library_agrees_with_the_model_through_additions_and_removals(name):
    if name in ("intervaltree", "portion", "sortedcontainers", "pyroaring", "superintervals"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install -r benchmarks/requirements.txt")
    chance = random.Random(2)
    programs = [
        [(b, b + chance.randrange(1, 64)) for b in (chance.randrange(0, 512) for _ in range(3))] for _ in range(24)
    ]
    peer = libraries.PEERS[name](1024)
    live = programs[:8]
    peer.load(live)
    for step in range(40):
        if step % 3 == 2:
            gone = live.pop(chance.randrange(len(live)))
            peer.remove(gone)
        else:
            # Equal programs on purpose: a set without counts would lose one of two.
            live.append(chance.choice(programs))
            peer.add(live[-1])
        assert peer.physical() == len({byte for ranges in live for low, high in ranges for byte in range(low, high)})


def run_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=240
    )


def test_the_engine_benchmark_runs_and_finds_every_engine_right(tmp_path):
    done = run_module("benchmarks.run", "--smoke", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "engine.json").read_text())
    assert result["machine"]["cores"] >= 1
    assert all(one["right"] for one in result["series"])
    names = {one["engine"] for one in result["series"]}
    assert {"ttmem", "ttmem, prepared", "recompute"} <= names
    # Who is not there is named, with what to do about it.
    assert {"boost-icl", *libraries.PEERS} == (names | set(result["left_out"])) - {
        "ttmem",
        "ttmem, prepared",
        "recompute",
    }
    assert all(result["left_out"].values())


def test_the_segment_benchmark_runs_and_sees_no_torn_and_no_dead_record_of_ours(tmp_path):
    before = set(Path("/dev/shm").iterdir())
    done = run_module("benchmarks.segment", "--smoke", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "segment.json").read_text())
    ours = result["deaths"][0]
    assert (ours["name"], ours["torn"], ours["still_counted"]) == ("ttmem", 0, 0)
    if importlib.util.find_spec("prometheus_client") is None:
        assert "prometheus_client multiprocess" in result["left_out"]
    assert not [path for path in set(Path("/dev/shm").iterdir()) - before if path.name.startswith("ttmem-bench-")]


def test_the_page_on_performance_says_what_the_results_say():
    page = report.PAGE.read_text()
    assert set(re.findall(r"<!-- (\w+) -->", page)) == {*report.BLOCKS, "end"}
    assert report.render(page) == page, "python -m benchmarks.report writes the page anew"
    for name in ("engine", "segment", "floor"):
        result = json.loads((report.RESULTS / f"{name}.json").read_text())
        assert re.fullmatch(r"[0-9a-f]{40}", result["commit"]), "a result belongs to a commit"
        assert result["machine"]["processor"]
