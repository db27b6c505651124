"""Export: a recording as counter tracks of a Chrome trace, or as a table."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import numpy as np

from ttmem.recording import Recording

TRACKS: dict[str, tuple[str, ...]] = {
    "DRAM": ("dram.used_bytes",),
    "L1": ("l1.used_bytes",),
    "L1 Small": ("l1_small.used_bytes",),
    "Trace": ("trace.used_bytes",),
    "CB": ("cb.physical_bytes", "cb.resident_bytes"),
    "CB logical": ("cb.logical_bytes",),
    "Kernels": ("kernel.used_bytes",),
    "Min headroom": ("l1.core.min_headroom_bytes",),
}
"""The counter tracks of each device, and the series of each."""
COLUMNS = (
    "dram.used_bytes",
    "dram.total_bytes",
    "dram.peak_bytes",
    "l1.used_bytes",
    "l1.total_bytes",
    "l1.peak_bytes",
    "l1_small.used_bytes",
    "l1_small.total_bytes",
    "trace.used_bytes",
    "trace.total_bytes",
    "cb.physical_bytes",
    "cb.logical_bytes",
    "cb.resident_bytes",
    "cb.peak_bytes",
    "kernel.used_bytes",
    "l1.core.min_headroom_bytes",
)
"""The figures of the table, in bytes."""


def _figures(device: Mapping[str, Any], columns: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, int]:
    """Return the known figures of a device by the names of :data:`COLUMNS`."""
    found = {
        f"{kind}.{name}": value
        for kind, figures in (device.get("memory") or {}).items()
        for name, value in figures.items()
        if isinstance(value, int)
    }
    headroom = columns.get("headroom_bytes")
    if headroom is not None and headroom.size:
        known = headroom[headroom != np.iinfo(np.int64).min]
        if known.size:
            found["l1.core.min_headroom_bytes"] = int(known.min())
    return found


def _moments(recording: Recording) -> Iterator[tuple[int, list[tuple[Mapping[str, Any], dict[str, int]]]]]:
    for index, taken_ns in enumerate(recording.times_ns):
        devices = recording.dump(index, cores=False).devices
        columns = recording.core_columns(index)
        yield taken_ns, [(d, _figures(d, c)) for d, c in zip(devices, columns, strict=True)]


def write_chrome(recording: Recording, out: TextIO) -> int:
    """Write the figures as counter tracks in Chrome's trace event format, which Perfetto reads, and return the events.

    A device is a process of the trace, in bytes; its time begins with the recording. A figure that stays as it is is
    written at its first and its last moment only.
    """
    start_ns = recording.times_ns[0] if len(recording) else 0
    count = 0
    last: dict[tuple[int, str], tuple[dict[str, int], float]] = {}
    named: set[int] = set()
    out.write('{"displayTimeUnit":"ms","traceEvents":[')

    def event(content: dict[str, Any]) -> None:
        nonlocal count
        out.write(("," if count else "") + "\n" + json.dumps(content, separators=(",", ":")))
        count += 1

    def counter(pid: int, track: str, values: dict[str, int], at_us: float) -> None:
        event({"name": track, "ph": "C", "pid": pid, "ts": at_us, "args": values})

    for taken_ns, devices in _moments(recording):
        at_us = (taken_ns - start_ns) / 1000
        for place, (device, figures) in enumerate(devices):
            pid = device["device_id"] if isinstance(device.get("device_id"), int) else 10**6 + place
            if pid not in named:
                named.add(pid)
                chip = f" ({device['asic_id']})" if device.get("asic_id") else ""
                name = f"Device {device.get('device_id')}{chip}"
                event({"name": "process_name", "ph": "M", "pid": pid, "args": {"name": name}})
            for track, series in TRACKS.items():
                values = {
                    name.split(".")[-1].removesuffix("_bytes"): figures[name] for name in series if name in figures
                }
                if not values:
                    continue
                before = last.get((pid, track))
                if before is None or before[0] != values:
                    counter(pid, track, values, at_us)
                last[pid, track] = (values, at_us)
    for (pid, track), (values, at_us) in last.items():
        counter(pid, track, values, at_us)
    out.write("\n]}\n")
    return count


def write_csv(recording: Recording, out: TextIO) -> int:
    """Write a row for each moment and device, plain bytes, empty where unknown, and return the rows."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("taken_ns", "device_id", "asic_id", "state", *COLUMNS))
    rows = 0
    for taken_ns, devices in _moments(recording):
        for device, figures in devices:
            known = [figures.get(name, "") for name in COLUMNS]
            writer.writerow((taken_ns, device.get("device_id"), device.get("asic_id"), device.get("state"), *known))
            rows += 1
    return rows


EXPORTS = {"chrome": write_chrome, "csv": write_csv}
"""The formats, by the name of --export."""
