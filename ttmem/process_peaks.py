"""Process peaks: the most that this process's own publishers held while something ran, however short it was."""

from __future__ import annotations

from typing import Any

from ttmem import _publisher
from ttmem.reader import snapshot_of_bytes

FIGURES = ("dram", "l1", "l1_small", "cb", "core")
"""What a row tells in bytes: four kinds of memory of the device, and ``core``, the most of a core's L1."""


class ProcessPeaks:
    """Lets the marks of this process's publishers begin anew, and gathers them at the end; a context manager.

    Publishers that come and go meanwhile are gathered too.
    """

    def __init__(self) -> None:
        self._rows: dict[int, dict[str, Any]] = {}

    def __enter__(self) -> "ProcessPeaks":
        for publisher in list(_publisher._published.values()):
            publisher.reset_peaks()
        _publisher._closing.append(self._take)
        return self

    def __exit__(self, *exc_info: object) -> None:
        _publisher._closing.remove(self._take)
        for publisher in list(_publisher._published.values()):
            self._take(publisher)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each device, by its id.

        Each has ``device_id``, the figures of :data:`FIGURES`, and ``by``: what took ``l1`` and ``cb`` there. ``core``
        is the highest sum, over the cores, of the CB bytes and the bytes of L1 buffers that a core reached; the two
        need not have coincided, so it is the most that can have been used.
        """
        return [self._rows[device_id] for device_id in sorted(self._rows)]

    def _take(self, publisher: _publisher.Publisher) -> None:
        memory = snapshot_of_bytes(publisher.frozen(), publisher.device_id).memory
        row: dict[str, Any] = {kind: memory[kind]["peak_bytes"] for kind in ("dram", "l1", "l1_small", "cb")}
        row["core"] = max((cb + l1 for _, _, cb, l1 in publisher.core_peaks()), default=None)
        row["by"] = {kind: memory[kind]["peak_by"] for kind in ("l1", "cb")}
        before = self._rows.get(publisher.device_id)
        if before is not None:
            # Published again meanwhile: the higher of the two counts.
            row["by"] = {kind: (row if row[kind] >= before[kind] else before)["by"][kind] for kind in ("l1", "cb")}
            for figure in FIGURES:
                row[figure] = max(row[figure] or 0, before[figure] or 0)
        self._rows[publisher.device_id] = {"device_id": publisher.device_id, **row}
