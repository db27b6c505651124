"""Made-up device objects with the geometry of real chips: the data of the tests of views."""

from __future__ import annotations

from typing import Any

KIB = 1024
N150 = {"arch": "wormhole_b0", "grid": (8, 8), "l1_cb_base": 105664, "l1_small_size": 24576}
"""What ``ttmem.publish`` is told of an N150."""
TAKEN_NS = 1_700_000_003_400_000_000


def n150(device_id: int = 0, **changes: Any) -> dict[str, Any]:
    """An N150: 8x8 cores of 1,499,136 bytes, an MLP's programs cached, an L1 buffer at the top."""
    cores = []
    base, size, small = 105664, 1499136, 24576
    top = size - small
    for y in range(8):
        for x in range(8):
            cb = 475136 if y < 6 else 8192 * (x + 1) if y == 6 else 0
            l1 = 1024 * KIB if (x, y) == (3, 4) else 20480
            cores.append(
                {
                    "x": x,
                    "y": y,
                    "cb_physical_bytes": cb,
                    "cb_logical_bytes": 2 * cb,
                    "cb_resident_bytes": cb // 4,
                    "cb_region_end": base + cb,
                    "l1_used_bytes": l1,
                    "l1_lowest_address": top - l1,
                    "headroom_bytes": top - l1 - base - cb,
                    "cb_peak_bytes": cb + 4096,
                }
            )
    cb = sum(c["cb_physical_bytes"] for c in cores)
    buffers = sum(c["l1_used_bytes"] for c in cores)
    overlap = sum(max(0, -c["headroom_bytes"]) for c in cores)
    total, reserved, set_aside = 64 * size, 64 * base, 64 * small
    room = total - reserved - set_aside
    device: dict[str, Any] = {
        "device_id": device_id,
        "asic_id": f"0x{0x10000000A0 + device_id:016x}",
        "arch": "wormhole_b0",
        "source": "ttmem",
        "origin": "live",
        "state": "live",
        "grid": {"x": 8, "y": 8},
        "updated_ns": TAKEN_NS - 400_000_000,
        "consistent": True,
        "memory": {
            "dram": _memory(798720, 12 * 1024**3, 3 * KIB * KIB),
            "l1": _memory(buffers, room, buffers + 65536),
            "l1_small": {**_memory(31760, set_aside, 31760), "peak_span_bytes": 1120},
            "trace": _memory(0, 0, 0),
            "cb": {
                "physical_bytes": cb,
                "logical_bytes": 2 * cb,
                "resident_bytes": sum(c["cb_resident_bytes"] for c in cores),
                "peak_bytes": cb + 65536,
                "peak_at_ns": TAKEN_NS - 12_300_000_000,
                "peak_by": "softmax",
                "peak_programs": 31,
            },
            "kernel": {"used_bytes": 3 * KIB * KIB + 200, "persistent_bytes": 204800},
        },
        "l1_accounting": {
            "total_bytes": total,
            "reserved_bytes": reserved,
            "cb_bytes": cb,
            "buffer_bytes": buffers,
            "l1_small_bytes": set_aside,
            "overlap_bytes": overlap,
            "free_bytes": total - reserved - cb - buffers - set_aside + overlap,
        },
        "cores": cores,
        "programs": [
            {
                "program_id": i,
                "name": name,
                "num_cores": 64,
                "cb_bytes_per_core": per_core,
                "cb_region_end": base + per_core,
                "count": count,
                "pid": 4242,
            }
            for i, (name, per_core, count) in enumerate(
                [
                    ("ttnn::matmul", 475136, 12),
                    ("ttnn::softmax", 262144, 2),
                    ("ttnn::layer_norm", 131072, 25),
                    ("ttnn::add", 24576, 1),
                ],
                1,
            )
        ],
        "processes": [
            {
                "pid": 4242,
                "name": "python",
                "user": "alice",
                "state": "live",
                "dram_bytes": 798720,
                "l1_bytes": buffers,
                "l1_small_bytes": 31760,
                "trace_bytes": 0,
                "cb_physical_bytes": cb,
                "kernel_bytes": 3 * KIB * KIB + 200,
            }
        ],
        "warnings": [],
    }
    return {**device, **changes}


def _memory(used: int, total: int, peak: int) -> dict[str, int | str]:
    return {
        "used_bytes": used,
        "total_bytes": total,
        "free_bytes": total - used,
        "peak_bytes": peak,
        "peak_at_ns": TAKEN_NS - 12_300_000_000,
        "peak_by": "weights",
        "peak_buffers": 12,
    }


def p150(device_id: int = 0, **changes: Any) -> dict[str, Any]:
    """A p150: 11x10 cores of 1,572,864 bytes, L1 nearly full, a trace, two processes, a replay."""
    base, size, small, cores_count = 111488, 1572864, 0, 110
    room = cores_count * (size - base - small)
    cores = []
    for y in range(10):
        for x in range(11):
            cb = 65536 * ((x + y) % 10)
            l1 = 819200
            cores.append(
                {
                    "x": x,
                    "y": y,
                    "cb_physical_bytes": cb,
                    "cb_logical_bytes": 9 * cb,
                    "cb_resident_bytes": cb if y < 5 else 0,
                    "cb_region_end": base + cb,
                    "l1_used_bytes": l1,
                    "l1_lowest_address": size - l1,
                    "headroom_bytes": size - l1 - base - cb,
                    "cb_peak_bytes": cb + 4096,
                }
            )
    cb = sum(c["cb_physical_bytes"] for c in cores)
    buffers = sum(c["l1_used_bytes"] for c in cores)
    account = {
        "total_bytes": cores_count * size,
        "reserved_bytes": cores_count * base,
        "cb_bytes": cb,
        "buffer_bytes": buffers,
        "l1_small_bytes": 0,
        "overlap_bytes": 0,
        "free_bytes": room - cb - buffers,
    }
    process = {
        "name": "python3",
        "user": "bob",
        "state": "live",
        "dram_bytes": 10 * 1024**3,
        "l1_bytes": buffers // 2,
        "l1_small_bytes": 0,
        "trace_bytes": 4096 * KIB,
        "cb_physical_bytes": cb // 2,
        "kernel_bytes": None,
    }
    device: dict[str, Any] = {
        "device_id": device_id,
        "asic_id": "0x000004123456789d",
        "arch": "blackhole",
        "source": "ttmem",
        "origin": "replay",
        "state": "live",
        "grid": {"x": 11, "y": 10},
        "updated_ns": TAKEN_NS - 7_000_000_000,
        "consistent": True,
        "memory": {
            "dram": _memory(20 * 1024**3, 32 * 1024**3, 30 * 1024**3),
            "l1": _memory(buffers, room, buffers),
            "l1_small": {**_memory(0, 0, 0), "peak_span_bytes": 0},
            "trace": _memory(4096 * KIB, 24 * KIB * KIB, 8192 * KIB),
            "cb": {
                "physical_bytes": cb,
                "logical_bytes": 9 * cb,
                "resident_bytes": cb // 2,
                "peak_bytes": cb,
                **dict.fromkeys(("peak_at_ns", "peak_by", "peak_programs")),
            },
            "kernel": {"used_bytes": None, "persistent_bytes": None},
        },
        "l1_accounting": account,
        "cores": cores,
        "programs": [],
        "programs_omitted": 3,
        "processes": [{"pid": 77, **process}, {"pid": 78, **process}],
        "warnings": ["pid 78 says worker_l1_size 1499136; pid 77, which came first, says 1572864"],
    }
    return {**device, **changes}


def tt_metal(device_id: int = 0, **changes: Any) -> dict[str, Any]:
    """A device that only TT-Metal's own region tells of, with every figure unknown."""
    unknown = dict.fromkeys(("used_bytes", "total_bytes", "free_bytes", "peak_bytes"))
    device: dict[str, Any] = {
        "device_id": device_id,
        "asic_id": None,
        "arch": None,
        "source": "tt-metal",
        "state": "idle",
        "grid": None,
        "updated_ns": None,
        "consistent": None,
        "memory": {
            **{kind: dict(unknown) for kind in ("dram", "l1", "l1_small", "trace")},
            "cb": dict.fromkeys(("physical_bytes", "logical_bytes", "resident_bytes", "peak_bytes")),
            "kernel": dict.fromkeys(("used_bytes", "persistent_bytes")),
        },
        "l1_accounting": dict.fromkeys(
            f"{name}_bytes" for name in ("total", "reserved", "cb", "buffer", "l1_small", "overlap", "free")
        ),
        "cores": None,
        "programs": None,
        "processes": None,
    }
    return {**device, **changes}


def stale(device_id: int = 0, **changes: Any) -> dict[str, Any]:
    """An N150 whose one process was killed: it counts 0, its row keeps what it left."""
    live = n150(device_id)
    zero = {**dict.fromkeys(("used_bytes", "peak_bytes"), 0)}
    memory = {
        kind: {**values, **zero, "free_bytes": values["total_bytes"]}
        for kind, values in live["memory"].items()
        if "total_bytes" in values
    }
    memory["cb"] = dict.fromkeys(live["memory"]["cb"], 0)
    memory["kernel"] = dict.fromkeys(live["memory"]["kernel"], 0)
    account = live["l1_accounting"]
    account = {**account, "cb_bytes": 0, "buffer_bytes": 0, "overlap_bytes": 0}
    account["free_bytes"] = account["total_bytes"] - account["reserved_bytes"] - account["l1_small_bytes"]
    processes = [{**row, "state": "stale"} for row in live["processes"]]
    return {
        **live,
        "state": "stale",
        "updated_ns": None,
        "memory": memory,
        "l1_accounting": account,
        "cores": [],
        "programs": [],
        "processes": processes,
        **changes,
    }


def eight() -> list[dict[str, Any]]:
    """A T3000's worth of devices, one of them stale."""
    return [stale(i) if i == 5 else n150(i) for i in range(8)]


def thirty_two() -> list[dict[str, Any]]:
    """A Galaxy's worth of devices."""
    return [n150(i, origin="replay") for i in range(32)]


SETS = {
    "n150": lambda: [n150()],
    "p150": lambda: [p150()],
    "tt_metal": lambda: [tt_metal()],
    "stale": lambda: [stale()],
    "eight": eight,
    "thirty_two": thirty_two,
}
