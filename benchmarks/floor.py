"""Tell what the floor under an operation is: the parts that no implementation can leave out, timed alone.

``python -m benchmarks.floor`` takes some seconds. Results go to benchmarks/results/floor.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import ttmem
from benchmarks import build, machine
from benchmarks.run import RESULTS
from benchmarks.timing import best, own_shared_memory, show_time
from benchmarks.workloads import ROUND_PROGRAMS, WORMHOLE, stack

EVICTED_BYTES = 32 << 20
"""Memory that is touched to push everything else out of the first two caches."""
CACHED = 4096


def measure(loops: Any, rounds: int) -> dict[str, dict[str, float]]:
    """Return name -> minimum and median in nanoseconds."""
    workload = stack(WORMHOLE, CACHED, 4)
    engine = loops.Engine(workload)
    engine.add_new(0, CACHED)
    low, high = CACHED, CACHED + ROUND_PROGRAMS
    engine.prepare(low, high)
    times: dict[str, list[float]] = {}
    count = 2000
    with own_shared_memory(), ttmem.publish(0, grid=(8, 8), worker_l1_size=WORMHOLE.limit) as publisher:
        for _ in range(rounds):
            times.setdefault("add, known footprint, hot", []).append(engine.add_known(low, high) / ROUND_PROGRAMS)
            times.setdefault("remove, known footprint, hot", []).append(engine.remove(low, high) / ROUND_PROGRAMS)
            times.setdefault("lock taken and released", []).append(loops.lock_pair(count) / count)
            times.setdefault("coarse clock", []).append(loops.coarse_clock(count) / count)
            times.setdefault("record updated and committed", []).append(loops.update_record(publisher, count) / count)
    times["add, known footprint, cold"] = engine.add_cold(low, high, EVICTED_BYTES)
    times["one cache line, cold"] = loops.cold_line(EVICTED_BYTES, ROUND_PROGRAMS)
    return {name: dict(zip(("min", "median"), best(one), strict=True)) for name, one in times.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run it; return 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=RESULTS, help="where floor.json goes")
    options = parser.parse_args(arguments)
    head = machine.describe(("cython",))
    figures = measure(build.loops(), 400)
    for name, one in figures.items():
        print(f"{name:<32} min {show_time(one['min']):>8}  median {show_time(one['median']):>8}")
    options.output.mkdir(parents=True, exist_ok=True)
    result = {"benchmark": "floor", "command": "python -m benchmarks.floor", **head, "unit": "ns", "figures": figures}
    (options.output / "floor.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
