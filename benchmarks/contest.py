"""Engines on one workload: each is checked against the model, then their rounds alternate."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks import build
from benchmarks.peers import libraries, native
from benchmarks.workloads import ROUND_PROGRAMS, Workload

TOO_SLOW_NS = 6e8
"""An engine that takes longer for one addition and removal is left out."""


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
        return self.peer.load(self.workload.cached, self.limit_ns)

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
            if time.perf_counter_ns() - begin > self.limit_ns:
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
        if pair > max(TOO_SLOW_NS, 8 * slow_ns):
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


def too_slow_for(series: Series, programs: int) -> str:
    """Return why a C++ peer need not be tried with more programs cached, by what it took with fewer; "" if it should be.

    To learn it there would take as long as all that is measured besides: the cache must be filled first.
    """
    if series.level != "C++" or not programs:
        return ""
    if not series.add_ns:
        return series.note
    pair = min(series.add_ns) + min(series.remove_ns)
    if pair * programs / max(1, series.programs) > 2 * TOO_SLOW_NS and pair > TOO_SLOW_NS / 20:
        return f"left out: one addition and removal took {pair / 1e9:.2g} s at {series.programs:,} cached"
    return ""


def contenders_for(tools: Tools, workload: Workload, peers: str, left_out: Collection[str] = ()) -> list[Contender]:
    """Return the engines that run on a workload; ``peers`` is ``all``, ``native`` or ``none``."""
    result: list[Contender] = [Ours(workload, tools.loops), OursPrepared(workload, tools.loops)]
    if peers != "none":
        result += [Native(workload, tools.library, name) for name in tools.natives() if name not in left_out]
    if peers == "all":
        result += [Library(workload, name) for name in tools.libraries()]
    return result
