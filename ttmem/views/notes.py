"""What a reader of the figures must know so that no number misleads: sentences made from the data at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ttmem.units import format_bytes
from ttmem.views.text import Device, Line, Screen, clean, render, wrap

_STATES = {
    "idle": ("No process has this device open.", "no process"),
    "stale": (
        "Only dead processes are left: they count 0 here; what they left is in --processes until gc removes it.",
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
    found += [Note("warning", str(text), str(text)) for text in device.get("warnings") or ()]
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
        programs = device.get("programs")
        count = sum(row.get("count") or 1 for row in programs or ()) + (get(device, "programs_omitted") or 0)
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
    if states.count("live") > 1:
        found.append(
            Note(
                "note",
                f"Peaks add up those of {states.count('live')} processes: an upper bound.",
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


def render_explanation(devices: Sequence[Device], screen: Screen) -> str:
    """Return :func:`explain_figures` of all devices as text."""
    lines: list[Line] = []
    for device in devices:
        lines.append([(f"Device {device['device_id']}:", "head")])
        for sentence in explain_figures(device):
            lines += [[(text, "")] for text in wrap(clean(sentence), screen, first="  - ", rest="    ")]
    return render(lines, screen)


def explain_figures(device: Device) -> list[str]:
    """Return what the figures of this device mean, in sentences that its own numbers fill."""
    return [*_explain_cb(device), *_explain_total(device), *_explain_kernels(device), *_explain_rest(device)]


def _explain_cb(device: Device) -> list[str]:
    physical = get(device, "memory.cb.physical_bytes")
    if not physical:
        return []
    programs = device.get("programs") or ()
    count = sum(row.get("count") or 1 for row in programs) + (get(device, "programs_omitted") or 0)
    said = (
        f"CBs stay for as long as their programs are cached ({count} now)"
        if count
        else ("CBs stay for as long as their programs are cached")
    )
    found = [
        f"{said}: {format_bytes(physical)} of addresses are claimed, whether a program runs or not. "
        "Clearing the program cache gives them back."
    ]
    logical, resident = get(device, "memory.cb.logical_bytes"), get(device, "memory.cb.resident_bytes")
    if logical is not None and logical > physical:
        found.append(
            f"All cached CBs one after the other would be {format_bytes(logical)} (logical). They share addresses, for "
            f"programs on the same cores run one at a time: physical is {format_bytes(physical)}."
        )
    if resident is not None and resident != physical:
        found.append(
            f"What the last dispatched programs left configured is {format_bytes(resident)} (resident); the rest of "
            "the physical figure waits for its programs to run again."
        )
    return found


def _explain_total(device: Device) -> list[str]:
    peak, physical = get(device, "memory.cb.peak_bytes"), get(device, "memory.cb.physical_bytes")
    if peak is None or physical is None:
        return []
    if peak > physical:
        return [
            f"Total L1 rises while a model compiles, as each new program adds its CBs, and falls when programs leave "
            f"the cache: CB peaked at {format_bytes(peak)} and is {format_bytes(physical)} now."
        ]
    if physical:
        return [
            "Total L1 rises while a model compiles, as each new program adds its CBs, and stays there: CB is at its "
            f"peak of {format_bytes(peak)}."
        ]
    return []


def _explain_kernels(device: Device) -> list[str]:
    used, persistent = get(device, "memory.kernel.used_bytes"), get(device, "memory.kernel.persistent_bytes")
    if used is None or not (used or persistent):
        return []
    text = f"Kernels take {format_bytes(used)}; they lie in the reserved part and are not added to Total L1."
    if persistent:
        text += (
            f" Of them {format_bytes(persistent)} stay while the device is open (dispatch and fabric firmware): about "
            "0.2 MiB is normal and no leak."
        )
    return [text]


def _explain_rest(device: Device) -> list[str]:
    account = {
        name: get(device, f"l1_accounting.{name}_bytes")
        for name in ("total", "reserved", "cb", "buffer", "l1_small", "overlap", "free")
    }
    total, free = account["total"], account["free"]
    if total is None or free is None:
        return [
            "Where the rest of L1 is cannot be told: no writer gave the geometry (grid, L1 size, CB base, L1_SMALL)."
        ]
    text = (
        f"Of {format_bytes(total)} of L1, {format_bytes(account['reserved'])} lie below the CBs (firmware, kernels, "
        f"semaphores), {format_bytes(account['cb'])} are CBs, {format_bytes(account['buffer'])} buffers on cores, "
        f"{format_bytes(account['l1_small'])} set aside for L1_SMALL"
    )
    if account["overlap"]:
        text += f", less {format_bytes(account['overlap'])} that both CBs and buffers claim"
    found = [f"{text}; {format_bytes(free)} are free."]
    known = [c["headroom_bytes"] for c in device.get("cores") or () if c.get("headroom_bytes") is not None]
    if known and min(known) >= 0:
        found.append(
            f"The free bytes are spread over the cores: the next CB or buffer fits if it stays within the smallest "
            f"headroom, {format_bytes(min(known))} on one core."
        )
    return found
