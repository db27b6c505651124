"""The C++ peers, through ctypes."""

from __future__ import annotations

import ctypes
from pathlib import Path

from benchmarks.workloads import Workload

KINDS = {"recompute": 0, "boost-icl": 1}


def open_library(path: Path) -> ctypes.CDLL:
    """Return the library of C++ peers with its functions' types set."""
    library = ctypes.CDLL(str(path))
    library.peer_new.restype = ctypes.c_void_p
    library.peer_new.argtypes = [ctypes.c_int, ctypes.c_uint32, ctypes.c_uint32] + [ctypes.c_void_p] * 5
    library.peer_free.argtypes = [ctypes.c_void_p]
    library.peer_free.restype = None
    for name in ("peer_add", "peer_remove"):
        getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64]
        getattr(library, name).restype = ctypes.c_uint64
    library.peer_load.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64]
    library.peer_load.restype = ctypes.c_uint64
    library.peer_physical.argtypes = [ctypes.c_void_p]
    library.peer_physical.restype = ctypes.c_uint64
    return library


class NativePeer:
    """A C++ engine over the whole device.

    Args:
        library: what :func:`open_library` returned.
        name: a key of KINDS.
        workload: the programs.

    Raises:
        LookupError: the library was built without it.
    """

    def __init__(self, library: ctypes.CDLL, name: str, workload: Workload) -> None:
        self._library = library
        self._workload = workload
        arrays = (workload.first, workload.begin, workload.end, workload.mask_of, workload.masks)
        grid = workload.grid
        self._engine = library.peer_new(
            KINDS[name], grid.num_cores, grid.mask_words, *(array.ctypes.data for array in arrays)
        )
        if not self._engine:
            raise LookupError(f"{name} was not built in")

    def load(self, programs: int, limit_ns: int) -> bool:
        """Add the first programs; False if that took longer than it may."""
        return int(self._library.peer_load(self._engine, 0, programs, limit_ns)) == programs

    def add(self, low: int, high: int) -> int:
        """Add programs, timed in C++; return nanoseconds for all."""
        return int(self._library.peer_add(self._engine, low, high))

    def remove(self, low: int, high: int) -> int:
        """Remove programs, timed in C++; return nanoseconds for all."""
        return int(self._library.peer_remove(self._engine, low, high))

    def physical(self) -> int:
        """Return the bytes covered, summed over cores."""
        return int(self._library.peer_physical(self._engine))

    def close(self) -> None:
        """Free the engine."""
        if self._engine:
            self._library.peer_free(self._engine)
            self._engine = None
