"""Figures by name: ``--query``, ``--csv`` and ``--fail-if``, in nvidia-smi's grammar.

A field is a JSON path of the device object without its ``_bytes`` or ``_ns`` ending: ``memory.cb.physical``. Fields
under ``l1.core`` are the smallest or largest of a figure over a device's cores.
"""

from __future__ import annotations

import csv
import difflib
import io
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Union

from ttmem.units import NOT_AVAILABLE, format_mib, parse_size
from ttmem.views.dump import grid_text
from ttmem.views.notes import cached_programs
from ttmem.views.text import Device, Screen, clean, device_name, wrap

Value = Union[int, str, bool, None]

BYTES, NS, ADDRESS, NUMBER, TEXT = "bytes", "ns", "address", "number", "text"
_UNITS = {BYTES: "MiB", NS: "UTC"}

_MEMORY = {
    "dram": "DRAM buffers",
    "l1": "L1 buffers, as TT-Metal counts them (whole buffers)",
    "l1_small": "L1_SMALL buffers",
    "trace": "trace buffers, which lie in DRAM",
}
_PARTS = {
    "used": "allocated",
    "total": "capacity",
    "free": "capacity not allocated",
    "peak": "highest use since publish",
}
_ACCOUNT = {
    "total": "all L1 of all cores",
    "reserved": "below the CB base: firmware, kernels",
    "cb": "covered by a CB of any cached program",
    "buffer": "covered by live L1 buffers",
    "l1_small": "set aside for L1_SMALL",
    "overlap": "covered by both a cached CB and a live buffer",
    "free": "covered by nothing",
}
_CORE = {
    "headroom": ("headroom_bytes", "lowest L1 buffer (else top) minus CB region end"),
    "used": ("l1_used_bytes", "live L1 buffers on a core"),
    "cb_physical": ("cb_physical_bytes", "bytes covered by cached CBs on a core"),
    "cb_logical": ("cb_logical_bytes", "sum of cached CB sizes on a core"),
    "cb_resident": ("cb_resident_bytes", "CB bytes that the last dispatches left on a core"),
    "cb_region_end": ("cb_region_end", "end of the CB region of a core (an address)"),
    "lowest_address": ("l1_lowest_address", "lowest live L1 buffer of a core (an address)"),
}


@dataclass(frozen=True, slots=True)
class Field:
    """A figure of a device by name.

    Attributes:
        name: as in ``--query``.
        path: the JSON path with its ending, or that of a list's column (``cores[min].headroom_bytes``).
        kind: ``bytes``, ``ns`` (CLOCK_REALTIME), ``address`` (in L1), ``number`` or ``text``.
        about: one sentence.
    """

    name: str
    path: str
    kind: str
    about: str


def _peak_fields(kind: str, what: str, counted: str) -> list[Field]:
    what = what.split(",")[0]
    return [
        Field(f"memory.{kind}.peak_at", f"memory.{kind}.peak_at_ns", NS, f"{what}: when the highest use was reached."),
        Field(f"memory.{kind}.peak_by", f"memory.{kind}.peak_by", TEXT, f"{what}: what took it to its highest use."),
        Field(
            f"memory.{kind}.peak_{counted}", f"memory.{kind}.peak_{counted}", NUMBER, f"{what}: {counted} there then."
        ),
    ]


def _fields() -> dict[str, Field]:
    found = [
        Field("device_id", "device_id", NUMBER, "Logical id of the device; processes may number chips differently."),
        Field("asic_id", "asic_id", TEXT, "Unique id of the chip, in hex."),
        Field("arch", "arch", TEXT, "Architecture: grayskull, wormhole_b0 or blackhole."),
        Field("source", "source", TEXT, "Who published it: ttmem or tt-metal."),
        Field("origin", "origin", TEXT, "live, or replay of a recording."),
        Field("state", "state", TEXT, "live, idle, stale, initializing, foreign-version or unreadable."),
        Field("grid", "grid", TEXT, "Cores in x and y: 8x8."),
        Field("grid.x", "grid.x", NUMBER, "Cores in x."),
        Field("grid.y", "grid.y", NUMBER, "Cores in y."),
        Field("updated", "updated_ns", NS, "Last change of a figure by a living writer; ns since 1970 under nounits."),
        Field("consistent", "consistent", TEXT, "Whether the figures of each writer are of one moment."),
    ]
    for kind, what in _MEMORY.items():
        for part, meaning in _PARTS.items():
            found.append(Field(f"memory.{kind}.{part}", f"memory.{kind}.{part}_bytes", BYTES, f"{what}: {meaning}."))
        found += _peak_fields(kind, what, "buffers")
    span = "L1_SMALL: from the lowest to the highest byte of a bank in use since publish, holes too."
    found.append(Field("memory.l1_small.peak_span", "memory.l1_small.peak_span_bytes", BYTES, span))
    for part, meaning in (
        ("physical", "bytes covered by at least one CB of any cached program, summed over cores"),
        ("logical", "sum of the sizes of all cached programs' CBs; may exceed the memory"),
        ("resident", "bytes that the last dispatched programs left configured"),
        ("peak", "highest physical since publish"),
    ):
        found.append(Field(f"memory.cb.{part}", f"memory.cb.{part}_bytes", BYTES, f"Circular buffers: {meaning}."))
    found += _peak_fields("cb", "Circular buffers", "programs")
    for part, meaning in (("used", "loaded"), ("persistent", "those that stay between programs")):
        found.append(Field(f"memory.kernel.{part}", f"memory.kernel.{part}_bytes", BYTES, f"Kernels: {meaning}."))
    for part, meaning in _ACCOUNT.items():
        about = f"Account of L1 over all cores: {meaning}."
        found.append(Field(f"l1_accounting.{part}", f"l1_accounting.{part}_bytes", BYTES, about))
    for name, (column, meaning) in _CORE.items():
        for extreme, word in (("min", "Smallest"), ("max", "Largest")):
            about = f"{word} over the cores: {meaning}."
            kind = BYTES if column.endswith("_bytes") else ADDRESS
            found.append(Field(f"l1.core.{extreme}_{name}", f"cores[{extreme}].{column}", kind, about))
    for name, what in (
        ("cores", "Cores listed."),
        ("programs", "Cached programs, those that are not listed too."),
        ("processes", "Processes listed."),
    ):
        found.append(Field(f"{name}.count", f"{name}[count]", NUMBER, what))
    found.append(Field("programs_omitted", "programs_omitted", NUMBER, "Programs that count but are not listed."))
    found.append(Field("warnings", "warnings", TEXT, "What is wrong, or may be."))
    return {field.name: field for field in found}


FIELDS = _fields()
"""Every field by name, in the order of ``--help-query`` and ``--csv``."""
ALIASES = {
    "index": "device_id",
    "name": "arch",
    "uuid": "asic_id",
    "memory.used": "memory.dram.used",
    "memory.total": "memory.dram.total",
    "memory.free": "memory.dram.free",
}
"""Names that nvidia-smi's users type."""

_MISSING = object()


def _walk(device: Device, path: str) -> object:
    value: object = device
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return _MISSING
        value = value[key]
    return value


def _scalar(value: object) -> bool:
    return value is None or isinstance(value, int | float | str)


def find_field(name: str, devices: Sequence[Device] = ()) -> Field:
    """Return the field called ``name``.

    Args:
        name: a field, an alias, a field with its ``_bytes`` or ``_ns`` ending, or any other path in ``devices``.
        devices: where paths that this version does not list are looked for.

    Raises:
        ValueError: there is no such field; the text names the closest.
    """
    asked = name.strip()
    plain = re.sub(r"_(bytes|ns)$", "", asked)
    for candidate in (asked, ALIASES.get(asked, ""), plain):
        if candidate in FIELDS:
            return FIELDS[candidate]
    for ending, kind in (("_bytes", BYTES), ("_ns", NS), ("", "")):
        values = [value for value in (_walk(device, plain + ending) for device in devices) if value is not _MISSING]
        # What is null on one device may be a list on another.
        if values and all(map(_scalar, values)):
            text = any(isinstance(value, str | bool) for value in values)
            return Field(plain, plain + ending, kind or (TEXT if text else NUMBER), "")
    names = [*FIELDS, *ALIASES]
    close = difflib.get_close_matches(plain, names, n=3, cutoff=0.5)
    close += [n for n in names if plain and plain in n and n not in close][: 3 - len(close)]
    hint = f"did you mean {' or '.join(close)}?" if close else "--help-query lists all fields"
    raise ValueError(f"unknown field {asked!r}: {hint}")


def parse_fields(text: str, devices: Sequence[Device] = ()) -> list[Field]:
    """Return the fields of a comma-separated list.

    Raises:
        ValueError: one is unknown, or there is none.
    """
    names = [name for name in (part.strip() for part in text.split(",")) if name]
    if not names:
        raise ValueError("no field given: --help-query lists all fields")
    return [find_field(name, devices) for name in names]


def value_of(field: Field, device: Device) -> Value:
    """Return a field's value for one device, in bytes or ns where it has a unit; None is unknown."""
    head, bracket, rest = field.path.partition("[")
    if bracket:
        rows = device.get(head)
        if rows is None:
            return None
        how, _, column = rest.partition("]")
        if how == "count":
            # A row stands for all programs that are alike.
            return cached_programs(device) if head == "programs" else len(rows)
        known = [v for v in (row.get(column[1:]) for row in rows) if v is not None]
        if not known:
            return None
        return int(min(known) if how == "min" else max(known))
    value = _walk(device, field.path)
    if value is _MISSING:
        return None
    if field.path == "grid" and isinstance(value, Mapping):
        return grid_text(device)
    if isinstance(value, list | tuple):
        return "; ".join(clean(item) for item in value)
    return value  # type: ignore[return-value]


def format_time(time_ns: int) -> str:
    """Return CLOCK_REALTIME in ns as nvidia-smi writes time, in UTC: ``2023/11/14 22:13:23.400``."""
    seconds, rest = divmod(time_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y/%m/%d %H:%M:%S}.{rest // 10**6:03d}"


def _cell(field: Field, value: Value, units: bool) -> str:
    if value is None:
        return NOT_AVAILABLE
    if isinstance(value, bool):
        return str(value).lower()
    if units and isinstance(value, int):
        if field.kind == BYTES:
            return f"{format_mib(value)} MiB"
        if field.kind == NS:
            return format_time(value)
    return clean(value)


def parse_format(text: str) -> tuple[bool, bool]:
    """Return (header, units) for ``csv[,noheader][,nounits]``.

    Raises:
        ValueError: it is no such format.
    """
    options = [part.strip().lower() for part in text.split(",")]
    unknown = [o for o in options if o not in ("csv", "noheader", "nounits")]
    if unknown or "csv" not in options:
        raise ValueError(f"unknown format {text!r}: expected csv[,noheader][,nounits]")
    return "noheader" not in options, "nounits" not in options


def render_query(devices: Iterable[Device], fields: Sequence[Field], *, header: bool = True, units: bool = True) -> str:
    """Return a row for each device: MiB with one decimal and the unit, or plain bytes without units.

    Cells are separated by a comma and a space, as nvidia-smi does; a cell with a comma is quoted.
    """
    rows = []
    if header:
        rows.append([f"{f.name} [{_UNITS[f.kind]}]" if units and f.kind in _UNITS else f.name for f in fields])
    rows += [[_cell(f, value_of(f, device), units) for f in fields] for device in devices]
    return "".join(", ".join(_quote(cell) for cell in row) + "\n" for row in rows)


def _quote(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if "," in cell or '"' in cell else cell


def render_csv(devices: Iterable[Device], *, header: bool = True) -> str:
    """Return all fields as CSV for programs: columns say their unit, values are plain, unknown is ``N/A``."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if header:
        writer.writerow([column_of(field) for field in FIELDS.values()])
    for device in devices:
        writer.writerow([_cell(field, value_of(field, device), False) for field in FIELDS.values()])
    return out.getvalue()


def column_of(field: Field) -> str:
    """Return a field's name in ``--csv``, which says its unit: ``memory.cb.physical_bytes``."""
    return field.name + {BYTES: "_bytes", NS: "_ns"}.get(field.kind, "")


def render_help(screen: Screen) -> str:
    """Return the list of all fields, each with a sentence."""
    lines = [
        *wrap(
            "Fields for --query, --csv and --fail-if. A field is a path of the --json output without its _bytes or _ns "
            "ending. Sizes are printed in MiB, under nounits in bytes; an unknown value is N/A.",
            screen,
        ),
        "",
    ]
    for field in FIELDS.values():
        lines += [f'"{field.name}"', *wrap(field.about, screen, first="    ", rest="    ")]
    lines += ["", *wrap("Aliases: " + ", ".join(f"{a} = {b}" for a, b in ALIASES.items()) + ".", screen)]
    return "\n".join(lines) + "\n"


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
_CONDITION = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(<=|>=|==|!=|<|>|=)\s*(.+?)\s*")


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison of ``--fail-if``.

    Attributes:
        field: what is compared.
        operator: ``<``, ``<=``, ``>``, ``>=``, ``==`` or ``!=``.
        value: bytes, a number, a text, or per cent of the ``total`` beside the field.
        is_percent: whether ``value`` is per cent.
        text: the condition as it was written.
    """

    field: Field
    operator: str
    value: int | float | str
    is_percent: bool
    text: str


def parse_condition(text: str, devices: Sequence[Device] = ()) -> Condition:
    """Return the condition that ``FIELD OP VALUE[unit]`` says, as in ``l1.core.min_headroom < 64KiB``.

    A size without a unit is bytes; ``90%`` is per cent of the ``total`` beside the field.

    Raises:
        ValueError: the field is unknown, or the text is no condition.
    """
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ValueError(
            f"cannot read the condition {text!r}: expected FIELD OP VALUE, as in 'memory.cb.physical > 1MiB'"
        )
    field = find_field(match[1], devices)
    raw = match[3].strip("'\"")
    if field.kind == TEXT:
        if match[2] not in ("==", "=", "!="):
            raise ValueError(f"cannot compare {field.name} with {match[2]}: it is a text; use == or !=")
        return Condition(field, match[2], raw, False, text.strip())
    if raw.endswith("%"):
        if field.kind != BYTES or _total_of(field) is None:
            raise ValueError(f"{field.name} has no total that {raw} could be a part of: give a size")
        try:
            return Condition(field, match[2], float(raw[:-1]), True, text.strip())
        except ValueError:
            raise ValueError(f"cannot read a percentage from {raw!r}") from None
    if field.kind in (BYTES, ADDRESS):
        return Condition(field, match[2], parse_size(raw), False, text.strip())
    try:
        return Condition(field, match[2], int(raw), False, text.strip())
    except ValueError:
        raise ValueError(f"cannot compare {field.name}, a number, with {raw!r}") from None


def _total_of(field: Field) -> Field | None:
    if field.name.startswith("memory.cb."):
        # CBs share the room of L1 buffers.
        return FIELDS["memory.l1.total"]
    group, _, part = field.name.rpartition(".")
    return FIELDS.get(f"{group}.total") if part != "total" else None


def evaluate(condition: Condition, device: Device) -> tuple[bool, str]:
    """Return whether a condition is met on a device, and a sentence.

    An unknown value meets no condition; the sentence then says so. It is empty where there is nothing to say.
    """
    where = device_name(device, chip=True).replace("Device", "device")
    value = value_of(condition.field, device)
    if value is None:
        return False, f"{where}: {condition.field.name} is unknown ({NOT_AVAILABLE}); {condition.text!r} is not met"
    left: Any = str(value).lower() if isinstance(value, bool) else value
    right: Any = condition.value
    if condition.is_percent:
        total_field = _total_of(condition.field)
        total = value_of(total_field, device) if total_field else None
        if not isinstance(total, int) or total == 0:
            return False, f"{where}: the total of {condition.field.name} is unknown or 0; {condition.text!r} is not met"
        left, right = float(value) * 100, float(condition.value) * total
    if not _OPERATORS[condition.operator](left, right):
        return False, ""
    shown = _cell(condition.field, value, True)
    exact = f" ({value} bytes)" if condition.field.kind == BYTES else ""
    return True, f"{where}: {condition.text}: {condition.field.name} is {shown}{exact}"
