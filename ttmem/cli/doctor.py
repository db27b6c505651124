"""List all files of ttmem and TT-Metal in shared memory, what is wrong and the cure; measure what publishing costs."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ttmem import region, segment
from ttmem.cli import EXIT_DONE, EXIT_NOTHING, EXIT_UNREADABLE, all_unread, ends_well, parse, write
from ttmem.model import CircularBuffer, Geometry
from ttmem.pids import ProcessTable, user_name
from ttmem.reader import Host

PROBES = 9


def _segments(directory: Path) -> list[dict[str, Any]]:
    """Return a row for each of ttmem's files, those of other namespaces included."""
    rows = []
    try:
        names = sorted(entry.name for entry in os.scandir(directory) if entry.name.startswith(segment.PREFIX))
    except OSError as error:
        return [_row(directory, "ttmem", "unreadable", f"{directory}: {error.strerror}", "check TTMEM_SHM_DIR")]
    for space in sorted({name[len(segment.PREFIX) :].partition(".")[0] for name in names}):
        host = Host(directory, space)
        try:
            parts = host.parts()
            for name in names:
                if not name.startswith(segment.file_prefix(space)):
                    continue
                path = directory / name
                problem = host.problems.get(name)
                mine = [part for part in parts if part.pid == _pid_of(name)]
                state = "unreadable" if problem else mine[0].state if mine else "closed"
                cure = ""
                if state == "stale":
                    problem = "its process is gone; its figures are in no total"
                    cure = "it is collected by itself, or at once by: python -m ttmem gc --now"
                elif problem:
                    cure = "if no process of yours has it open, remove it"
                rows.append(_row(path, "ttmem", state, problem or "", cure))
        finally:
            host.close()
    return rows


def _pid_of(name: str) -> int:
    fields = name.split(".")
    return int(fields[3]) if len(fields) > 3 and fields[3].isdigit() else -1


def _regions(directory: Path) -> list[dict[str, Any]]:
    rows = []
    processes = ProcessTable()
    for path in region.find_regions(directory):
        found = region.read_region(path, processes=processes)
        problem, cure = found.problem or "; ".join(found.warnings), ""
        if found.state == "stale":
            problem = problem or "its processes are gone; what they left is in no total"
            cure = f"the next TT-Metal process may take it over; or remove it while nothing runs: rm {path}"
        rows.append(_row(path, "tt-metal", found.state, problem, cure))
    return rows


def _row(path: Path, source: str, state: str, problem: str, cure: str) -> dict[str, Any]:
    try:
        status = os.lstat(path)
        owner, mode, size = user_name(status.st_uid), f"{status.st_mode & 0o777:04o}", status.st_blocks * 512
    except OSError:
        owner, mode, size = "", "", 0
    return {
        "path": str(path),
        "source": source,
        "state": state,
        "owner": owner,
        "mode": mode,
        "memory_bytes": size,
        "problem": problem,
        "cure": cure,
    }


def measure_publishing() -> dict[str, Any]:
    """Measure what publishing costs on this machine, in a directory of its own beside the real segments.

    Returns:
        Medians of nine runs in nanoseconds: a program added and removed, a dispatch that replaces another, a buffer
        allocated and freed, a device published and withdrawn; ``None`` where nothing can be published here.
    """
    from ttmem._ledger import canary, new_canary
    from ttmem._publisher import publish_device

    if canary() == 0:
        new_canary()
    with tempfile.TemporaryDirectory(prefix="ttmem-doctor-", dir=segment.shm_directory()) as folder:
        geometry = Geometry.of(arch="wormhole_b0", grid=(8, 8))
        buffers = [CircularBuffer(105664 + 4096 * i, 4096, "{[0-0 - 7-7]}") for i in range(4)]
        begin = time.perf_counter_ns()
        publisher = publish_device(2**31 - 1, geometry, "live", segment.WriterFile(Path(folder), ""))
        started = time.perf_counter_ns() - begin
        with publisher:
            if not publisher.published:
                return {"problem": publisher.problem}
            footprint = publisher.footprint(buffers)
            first, second = publisher.add_program(footprint), publisher.add_program(buffers[:2])

            def program() -> None:
                publisher.remove_program(publisher.add_program(footprint))

            def dispatch() -> None:
                publisher.dispatch(first)
                publisher.dispatch(second)

            def buffer() -> None:
                publisher.deallocate(publisher.allocate("L1", 65536, address=1400000, size_per_bank=1024))

            return {
                "start_ns": started,
                "program_add_ns": _median(program) / 2,
                "dispatch_ns": _median(dispatch) / 2,
                "buffer_allocate_ns": _median(buffer) / 2,
            }


def _median(call: Any, count: int = 2000) -> float:
    runs = []
    for _ in range(PROBES):
        begin = time.perf_counter_ns()
        for _ in range(count):
            call()
        runs.append((time.perf_counter_ns() - begin) / count)
    return statistics.median(runs)


@ends_well("python -m ttmem doctor")
def main(argv: Sequence[str] | None = None) -> int:
    """Examine shared memory; return 0, or 1 if there is no file, or 4 if there are files and none is readable."""
    parser = argparse.ArgumentParser(
        prog="python -m ttmem doctor",
        description=__doc__,
        epilog="exit codes: 0 done; 1 there is no file; 2 wrong usage; 4 there are files, and none is readable",
    )
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    parser.add_argument("--no-measure", action="store_true", help="do not measure what publishing costs")
    args = parse(parser, argv)
    if isinstance(args, int):
        return args
    directory = segment.shm_directory()
    files = _segments(directory) + _regions(directory)
    cost: dict[str, Any] | None = None
    if not args.no_measure:
        try:
            cost = measure_publishing()
        except OSError as error:
            cost = {"problem": f"{directory}: {error.strerror}"}
    if args.json:
        write(json.dumps({"directory": str(directory), "files": files, "publishing": cost}, indent=2) + "\n")
    else:
        write(_text(directory, files, cost))
    if not files:
        return EXIT_NOTHING
    return EXIT_UNREADABLE if all_unread(row["state"] for row in files) else EXIT_DONE


def _text(directory: Path, files: list[dict[str, Any]], cost: dict[str, Any] | None) -> str:
    lines = [] if files else [f"no files of ttmem or TT-Metal in {directory}"]
    for row in files:
        memory = f"{row['memory_bytes'] // 1024} KiB"
        lines.append(f"{row['state']:<16}{row['source']:<10}{row['owner']} {row['mode']}  {memory:>9}  {row['path']}")
        lines += [f"    {label}: {row[label]}" for label in ("problem", "cure") if row[label]]
    if cost is not None and "problem" in cost:
        lines.append(f"nothing can be published here: {cost['problem']}")
    elif cost is not None:
        lines.append(
            f"publishing costs here (medians of {PROBES} runs, from Python): "
            f"program {cost['program_add_ns']:.0f} ns, dispatch {cost['dispatch_ns']:.0f} ns, "
            f"buffer {cost['buffer_allocate_ns']:.0f} ns, start {cost['start_ns'] / 1000:.0f} us"
        )
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
