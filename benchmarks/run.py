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
from benchmarks.contest import Series, Tools, contenders_for, measure, prepare, too_slow_for
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
        budget_s: when this much time has passed, the series that are left are not run, and named.
    """

    sizes: tuple[int, ...]
    workloads: tuple[str, ...]
    library_workloads: tuple[str, ...]
    library_sizes: tuple[int, ...]
    variants: tuple[tuple[Grid, int, tuple[int, ...]], ...]
    rounds: int
    slow_ns: float
    goals: bool
    budget_s: float


FULL = Plan(
    (1, 16, 256, 4096, 65536),
    ("stack", "stack32", "random", "captures", "comb", "split", "staircase", "sweep", "unaligned", "cuts"),
    ("stack", "random"),
    (1, 256, 4096),
    (
        (WORMHOLE, 8, (4096,)),
        (WORMHOLE, 32, (1, 4096, 65536)),
        (BLACKHOLE, 4, (1, 256, 4096, 65536)),
        (BLACKHOLE, 32, (4096,)),
    ),
    11,
    2e7,
    True,
    # Some five minutes on a machine that others use, too: what is left is not begun, so that the whole stays below ten.
    480,
)
QUICK = Plan(
    (1, 256, 4096),
    ("stack", "stack32", "random", "staircase"),
    ("stack",),
    (1, 256),
    ((BLACKHOLE, 4, (4096,)),),
    7,
    2e7,
    True,
    60,
)
SMOKE = Plan((9,), tuple(ALL), ("stack", "random"), (9,), (), 1, 1e6, False, 200)


def run_series(plan: Plan, tools: Tools, budget_s: float, say: Callable[[str], None]) -> list[Series]:
    """Measure every series of a plan; what there was no time for is named in ``tools.left_out``."""
    cases = []
    for name in plan.workloads:
        for size in plan.sizes:
            everybody = name in plan.library_workloads and size in plan.library_sizes
            cases.append((name, WORMHOLE, 4, size, "all" if everybody else "native"))
    for grid, cbs, sizes in plan.variants:
        # The captures' programs are what they are, whatever the number of CBs.
        names = [name for name in plan.workloads if name != "captures" or grid is not WORMHOLE]
        cases += [(name, grid, cbs, size, "none") for name in names for size in sizes]
    result: list[Series] = []
    too_slow: dict[tuple[str, ...], str] = {}
    begin = time.monotonic()
    for name, grid, cbs, size, peers in cases:
        if time.monotonic() - begin > budget_s:
            what = f"{name}, {grid.width}x{grid.height}, {cbs} CBs, {size} cached"
            tools.left_out[what] = "the time was over"
            continue
        workload = ALL[name](grid, size, cbs)
        group = (name, f"{grid.width}x{grid.height}", str(cbs))
        known = {key[-1]: why for key, why in too_slow.items() if key[:-1] == group}
        contenders = contenders_for(tools, workload, peers, known)
        measured = measure(contenders, workload, cbs, rounds=plan.rounds, slow_ns=plan.slow_ns, notes=say)
        measured += [Series(peer, "C++", name, group[1], cbs, size, note=why) for peer, why in known.items()]
        for one in measured:
            why = too_slow_for(one, _next_size(cases, (name, grid, cbs), size))
            if why:
                too_slow[(*group, one.engine)] = why
        say(_line(measured, f"{name}, {grid.width}x{grid.height}, {cbs} CBs, {size} cached"))
        result += measured
    return result


def _next_size(cases: list[tuple[str, Grid, int, int, str]], group: tuple[str, Grid, int], size: int) -> int:
    """Return the next larger number of cached programs that is to be measured in a group, 0 if there is none."""
    return min((case[3] for case in cases if case[:3] == group and case[3] > size), default=0)


def _line(series: list[Series], what: str) -> str:
    return f"{what}: " + ", ".join(f"{one.engine} {show_time(min(one.add_ns))}" for one in series if one.add_ns)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return 0, or 1 if any engine was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.split("\n")[0])
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="about a minute")
    mode.add_argument("--smoke", action="store_true", help="check that every engine is right; the times mean nothing")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where engine.json and engine.svg go")
    parser.add_argument("--budget", type=float, metavar="SEC", help="start no series after this, for a busy machine")
    options = parser.parse_args(arguments)
    plan = SMOKE if options.smoke else QUICK if options.quick else FULL
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begin:5.1f} s] {text}", flush=True)

    head = machine.describe(PACKAGES)
    tools = prepare()
    for name, reason in tools.left_out.items():
        say(f"left out: {name}: {reason}")
    series = run_series(plan, tools, plan.budget_s if options.budget is None else options.budget, say)
    goals, extra = measure_goals(tools, series, plan.rounds) if plan.goals else ([], {})
    print(show_goals(goals))
    options.output.mkdir(parents=True, exist_ok=True)
    result = {
        "benchmark": "engine",
        "command": " ".join(["python -m benchmarks.run", *(sys.argv[1:] if arguments is None else arguments)]),
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
