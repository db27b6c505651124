"""L1Tracker: publish by hand, in ten lines, what a script lays into L1."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from ttmem.cores import CoreCoord, CoreRangeSet
from ttmem.errors import InvalidIntervalError
from ttmem.model import CircularBuffer, check_bytes
from ttmem.publisher import publish
from ttmem.snapshot import Figures, figures

KERNEL_BYTES = 50 * 1024
"""What a kernel takes on a core unless told, bytes."""
ASSUMED_GRID = (8, 8)
"""Where cores are counted if the grid is not told; that is published of nobody."""


class L1Tracker:
    """Publishes circular buffers and kernels that a script counts by hand.

    Circular buffers are stacked from the CB base upward, one program each, on the first ``num_cores`` cores row by row.

    Args:
        device_id: the logical id to publish under.
        geometry: fields of :func:`ttmem.publish`. Where no grid is given, cores are counted row by row of 8 x 8, and
            the published grid is unknown.
    """

    def __init__(self, device_id: int = 0, **geometry: Any) -> None:
        self._publisher = publish(device_id, **geometry)
        known = self._publisher.geometry
        self._next_address = known.l1_cb_base or 0
        self._width, self._height = known.grid or ASSUMED_GRID

    def track_cb(self, num_tiles: int, tile_size: int, num_cores: int = 1) -> int:
        """Count a circular buffer of ``num_tiles`` tiles of ``tile_size`` bytes on each of ``num_cores`` cores.

        Returns:
            Its program's id, for :meth:`untrack`.

        Raises:
            InvalidIntervalError: a number is negative, or there are not so many cores or not so much L1.
        """
        tiles = check_bytes(num_tiles, "num_tiles")
        size = tiles * check_bytes(tile_size, "tile_size")
        buffer = CircularBuffer(self._next_address, size, self._cores(num_cores))
        program_id: int = self._publisher.add_program([buffer], name=f"{num_tiles} tiles of {tile_size} B")
        self._next_address += size
        return program_id

    def track_kernel(self, num_cores: int = 1, size: int | None = None) -> int:
        """Count a kernel of ``size`` bytes (50 KiB unless told) on each of ``num_cores`` cores and return its id."""
        kernel_id: int = self._publisher.load_kernel(
            KERNEL_BYTES if size is None else size, core_ranges=self._cores(num_cores)
        )
        return kernel_id

    def untrack(self, program_id: int) -> None:
        """Take a circular buffer away again."""
        self._publisher.remove_program(program_id)

    def summary(self, file: TextIO | None = None) -> Figures:
        """Print the L1 breakdown as ``ttmem-dump`` does, and return it: the ``memory`` object of the JSON."""
        from ttmem.views.dump import render_devices
        from ttmem.views.text import Screen

        device = self._publisher.snapshot().to_dict()
        screen = Screen(width=80, height=None, color=False, unicode=False)
        print(render_devices([device], screen, compact=False), end="", file=file or sys.stdout)
        memory: Figures = figures(device["memory"])
        return memory

    def close(self) -> None:
        """Withdraw the device."""
        self._publisher.close()

    def __enter__(self) -> "L1Tracker":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _cores(self, num_cores: int) -> CoreRangeSet:
        count = check_bytes(num_cores, "num_cores")
        if not 1 <= count <= self._width * self._height:
            raise InvalidIntervalError(f"num_cores must be between 1 and {self._width * self._height}, got {num_cores}")
        return CoreRangeSet([CoreCoord(i % self._width, i // self._width) for i in range(count)])
