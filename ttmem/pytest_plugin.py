"""A pytest plugin: ``@pytest.mark.no_l1_leaks`` fails a test that ends with more device memory held than it began with.

It reads what this process publishes, with ttmem.publish or through TT-Metal's own regions, before and after the body of
the test; what fixtures hold counts on both sides. Garbage is collected before each look.

    @pytest.mark.no_l1_leaks                        L1 and L1_SMALL
    @pytest.mark.no_l1_leaks(dram=True, trace=True) DRAM and traces too
    @pytest.mark.no_l1_leaks(tolerance="64KiB")     what may stay, for each device and kind
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from ttmem.diff import DeviceDiff, diff
from ttmem.dumps import Dump, read_live
from ttmem.units import format_bytes, parse_size

_MARKER = "no_l1_leaks"
_PROCESS_FIGURE = {"dram": "dram_bytes", "l1": "l1_bytes", "l1_small": "l1_small_bytes", "trace": "trace_bytes"}


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        f"{_MARKER}(dram=False, trace=False, tolerance=0): fail if the test ends with more L1 held on any device",
    )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Look before and after a marked test, and fail it if it leaked and did not fail anyway."""
    marker = item.get_closest_marker(_MARKER)
    if marker is None:
        yield
        return
    options = dict(marker.kwargs)
    kinds = ["l1", "l1_small", *(kind for kind in ("dram", "trace") if options.pop(kind, False))]
    tolerance = parse_size(str(options.pop("tolerance", 0)))
    if options or marker.args:
        raise pytest.UsageError(
            f"{item.nodeid}: {_MARKER} takes dram, trace and tolerance, got {marker.args} {options}"
        )
    before = _held()
    outcome = yield
    if outcome.excinfo is None:  # type: ignore[attr-defined]
        found = leaks(before, _held(), kinds, tolerance)
        if found:
            outcome.force_exception(pytest.fail.Exception("\n".join(found), pytrace=False))  # type: ignore[attr-defined]


def _held() -> Dump:
    """Return the devices with what this process holds on them, and no other."""
    gc.collect()
    dump = read_live(cores=False)
    own = os.getpid()
    devices = []
    for device in dump.devices:
        rows = [row for row in device.get("processes") or () if row.get("pid") == own]
        if rows:
            memory = {
                kind: {**figures, "used_bytes": _sum(rows, _PROCESS_FIGURE[kind])}
                if kind in _PROCESS_FIGURE
                else figures
                for kind, figures in (device.get("memory") or {}).items()
            }
            buffers = [row for row in device.get("buffers") or () if row.get("pid") == own]
            devices.append({**device, "memory": memory, "buffers": buffers, "processes": rows})
    return Dump(devices, dump.taken_ns, dump.host)


def _sum(rows: list[Mapping[str, Any]], name: str) -> int | None:
    values = [row.get(name) for row in rows]
    return None if any(value is None for value in values) else sum(value or 0 for value in values)


def leaks(before: Dump, after: Dump, kinds: list[str], tolerance: int) -> list[str]:
    """Return one text for each device and kind that holds more than before, with the buffers that stayed."""
    texts = []
    for device in diff(before, after):
        for kind, size in device.leaks.items():
            if kind in kinds and size > tolerance:
                texts.append(_text(device, kind, size))
    return texts


def _text(device: DeviceDiff, kind: str, size: int) -> str:
    named = "; ".join(
        f"{row.changes['count'].delta:+d} {row.key['name'] or 'unnamed'} "
        f"({format_bytes(row.changes['size_bytes'].delta)})"
        for row in device.culprits(kind)
    )
    return f"device {device.device_id} holds {size} bytes more {kind.upper()} than before the test" + (
        f": {named}" if named else ""
    )
