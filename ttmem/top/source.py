"""Where samples come from: the host, or a file of what a host once held."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, cast

from ttmem.moments import Frames
from ttmem.top.model import Model, ReadingLike

Keep = Callable[[Any], bool]
"""Tells of a device object whether it is wanted."""


class Source(Protocol):
    """Gives samples; used by one thread."""

    def poll(self) -> list[ReadingLike]:
        """Return what is new, oldest first."""

    def close(self) -> None:
        """Let go of what is open."""


class Player(Protocol):
    """A source that plays a file and can be steered from another thread."""

    @property
    def playing(self) -> bool:
        """Whether frames follow by themselves."""

    @property
    def position(self) -> tuple[int, int]:
        """The number of the shown frame, from 1, and how many there are."""

    def step(self, count: int) -> None:
        """Stop, and go so many frames on, or back."""

    def toggle(self) -> None:
        """Stop, or play; at the end, play from the beginning."""


class LiveSource:
    """The devices of this host, read through one Host that stays open.

    Args:
        source: as in :func:`ttmem.reader.read_host`.
        keep: which devices; None is all.
    """

    def __init__(self, source: str = "auto", keep: Keep | None = None) -> None:
        self._source = source
        self._keep = keep
        self._host: Any = None

    def poll(self) -> list[ReadingLike]:
        """Return the host as it is now."""
        # NumPy and the reader come in here, in the sampling thread, while the first screen is painted.
        from ttmem.reader import Host, HostReading, read_host

        if self._host is None:
            self._host = Host()
        reading = read_host(self._source, host=self._host)
        if self._keep is not None:
            keep = self._keep
            devices = [d for d in reading.devices if keep(d.to_dict(cores=False))]
            reading = HostReading(reading.taken_ns, devices, reading.problems, reading.found)
        return [cast(ReadingLike, reading)]

    def close(self) -> None:
        """Close the segments' files."""
        if self._host is not None:
            self._host.close()


class FrameReading:
    """One frame as a reading of the host."""

    def __init__(self, frame: dict[str, Any], keep: Keep | None) -> None:
        from ttmem.snapshot import Snapshot

        self.taken_ns = int(frame.get("taken_ns") or 0)
        self.devices: list[Any] = [
            Snapshot.of_dict(device, taken_ns=self.taken_ns)
            for device in frame["devices"]
            if keep is None or keep(device)
        ]
        self.problems: list[str] = []


class ReplaySource:
    """Plays frames at the pace they were taken.

    Args:
        frames: a file of them.
        keep: which devices; None is all.
        clock_ns: a monotonic clock.
    """

    def __init__(
        self, frames: Frames, keep: Keep | None = None, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._frames = frames
        self._keep = keep
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._index = -1
        self._wanted: int | None = 0
        self._shown_at_ns = 0
        self._next: FrameReading | None = None
        self._taken_ns = 0
        self.playing = True

    @property
    def position(self) -> tuple[int, int]:
        """The number of the shown frame, from 1, and how many there are."""
        return self._index + 1, len(self._frames)

    def step(self, count: int) -> None:
        """Stop, and go so many frames on, or back."""
        with self._lock:
            self.playing = False
            base = self._index if self._wanted is None else self._wanted
            self._wanted = min(len(self._frames) - 1, max(0, base + count))

    def toggle(self) -> None:
        """Stop, or play; at the end, play from the beginning."""
        with self._lock:
            self.playing = not self.playing or self._index + 1 == len(self._frames)
            if self.playing and self._index + 1 == len(self._frames):
                self._wanted = 0

    def poll(self) -> list[ReadingLike]:
        """Return the frames whose time has come."""
        with self._lock:
            now_ns = self._clock_ns()
            if self._wanted is not None:
                self._index, self._wanted, self._next = self._wanted, None, None
                reading = FrameReading(self._frames.frame(self._index), self._keep)
                self._taken_ns, self._shown_at_ns = reading.taken_ns, now_ns
                return [reading]
            found: list[ReadingLike] = []
            if not self.playing:
                self._shown_at_ns = now_ns
                return found
            while self._index + 1 < len(self._frames):
                if self._next is None:
                    self._next = FrameReading(self._frames.frame(self._index + 1), self._keep)
                # Frames that were not taken one after the other follow at once.
                wait_ns = max(0, self._next.taken_ns - self._taken_ns)
                if now_ns - self._shown_at_ns < wait_ns:
                    break
                self._shown_at_ns += wait_ns
                self._taken_ns = self._next.taken_ns
                found.append(self._next)
                self._next = None
                self._index += 1
            return found

    def close(self) -> None:
        """Close the file."""
        self._frames.close()


class Sampler(threading.Thread):
    """Reads a source again and again, and adds what it gives to a model.

    Args:
        source: closed when the thread ends.
        model: takes the samples.
        interval: seconds between two readings.
        share: the most of a core that reading may take; where it would take more, readings are further apart.
    """

    def __init__(self, source: Source, model: Model, interval: float, *, share: float = 1.0) -> None:
        super().__init__(name="ttmem-top-sampler", daemon=True)
        self._source = source
        self._model = model
        self._interval = interval
        self._share = share
        self._ended = threading.Event()
        self._hurry = threading.Event()
        self.error: str | None = None
        self.on_first: Callable[[], object] | None = None
        """Called in this thread when the model has its first sample."""

    def run(self) -> None:
        """Sample until :meth:`stop`."""
        due = time.monotonic()
        try:
            while not self._ended.is_set():
                began = time.thread_time()
                try:
                    for reading in self._source.poll():
                        self._model.add(reading)
                    self.error = None
                    if self.on_first is not None and self._model.samples:
                        self.on_first()
                        self.on_first = None
                except Exception as error:  # shown on the screen: a monitor outlives what it cannot read
                    self.error = f"{type(error).__name__}: {error}"
                apart = max(self._interval, (time.thread_time() - began) / self._share)
                due = max(due + apart, time.monotonic())
                self._hurry.wait(max(0.0, due - time.monotonic()))
                self._hurry.clear()
        finally:
            self._source.close()

    def hurry(self) -> None:
        """Read at once."""
        self._hurry.set()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._ended.set()
        self._hurry.set()
        if self.is_alive():
            self.join(5)
