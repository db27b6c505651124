"""The goals of issue 3 and what is measured against them."""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ttmem
from benchmarks.contest import Series, Tools
from benchmarks.peers import native
from benchmarks.timing import best, own_shared_memory, python_loop_ns, show_time
from benchmarks.workloads import ALL, BLACKHOLE, ROUND_PROGRAMS, WORMHOLE, Grid, Workload
from ttmem._engine import IntervalEngine


@dataclass(slots=True)
class Goal:
    """A goal of issue 3 and what was measured; ``unit`` is ns, bytes, or times (a ratio)."""

    what: str
    goal: float
    minimum: float
    median: float
    unit: str
    at_least: bool = False

    @property
    def reached(self) -> bool:
        """Whether the minimum reaches the goal."""
        return self.minimum >= self.goal if self.at_least else self.minimum <= self.goal


def buffers_of(workload: Workload, index: int) -> list[ttmem.CircularBuffer]:
    """Return a program of full-grid CBs as a user would hand it over."""
    cores = ttmem.CoreRange(ttmem.CoreCoord(0, 0), ttmem.CoreCoord(workload.grid.width - 1, workload.grid.height - 1))
    cores = ttmem.CoreRangeSet(cores)
    return [ttmem.CircularBuffer(begin, end - begin, cores) for begin, end, _ in workload.program(index)]


def time_python(calls: list[tuple[Callable[[Any], Any], list[Any]]], rounds: int) -> list[list[float]]:
    """Time calls of functions of one argument, one list after the other, net of the loop.

    A function's results become the next list if that one is empty (ids of programs that were added).
    """
    times: list[list[float]] = [[] for _ in calls]
    loop = python_loop_ns(list(range(ROUND_PROGRAMS)), 50)
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            results: list[Any] = []
            for place, (function, items) in enumerate(calls):
                given = items or results
                results = [None] * len(given)
                begin = time.perf_counter_ns()
                for item in given:
                    function(item)
                took = time.perf_counter_ns() - begin
                times[place].append(took / len(given) - loop)
    finally:
        gc.enable()
    return times


def measure_goals(tools: Tools, series: list[Series], rounds: int) -> tuple[list[Goal], dict[str, Any]]:
    """Measure what issue 3 asks for; return the goals and further figures."""
    goals: list[Goal] = []
    extra: dict[str, Any] = {}
    for grid in (WORMHOLE, BLACKHOLE):
        label = f"{grid.width}x{grid.height}"
        _goals_in_c(tools, grid, label, rounds, goals, extra)
        _goals_published(tools, grid, label, rounds, goals, extra)
    _goals_through_python(tools, rounds, goals)
    _goals_of_growth(series, goals)
    return goals, extra


def _goals_in_c(tools: Tools, grid: Grid, label: str, rounds: int, goals: list[Goal], extra: dict[str, Any]) -> None:
    low, high = 4096, 4096 + ROUND_PROGRAMS
    for name, what, goal in (("stack", "known footprint", 25.0), ("stack32", "footprint not seen before", 120.0)):
        workload = ALL[name](grid, low, 4)
        engine = tools.loops.Engine(workload)
        engine.add_new(0, low)
        if name == "stack":
            engine.prepare(low, high)
        add = engine.add_known if name == "stack" else engine.add_new
        pairs = [
            (add(low, high) / ROUND_PROGRAMS, engine.remove(low, high) / ROUND_PROGRAMS) for _ in range(8 * rounds)
        ]
        for place, verb in enumerate(("add", "remove")):
            goals.append(Goal(f"{verb}, {what}, C, {label}", goal, *best([p[place] for p in pairs]), "ns"))
        if name == "stack":
            cold = engine.add_cold(low, low + 64, 32 << 20)
            extra[f"add, known footprint, after 32 MiB were touched, {label}, ns"] = dict(
                zip(("min", "median"), best(cold), strict=True)
            )
            count = 20000
            for what, goal, call in (
                ("query of the device total, C", 2.0, lambda e=engine, n=count: e.read_total(n)),
                ("query of a core, C", 2.0, lambda e=engine, n=count: e.read_core(n)),
                ("dispatch, full grid replaced", 15.0, lambda e=engine, n=count: e.dispatch_pair(low, low + 1, n)),
                ("dispatch, same program again", 1.0, lambda e=engine, n=count: e.dispatch_pair(low, low, n)),
            ):
                goals.append(Goal(f"{what}, {label}", goal, *best([call() / count for _ in range(4 * rounds)]), "ns"))
            # Two neighbours in the list may share a footprint: then the replacement would be none.
            assert workload.program(low) != workload.program(low + 1)
    random = ALL["random"]
    engine = tools.loops.Engine(random(grid, 4096, 4))
    engine.add_new(0, 4096)
    state = 0
    churned = []
    for _ in range(rounds):
        churned.append(engine.churn(4096, ROUND_PROGRAMS, state) / ROUND_PROGRAMS)
        state += ROUND_PROGRAMS
    extra[f"churn, oldest out and a new one in, random, 4,096 cached, {label}, ns"] = dict(
        zip(("min", "median"), best(churned), strict=True)
    )


def _goals_published(
    tools: Tools, grid: Grid, label: str, rounds: int, goals: list[Goal], extra: dict[str, Any]
) -> None:
    low = 4096
    workload = ALL["stack"](grid, low, 4)
    with (
        own_shared_memory(),
        ttmem.publish(0, grid=(grid.width, grid.height), worker_l1_size=grid.limit, l1_cb_base=grid.base) as publisher,
    ):
        known = [buffers_of(workload, i) for i in range(low)]
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(low):
            publisher.add_program(known[number % 32], name="op")
        extra[f"Python's memory for a program of a publisher, repeated, {label}, bytes"] = (
            tracemalloc.get_traced_memory()[0] - before
        ) / low
        tracemalloc.stop()
        handles = [publisher.footprint(buffers_of(workload, low + i)) for i in range(ROUND_PROGRAMS)]
        pairs = [tools.loops.published_round(publisher, handles) for _ in range(8 * rounds)]
        for place, verb in enumerate(("add", "remove")):
            times = [pair[place] / ROUND_PROGRAMS for pair in pairs]
            goals.append(Goal(f"{verb} with its publication, known footprint, C, {label}", 100.0, *best(times), "ns"))
        lists = [buffers_of(workload, low + i) for i in range(ROUND_PROGRAMS)]
        for what, items, goal in (("prepared handle", handles, 200.0), ("list of CircularBuffer", lists, 3000.0)):
            adds, removes = published_python_round(publisher, items, 4 * rounds)
            goals.append(Goal(f"add, published, Python, {what}, {label}", goal, *best(adds), "ns"))
            goals.append(Goal(f"remove, published, Python, {what}, {label}", goal, *best(removes), "ns"))


def published_python_round(publisher: Any, items: list[Any], rounds: int) -> tuple[list[float], list[float]]:
    """Add programs and remove them through a publisher; return nanoseconds per call, net of the loop."""
    loop = python_loop_ns(items, 50)
    add, remove = publisher.add_program, publisher.remove_program
    adds, removes = [], []
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            first = add(items[0])
            begin = time.perf_counter_ns()
            for item in items:
                last = add(item)
            took = time.perf_counter_ns() - begin
            adds.append(took / len(items) - loop)
            remove(first)
            ids = list(range(last - len(items) + 1, last + 1))
            begin = time.perf_counter_ns()
            for program_id in ids:
                remove(program_id)
            took = time.perf_counter_ns() - begin
            removes.append(took / len(items) - loop)
    finally:
        gc.enable()
    return adds, removes


def _goals_through_python(tools: Tools, rounds: int, goals: list[Goal]) -> None:
    low, grid = 4096, WORMHOLE
    workload = ALL["stack"](grid, low, 4)
    engine = IntervalEngine(grid.width, grid.height, limit=grid.limit)
    for number in range(low):
        engine.add(engine.footprint(workload.program(number)))
    handles = [engine.footprint(workload.program(low + i)) for i in range(ROUND_PROGRAMS)]
    adds, removes = time_python([(engine.add, handles), (engine.remove, handles)], 4 * rounds)
    if engine.physical_bytes != workload.physical(low):
        raise AssertionError("the engine disagrees with the model")
    goals.append(Goal("add, prepared handle, Python, unpublished, 8x8", 200.0, *best(adds), "ns"))
    goals.append(Goal("remove, prepared handle, Python, unpublished, 8x8", 200.0, *best(removes), "ns"))
    cores = list(range(grid.num_cores)) * 4
    (queries,) = time_python([(engine.core_physical, cores)], 4 * rounds)
    goals.append(Goal("query of a core, Python, 8x8", 25.0, *best(queries), "ns"))
    totals = []
    loop = python_loop_ns(cores, 50)
    for _ in range(4 * rounds):
        begin = time.perf_counter_ns()
        for _item in cores:
            engine.physical_bytes  # noqa: B018
        totals.append((time.perf_counter_ns() - begin) / len(cores) - loop)
    goals.append(Goal("query of the device total, Python, 8x8", 25.0, *best(totals), "ns"))

    peer = native.NativePeer(tools.library, "recompute", workload)
    peer.load(low, 10**10)
    recomputed = []
    for number in range(4):
        begin = time.perf_counter_ns()
        peer.add(low + number, low + number + 1)
        recomputed.append(float(time.perf_counter_ns() - begin))
        peer.remove(low + number, low + number + 1)
    if peer.physical() != workload.physical(low):
        raise AssertionError("the recompute disagrees with the model")
    peer.close()
    ratio = min(recomputed) / min(adds)
    median = statistics.median(recomputed) / statistics.median(adds)
    goals.append(Goal("against the recompute, 4,096 cached, through Python", 100000.0, ratio, median, "times", True))


def _goals_of_growth(series: list[Series], goals: list[Goal]) -> None:
    def find(engine: str, workload: str, programs: int, cbs: int = 4, grid: str = "8x8") -> Series | None:
        for one in series:
            key = (one.engine, one.workload, one.programs, one.cbs, one.grid)
            if key == (engine, workload, programs, cbs, grid) and one.add_ns:
                return one
        return None

    for grid in ("8x8", "13x10"):
        for engine in ("ttmem", "ttmem, prepared"):
            one = find(engine, "stack", 1, grid=grid)
            for programs, goal in ((4096, 1.2), (65536, 1.5)):
                many = find(engine, "stack", programs, grid=grid)
                if one and many:
                    low = min(many.add_ns) / min(one.add_ns)
                    median = statistics.median(many.add_ns) / statistics.median(one.add_ns)
                    what = f"growth from 1 to {programs:,} cached, stack, {engine}, {grid}"
                    goals.append(Goal(what, goal, low, median, "times"))
    for programs in (256, 4096, 65536):
        one = find("ttmem", "random", programs)
        if one:
            goals.append(Goal(f"add, random rectangles, {programs:,} cached, 8x8", 10000.0, *best(one.add_ns), "ns"))
            what = f"remove, random rectangles, {programs:,} cached, 8x8"
            goals.append(Goal(what, 10000.0, *best(one.remove_ns), "ns"))
    for workload, goal in (("stack", 48.0), ("captures", 48.0), ("stack32", 64.0 + 12 * 4), ("random", 64.0 + 12 * 4)):
        for programs in (4096, 65536):
            one = find("ttmem", workload, programs)
            if one and one.memory_bytes_per_program is not None:
                held = one.memory_bytes_per_program
                what = f"the engine's memory per cached program, {workload}, {programs:,} cached"
                goals.append(Goal(what, goal, held, held, "bytes"))


def show_goals(goals: list[Goal]) -> str:
    """Return a table of goals and figures."""
    lines = []
    for goal in goals:
        mark = "" if goal.reached else "   MISSED"
        figures = (goal.goal, goal.minimum, goal.median)
        texts = [show_time(f) if goal.unit == "ns" else f"{f:,.3g}" if f < 1000 else f"{f:,.0f}" for f in figures]
        unit = "" if goal.unit == "ns" else f" {goal.unit}"
        lines.append(f"{goal.what:<72} goal {texts[0]:>8}{unit}  min {texts[1]:>8}  median {texts[2]:>8}{mark}")
    return "\n".join(lines)
