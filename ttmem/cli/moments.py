"""One moment of a file in place of this host: which one, and what is told of the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ttmem.moments import Frames, open_frames
from ttmem.snapshot import Snapshot


@dataclass(slots=True)
class FileMoment:
    """One moment of a file, as a reading of the host.

    Attributes:
        taken_ns: CLOCK_REALTIME; 0 if the file does not tell.
        devices: snapshots.
        host: where it was taken, None if unknown.
        timeline: a :class:`ttmem.views.timeline.Timeline` of all moments, None if nobody asked.
        sentence: which moment it is, empty if there is no other.
        problems: as of a reading.
        found: as of a reading.
    """

    taken_ns: int
    devices: list[Snapshot]
    host: str | None
    timeline: Any
    sentence: str
    problems: list[str] = field(default_factory=list)
    found: int = 1


def read_moment(
    path: str, at: str | float, keep: Callable[[Mapping[str, Any]], bool] | None = None, *, timeline: bool
) -> FileMoment:
    """Return one moment of a recording or of dumps.

    Args:
        path: the file.
        at: as :func:`ttmem.cli.selection.moment_option` gives it.
        keep: which devices count for the timeline and for what is fullest; None is all.
        timeline: whether to gather the timeline.

    Raises:
        TtmemError: it is no such file.
    """
    frames = open_frames(path)
    try:
        count = len(frames)
        line = None
        if count > 1 and (timeline or at == "fullest"):
            line = _timeline(frames, keep)
        index = 0
        if count > 1:
            if at == "fullest" and line is not None:
                index = line.fullest_index
            elif at == "last":
                index = count - 1
            elif isinstance(at, float):
                index = _index_at(frames, at)
        frame = frames.frame(index)
        begin_ns = int(frames.figures(0).get("taken_ns") or 0)
    finally:
        frames.close()
    taken_ns = int(frame.get("taken_ns") or 0)
    devices = [Snapshot.of_dict(device, taken_ns=taken_ns) for device in frame["devices"]]
    sentence = ""
    if count > 1:
        which = "the fullest" if at == "fullest" else "one"
        sentence = (
            f"{path}: {count} moments; shown is {which} {(taken_ns - begin_ns) / 1e9:.2f} s after the first (--at)"
        )
    host = frame.get("host")
    return FileMoment(
        taken_ns,
        devices,
        host if isinstance(host, str) else None,
        line if timeline else None,
        sentence,
        frames.problems,
    )


def _timeline(frames: Frames, keep: Callable[[Mapping[str, Any]], bool] | None) -> Any:
    from ttmem.views.timeline import Timeline

    line = Timeline()
    for index in range(len(frames)):
        frame = frames.figures(index)
        devices = [device for device in frame["devices"] if keep is None or keep(device)]
        line.add(int(frame.get("taken_ns") or 0), devices)
    return line


def _index_at(frames: Frames, seconds: float) -> int:
    """Return the last frame that is not later than so long after the first."""
    begin_ns = int(frames.figures(0).get("taken_ns") or 0)
    low, high = 0, len(frames)
    while high - low > 1:
        middle = (low + high) // 2
        taken_ns = int(frames.figures(middle).get("taken_ns") or 0)
        if taken_ns - begin_ns <= seconds * 1e9:
            low = middle
        else:
            high = middle
    return low
