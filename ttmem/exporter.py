"""The devices of this host as Prometheus metrics.

A figure that nobody knows has no sample; its metric keeps HELP and TYPE. Nothing is ever exported as 0 for unknown.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from errno import EACCES
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from ttmem._version import __version__
from ttmem.dumps import dump_of_snapshots
from ttmem.peer_names import PEERS
from ttmem.reader import Host, HostReading, read_host
from ttmem.snapshot import ACCOUNTING, UNKNOWN_HEADROOM

Device = Mapping[str, Any]

STATES = ("live", "idle", "stale", "initializing", "foreign-version", "unreadable")
"""What ``ttmem_shm_state`` has a series for, of each device."""
REASONS = ("permission", "version", "duplicate", "limit", "other")
"""Why something of a scrape is missing."""

_REGIONS = ("dram", "l1", "l1_small", "trace")
_CB_KINDS = ("physical", "logical", "resident")
_PROCESS_FIGURES = {
    **{kind: f"{kind}_bytes" for kind in (*_REGIONS, "kernel")},
    "cb": "cb_physical_bytes",
}
_PROCESSES_MAX = 256
"""Processes of a device that have series of their own; whoever may publish could else flood the database."""
_DEVICE = ("device", "asic_id")
_TYPED = (*_DEVICE, "type")
_CORE = (*_DEVICE, "core_x", "core_y")
_PROCESS = (*_TYPED, "pid", "process", "user", "state")

_GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ttmem_up": ("1 if the directory of shared memory could be read and something in it, unless it is empty.", ()),
    "ttmem_build_info": ("1; the label tells the version of ttmem.", ("version",)),
    "ttmem_device_info": (
        "1; the labels tell what the device is.",
        (*_DEVICE, "arch", "source", "origin", "grid_x", "grid_y"),
    ),
    "ttmem_shm_state": ("1 for the state that the device's source in shared memory is in.", (*_DEVICE, "state")),
    "ttmem_last_update_timestamp_seconds": (
        "When a living process last changed a figure of the device, Unix time; no heartbeat.",
        _DEVICE,
    ),
    "ttmem_memory_used_bytes": (
        "Bytes in use. Types dram, l1 (whole buffers), l1_small, trace (part of DRAM), cb (physical: the bytes that "
        "CBs of cached programs cover), kernel (part of what is reserved). To add up, take ttmem_l1_accounting_bytes.",
        _TYPED,
    ),
    "ttmem_memory_total_bytes": ("Bytes that the memory of this type has.", _TYPED),
    "ttmem_memory_free_bytes": ("Total less used.", _TYPED),
    "ttmem_memory_reserved_bytes": (
        "Bytes of L1 below the circular buffers, over all cores; kernels lie there.",
        _TYPED,
    ),
    "ttmem_memory_peak_bytes": (
        "The highest use since the device was published; over several processes the sum of theirs, an upper bound.",
        _TYPED,
    ),
    "ttmem_memory_peak_timestamp_seconds": (
        "When the highest use was reached, Unix time; not known where the peaks of several processes are added up.",
        _TYPED,
    ),
    "ttmem_cb_bytes": (
        "Circular buffers: physical (covered by a CB of a cached program), logical (sizes times cores, added up), "
        "resident (what the last dispatched programs left configured).",
        (*_DEVICE, "kind"),
    ),
    "ttmem_kernel_persistent_bytes": ("Bytes of kernels that stay for as long as the device is open.", _DEVICE),
    "ttmem_l1_accounting_bytes": (
        "L1 of all cores, to the byte: total = reserved + cb + buffer + l1_small - overlap + free.",
        (*_DEVICE, "part"),
    ),
    "ttmem_l1_core_headroom_bytes": (
        "Over the cores: from the end of the CB region to the lowest L1 buffer, else to the top. Negative: dispatching "
        "a cached program would clash there. Only if it is known of every core.",
        (*_DEVICE, "stat"),
    ),
    "ttmem_clash_predicted": ("1 if dispatching a cached program now would clash with a live L1 buffer.", _DEVICE),
    "ttmem_programs": ("Cached programs.", _DEVICE),
    "ttmem_processes": ("Processes that have the device open, or left something.", (*_DEVICE, "state")),
}
_CORE_GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ttmem_l1_core_used_bytes": ("Bytes of a core that L1 buffers occupy.", _CORE),
    "ttmem_l1_core_cb_bytes": (
        "Circular buffers of a core; kinds as in ttmem_cb_bytes, and peak: the highest physical.",
        (*_CORE, "kind"),
    ),
    "ttmem_cb_region_end_bytes": ("Address at which the circular buffers of a core end.", _CORE),
    "ttmem_l1_lowest_buffer_bytes": ("Address of the lowest live L1 buffer on a core; none, no sample.", _CORE),
    "ttmem_l1_headroom_bytes": ("Headroom of one core; see ttmem_l1_core_headroom_bytes.", _CORE),
}
_PROCESS_GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ttmem_process_memory_bytes": (
        "Bytes that a process holds. A process whose state is not live is in no other figure.",
        _PROCESS,
    ),
}


class _Families:
    """The metrics of one scrape."""

    def __init__(self, declared: Mapping[str, tuple[str, tuple[str, ...]]]) -> None:
        self._gauges = {name: GaugeMetricFamily(name, text, labels=labels) for name, (text, labels) in declared.items()}
        self._seen: set[tuple[str, tuple[str, ...]]] = set()

    def add(self, name: str, labels: Iterable[object], value: float | None) -> None:
        """Add a sample, unless its value is unknown or there is one with these labels."""
        if value is None or name not in self._gauges:
            return
        texts = tuple(_label(label) for label in labels)
        # Two samples with one name and labels would make Prometheus refuse the whole scrape.
        if (name, texts) not in self._seen:
            self._seen.add((name, texts))
            self._gauges[name].add_metric(texts, value)

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._gauges.values())


def _label(value: object) -> str:
    """Return a label's value; unknown is empty, which Prometheus takes for absent."""
    return "" if value is None else str(value).encode("utf-8", "backslashreplace").decode("utf-8")


def _get(device: Device, *path: str) -> int | None:
    value: Any = device
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, int) else None


def _reason(problem: str) -> str:
    """Return which of :data:`REASONS` a problem's text tells."""
    if os.strerror(EACCES).lower() in problem.lower():
        return "permission"
    return "version" if "layout" in problem or "version" in problem else "other"


def _rank(device: Device) -> tuple[bool, bool]:
    return device.get("state") != "live", device.get("origin") == "replay"


class HostSource:
    """Reads the host for many callers, one at a time, keeping its files open.

    Thread safety: any thread may call any method.
    """

    def __init__(self, source: str = "auto") -> None:
        self._source = source
        self._host = Host()
        self._lock = threading.Lock()

    def read(self) -> HostReading:
        """Return everything that is published now."""
        with self._lock:
            return read_host(self._source, host=self._host)

    def dump(self) -> dict[str, Any]:
        """Return the JSON object of ``ttmem-dump --json``."""
        reading = self.read()
        return dump_of_snapshots(reading.devices, taken_ns=reading.taken_ns)

    def trouble(self) -> str | None:
        """Return why nothing can be read here, or None."""
        try:
            with os.scandir(self._host.directory):
                return None
        except OSError as error:
            return f"{self._host.directory}: {error.strerror}: set TTMEM_SHM_DIR to the directory of shared memory"

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            self._host.close()


class DeviceCollector(Collector):
    """Makes the metrics of what is published at the moment of the scrape.

    Args:
        read: returns the reading to export, such as :meth:`HostSource.read`.
        per_core: also the cores, some 140 series a figure and chip.
        per_process: also the processes, the 256 largest of each device.
        compat: also the names of other exporters, of :data:`ttmem.peer_names.PEERS`.
        tell: takes a sentence on what could not be exported.
    """

    def __init__(
        self,
        read: Callable[[], HostReading],
        *,
        per_core: bool = False,
        per_process: bool = False,
        compat: Sequence[str] = (),
        tell: Callable[[str], object] = lambda text: None,
    ) -> None:
        self._read = read
        self._per_core = per_core
        self._per_process = per_process
        self._compat = tuple(dict.fromkeys(compat))
        self._tell = tell
        self._errors = dict.fromkeys(REASONS, 0)
        self._lock = threading.Lock()

    def _families(self) -> _Families:
        declared = dict(_GAUGES)
        if self._per_core:
            declared.update(_CORE_GAUGES)
        if self._per_process:
            declared.update(_PROCESS_GAUGES)
        for name in self._compat:
            gauges, of_processes, _ = PEERS[name]
            declared.update(gauges)
            if self._per_process:
                declared.update(of_processes)
        return _Families(declared)

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without samples, so that registering reads nothing."""
        return [*self._families(), _error_family({}), _seconds_family(None)]

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of one scrape."""
        begin = time.perf_counter()
        families = self._families()
        reading = self._read()
        problems = [(_reason(text), text) for text in reading.problems]
        pairs = [(snapshot, snapshot.to_dict(cores=self._per_core)) for snapshot in reading.devices]
        exported: set[tuple[object, object]] = set()
        for snapshot, device in sorted(pairs, key=lambda pair: _rank(pair[1])):
            labels = device.get("device_id"), device.get("asic_id")
            if labels in exported:
                # A replay beside the chip it was recorded on, say: only one of them can have these labels.
                what = ", ".join(f"{key} {device.get(key)}" for key in ("source", "state", "origin"))
                problems.append(("duplicate", f"device {labels[0]} ({labels[1]}) is there twice; not exported: {what}"))
                continue
            exported.add(labels)
            rows = device.get("processes") or ()
            if self._per_process and len(rows) > _PROCESSES_MAX:
                left = len(rows) - _PROCESSES_MAX
                problems.append(
                    ("limit", f"device {labels[0]} ({labels[1]}): {left} processes are not exported one by one")
                )
            shown = _largest(rows) if self._per_process else ()
            _add_device(families, labels, device, shown)
            for name in self._compat:
                for sample in PEERS[name][2](device, shown):
                    families.add(*sample)
            _add_headroom(families, labels, snapshot.cores)
        families.add("ttmem_up", (), float(bool(exported) or not reading.problems))
        families.add("ttmem_build_info", (__version__,), 1)
        with self._lock:
            for reason, _ in problems:
                self._errors[reason] += 1
            errors = dict(self._errors)
        for _, text in problems:
            self._tell(text)
        yield from families
        yield _error_family(errors)
        yield _seconds_family(time.perf_counter() - begin)


def _error_family(errors: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(
        "ttmem_scrape_errors",
        "What scrapes could not read or export, each once a scrape; the exporter's stderr has the texts.",
        labels=("reason",),
    )
    for reason, count in errors.items():
        family.add_metric((reason,), count)
    return family


def _seconds_family(seconds: float | None) -> Metric:
    return GaugeMetricFamily("ttmem_scrape_duration_seconds", "How long reading everything took.", value=seconds)


def _add_device(
    families: _Families, labels: tuple[object, object], device: Device, shown: Sequence[Mapping[str, Any]]
) -> None:
    """Add the samples of a device; of the processes, those that are shown one by one."""
    grid = device.get("grid") or {}
    told = [device.get(key) for key in ("arch", "source", "origin")]
    families.add("ttmem_device_info", (*labels, *told, grid.get("x"), grid.get("y")), 1)
    for state in STATES:
        families.add("ttmem_shm_state", (*labels, state), float(device.get("state") == state))
    updated = _get(device, "updated_ns")
    families.add("ttmem_last_update_timestamp_seconds", labels, None if updated is None else updated / 1e9)
    for kind in _REGIONS:
        for figure in ("used", "total", "free", "peak"):
            value = _get(device, "memory", kind, f"{figure}_bytes")
            families.add(f"ttmem_memory_{figure}_bytes", (*labels, kind), value)
    for kind in (*_REGIONS, "cb"):
        peak_ns = _get(device, "memory", kind, "peak_at_ns")
        name = "ttmem_memory_peak_timestamp_seconds"
        families.add(name, (*labels, kind), None if peak_ns is None else peak_ns / 1e9)
    families.add("ttmem_memory_used_bytes", (*labels, "cb"), _get(device, "memory", "cb", "physical_bytes"))
    families.add("ttmem_memory_peak_bytes", (*labels, "cb"), _get(device, "memory", "cb", "peak_bytes"))
    families.add("ttmem_memory_used_bytes", (*labels, "kernel"), _get(device, "memory", "kernel", "used_bytes"))
    families.add("ttmem_memory_reserved_bytes", (*labels, "l1"), _get(device, "l1_accounting", "reserved_bytes"))
    for kind in _CB_KINDS:
        families.add("ttmem_cb_bytes", (*labels, kind), _get(device, "memory", "cb", f"{kind}_bytes"))
    families.add("ttmem_kernel_persistent_bytes", labels, _get(device, "memory", "kernel", "persistent_bytes"))
    for part in ACCOUNTING:
        families.add("ttmem_l1_accounting_bytes", (*labels, part), _get(device, "l1_accounting", f"{part}_bytes"))
    rows = device.get("processes")
    if rows is not None:
        for state in ("live", "stale", "unknown"):
            count = sum(row.get("state") == state for row in rows)
            families.add("ttmem_processes", (*labels, state), count)
        families.add("ttmem_programs", labels, _programs(device))
    for row in shown:
        for kind, name in _PROCESS_FIGURES.items():
            told = [row.get(key) for key in ("pid", "name", "user", "state")]
            families.add("ttmem_process_memory_bytes", (*labels, kind, *told), row.get(name))
    for core in device.get("cores") or ():
        at = (*labels, core["x"], core["y"])
        families.add("ttmem_l1_core_used_bytes", at, core.get("l1_used_bytes"))
        for kind in _CB_KINDS:
            families.add("ttmem_l1_core_cb_bytes", (*at, kind), core.get(f"cb_{kind}_bytes"))
        families.add("ttmem_l1_core_cb_bytes", (*at, "peak"), core.get("cb_peak_bytes"))
        families.add("ttmem_cb_region_end_bytes", at, core.get("cb_region_end"))
        families.add("ttmem_l1_lowest_buffer_bytes", at, core.get("l1_lowest_address"))
        families.add("ttmem_l1_headroom_bytes", at, core.get("headroom_bytes"))


def _programs(device: Device) -> int | None:
    rows = device.get("programs")
    if rows is None:
        return None
    return sum(row.get("count") or 1 for row in rows) + (_get(device, "programs_omitted") or 0)


def _largest(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the processes that have series of their own: the living first, then by what they hold."""

    def rank(row: Mapping[str, Any]) -> tuple[bool, int, int]:
        held = sum(row.get(name) or 0 for name in _PROCESS_FIGURES.values())
        return row.get("state") != "live", -held, row.get("pid") or 0

    return sorted(rows, key=rank)[:_PROCESSES_MAX]


def _add_headroom(families: _Families, labels: tuple[object, object], cores: Any) -> None:
    """Add the headroom over the cores (a structured array, or None), if it is known of every core."""
    if cores is None or not len(cores) or (cores["headroom_bytes"] == UNKNOWN_HEADROOM).any():
        return
    headroom = cores["headroom_bytes"]
    lowest = int(headroom.min())
    for stat, value in (("min", lowest), ("p50", float(np.median(headroom))), ("max", int(headroom.max()))):
        families.add("ttmem_l1_core_headroom_bytes", (*labels, stat), value)
    families.add("ttmem_clash_predicted", labels, float(lowest < 0))


def registry_of(collector: DeviceCollector) -> CollectorRegistry:
    """Return a registry with this collector alone: no metrics of the exporter's own process."""
    registry = CollectorRegistry()
    registry.register(collector)
    return registry
