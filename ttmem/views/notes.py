"""What a reader of the figures must know so that no number misleads: sentences made from the data at hand."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from ttmem.units import NOT_AVAILABLE, format_bytes
from ttmem.views.text import Device, Screen, clean

_STATES = {
    "idle": ("No process has this device open.", "no process"),
    "stale": (
        "Only dead processes are left: they count 0 here; what they left is in --processes until it is removed "
        "(`python -m ttmem doctor` says how).",
        "only dead processes, counted 0",
    ),
    "initializing": ("The source is there but not ready yet.", "not ready yet"),
    "foreign-version": (
        "Written by a version that this ttmem does not read: no figure is guessed. Upgrade the older of the two.",
        "version not readable",
    ),
    "unreadable": ("The source cannot be read: its permissions or its content are at fault.", "not readable"),
    "unknown": ("Whether the writer lives cannot be told from here.", "writer cannot be judged"),
}


_SAID = re.compile(
    r"peaks are sums over \d+ processes|\d+ programs are counted in the totals and not listed"
    r"|whether processes \[[\d, ]*\] live cannot be told"
)
"""Warnings of the JSON that a note says with the figures beside it: once is enough on a screen."""


@dataclass(frozen=True, slots=True)
class Note:
    """One sentence on a device.

    Attributes:
        kind: ``warning`` where something is wrong or may be, ``note`` where a figure could mislead.
        text: the sentence, with the device's figures.
        short: the same without figures, so that many devices can share it.
    """

    kind: str
    text: str
    short: str


def get(device: Device, path: str) -> int | None:
    """Return the figure at a JSON path such as ``memory.cb.physical_bytes``; None where any part is missing."""
    value: object = device
    for key in path.split("."):
        value = value.get(key) if hasattr(value, "get") else None
    return value if isinstance(value, int) else None


def cached_programs(device: Device) -> int | None:
    """Return how many programs are cached, those that are not listed too; None where the source does not tell."""
    rows = device.get("programs")
    if rows is None:
        return None
    return sum(row.get("count") or 1 for row in rows) + (get(device, "programs_omitted") or 0)


def peaks_add_up(device: Device) -> bool:
    """Tell whether the peaks are sums over several writers: upper bounds, for they need not have coincided."""
    return [row.get("state") for row in device.get("processes") or ()].count("live") > 1


def peak_text(device: Device, kind: str, screen: Screen) -> str:
    """Return the peak of a kind of memory as ``peak 17.8 MiB``, with a mark where it is an upper bound.

    Returns:
        The empty text where it is unknown.
    """
    peak = get(device, f"memory.{kind}.peak_bytes")
    if peak is None:
        return ""
    mark = ("\u2264 " if screen.unicode else "<= ") if peak and peaks_add_up(device) else ""
    return f"peak {mark}{format_bytes(peak)}"


_PEAKS = (
    ("cb", "CB", "program", "came into the cache"),
    ("l1", "L1 buffers", "buffer", "was allocated"),
    ("dram", "DRAM", "buffer", "was allocated"),
    ("l1_small", "L1_SMALL", "buffer", "was allocated"),
    ("trace", "Trace", "buffer", "was allocated"),
)


@dataclass(frozen=True, slots=True)
class Peak:
    """When a kind of memory was fullest.

    Attributes:
        title: of the kind.
        size: bytes.
        at_ns: CLOCK_REALTIME.
        by: the name of what took it there; None if unknown.
        count: programs or buffers there then; None if unknown.
        counted: what is counted.
        came: what that did.
    """

    title: str
    size: int
    at_ns: int
    by: str | None
    count: int | None
    counted: str
    came: str

    @property
    def when(self) -> str:
        """The moment in UTC."""
        seconds, rest = divmod(self.at_ns, 10**9)
        try:
            return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds)) + f".{rest // 10**6:03} UTC"
        except (OverflowError, ValueError, OSError):
            return NOT_AVAILABLE

    @property
    def sentence(self) -> str:
        """All of it."""
        many = "" if self.count is None else f", with {_plural(self.count, self.counted)} there"
        cause = "" if self.by is None else f" when {clean(self.by)} {self.came}"
        return f"{self.title} peaked at {format_bytes(self.size)}{cause}, at {self.when}{many}."


def peaks(device: Device) -> list[Peak]:
    """Return the peaks whose moment is known, CB first."""
    found = []
    for kind, title, counted, came in _PEAKS:
        size, at_ns = get(device, f"memory.{kind}.peak_bytes"), get(device, f"memory.{kind}.peak_at_ns")
        if size and at_ns is not None and at_ns > 0:
            by = ((device.get("memory") or {}).get(kind) or {}).get("peak_by")
            count = get(device, f"memory.{kind}.peak_{counted}s")
            found.append(Peak(title, size, at_ns, by if isinstance(by, str) and by else None, count, counted, came))
    return found


def _plural(count: int, word: str, plural: str = "") -> str:
    return f"{count} {word if count == 1 else plural or word + 's'}"


def _state_notes(device: Device) -> list[Note]:
    found = []
    state = device.get("state")
    if state in _STATES:
        found.append(Note("warning", *_STATES[state]))
    if device.get("consistent") is False:
        found.append(
            Note(
                "warning",
                "Not consistent: the figures changed while they were read and may be of two moments.",
                "figures may be of two moments",
            )
        )
    found += [
        Note("warning", str(text), str(text)) for text in device.get("warnings") or () if not _SAID.match(str(text))
    ]
    if device.get("origin") == "replay":
        found.append(Note("note", "A replay of a recording, not what hardware holds now.", "replay of a recording"))
    return found


def _core_notes(device: Device) -> list[Note]:
    short = [c for c in device.get("cores") or () if (c.get("headroom_bytes") or 0) < 0]
    if not short:
        return []
    worst = min(short, key=lambda core: core["headroom_bytes"])
    return [
        Note(
            "warning",
            f"Cached programs reach over live buffers on {_plural(len(short), 'core')}, at worst by "
            f"{format_bytes(-worst['headroom_bytes'])} on core {worst['x']},{worst['y']}: dispatching one of them now "
            "would clash (see python -m ttmem explain).",
            "a cached program would clash if dispatched now",
        )
    ]


def _figure_notes(device: Device) -> list[Note]:
    found = []
    physical, resident = get(device, "memory.cb.physical_bytes"), get(device, "memory.cb.resident_bytes")
    if physical is not None and resident is not None and physical > resident:
        count = cached_programs(device)
        whose = _plural(count, "cached program") if count else "every cached program"
        found.append(
            Note(
                "note",
                f"CB is what {whose} may use, running or not (logical adds them up); the last dispatched left "
                f"{format_bytes(resident)} (resident).",
                "CB counts every cached program, running or not",
            )
        )
    overlap = get(device, "l1_accounting.overlap_bytes")
    # A core that is short of headroom says the same in more words.
    if overlap and not _core_notes(device):
        found.append(
            Note(
                "note",
                f"{format_bytes(overlap)} are claimed twice, by CBs of cached programs and by live buffers: legal "
                "while those programs do not run, and counted once in Total L1.",
                "cached CBs overlap live buffers",
            )
        )
    logical, room = get(device, "memory.cb.logical_bytes"), get(device, "memory.l1.total_bytes")
    if logical is not None and room and logical > room and physical == resident:
        found.append(
            Note(
                "note",
                "Logical adds up the CBs of all cached programs, which share addresses; so it exceeds the memory.",
                "logical CB exceeds the memory",
            )
        )
    if device.get("source") == "tt-metal":
        found.append(
            Note(
                "note",
                "Totals of TT-Metal's own region: it tells neither cores nor programs; CB is as TT-Metal counts it.",
                "TT-Metal's own totals",
            )
        )
    return found


def _process_notes(device: Device) -> list[Note]:
    found = []
    rows = device.get("processes") or ()
    states = [row.get("state") for row in rows]
    dead, unknown = states.count("stale"), states.count("unknown")
    if dead and device.get("state") != "stale":
        found.append(
            Note(
                "note",
                f"{_plural(dead, 'dead process', 'dead processes')} left entries; none is counted.",
                "dead entries",
            )
        )
    if unknown:
        found.append(
            Note(
                "warning",
                f"{_plural(unknown, 'process', 'processes')} of another pid namespace cannot be judged; their bytes "
                "are in no total.",
                "processes that cannot be judged",
            )
        )
    if peaks_add_up(device):
        found.append(
            Note(
                "note",
                f"Peaks add up those of {states.count('live')} processes, which need not have coincided: upper bounds.",
                "peaks are upper bounds",
            )
        )
    omitted = get(device, "programs_omitted")
    if omitted:
        found.append(
            Note(
                "note",
                f"{_plural(omitted, 'more program')} not listed: the totals count them.",
                "not all programs are listed",
            )
        )
    return found


def notes(device: Device) -> list[Note]:
    """Return what must be said about a device's figures, warnings first."""
    found = _state_notes(device) + _core_notes(device) + _figure_notes(device) + _process_notes(device)
    return sorted(found, key=lambda note: note.kind != "warning")
