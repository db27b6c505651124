"""Tell how fast the interval engine is, and how its cost grows, beside what others would use.

``python -m benchmarks.run`` takes some minutes, ``--quick`` about one; ``--smoke`` takes some seconds and checks only
that every engine is right. Results go to benchmarks/results/engine.json and engine.svg.

A round adds up to 256 programs to those that are cached and then removes them, so that the state returns; the rounds
of all engines alternate in one process. Every engine is compared with a byte-exact model before and after it is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import machine
from benchmarks.contest import Series, Tools, contenders_for, measure, prepare
from benchmarks.goals import measure_goals, show_goals
from benchmarks.plot import plot
from benchmarks.timing import show_time
from benchmarks.workloads import ALL, BLACKHOLE, REALISTIC, WORMHOLE, Grid

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("cython", "intervaltree", "numpy", "portion", "pyroaring", "sortedcontainers", "superintervals")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        sizes: numbers of cached programs.
        workloads: names, on the 8x8 grid with 4 CBs, beside the C++ peers.
        library_workloads: those on which the Python libraries run too.
        library_sizes: numbers of programs cached for those.
        variants: (grid, CBs) for which ttmem runs alone, with the sizes.
        rounds: per series.
        slow_ns: what a round of a slow engine may take.
        goals: whether the goals are measured.
    """

    sizes: tuple[int, ...]
    workloads: tuple[str, ...]
    library_workloads: tuple[str, ...]
    library_sizes: tuple[int, ...]
    variants: tuple[tuple[Grid, int, tuple[int, ...]], ...]
    rounds: int
    slow_ns: float
    goals: bool


FULL = Plan(
    (1, 16, 256, 4096, 65536),
    tuple(ALL),
    ("stack", "random", "staircase"),
    (1, 256, 4096),
    (
        (WORMHOLE, 8, (4096,)),
        (WORMHOLE, 32, (1, 4096, 65536)),
        (BLACKHOLE, 4, (1, 256, 4096, 65536)),
        (BLACKHOLE, 32, (4096,)),
    ),
    15,
    5e7,
    True,
)
QUICK = Plan(
    (1, 256, 4096),
    ("stack", "stack32", "random", "staircase"),
    ("stack",),
    (1, 256),
    ((BLACKHOLE, 4, (4096,)),),
    7,
    4e7,
    True,
)
SMOKE = Plan((9,), tuple(ALL), ("stack", "random"), (9,), (), 1, 1e6, False)


def run_series(plan: Plan, tools: Tools, say: Callable[[str], None]) -> list[Series]:
    """Measure every series of a plan."""
    result = []
    for name in plan.workloads:
        for size in plan.sizes:
            workload = ALL[name](WORMHOLE, size, 4)
            peers = "all" if name in plan.library_workloads and size in plan.library_sizes else "native"
            contenders = contenders_for(tools, workload, peers)
            result += measure(contenders, workload, 4, rounds=plan.rounds, slow_ns=plan.slow_ns, notes=say)
            say(_line(result, name, size))
    for grid, cbs, sizes in plan.variants:
        for name in plan.workloads:
            for size in sizes:
                if name == "captures" and grid is WORMHOLE:
                    # Their programs are what they are, whatever the number of CBs.
                    continue
                workload = ALL[name](grid, size, cbs)
                contenders = contenders_for(tools, workload, "none")
                result += measure(contenders, workload, cbs, rounds=plan.rounds, slow_ns=plan.slow_ns, notes=say)
    return result


def _line(series: list[Series], name: str, size: int) -> str:
    parts = [
        f"{one.engine} {show_time(min(one.add_ns))}"
        for one in series
        if one.workload == name and one.programs == size and one.add_ns
    ]
    return f"{name}, {size} cached: " + ", ".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return 0, or 1 if any engine was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.split("\n")[0])
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="about a minute")
    mode.add_argument("--smoke", action="store_true", help="check that every engine is right; the times mean nothing")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where engine.json and engine.svg go")
    options = parser.parse_args(arguments)
    plan = SMOKE if options.smoke else QUICK if options.quick else FULL
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begin:5.1f} s] {text}", flush=True)

    head = machine.describe(PACKAGES)
    tools = prepare()
    for name, reason in tools.left_out.items():
        say(f"left out: {name}: {reason}")
    series = run_series(plan, tools, say)
    goals, extra = measure_goals(tools, series, plan.rounds) if plan.goals else ([], {})
    print(show_goals(goals))
    options.output.mkdir(parents=True, exist_ok=True)
    result = {
        "benchmark": "engine",
        "command": "python -m benchmarks.run" + (" --quick" if options.quick else " --smoke" if options.smoke else ""),
        **head,
        "duration_s": round(time.monotonic() - begin, 1),
        "left_out": tools.left_out,
        "realistic_workloads": sorted(REALISTIC),
        "goals": [{**asdict(goal), "reached": goal.reached} for goal in goals],
        "further": extra,
        "series": [one.summary() for one in series],
    }
    (options.output / "engine.json").write_text(json.dumps(result, indent=1) + "\n")
    if not options.smoke:
        problem = plot(series, options.output / "engine.svg")
        if problem:
            say(problem)
    say(f"wrote {options.output / 'engine.json'}")
    wrong = [one for one in series if not one.right]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
