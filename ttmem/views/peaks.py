"""What the peaks of devices look like as text."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from ttmem.units import format_bytes
from ttmem.views.text import Screen, clean, device_name, wrap

_LABELS = {"dram": "DRAM", "l1": "L1", "cb": "CB", "l1_small": "L1 Small", "trace": "Trace"}


def _when(at_ns: int | None) -> str:
    if at_ns is None:
        return ""
    moment = datetime.datetime.fromtimestamp(at_ns / 1e9).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _sentence(kind: str, peak: Mapping[str, Any]) -> str:
    count = peak["peak_programs" if kind == "cb" else "peak_buffers"]
    parts = []
    if peak["peak_at_ns"] is not None:
        parts.append(f"at {_when(peak['peak_at_ns'])}")
    if peak["peak_by"]:
        parts.append(f"by {clean(peak['peak_by'])}")
    elif peak["holders"]:
        parts.append("with " + ", ".join(clean(name) for name in peak["holders"]))
    if count is not None:
        what = "cached program" if kind == "cb" else "buffer"
        parts.append(f"({count} {what}{'' if count == 1 else 's'} then)")
    if not peak["exact"]:
        bound = peak["at_most_bytes"]
        parts.append("at least, as read" + (f"; at most {format_bytes(bound)}" if bound is not None else ""))
    return " ".join(parts)


def render_peaks(devices: Sequence[Mapping[str, Any]], screen: Screen) -> str:
    """Return the peaks of devices, as ``Peaks.to_dict`` gives them, a line for each kind of memory."""
    lines = []
    for device in devices:
        since = device["since_ns"]
        lines.append(f"{device_name(device, chip=True)}: since {_when(since) if since else 'it was published'}")
        for kind, label in _LABELS.items():
            peak = device["memory"][kind]
            if peak["peak_bytes"] is None:
                continue
            head = f"  {label + ':':<10}{format_bytes(peak['peak_bytes']):>10}"
            said = _sentence(kind, peak) if peak["peak_bytes"] else ""
            lines += wrap(f"{head}  {said}".rstrip(), screen, rest=" " * 24)
        known = [core for core in device["cores"] or () if core["cb_peak_bytes"] is not None]
        if known:
            core = max(known, key=lambda core: core["cb_peak_bytes"])
            alike = sum(other["cb_peak_bytes"] == core["cb_peak_bytes"] for other in known)
            others = f" and {alike - 1} more" if alike > 1 else ""
            size = format_bytes(core["cb_peak_bytes"])
            lines += wrap(
                f"  CB per core: at most {size}, on core {core['x']},{core['y']}{others}", screen, rest="    "
            )
    return "".join(line + "\n" for line in lines)
