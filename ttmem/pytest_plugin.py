"""A pytest plugin: tests that leak device memory, or use too much of it, fail.

    @pytest.mark.no_l1_leaks                        no more L1 and L1_SMALL at the end than at the beginning
    @pytest.mark.no_l1_leaks(dram=True, trace=True) nor DRAM and traces
    @pytest.mark.no_l1_leaks(tolerance="64KiB")     what may stay, for each device and kind
    @pytest.mark.limit_l1("60 MiB")                 circular buffers and L1 buffers of a device, at their highest
    @pytest.mark.limit_l1("1.2 MiB", per_core=True) of each core

They look at what this process publishes, with ttmem.publish or ttmem.ttnn.track; leaks also at what it holds in
TT-Metal's own regions. What fixtures hold counts. ``limit_l1`` lets the marks of this process's publishers begin anew
with the body of the test, so that no peak is missed however short it was; those of circular buffers and of L1 buffers
need not have been reached at one moment, and their sum is the most that can have been used. At the end a table tells
the peaks of the marked tests, with ``--ttmem-peaks`` of all.

Nothing of ttmem is imported before a marked test runs, or a test of a process that publishes under ``--ttmem-peaks``.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ttmem.diff import DeviceDiff
    from ttmem.dumps import Dump

_LEAKS, _LIMIT, _OPTION = "no_l1_leaks", "limit_l1", "--ttmem-peaks"
_PROPERTY = "ttmem_peaks"
_PROCESS_FIGURE = {"dram": "dram_bytes", "l1": "l1_bytes", "l1_small": "l1_small_bytes", "trace": "trace_bytes"}
_COLUMNS = ("dram", "l1", "l1_small", "cb", "core")
_TITLES = ("device", "DRAM", "L1", "L1 Small", "CB", "L1+CB of a core", "limit", "test")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for the table of all tests."""
    parser.getgroup("ttmem").addoption(
        _OPTION, action="store_true", help="tell the peaks of device memory of every test, not only of marked ones"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known."""
    for text in (
        f"{_LEAKS}(dram=False, trace=False, tolerance=0): fail if the test ends with more L1 held on any device",
        f"{_LIMIT}(size, per_core=False): fail if circular buffers and L1 buffers take more than size at their highest",
    ):
        config.addinivalue_line("markers", text)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Look before and after a test, and fail it for what its marks forbid if it did not fail anyway."""
    leaking, limit = item.get_closest_marker(_LEAKS), item.get_closest_marker(_LIMIT)
    wanted = limit is not None or (item.config.getoption(_OPTION) and "ttmem._publisher" in sys.modules)
    if leaking is None and not wanted:
        yield
        return
    allowed = None if leaking is None else _leak_options(item, leaking)
    most = None if limit is None else _limit_options(item, limit)
    before = None if allowed is None else _held()
    with _measured() if wanted else contextlib.nullcontext() as peaks:
        outcome = yield
    texts = []
    if before is not None and allowed is not None and outcome.excinfo is None:  # type: ignore[attr-defined]
        texts += leaks(before, _held(), *allowed)
    if peaks is not None:
        rows = peaks.rows()
        for row in rows:
            row["limit"] = None if most is None else most[0]
        if rows:
            item.user_properties.append((_PROPERTY, rows))
        if most is not None:
            texts += _excess(rows, *most)
    if texts and outcome.excinfo is None:  # type: ignore[attr-defined]
        outcome.force_exception(pytest.fail.Exception("\n".join(texts), pytrace=False))  # type: ignore[attr-defined]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table of peaks."""
    table = []
    for reports in terminalreporter.stats.values():
        for report in reports:
            # A report comes once for each phase of a test; what was measured stands in the last ones.
            if getattr(report, "when", None) == "call":
                for name, rows in report.user_properties:
                    if name == _PROPERTY:
                        table += [(row, report.nodeid) for row in rows]
    if not table:
        return
    from ttmem.units import format_bytes

    lines = [_TITLES]
    for row, test in table:
        figures = (format_bytes(row[name]) for name in (*_COLUMNS, "limit"))
        lines.append((str(row["device_id"]), *figures, test))
    widths = [max(len(line[column]) for line in lines) for column in range(len(_TITLES) - 1)]
    terminalreporter.section("ttmem: peaks of device memory")
    for line in lines:
        padded = (text.rjust(width) for text, width in zip(line, widths, strict=False))
        terminalreporter.write_line("  ".join((*padded, line[-1])))


# Peaks.


def _measured() -> Any:
    from ttmem.process_peaks import ProcessPeaks

    return ProcessPeaks()


def _limit_options(item: pytest.Item, marker: pytest.Mark) -> tuple[int, bool]:
    from ttmem.units import parse_size

    options = dict(marker.kwargs)
    per_core = options.pop("per_core", False)
    try:
        if options or len(marker.args) != 1:
            raise ValueError(f"it takes a size and per_core, got {marker.args} {options}")
        return parse_size(str(marker.args[0])), bool(per_core)
    except ValueError as error:
        raise pytest.UsageError(f"{item.nodeid}: {_LIMIT}: {error}") from None


def _excess(rows: list[dict[str, Any]], limit: int, per_core: bool) -> list[str]:
    """Return one text for each device that used more than it may."""
    from ttmem.publisher import disabled
    from ttmem.units import format_bytes

    if disabled():
        return []
    if not rows:
        return [
            f"{_LIMIT} had nothing to look at: this process published no device; use ttmem.publish or ttmem.ttnn.track"
        ]
    texts = []
    for row in rows:
        used = row["core"] if per_core else row["cb"] + row["l1"]
        if used is not None and used > limit:
            where = "a core" if per_core else "all cores"
            by = "; ".join(
                f"{name} were highest with {row['by'][kind]}"
                for kind, name in (("cb", "circular buffers"), ("l1", "L1 buffers"))
                if row["by"][kind]
            )
            texts.append(
                f"device {row['device_id']} used up to {used} bytes ({format_bytes(used)}) of L1 on {where} for circular "
                f"buffers and L1 buffers, {used - limit} more than {format_bytes(limit)}" + (f": {by}" if by else "")
            )
    return texts


# Leaks.


def _leak_options(item: pytest.Item, marker: pytest.Mark) -> tuple[list[str], int]:
    from ttmem.units import parse_size

    options = dict(marker.kwargs)
    kinds = ["l1", "l1_small", *(kind for kind in ("dram", "trace") if options.pop(kind, False))]
    tolerance = parse_size(str(options.pop("tolerance", 0)))
    if options or marker.args:
        raise pytest.UsageError(f"{item.nodeid}: {_LEAKS} takes dram, trace and tolerance, got {marker.args} {options}")
    return kinds, tolerance


def _held() -> Dump:
    """Return the devices with what this process holds on them, and no other."""
    from ttmem.dumps import Dump, read_live

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
    from ttmem.diff import diff

    texts = []
    for device in diff(before, after):
        for kind, size in device.leaks.items():
            if kind in kinds and size > tolerance:
                texts.append(_text(device, kind, size))
    return texts


def _text(device: DeviceDiff, kind: str, size: int) -> str:
    from ttmem.units import format_bytes

    named = "; ".join(
        f"{row.changes['count'].delta:+d} {row.key['name'] or 'unnamed'} "
        f"({format_bytes(row.changes['size_bytes'].delta)})"
        for row in device.culprits(kind)
    )
    return f"device {device.device_id} holds {size} bytes more {kind.upper()} than before the test" + (
        f": {named}" if named else ""
    )
