"""Keeps writers changing, killed at random and replaced, while readers check every sum: ``python -m ttmem.soak``.

Each writer keeps a promise that a reader can check from outside: within one publication it holds twice as many bytes of
DRAM as of TRACE, and its programs fill L1 from the base without a gap. So the physical bytes of the device are those of
the writer with the most programs, while the logical bytes are the sum.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from ttmem import segment
from ttmem.model import BufferType, CircularBuffer
from ttmem.publisher import publish
from ttmem.reader import Host
from ttmem.snapshot import Snapshot

GRID = (4, 4)
CORES = 16
CB_BYTES = 1024
BASE = 4096
PROGRAMS_MAX = 40


@dataclass
class Tally:
    """What a soak did.

    Attributes:
        kills: writers that were killed.
        readings: snapshots that were checked by this process after a kill.
        cuts: how many of those were one moment of every writer.
        most_writers: the most living writers that a reading had.
    """

    kills: int = 0
    readings: int = 0
    cuts: int = 0
    most_writers: int = 0


def write_for_ever(seed: int) -> NoReturn:
    """Publish device 0 and change it at random, every publication keeping the promise."""
    # Where there are more writers than processors, those that kill and read still get their turn.
    os.nice(10)
    choose = random.Random(seed)
    buffers = [CircularBuffer(BASE + CB_BYTES * i, CB_BYTES, "{[0-0 - 3-3]}") for i in range(PROGRAMS_MAX)]
    publisher = publish(0, arch="wormhole_b0", grid=GRID, l1_cb_base=BASE, l1_small_size=0)
    if not publisher.published:
        raise RuntimeError("nothing can be published here: the soak would prove nothing")
    pairs: list[tuple[int, int]] = []
    programs: list[int] = []
    while True:
        step = choose.randrange(4)
        if step == 0 and len(pairs) < 200:
            size = choose.randrange(1, 1 << 20)
            with publisher.batch():
                pairs.append(
                    (publisher.allocate(BufferType.DRAM, 2 * size), publisher.allocate(BufferType.TRACE, size))
                )
        elif step == 1 and pairs:
            dram, trace = pairs.pop(choose.randrange(len(pairs)))
            with publisher.batch():
                publisher.deallocate(trace)
                publisher.deallocate(dram)
        elif step == 2 and len(programs) < PROGRAMS_MAX:
            programs.append(publisher.add_program([buffers[len(programs)]], name=f"program {len(programs)}"))
        elif step == 3 and programs:
            publisher.remove_program(programs.pop())


class ViolationError(Exception):
    """A reading contradicts what every writer promises."""


def check(snapshot: Snapshot) -> None:
    """Compare a snapshot with the writers' promise and with itself.

    Raises:
        ViolationError: it is wrong; the text holds what was read.
    """
    device = snapshot.to_dict()
    memory = device["memory"]
    live = [process for process in device["processes"] if process["state"] == "live"]

    def hold(claim: str, truth: bool) -> None:
        if not truth:
            # Cores and programs would be pages of text.
            rest = {name: value for name, value in device.items() if name not in ("cores", "programs")}
            raise ViolationError(f"{claim}: {json.dumps(rest)}")

    names = {"dram": "dram_bytes", "trace": "trace_bytes", "l1": "l1_bytes"}
    for region, name in names.items():
        used = memory[region]["used_bytes"]
        hold(f"{region} is the sum over the living", used == sum(process[name] for process in live))
        hold(f"{region} is within its peak", 0 <= used <= memory[region]["peak_bytes"])
    for process in device["processes"]:
        hold("programs are whole", process["cb_physical_bytes"] % (CORES * CB_BYTES) == 0)
    hold("no record is damaged", not any("checksum" in text for text in device["warnings"]))
    accounting = device["l1_accounting"]
    if device["consistent"]:
        most = max((process["cb_physical_bytes"] for process in live), default=0)
        hold("physical is the union", memory["cb"]["physical_bytes"] == most)
        hold("logical is the sum", memory["cb"]["logical_bytes"] == sum(p["cb_physical_bytes"] for p in live))
        hold("cores sum up", sum(row["cb_physical_bytes"] for row in device["cores"]) == most)
        programs = len(device["programs"]) + device["programs_omitted"]
        hold("programs are listed", programs * CORES * CB_BYTES == memory["cb"]["logical_bytes"])
        for process in device["processes"]:
            hold("a publication is whole", process["dram_bytes"] == 2 * process["trace_bytes"])
    parts = [accounting[f"{name}_bytes"] for name in ("reserved", "cb", "buffer", "l1_small", "free")]
    if None not in parts:
        hold("L1 adds up", accounting["total_bytes"] == sum(parts) - accounting["overlap_bytes"])


def look(host: Host) -> Snapshot | None:
    """Return a checked snapshot of the device; None while nobody publishes it.

    Raises:
        ViolationError: it is wrong, or a file could not be read.
    """
    found = host.devices()
    if host.problems:
        raise ViolationError(f"a file cannot be read: {host.problems}")
    if not found:
        return None
    ((_, parts),) = found
    snapshot = Snapshot(parts)
    check(snapshot)
    return snapshot


def read_for_ever() -> NoReturn:
    """Check snapshots until killed."""
    host = Host()
    while True:
        look(host)


def start(work: Callable[[], object]) -> int:
    """Return the pid of a child that does some work, which ends only when it fails or is killed."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)


def _start_writer(choose: random.Random) -> int:
    seed = choose.getrandbits(64)
    return start(lambda: write_for_ever(seed))


def run(*, seconds: float, writers: int, readers: int, seed: int) -> Tally:
    """Run a soak.

    Args:
        seconds: how long.
        writers: how many at any time.
        readers: how many processes read besides this one.
        seed: of every choice; the interleaving stays the machine's.

    Raises:
        ViolationError: a reading was wrong, or a child ended by itself.
    """
    choose = random.Random(seed)
    tally = Tally()
    host = Host()
    alive = [_start_writer(choose) for _ in range(writers)]
    checking = [start(read_for_ever) for _ in range(readers)]
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            index = choose.randrange(writers)
            victim = alive[index]
            os.kill(victim, signal.SIGKILL)
            _, status = os.waitpid(victim, 0)
            if status != signal.SIGKILL:
                raise ViolationError(f"writer {victim} ended by itself with status {status}")
            tally.kills += 1
            snapshot = look(host)
            if snapshot is not None:
                _count(tally, snapshot, victim)
            # Its file goes now and then; a dead one that lies there must change nothing.
            if choose.randrange(8) == 0:
                segment.collect(segment.shm_directory(), segment.namespace(), grace_ns=0)
            alive[index] = _start_writer(choose)
            for reader in checking:
                if os.waitpid(reader, os.WNOHANG)[0]:
                    checking.remove(reader)
                    raise ViolationError(f"reader {reader} saw a contradiction; its report stands above")
    finally:
        for pid in [*alive, *checking]:
            _end(pid)
        host.close()
        segment.collect(segment.shm_directory(), segment.namespace(), grace_ns=0)
    return tally


def _count(tally: Tally, snapshot: Snapshot, victim: int) -> None:
    processes: list[Any] = snapshot.processes
    if any(process.pid == victim and process.state == "live" for process in processes):
        raise ViolationError(f"writer {victim} is dead and counted as alive")
    tally.readings += 1
    tally.cuts += bool(snapshot.consistent)
    tally.most_writers = max(tally.most_writers, sum(process.state == "live" for process in processes))


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        # It was reaped as the victim of the round in which something failed.
        return


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 if every reading was right, 1 if one was not."""
    parser = argparse.ArgumentParser(prog="python -m ttmem.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--duration", type=float, default=60, metavar="SEC", help="how long (default: 60)")
    parser.add_argument("--writers", type=int, default=64, help="how many at any time (default: 64)")
    parser.add_argument("--readers", type=int, default=2, help="how many processes read besides (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the tally as JSON")
    given = parser.parse_args(argv)
    # A namespace of its own: nobody's monitor shows it, and nobody's writers come into its sums.
    os.environ["TTMEM_NAMESPACE"] = f"soak-{os.getpid()}"
    try:
        tally = run(seconds=given.duration, writers=given.writers, readers=given.readers, seed=given.seed)
    except ViolationError as violation:
        print(f"soak: {violation}", file=sys.stderr)
        return 1
    if given.json:
        print(json.dumps(asdict(tally)))
    else:
        print(
            f"soak: {tally.kills} writers killed, {tally.readings} readings right after a kill, {tally.cuts} of them "
            f"one moment of every writer, at most {tally.most_writers} writers at once; nothing was wrong"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
