"""Writes the HTML page of ``ttmem-dump --html``."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ttmem.cli import stdout, write
from ttmem.units import format_bytes


def core_details(snapshot: Any, device: Any) -> dict[tuple[int, int], Any] | None:
    """Return the address ranges of each core, or None where the source tells no cores."""
    cores = device.get("cores")
    return None if cores is None else {(c["x"], c["y"]): snapshot.core_map(c["x"], c["y"]) for c in cores}


class PageFile:
    """The page at a path; written again, it holds also what was seen before, as a timeline.

    Args:
        path: where to write; ``-`` is stdout.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._timeline: Any = None

    def write(
        self,
        snapshots: Sequence[Any],
        devices: Sequence[Any],
        taken_ns: int,
        *,
        host: str | None = None,
        timeline: Any = None,
    ) -> str:
        """Write the page; return a sentence on it, empty if it went to stdout.

        Args:
            snapshots: of the devices.
            devices: their objects of the JSON; one that holds its ``buffers`` is believed.
            taken_ns: CLOCK_REALTIME of the moment.
            host: where it was taken; None is here.
            timeline: a :class:`ttmem.views.timeline.Timeline`; None is of the moments that were written so far.

        Raises:
            OSError: it cannot be written.
        """
        from ttmem.views.html import render_html  # so that other commands need no jinja2
        from ttmem.views.timeline import Timeline

        if timeline is None:
            timeline = self._timeline = self._timeline or Timeline()
            timeline.add(taken_ns, devices)
        text = render_html(
            devices,
            taken_ns=taken_ns,
            host=host or socket.gethostname(),
            core_details=[core_details(s, d) for s, d in zip(snapshots, devices, strict=True)],
            buffers=[d["buffers"] if "buffers" in d else s.buffers() for s, d in zip(snapshots, devices, strict=True)],
            timeline=timeline,
        )
        data = text.encode()
        if self.path == "-":
            write("")
            with stdout() as out:
                out.buffer.write(data)
            return ""
        _write(Path(self.path), data)
        return f"wrote {self.path} ({format_bytes(len(data))})"


def _write(path: Path, data: bytes) -> None:
    """Write a file whole: a browser that loads it while it is written again gets the one or the other."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        # A pipe or a device must stay what it is.
        path.write_bytes(data)
        return
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        new.write_bytes(data)
        new.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
