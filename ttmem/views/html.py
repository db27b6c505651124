"""One self-contained page of all devices: no network, no other file, opens from the disk.

The page holds the figures once, as JSON, and a script that draws them. Names come from other processes, so they reach
the page only as text, and a content security policy lets no other script run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ttmem._version import __version__
from ttmem.model import BufferType
from ttmem.views.cores import layout_of
from ttmem.views.dump import header_parts, used_l1
from ttmem.views.explanation import explain_figures
from ttmem.views.holders import Holders
from ttmem.views.notes import get, notes, peaks, peaks_add_up
from ttmem.views.text import Device, clean
from ttmem.views.timeline import Timeline

CORE_COLUMNS = (
    "x",
    "y",
    "cb_physical_bytes",
    "cb_logical_bytes",
    "cb_resident_bytes",
    "cb_region_end",
    "l1_used_bytes",
    "l1_lowest_address",
    "headroom_bytes",
    "cb_peak_bytes",
)
"""What the page knows of each core, in this order."""
_BUFFER_COLUMNS = ("buffer_type", "size_bytes", "address", "size_per_bank", "num_cores", "name", "pid")
_PROGRAM_COLUMNS = ("program_id", "name", "num_cores", "cb_bytes_per_core", "cb_region_end", "count", "pid")
_ROWS_MAX = 8192
"""Programs on the whole page, and buffers: more would make it slow to open and larger than 3 MB."""

CoreDetails = Mapping[tuple[int, int], Mapping[str, Any]]
"""What ``Snapshot.core_map`` gives, by core."""


def _script_json(data: object) -> Markup:
    """Return JSON that can stand in a script element: nothing in it ends the element or opens a comment."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True)
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


def _csp_hash(text: str) -> str:
    """Return the source expression by which a content security policy knows a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["csp_hash"] = _csp_hash
    return environment.get_template("report.html")


def _rows(items: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[list[Any]]:
    return [[item.get(column) for column in columns] for item in items]


def _named(buffer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a buffer with the name of its type in place of the number."""
    kind = buffer.get("buffer_type")
    named = BufferType(kind).name if isinstance(kind, int) and kind in set(BufferType) else kind
    return {**buffer, "buffer_type": named}


def _maps(
    device: Device, details: CoreDetails | None, buffers: Sequence[Mapping[str, Any]] | None
) -> dict[str, Any] | None:
    """Return the ranges of all cores and the names behind them; equal lists once, for most cores of a chip look alike.

    A range is [begin, end], or with the numbers of the largest names and how many there are.
    """
    if details is None:
        return None
    holders = Holders(device, buffers)
    names: dict[str, int] = {}
    lists: list[Any] = []
    index: dict[Any, int] = {}
    cores: dict[str, list[int | None]] = {}
    for (x, y), told in details.items():
        where: list[int | None] = []
        for found in holders.details(x, y, told).values():
            if found is None:
                where.append(None)
                continue
            key = tuple((begin, end, tuple(held), total) for begin, end, held, total in found)
            if key not in index:
                index[key] = len(lists)
                lists.append(
                    [
                        [
                            begin,
                            end,
                            *([[names.setdefault(clean(name), len(names)) for name in held], total] if held else []),
                        ]
                        for begin, end, held, total in found
                    ]
                )
            where.append(index[key])
        cores[f"{x},{y}"] = where
    return {"lists": lists, "cores": cores, "names": list(names)}


def _device(
    device: Device,
    details: CoreDetails | None,
    buffers: Sequence[Mapping[str, Any]] | None,
    *,
    taken_ns: int,
    rows_max: int,
) -> dict[str, Any]:
    layout = layout_of(device)
    programs, cores = device.get("programs"), device.get("cores")
    page = {key: value for key, value in device.items() if key not in ("cores", "programs", "region", "buffers")}
    held = None if buffers is None else sorted(map(_named, buffers), key=lambda row: -(row.get("size_bytes") or 0))
    return {
        **page,
        "header": header_parts(device, taken_ns),
        "total_l1_bytes": used_l1(device),
        "peaks_add_up": peaks_add_up(device),
        "peaks": [
            [peak.title, peak.size, peak.when, None if peak.by is None else clean(peak.by), peak.count, peak.counted]
            for peak in peaks(device)
        ],
        "layout": {"size": layout.size, "base": layout.base, "small": layout.small},
        "core_rows": None if cores is None else _rows(cores, CORE_COLUMNS),
        "program_rows": None if programs is None else _rows(programs[:rows_max], _PROGRAM_COLUMNS),
        "program_rows_hidden": max(0, len(programs or ()) - rows_max) + (get(device, "programs_omitted") or 0),
        "buffer_rows": None if held is None else _rows(held[:rows_max], _BUFFER_COLUMNS),
        "buffer_rows_hidden": max(0, len(held or ()) - rows_max),
        "maps": _maps(device, details, buffers),
        "notes": [[note.kind, clean(note.text)] for note in notes(device)],
        "explain": [clean(text) for text in explain_figures(device)],
    }


def render_html(
    devices: Sequence[Device],
    *,
    taken_ns: int,
    host: str,
    core_details: Sequence[CoreDetails | None] | None = None,
    buffers: Sequence[Sequence[Mapping[str, Any]] | None] | None = None,
    timeline: Timeline | None = None,
) -> str:
    """Return the page.

    Args:
        devices: device objects of the contract's JSON.
        taken_ns: CLOCK_REALTIME of the reading.
        host: the name of the host.
        core_details: for each device what ``Snapshot.core_map`` gives of its cores, for the address maps.
        buffers: for each device what ``Snapshot.buffers`` gives.
        timeline: what was before, and maybe after.
    """
    count = max(1, len(devices))
    over_time = None if timeline is None else timeline.to_dict()
    if over_time is not None:
        over_time["shown_ms"] = round((taken_ns - over_time["begin_ns"]) / 1e6, 3)
    rows_max = max(32, _ROWS_MAX // count)
    data = {
        "schema": 1,
        "host": clean(host),
        "taken_ns": taken_ns,
        "devices": [
            _device(
                device,
                core_details[i] if core_details is not None else None,
                buffers[i] if buffers is not None else None,
                taken_ns=taken_ns,
                rows_max=rows_max,
            )
            for i, device in enumerate(devices)
        ],
        "core_columns": CORE_COLUMNS,
        "timeline": over_time,
        "empty": "No device is published on this host." if over_time is None else "No device is there at this moment.",
    }
    return _template().render(
        data=_script_json(data),
        host=clean(host),
        taken=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(taken_ns / 1e9)),
        count=len(devices),
        version=__version__,
    )
