"""Tell what publishing and reading cost, and what a reader sees when the writer dies.

``python -m benchmarks.segment`` takes about a minute, ``--quick`` some seconds. Results go to
benchmarks/results/segment.json. Updates are timed on one processor while readers, where there are some, run on another.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ttmem
from benchmarks import build, machine
from benchmarks.peers import records
from benchmarks.run import RESULTS
from benchmarks.timing import own_shared_memory, python_loop_ns, show_time

PACKAGES = ("cython", "numpy", "prometheus-client")
GEOMETRY: dict[str, Any] = {"arch": "blackhole", "grid": (14, 10), "l1_cb_base": 111488}
WRITERS = 64


@dataclass(slots=True)
class Row:
    """One measurement, in nanoseconds; ``goal`` is None where issue 4 names none."""

    what: str
    goal: float | None
    minimum: float
    median: float

    @property
    def reached(self) -> bool | None:
        """Whether the median reaches the goal."""
        return None if self.goal is None else self.median <= self.goal


def figures(times: list[float]) -> tuple[float, float]:
    """Return minimum and median."""
    return min(times), statistics.median(times)


def pin(processor: int) -> None:
    """Run on one of the processors that this process may use, the same one if there is no other."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[processor % len(allowed)]})


def programs(publisher: Any, count: int) -> list[Any]:
    """Return prepared footprints on parts of the grid, all different."""
    handles = []
    for number in range(count):
        rows = f"{{[0-0 - 13-{number % 10}]}}"
        sizes = [2048 * (1 + (number + place) % 12) for place in range(4)]
        address, buffers = 111488, []
        for size in sizes:
            buffers.append(ttmem.CircularBuffer(address, size, rows))
            address += size
        handles.append(publisher.footprint(buffers))
    return handles


@contextmanager
def child(run: Callable[[int], None]) -> Iterator[int]:
    """Fork a process that runs a function with a descriptor to write "ready" to; kill it in the end."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(receive)
            run(send)
            status = 0
        finally:
            os._exit(status)
    os.close(send)
    try:
        if os.read(receive, 1) != b"r":
            raise RuntimeError("a process of the benchmark ended before it was ready")
        yield pid
    finally:
        os.close(receive)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def poll(ready: int) -> None:
    """Take a snapshot every millisecond, for ever."""
    with ttmem.attach(0) as reader:
        due = time.monotonic_ns()
        reader.snapshot()
        os.write(ready, b"r")
        while True:
            reader.snapshot()
            due += 1_000_000
            wait = due - time.monotonic_ns()
            if wait > 0:
                time.sleep(wait / 1e9)
            else:
                due = time.monotonic_ns()


LOCKED = "the same, and the lock held: a commit alone"


def updates(loops: Any, publisher: Any, rounds: int) -> dict[str, list[float]]:
    """Time updates of the device's record from C and from Python."""
    times: dict[str, list[float]] = {}
    handles = programs(publisher, 2)
    one, other = (publisher.add_program(handle) for handle in handles)
    numbers = list(range(500))
    empty = python_loop_ns(numbers, 50)
    count = 2000
    gc.disable()
    try:
        for _ in range(rounds):
            # A little at a time: a reader comes by once in a millisecond.
            times.setdefault("update of a device's record, C", []).append(loops.update_record(publisher, count) / count)
            times.setdefault("the same, the time stamp at hand", []).append(
                loops.update_record(publisher, count, False) / count
            )
            times.setdefault(LOCKED, []).append(loops.commit_record(publisher, count) / count)
            begin = time.perf_counter_ns()
            for _number in numbers:
                publisher.dispatch(one)
                publisher.dispatch(other)
            took = (time.perf_counter_ns() - begin) / len(numbers)
            times.setdefault("update from Python: dispatch", []).append((took - empty) / 2)
            begin = time.perf_counter_ns()
            for _number in numbers:
                publisher.remove_program(publisher.add_program(handles[0]))
            took = (time.perf_counter_ns() - begin) / len(numbers)
            times.setdefault("update from Python: add or remove a prepared program", []).append((took - empty) / 2)
            begin = time.perf_counter_ns()
            for _number in numbers:
                publisher.unload_kernel(publisher.load_kernel(4096))
            took = (time.perf_counter_ns() - begin) / len(numbers)
            times.setdefault("update from Python: load or unload a kernel", []).append((took - empty) / 2)
    finally:
        gc.enable()
    publisher.remove_program(one)
    publisher.remove_program(other)
    return times


def timed(call: Callable[[], Any], count: int) -> list[float]:
    """Time single calls."""
    result = []
    gc.disable()
    try:
        for _ in range(count):
            begin = time.perf_counter_ns()
            call()
            result.append(float(time.perf_counter_ns() - begin))
    finally:
        gc.enable()
    return result


def timed_after(change: Callable[[], Any], call: Callable[[], Any], count: int) -> list[float]:
    """Time single calls, each after a change that is not timed."""
    result = []
    for _ in range(count):
        change()
        result += timed(call, 1)
    return result


def measure_ours(loops: Any, rounds: int) -> list[Row]:
    """Measure ttmem: updates, reads, start."""
    rows = []
    goals = {"update of a device's record, C": 12.0, "the same, the time stamp at hand": 12.0, LOCKED: 12.0}
    with own_shared_memory():
        with ttmem.publish(0, **GEOMETRY) as publisher:
            for handle in programs(publisher, 64):
                publisher.add_program(handle, name="op")
            quiet = updates(loops, publisher, rounds)
            with child(lambda ready: (pin(1), poll(ready))[1]):
                polled = updates(loops, publisher, rounds)
            for what, times in quiet.items():
                goal = goals.get(what, 60.0)
                rows.append(Row(what, goal, *figures(times)))
                base = statistics.median(times)
                # Unchanged within a tenth is the goal where a compiled caller writes.
                rows.append(
                    Row(f"{what}, polled at 1 kHz", 1.1 * base if what in goals else None, *figures(polled[what]))
                )
            with ttmem.attach(0) as reader:
                rows.append(
                    Row("snapshot() of a 140-core device", 20e3, *figures(timed(reader.snapshot, 100 * rounds)))
                )
                changed = timed_after(
                    lambda: publisher.unload_kernel(publisher.load_kernel(64)), reader.snapshot, 20 * rounds
                )
                rows.append(Row("the same, after an update each time", None, *figures(changed)))
                whole = timed(lambda: reader.snapshot().to_dict(), 2 * rounds)
                rows.append(Row("snapshot().to_dict() of it, 140 cores", None, *figures(whole)))
                cores = timed(lambda: reader.snapshot().cores, 10 * rounds)
                rows.append(Row("snapshot().cores of it, a NumPy array", None, *figures(cores)))
        starts = []
        for _ in range(4 * rounds):
            begin = time.perf_counter_ns()
            publisher = ttmem.publish(0, **GEOMETRY)
            starts.append(float(time.perf_counter_ns() - begin))
            publisher.close()
        rows.append(Row("start of a publisher", 100e3, *figures(starts)))
        rows.append(_many_writers(rounds))
    rows += _import_time()
    return rows


def _write_and_wait(ready: int) -> None:
    publisher = ttmem.publish(0, **GEOMETRY)
    for handle in programs(publisher, 4):
        publisher.add_program(handle)
    os.write(ready, b"r")
    signal.pause()


def _many_writers(rounds: int) -> Row:
    """Read one device that 64 processes publish."""
    receive, send = os.pipe()
    pids = []
    try:
        for _ in range(WRITERS):
            pid = os.fork()
            if pid == 0:
                try:
                    _write_and_wait(send)
                finally:
                    os._exit(1)
            pids.append(pid)
        seen = 0
        while seen < WRITERS:
            seen += len(os.read(receive, WRITERS))
        with ttmem.attach(0) as reader:
            processes = reader.snapshot().to_dict()["processes"]
            if len(processes) != WRITERS:
                raise AssertionError(f"{len(processes)} of {WRITERS} writers are seen")
            return Row(f"snapshot() of {WRITERS} writers' files", 300e3, *figures(timed(reader.snapshot, 20 * rounds)))
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
        os.close(receive)
        os.close(send)


def _import_time() -> list[Row]:
    """Time ``import ttmem`` in a fresh interpreter, net of the interpreter's start, and what the first use takes."""
    script = """
import time
times = [time.perf_counter_ns()]
import ttmem
times.append(time.perf_counter_ns())
ttmem.publish
times.append(time.perf_counter_ns())
ttmem.attach
times.append(time.perf_counter_ns())
print(*(later - earlier for earlier, later in zip(times, times[1:])))
"""
    # Compiled modules are kept by whoever imports twice.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(build.TARGET / "pycache")
    times = []
    for _ in range(8):
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            cwd=machine.ROOT,
            env=environment,
        )
        times.append([float(text) for text in done.stdout.split()])
    what = (
        "import ttmem",
        "the first mention of ttmem.publish after it",
        "the first mention of ttmem.attach after that",
    )
    return [
        Row(name, None, *figures(list(column))) for name, column in zip(what, zip(*times[1:], strict=True), strict=True)
    ]


def measure_peers(directory: Path, rounds: int) -> tuple[list[Row], dict[str, str]]:
    """Measure what peers take to update and read eight figures; return rows and who was left out."""
    rows = []
    left_out: dict[str, str] = {}
    for kind in records.PEERS:
        peer = _open(kind, directory, left_out)
        if peer is None:
            continue
        peer.open_writer()
        peer.update(1)
        if peer.read() != (1,) * 8 and not isinstance(peer, records.SocketPeer):
            raise AssertionError(f"{peer.name} does not read what was written")
        times = []
        # Few enough that the daemon keeps up: a full socket would make the sender wait for it.
        count = 100 if isinstance(peer, records.SocketPeer | records.SqlitePeer) else 1000
        numbers = list(range(count))
        empty = python_loop_ns(numbers, 50)
        for _ in range(rounds):
            begin = time.perf_counter_ns()
            for number in numbers:
                peer.update(number)
            times.append((time.perf_counter_ns() - begin) / count - empty)
            peer.read()
        rows.append(Row(f"{peer.name}: update of eight figures", None, *figures(times)))
        rows.append(Row(f"{peer.name}: read of them", None, *figures(timed(peer.read, 20 * rounds))))
        peer.close()
    times, reason = _pcp(directory, rounds)
    if reason:
        left_out["PCP MMV"] = reason
    else:
        rows.append(Row("PCP MMV: update of eight figures", None, *figures(times)))
        left_out["PCP MMV, read and death of the writer"] = (
            "reading needs a running pmcd, which this benchmark does not start"
        )
    return rows, left_out


def _open(kind: Any, directory: Path, left_out: dict[str, str]) -> Any:
    if kind is records.PrometheusPeer and importlib.util.find_spec("prometheus_client") is None:
        left_out[kind.name] = "prometheus_client is not installed; python -m pip install -r benchmarks/requirements.txt"
        return None
    place = Path(tempfile.mkdtemp(prefix="peer-", dir=directory))
    return kind(place)


def _pcp(directory: Path, rounds: int) -> tuple[list[float], str]:
    """Time PCP's memory mapped values in the system's Python, which is where its module lives."""
    if shutil.which(records.PCP_PYTHON) is None:
        return [], f"{records.PCP_PYTHON} is missing"
    place = directory / "pcp"
    (place / "mmv").mkdir(parents=True)
    done = subprocess.run(
        [records.PCP_PYTHON, "-c", records.PCP_SCRIPT, str(rounds)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PCP_TMP_DIR": str(place)},
    )
    if done.returncode:
        return [], f"{(done.stderr.strip().splitlines() or ['it failed'])[-1]} (Debian: python3-pcp)"
    return list(json.loads(done.stdout)), ""


@dataclass(slots=True)
class Deaths:
    """What readers saw after a writer was killed while it wrote as fast as it could.

    Attributes:
        killed: how many writers.
        torn: how often the figures of one record did not belong together.
        still_counted: how often the dead writer's figures were still given as if it lived.
    """

    name: str
    killed: int
    torn: int
    still_counted: int
    note: str = ""


def _killed_while(write: Callable[[int], None], wait_s: float) -> None:
    with child(write):
        time.sleep(wait_s)


def deaths_of_peers(directory: Path, trials: int, chance: random.Random) -> list[Deaths]:
    """Kill writers of the peers in the middle of what they do."""
    result = []
    for kind in records.PEERS:
        peer = _open(kind, directory, {})
        if peer is None:
            continue
        deaths = Deaths(peer.name, trials, 0, 0)

        def write(ready: int, peer: Any = peer) -> None:
            peer.open_writer()
            peer.update(1)
            os.write(ready, b"r")
            value = 1
            while True:
                value += 1
                peer.update(value)

        for _ in range(trials):
            _killed_while(write, chance.uniform(0.001, 0.003))
            if isinstance(peer, records.SocketPeer):
                # What was sent is still on its way: as many questions as messages may be ahead of the hang-up.
                for _ in range(2000):
                    seen = peer.read()
                    if seen is None:
                        break
            else:
                seen = peer.read()
            if seen is not None:
                # Nobody ever wrote a 0.
                deaths.torn += len(set(seen)) != 1 or 0 in seen
                deaths.still_counted += 1
            if isinstance(peer, records.PrometheusPeer):
                peer.forget()
        if isinstance(peer, records.SocketPeer):
            deaths.note = "the daemon sees the hang-up; without the daemon nobody sees anything"
        peer.close()
        result.append(deaths)
    return result


def deaths_of_ours(trials: int, chance: random.Random) -> Deaths:
    """Kill ttmem's writers; one batch moves DRAM and CB bytes together, so that they must always be equal."""
    deaths = Deaths("ttmem", trials, 0, 0)
    size = 64 * 2048

    def write(ready: int) -> None:
        publisher = ttmem.publish(0, grid=(8, 8), worker_l1_size=1499136)
        handle = publisher.footprint([ttmem.CircularBuffer(105664, 2048, "{[0-0 - 7-7]}")])
        first = True
        while True:
            with publisher.batch():
                program = publisher.add_program(handle)
                buffer = publisher.allocate("DRAM", size)
            if first:
                os.write(ready, b"r")
                first = False
            with publisher.batch():
                publisher.remove_program(program)
                publisher.deallocate(buffer)

    with own_shared_memory() as directory:
        for _ in range(trials):
            _killed_while(write, chance.uniform(0.001, 0.003))
            with ttmem.attach(0) as reader:
                device = reader.snapshot().to_dict()
            (process,) = device["processes"]
            deaths.torn += process["dram_bytes"] != process["cb_physical_bytes"]
            used = device["memory"]["dram"]["used_bytes"] or device["memory"]["cb"]["physical_bytes"]
            deaths.still_counted += bool(used) or device["state"] != "stale" or process["state"] != "stale"
            for path in directory.iterdir():
                path.unlink()
    return deaths


def table(rows: list[Row], deaths: list[Deaths]) -> str:
    """Return the results as text."""
    lines = []
    for row in rows:
        goal = "" if row.goal is None else f"  goal {show_time(row.goal):>8}" + ("" if row.reached else "   MISSED")
        lines.append(f"{row.what:<66} min {show_time(row.minimum):>8}  median {show_time(row.median):>8}{goal}")
    lines.append("")
    for one in deaths:
        note = f"  ({one.note})" if one.note else ""
        lines.append(
            f"{one.name:<34} {one.killed} writers killed: {one.torn} records torn, "
            f"{one.still_counted} still counted as living{note}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return 0, or 1 if ttmem showed a torn or a dead record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.segment", description=__doc__.split("\n")[0])
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="some seconds")
    mode.add_argument("--smoke", action="store_true", help="see that it runs; the times mean nothing")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where segment.json goes")
    options = parser.parse_args(arguments)
    rounds, trials = (1, 3) if options.smoke else (5, 10) if options.quick else (100, 300)
    begin = time.monotonic()
    head = machine.describe(PACKAGES)
    loops = build.loops()
    pin(0)
    chance = random.Random(4)
    with tempfile.TemporaryDirectory(prefix=f"ttmem-bench-{os.getpid()}-", dir="/dev/shm") as name:
        directory = Path(name)
        rows = measure_ours(loops, rounds)
        others, left_out = measure_peers(directory, rounds)
        rows += others
        deaths = [deaths_of_ours(trials, chance), *deaths_of_peers(directory, trials, chance)]
    print(table(rows, deaths))
    for peer, reason in left_out.items():
        print(f"left out: {peer}: {reason}")
    options.output.mkdir(parents=True, exist_ok=True)
    result = {
        "benchmark": "segment",
        "command": "python -m benchmarks.segment"
        + (" --quick" if options.quick else " --smoke" if options.smoke else ""),
        **head,
        "duration_s": round(time.monotonic() - begin, 1),
        "left_out": left_out,
        "rows": [{**asdict(row), "reached": row.reached, "unit": "ns"} for row in rows],
        "deaths": [asdict(one) for one in deaths],
    }
    (options.output / "segment.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {options.output / 'segment.json'}")
    return 1 if deaths[0].torn or deaths[0].still_counted else 0


if __name__ == "__main__":
    sys.exit(main())
