"""The names that other exporters of Tenstorrent memory use, so that dashboards made for them keep working.

Only what both mean alike is given: a figure that ttmem does not know, such as the PCI address of a chip, has no label, and
what the other exporter reads from the driver is not imitated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Device = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]
Sample = tuple[str, tuple[object, ...], "float | None"]
"""A metric's name, its labels' values, and its value; None is unknown."""
Declared = dict[str, tuple[str, tuple[str, ...]]]
"""Help and labels by the name of a gauge."""

_CHIP = ("asic_id", "device_id")
_TENSTORRENT: Declared = {
    "tenstorrent_dram_used_bytes": ("DRAM bytes in use; name of tt-exporter, figure of ttmem.", _CHIP),
    "tenstorrent_l1_used_bytes": ("L1 bytes that buffers use; name of tt-exporter, figure of ttmem.", _CHIP),
    "tenstorrent_mem_phantom": ("1 if only dead processes are left in the source; name of tt-exporter.", _CHIP),
    "tenstorrent_shm_num_active_processes": ("Living processes that have the device open; name of tt-exporter.", _CHIP),
}
_TENSTORRENT_PROCESS: Declared = {
    "tenstorrent_proc_dram_used_bytes": (
        "DRAM bytes that a living process holds; name of tt-exporter, figure of ttmem.",
        (*_CHIP, "pid", "process_name"),
    ),
}
_BOARD = ("device", "arch")
_TT_MGMT_KINDS = ("dram", "l1", "l1_small", "trace", "cb")
_TT_MGMT: Declared = {
    "tt_dram_total_bytes": ("DRAM bytes of the device; name of tt-mgmtd, figure of ttmem.", _BOARD),
    "tt_l1_total_bytes": ("L1 bytes that CBs and buffers may use; name of tt-mgmtd, figure of ttmem.", _BOARD),
    **{
        f"tt_{kind}_used_bytes": (f"Bytes in use, {kind}; name of tt-mgmtd, figure of ttmem.", _BOARD)
        for kind in _TT_MGMT_KINDS
    },
}
_TT_MGMT_PROCESS: Declared = {
    f"tt_process_{kind}_bytes": (
        f"Bytes that a living process holds, {kind}; name of tt-mgmtd, figure of ttmem.",
        (*_BOARD, "pid", "process"),
    )
    for kind in _TT_MGMT_KINDS
}


def _used(device: Device, kind: str) -> float | None:
    value = ((device.get("memory") or {}).get(kind) or {}).get("physical_bytes" if kind == "cb" else "used_bytes")
    return value if isinstance(value, int) else None


def _total(device: Device, kind: str) -> float | None:
    value = ((device.get("memory") or {}).get(kind) or {}).get("total_bytes")
    return value if isinstance(value, int) else None


def _living(rows: Rows) -> list[Mapping[str, Any]]:
    return [row for row in rows if row.get("state") == "live"]


def _tenstorrent(device: Device, shown: Rows) -> Iterator[Sample]:
    asic_id = device.get("asic_id")
    # 16 digits, as there; the PCI address that its device_id holds is not known here.
    chip = None if asic_id is None else f"0x{int(str(asic_id), 16):016x}", None
    # Its used gauges vanish while a source is a phantom; ours are 0 then.
    yield "tenstorrent_dram_used_bytes", chip, _used(device, "dram")
    yield "tenstorrent_l1_used_bytes", chip, _used(device, "l1")
    yield "tenstorrent_mem_phantom", chip, float(device.get("state") == "stale")
    if device.get("processes") is not None:
        yield "tenstorrent_shm_num_active_processes", chip, float(len(_living(device["processes"])))
    for row in _living(shown):
        yield "tenstorrent_proc_dram_used_bytes", (*chip, row.get("pid"), row.get("name")), row.get("dram_bytes")


def _tt_mgmt(device: Device, shown: Rows) -> Iterator[Sample]:
    board = device.get("device_id"), device.get("arch")
    yield "tt_dram_total_bytes", board, _total(device, "dram")
    yield "tt_l1_total_bytes", board, _total(device, "l1")
    for kind in _TT_MGMT_KINDS:
        yield f"tt_{kind}_used_bytes", board, _used(device, kind)
    for row in _living(shown):
        for kind in _TT_MGMT_KINDS:
            figure = "cb_physical_bytes" if kind == "cb" else f"{kind}_bytes"
            yield f"tt_process_{kind}_bytes", (*board, row.get("pid"), row.get("name")), row.get(figure)


PEERS: dict[str, tuple[Declared, Declared, Callable[[Device, Rows], Iterator[Sample]]]] = {
    "tenstorrent": (_TENSTORRENT, _TENSTORRENT_PROCESS, _tenstorrent),
    "tt-mgmt": (_TT_MGMT, _TT_MGMT_PROCESS, _tt_mgmt),
}
"""By the name of ``--compat``: gauges, gauges of processes, and what makes a device's samples,
of its processes those that are shown one by one."""
