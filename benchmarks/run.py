"""How fast is the interval engine, and how does its cost grow, beside what others would use?

``python -m benchmarks.run`` takes some minutes, ``--quick`` about one, ``--smoke`` some seconds and checks only that every
engine is right. Results go to benchmarks/results/engine.json and engine.svg.

A round adds up to 256 programs to those that are cached and then removes them, so that the state returns; the rounds of all
engines alternate in one process. Every engine is compared with a byte-exact model before and after it is timed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ttmem
from benchmarks import build, machine
from benchmarks.peers import libraries, native
from benchmarks.workloads import ALL, BLACKHOLE, REALISTIC, ROUND_PROGRAMS, WORMHOLE, Grid, Workload
from ttmem._engine import IntervalEngine

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("cython", "intervaltree", "numpy", "portion", "pyroaring", "sortedcontainers", "superintervals")


@dataclass(slots=True)
class Series:
    """One engine on one workload.

    Attributes:
        level: ``C`` and ``C++``: the loop is compiled; ``Python, one core``: a library on one core of the device.
        programs: cached while the round runs.
        right: whether it agreed with the model before and after.
        operations: additions in a round, and as many removals.
        add_ns: nanoseconds per addition, one figure a round.
        remove_ns: the same for removals.
    """

    engine: str
    level: str
    workload: str
    grid: str
    cbs: int
    programs: int
    right: bool = True
    operations: int = 0
    note: str = ""
    add_ns: list[float] = field(default_factory=list)
    remove_ns: list[float] = field(default_factory=list)
    query_ns: float | None = None
    memory_bytes_per_program: float | None = None

    def summary(self) -> dict[str, Any]:
        """Return it for the JSON: minimum and median in place of the rounds."""
        result = asdict(self)
        for name in ("add_ns", "remove_ns"):
            rounds = result[name]
            result[name] = {"min": min(rounds), "median": statistics.median(rounds)} if rounds else None
        result["rounds"] = len(self.add_ns)
        return result


class Contender:
    """An engine that can be timed: what stands below fills the figures in."""

    name = ""
    level = "C"
    limit_ns = 10**9

    def __init__(self, workload: Workload) -> None:
        self.workload = workload

    def load(self) -> bool:
        """Add the cached programs; False if that takes too long."""
        raise NotImplementedError

    def add(self, low: int, high: int) -> float:
        """Add programs; return nanoseconds for all."""
        raise NotImplementedError

    def remove(self, low: int, high: int) -> float:
        """Remove programs; return nanoseconds for all."""
        raise NotImplementedError

    def physical(self) -> int:
        """Return the bytes covered."""
        raise NotImplementedError

    def expected(self, programs: int) -> int:
        """Return what the model says is covered by the first programs."""
        return self.workload.physical(programs)

    def memory_bytes(self) -> int | None:
        """Return the bytes held, if the engine can tell."""
        return None

    def close(self) -> None:
        """Free it."""


class Ours(Contender):
    """ttmem's engine, each program interned anew and its handle let go."""

    name = "ttmem"

    def __init__(self, workload: Workload, loops: Any) -> None:
        super().__init__(workload)
        self.engine = loops.Engine(workload)
        self.empty_bytes = self.engine.memory_bytes

    def load(self) -> bool:
        self.engine.add_new(0, self.workload.cached)
        return True

    def add(self, low: int, high: int) -> float:
        return float(self.engine.add_new(low, high))

    def remove(self, low: int, high: int) -> float:
        return float(self.engine.remove(low, high))

    def physical(self) -> int:
        return int(self.engine.physical_bytes)

    def memory_bytes(self) -> int | None:
        return int(self.engine.memory_bytes - self.empty_bytes)


class OursPrepared(Ours):
    """ttmem's engine with handles that were prepared before."""

    name = "ttmem, prepared"

    def load(self) -> bool:
        super().load()
        self.engine.prepare(self.workload.cached, self.workload.num_programs)
        return True

    def add(self, low: int, high: int) -> float:
        return float(self.engine.add_known(low, high))

    def memory_bytes(self) -> int | None:
        return None


class Native(Contender):
    """A C++ peer."""

    level = "C++"

    def __init__(self, workload: Workload, library: Any, name: str) -> None:
        super().__init__(workload)
        self.name = name
        self.peer = native.NativePeer(library, name, workload)

    def load(self) -> bool:
        return self.peer.load(self.workload.cached, 3 * self.limit_ns)

    def add(self, low: int, high: int) -> float:
        return self.peer.add(low, high)

    def remove(self, low: int, high: int) -> float:
        return self.peer.remove(low, high)

    def physical(self) -> int:
        return self.peer.physical()

    def close(self) -> None:
        self.peer.close()


class Library(Contender):
    """A Python library, on the core that most programs cover."""

    level = "Python, one core"

    def __init__(self, workload: Workload, name: str) -> None:
        super().__init__(workload)
        self.name = name
        self.peer = libraries.PEERS[name](workload.grid.limit)  # type: ignore[call-arg]
        self.core = workload.grid.num_cores // 2 + workload.grid.width // 2
        self.programs = workload.on_core(self.core)

    def load(self) -> bool:
        begin = time.perf_counter_ns()
        if self.name in ("intervaltree", "portion", "sorted-list"):
            self.peer.load(self.programs[: self.workload.cached])
            return True
        for first in range(0, self.workload.cached, 64):
            self.peer.load(self.programs[first : min(first + 64, self.workload.cached)])
            if time.perf_counter_ns() - begin > 3 * self.limit_ns:
                return False
        return True

    def add(self, low: int, high: int) -> float:
        programs, add = self.programs[low:high], self.peer.add
        begin = time.perf_counter_ns()
        for ranges in programs:
            add(ranges)
        return time.perf_counter_ns() - begin

    def remove(self, low: int, high: int) -> float:
        programs, remove = self.programs[low:high], self.peer.remove
        begin = time.perf_counter_ns()
        for ranges in programs:
            remove(ranges)
        return time.perf_counter_ns() - begin

    def physical(self) -> int:
        return self.peer.physical()

    def expected(self, programs: int) -> int:
        return self.workload.physical_of_cores(programs, [self.core])[0]


@dataclass(slots=True)
class Tools:
    """What was built, and what could not be had.

    Attributes:
        loops: the extension of timed loops.
        library: the C++ peers.
        left_out: peer -> why it is not here.
    """

    loops: Any
    library: Any
    left_out: dict[str, str]

    def natives(self) -> list[str]:
        """Return the names of the C++ peers that can be run."""
        return [name for name in native.KINDS if name not in self.left_out]

    def libraries(self) -> list[str]:
        """Return the names of the Python libraries that can be run."""
        return [name for name in libraries.PEERS if name not in self.left_out]


def prepare() -> Tools:
    """Build and look for everything that takes part."""
    left_out = {}
    loops = build.loops()
    library = native.open_library(build.peers())
    if not library.peer_has_icl():
        left_out["boost-icl"] = f"the header {build.ICL_HEADER} is missing (Debian: libboost-dev)"
    for name, peer in libraries.PEERS.items():
        try:
            peer(1024)  # type: ignore[call-arg]
        except ImportError as error:
            left_out[name] = f"{error}; python -m pip install -r benchmarks/requirements.txt"
    return Tools(loops, library, left_out)


def measure(
    contenders: list[Contender],
    workload: Workload,
    cbs: int,
    *,
    rounds: int,
    slow_ns: float,
    notes: Callable[[str], None],
) -> list[Series]:
    """Check and time contenders on one workload, their rounds alternating.

    Args:
        contenders: fresh engines.
        workload: what they are fed.
        cbs: CBs of each program, for the record.
        rounds: how many rounds.
        slow_ns: what a slow engine's round may take; it gets fewer operations.
        notes: told of engines that are wrong or left out.
    """
    cached = workload.cached
    grid = f"{workload.grid.width}x{workload.grid.height}"
    running: list[tuple[Contender, Series]] = []
    done = []
    for contender in contenders:
        series = Series(contender.name, contender.level, workload.name, grid, cbs, cached)
        done.append(series)
        if not contender.load():
            series.note = "left out: filling the cache took too long"
            contender.close()
            continue
        held = contender.memory_bytes()
        if held is not None:
            series.memory_bytes_per_program = held / max(1, cached)
        pair = contender.add(cached, cached + 1) + contender.remove(cached, cached + 1)
        if pair > 4 * slow_ns:
            series.note = f"left out: one addition and removal took {pair / 1e9:.1f} s"
            contender.close()
            continue
        series.operations = max(1, min(ROUND_PROGRAMS, int(slow_ns / max(pair, 1))))
        running.append((contender, series))
    expected: dict[tuple[str, int], int] = {}

    def agrees(contender: Contender, programs: int) -> bool:
        key = ("core" if isinstance(contender, Library) else "device", programs)
        if key not in expected:
            expected[key] = contender.expected(programs)
        return contender.physical() == expected[key]

    for contender, series in running:
        series.right = agrees(contender, cached)
        contender.add(cached, cached + series.operations)
        series.right = agrees(contender, cached + series.operations) and series.right
        contender.remove(cached, cached + series.operations)
    # A collection in the middle of a round would be charged to whoever runs then.
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            for contender, series in running:
                if series.operations < 32 and number >= 3:
                    continue
                high = cached + series.operations
                series.add_ns.append(contender.add(cached, high) / series.operations)
                series.remove_ns.append(contender.remove(cached, high) / series.operations)
    finally:
        gc.enable()
    for contender, series in running:
        begin = time.perf_counter_ns()
        total = contender.physical()
        series.query_ns = time.perf_counter_ns() - begin
        series.right = (
            total == expected["core" if isinstance(contender, Library) else "device", cached] and series.right
        )
        if not series.right:
            series.note = "WRONG: disagrees with the model"
        contender.close()
    for series in done:
        if series.note:
            notes(f"{series.engine} on {workload.name}, {cached} cached: {series.note}")
    return done


def contenders_for(tools: Tools, workload: Workload, peers: str) -> list[Contender]:
    """Return the engines that run on a workload; ``peers`` is ``all``, ``native`` or ``none``."""
    result: list[Contender] = [Ours(workload, tools.loops), OursPrepared(workload, tools.loops)]
    if peers != "none":
        result += [Native(workload, tools.library, name) for name in tools.natives()]
    if peers == "all":
        result += [Library(workload, name) for name in tools.libraries()]
    return result


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        sizes: numbers of cached programs.
        workloads: names, on the 8x8 grid with 4 CBs, beside the C++ peers.
        library_workloads: those on which the Python libraries run too.
        library_size: the most programs cached for those.
        variants: (grid, CBs) for which ttmem runs alone, with the sizes.
        rounds: per series.
        slow_ns: what a round of a slow engine may take.
        goals: whether the goals are measured.
    """

    sizes: tuple[int, ...]
    workloads: tuple[str, ...]
    library_workloads: tuple[str, ...]
    library_size: int
    variants: tuple[tuple[Grid, int, tuple[int, ...]], ...]
    rounds: int
    slow_ns: float
    goals: bool


FULL = Plan(
    (1, 16, 256, 4096, 65536),
    tuple(ALL),
    ("stack", "random", "staircase"),
    4096,
    (
        (WORMHOLE, 8, (4096,)),
        (WORMHOLE, 32, (1, 4096, 65536)),
        (BLACKHOLE, 4, (1, 256, 4096, 65536)),
        (BLACKHOLE, 32, (4096,)),
    ),
    15,
    1.5e8,
    True,
)
QUICK = Plan(
    (1, 256, 4096),
    ("stack", "stack32", "random", "staircase"),
    ("stack",),
    256,
    ((BLACKHOLE, 4, (4096,)),),
    7,
    4e7,
    True,
)
SMOKE = Plan((1, 16), tuple(ALL), tuple(ALL), 16, ((BLACKHOLE, 8, (16,)),), 1, 2e6, False)


def run_series(plan: Plan, tools: Tools, say: Callable[[str], None]) -> list[Series]:
    """Measure every series of a plan."""
    result = []
    for name in plan.workloads:
        for size in plan.sizes:
            workload = ALL[name](WORMHOLE, size, 4)
            peers = "all" if name in plan.library_workloads and size <= plan.library_size else "native"
            contenders = contenders_for(tools, workload, peers)
            result += measure(contenders, workload, 4, rounds=plan.rounds, slow_ns=plan.slow_ns, notes=say)
            say(_line(result, name, size))
    for grid, cbs, sizes in plan.variants:
        for name in plan.workloads:
            for size in sizes:
                if name == "captures" and (grid is not WORMHOLE or cbs != 4):
                    continue
                workload = ALL[name](grid, size, cbs)
                contenders = contenders_for(tools, workload, "none")
                result += measure(contenders, workload, cbs, rounds=plan.rounds, slow_ns=plan.slow_ns, notes=say)
    return result


def _line(series: list[Series], name: str, size: int) -> str:
    parts = [
        f"{one.engine} {_time(min(one.add_ns))}"
        for one in series
        if one.workload == name and one.programs == size and one.add_ns
    ]
    return f"{name}, {size} cached: " + ", ".join(parts)


def _time(ns: float) -> str:
    for unit, scale in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= scale:
            return f"{ns / scale:.3g} {unit}"
    return f"{ns:.3g} ns"


@contextmanager
def own_shared_memory() -> Iterator[Path]:
    """Publish into a directory of one's own in shared memory, and remove it."""
    before = {key: os.environ.get(key) for key in ("TTMEM_SHM_DIR", "TTMEM_NAMESPACE", "TTMEM_DISABLE")}
    with tempfile.TemporaryDirectory(prefix=f"ttmem-bench-{os.getpid()}-", dir="/dev/shm") as directory:
        os.environ["TTMEM_SHM_DIR"] = directory
        os.environ["TTMEM_NAMESPACE"] = "bench"
        os.environ.pop("TTMEM_DISABLE", None)
        try:
            yield Path(directory)
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value


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


def best(rounds: list[float]) -> tuple[float, float]:
    """Return minimum and median."""
    return min(rounds), statistics.median(rounds)


def python_loop_ns(items: list[Any], rounds: int) -> float:
    """Return nanoseconds per turn of an empty loop."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter_ns()
        for _item in items:
            pass
        times.append((time.perf_counter_ns() - begin) / len(items))
    return min(times)


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
                ("query of the device total, C", 2.0, lambda e=engine: e.read_total(count)),
                ("query of a core, C", 2.0, lambda e=engine: e.read_core(count)),
                ("dispatch, full grid replaced", 15.0, lambda e=engine: e.dispatch_pair(low, low + 1, count)),
                ("dispatch, same program again", 1.0, lambda e=engine: e.dispatch_pair(low, low, count)),
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
        expected = ALL["stack"](grid, low, 4).physical_of_cores(0)
        del expected


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

    for engine in ("ttmem", "ttmem, prepared"):
        one = find(engine, "stack", 1)
        for programs, goal in ((4096, 1.2), (65536, 1.5)):
            many = find(engine, "stack", programs)
            if one and many:
                low = min(many.add_ns) / min(one.add_ns)
                median = statistics.median(many.add_ns) / statistics.median(one.add_ns)
                goals.append(Goal(f"growth from 1 to {programs:,} cached, stack, {engine}", goal, low, median, "times"))
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


def plot(series: list[Series], path: Path) -> str:
    """Draw time over number of programs, log-log; return why not, or an empty text."""
    try:
        import matplotlib
    except ImportError as error:
        return f"no plot: {error}; python -m pip install -r benchmarks/requirements.txt"
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "ttmem"
    from matplotlib import pyplot

    shown = [name for name in ("stack", "stack32", "split", "random", "staircase", "comb") if name in ALL]
    figure, panels = pyplot.subplots(2, 3, figsize=(13, 7.5), sharex=True, sharey=True)
    names = sorted({(one.level, one.engine) for one in series})
    colours = {engine: f"C{i % 10}" for i, (_, engine) in enumerate(names)}
    styles = {"C": "-", "C++": "--", "Python, one core": ":"}
    for panel, workload in zip(panels.flat, shown, strict=True):
        for level, engine in names:
            points = sorted(
                (one.programs, min(one.add_ns) / 1e3)
                for one in series
                if (one.engine, one.workload, one.grid, one.cbs) == (engine, workload, "8x8", 4)
                and one.add_ns
                and one.right
            )
            if points:
                ours = engine.startswith("ttmem")
                panel.plot(
                    *zip(*points, strict=True),
                    styles[level],
                    marker="o",
                    markersize=5 if ours else 3,
                    linewidth=2.4 if ours else 1.2,
                    color=colours[engine],
                    label=engine + (" (one core of 64)" if level.startswith("Python") else ""),
                )
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_title(workload)
        panel.grid(visible=True, which="major", alpha=0.3)
    for panel in panels[1]:
        panel.set_xlabel("programs in the cache")
    for panel in panels[:, 0]:
        panel.set_ylabel("one program added, µs")
    handles: dict[str, Any] = {}
    for panel in panels.flat:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncol=4, frameon=False, fontsize=9)
    figure.suptitle("One program of 4 circular buffers added to a device of 8x8 cores (minimum of the rounds)")
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return ""


def show_goals(goals: list[Goal]) -> str:
    """Return a table of goals and figures."""
    lines = []
    for goal in goals:
        mark = "" if goal.reached else "   MISSED"
        figures = (goal.goal, goal.minimum, goal.median)
        texts = [_time(f) if goal.unit == "ns" else f"{f:,.3g}" if f < 1000 else f"{f:,.0f}" for f in figures]
        unit = "" if goal.unit == "ns" else f" {goal.unit}"
        lines.append(f"{goal.what:<72} goal {texts[0]:>8}{unit}  min {texts[1]:>8}  median {texts[2]:>8}{mark}")
    return "\n".join(lines)


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
