"""Thrown: the texts in which TT-Metal reports that memory does not suffice, read and explained.

Addresses are bytes of L1. The sizes that TT-Metal prints for circular buffers are addresses too: they include the
region below the CB base.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ttmem.clash import MAX_INVOLVED, Finding, LiveBuffer, advice
from ttmem.cores import as_core_range_set
from ttmem.errors import InvalidIntervalError
from ttmem.fragments import Fragments, dram_fragments_of, fragments_of, smallest_release
from ttmem.units import format_bytes, format_exact

_RANGES = r"(?P<core_range>\{[^}]*\}|\[[^\]]*\])"
_PATTERNS = {
    "clash": rf"circular buffers in program (?P<program>.{{1,200}}?) clash with L1 buffers on core range {_RANGES}\.? +"
    r"L1 buffer allocated at (?P<l1_lowest_address>\d+) and static circular buffer region ends at "
    r"(?P<cb_region_end>\d+)",
    "too_large": rf"circular buffers on core range {_RANGES} grow to (?P<cb_region_end>\d+) ?B which is beyond max L1 "
    r"size of (?P<l1_size>\d+) ?B",
    "grid": rf"Circular buffer core range {_RANGES} in program (?P<program>.{{1,200}}?) exceeds device compute grid "
    r"\((?P<grid_x>\d+)x(?P<grid_y>\d+)\)",
    "service_core": rf"Circular buffers on service-core range {_RANGES} in program (?P<program>.{{1,200}}?) clash with "
    r"ServiceCoreManager-allocated L1 \(lowest service allocation at (?P<l1_lowest_address>\d+), CB region ends at "
    r"(?P<cb_region_end>\d+)\)",
    "out_of_memory": r"Out of Memory: Not enough space to allocate (?P<size>\d+) ?B (?P<buffer_type>\w+)(?: buffer)? "
    r"across (?P<num_banks>\d+) banks, where each bank needs to store (?P<needed>\d+) ?B(?:, but bank size is "
    r"(?:only )?(?P<bank_size>\d+) ?B(?: \(allocated: (?P<allocated>\d+) ?B, free: (?P<free>\d+) ?B, largest "
    r"free block: (?P<largest_free>\d+) ?B\))?)?",
    "global_cb": r"Cannot set to globally allocated buffer\. Circular buffer size (?P<cb_size>\d+) ?B exceeds "
    r"allocated L1 buffer size of (?P<buffer_size>\d+) ?B",
}
_COMPILED = {kind: re.compile(pattern) for kind, pattern in _PATTERNS.items()}
_TEXTS = frozenset(("core_range", "program", "buffer_type"))
MAX_TEXT = 2**24
"""The most characters of a log that are searched; of a longer one the end."""


@dataclass(frozen=True, slots=True)
class Thrown:
    """One error of TT-Metal.

    Attributes:
        kind: ``clash``, ``too_large``, ``grid``, ``service_core``, ``out_of_memory`` or ``global_cb``.
        figures: what the text tells, by name; a figure that it leaves out is missing.
        count: how often the same text was met.
    """

    kind: str
    figures: Mapping[str, Any]
    count: int = 1


def parse_thrown(text: str) -> list[Thrown]:
    """Return every error of TT-Metal in ``text``, in the order in which they first appear, each once.

    Args:
        text: a log, or only the message; lines may be broken anywhere between words.
    """
    text = re.sub(r"\s+", " ", text[-MAX_TEXT:])
    found: dict[tuple[str, tuple[tuple[str, Any], ...]], list[int]] = {}
    for kind, pattern in _COMPILED.items():
        for match in pattern.finditer(text):
            figures = {
                name: value if name in _TEXTS else int(value)
                for name, value in match.groupdict().items()
                if value is not None and len(value) < 300
            }
            found.setdefault((kind, tuple(figures.items())), []).append(match.start())
    ordered = sorted(found.items(), key=lambda item: item[1][0])
    return [Thrown(kind, dict(figures), len(places)) for (kind, figures), places in ordered]


def finding_of(thrown: Thrown, buffers: Sequence[LiveBuffer] = ()) -> Finding:
    """Return the clash that a text reports, with the buffers that lie there if they are known."""
    figures = thrown.figures
    end, lowest = figures["cb_region_end"], figures["l1_lowest_address"]
    # Buffers below the one that TT-Metal names were allocated after it threw.
    below = sorted((b for b in buffers if lowest <= b.address < end), key=lambda b: b.address)
    return Finding(
        None,
        str(figures["program"]),
        core_range_text(str(figures["core_range"])),
        end,
        lowest,
        dispatches=thrown.count,
        threw=True,
        buffers=tuple(below[:MAX_INVOLVED]),
        num_buffers=len(below),
    )


def core_range_text(text: str) -> str:
    """Return a core range in TT-Metal's newer spelling, ``[0-0 - 7-3]``; any other text stays."""
    try:
        ranges = as_core_range_set(text)
    except InvalidIntervalError:
        return text
    return str(ranges.ranges[0]) if len(ranges) == 1 else str(ranges)


def explain(
    thrown: Thrown,
    *,
    base: int | None = None,
    buffers: Sequence[LiveBuffer] = (),
    device: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return sentences that say what happened and what ends it.

    Args:
        thrown: the error.
        base: the device's CB base, if known.
        buffers: the live L1 buffers, if known.
        device: the device object at hand, if there is one: as it was when the error came, or a little later.
    """
    if thrown.kind == "out_of_memory":
        return _out_of_memory(thrown.figures, device)
    return {
        "clash": _clash,
        "too_large": _too_large,
        "grid": _grid,
        "service_core": _service_core,
        "global_cb": _global_cb,
    }[thrown.kind](thrown.figures, base, buffers, thrown)


def _clash(f: Mapping[str, Any], base: int | None, buffers: Sequence[LiveBuffer], thrown: Thrown) -> list[str]:
    finding = finding_of(thrown, buffers)
    lines = [
        f"the CBs of program {finding.program} end at {finding.cb_region_end} on {finding.core_range}, "
        f"{format_exact(finding.shortfall_bytes)} bytes ({format_bytes(finding.shortfall_bytes)}) above the lowest L1 "
        f"buffer at {finding.l1_lowest_address}"
    ]
    if base is not None:
        room = finding.l1_lowest_address - base  # type: ignore[operator]
        lines.append(
            f"from the CB base {base} they take {format_exact(finding.cb_region_end - base)} bytes per core; "
            f"{format_exact(room)} are free there"
        )
    return lines + advice(finding)


def _too_large(f: Mapping[str, Any], base: int | None, buffers: Sequence[LiveBuffer], thrown: Thrown) -> list[str]:
    excess = f["cb_region_end"] - f["l1_size"]
    lines = [
        f"the CBs on {core_range_text(f['core_range'])} end at {f['cb_region_end']}, {format_exact(excess)} bytes "
        f"({format_bytes(excess)}) beyond the end of a core's L1 at {f['l1_size']}: no freeing of buffers helps"
    ]
    if base is not None:
        lines.append(
            f"from the CB base {base} they take {format_exact(f['cb_region_end'] - base)} bytes per core of at most "
            f"{format_exact(f['l1_size'] - base)}"
        )
    return [
        *lines,
        f"shrink the program's circular buffers by at least {format_exact(excess)} bytes per core: smaller blocks, "
        "fewer tiles at a time, or single buffering",
        "or spread the work over more cores, if the CBs grow with the part of each core",
    ]


def _grid(f: Mapping[str, Any], base: int | None, buffers: Sequence[LiveBuffer], thrown: Thrown) -> list[str]:
    return [
        f"program {f['program']} puts CBs on {core_range_text(f['core_range'])}, but the device has "
        f"{f['grid_x']}x{f['grid_y']} cores: the last is [{f['grid_x'] - 1}-{f['grid_y'] - 1}]",
        "take the core grid from device.compute_with_storage_grid_size(): harvested boards and fast dispatch leave "
        "fewer cores than the chip has",
    ]


def _service_core(f: Mapping[str, Any], base: int | None, buffers: Sequence[LiveBuffer], thrown: Thrown) -> list[str]:
    shortfall = f["cb_region_end"] - f["l1_lowest_address"]
    return [
        f"the CBs of program {f['program']} end at {f['cb_region_end']} on the service cores "
        f"{core_range_text(f['core_range'])}, {format_exact(shortfall)} bytes above what the ServiceCoreManager "
        f"allocated at {f['l1_lowest_address']}",
        f"shrink the CBs by {format_exact(shortfall)} bytes per core, or keep the program off these cores",
    ]


def _out_of_memory(f: Mapping[str, Any], device: Mapping[str, Any] | None) -> list[str]:
    kind, needed = f["buffer_type"], f["needed"]
    lines = [
        f"{format_bytes(f['size'])} of {kind} over {f['num_banks']} banks need {format_exact(needed)} bytes in each, "
        "in one piece"
    ]
    bank, free, largest = f.get("bank_size"), f.get("free"), f.get("largest_free")
    pieces = _bank_of(kind, f["num_banks"], device)
    if (free is None or largest is None) and pieces is not None:
        free, largest = pieces.free_bytes, pieces.largest_free_bytes
        bank = pieces.end - pieces.begin if bank is None else bank
        lines.append("the text does not tell what is free; what follows is of the device at hand, as it is now")
    if bank is not None and needed > bank:
        lines.append(
            f"that is more than a whole bank of {format_exact(bank)} bytes: no freeing helps; shard over more banks, "
            "split the tensor" + (", or put it in DRAM" if kind != "DRAM" else "")
        )
        return lines
    if free is None or largest is None:
        lines.append("the text does not tell what is free: TT-Metal prints it since #32150; see ttmem-dump --map X,Y")
    elif largest >= needed:
        lines.append(
            f"now the largest free piece has {format_exact(largest)} bytes, which is enough: what was in the way is gone"
        )
    elif free >= needed:
        lines.append(
            f"{format_exact(free)} bytes are free in each bank, but the largest piece has {format_exact(largest)}: "
            f"fragmentation of {100 * (1 - largest / free if free else 0):.1f} %; {format_exact(needed - largest)} "
            "bytes are missing to the largest piece"
        )
        lines.append(
            "free a buffer next to the largest free piece, or allocate long-lived tensors first and short-lived ones "
            "last, so that what is freed joins"
        )
    else:
        lines.append(
            f"only {format_exact(free)} of {format_exact(bank)} bytes are free in each bank: free at least "
            f"{format_exact(needed - free)} bytes per bank"
        )
    return lines + _to_free(kind, needed, device, pieces)


def _bank_of(kind: str, num_banks: int, device: Mapping[str, Any] | None) -> Fragments | None:
    """Return how a bank of the device at hand is cut up; None if that is not known."""
    if device is None:
        return None
    if kind == "L1":
        return fragments_of(device)
    found = dram_fragments_of(device, num_banks=num_banks) if kind == "DRAM" else None
    return found.pieces if found is not None and found.end_known else None


def _to_free(kind: str, needed: int, device: Mapping[str, Any] | None, pieces: Fragments | None) -> list[str]:
    """Return what could be freed: the least that makes a hole large enough, then the largest buffers there are."""
    held = [
        row
        for row in (device or {}).get("buffers") or ()
        if row.get("buffer_type") == kind and row.get("address") is not None and row.get("size_per_bank")
    ]
    lines = []
    least = None
    if pieces is not None and pieces.largest_free_bytes < needed:
        least = smallest_release(held, begin=pieces.begin, end=pieces.end, needed_bytes=needed)
    if least is not None:
        which = "this buffer" if len(least.rows) == 1 else f"these {len(least.rows)} buffers side by side"
        lines.append(
            f"to free {which} is the least that makes room, {format_exact(least.freed_bytes)} bytes per bank for a "
            f"piece of {format_exact(least.hole_bytes)}: {_named(least.rows)}"
        )
    if held:
        largest = sorted(held, key=lambda row: -row["size_per_bank"])
        lines.append(f"the largest live {kind} buffers: {_named(largest)}")
    return lines


def _named(rows: Sequence[Mapping[str, Any]]) -> str:
    text = "; ".join(
        f"{format_bytes(row['size_per_bank'])} per bank at {row['address']} from {row.get('name') or 'unnamed'}"
        for row in rows[:4]
    )
    return text + (f" and {len(rows) - 4} more" if len(rows) > 4 else "")


def _global_cb(f: Mapping[str, Any], base: int | None, buffers: Sequence[LiveBuffer], thrown: Thrown) -> list[str]:
    excess = f["cb_size"] - f["buffer_size"]
    return [
        f"a CB of {format_exact(f['cb_size'])} bytes was laid on an L1 buffer that has "
        f"{format_exact(f['buffer_size'])} bytes on a core, {format_exact(excess)} too few",
        "give the buffer a shard that holds the whole CB, or set the CB's total size to the shard's",
    ]
