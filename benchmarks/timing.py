"""Helpers of both benchmarks: clocks, units and a place in shared memory of one's own."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def show_time(ns: float) -> str:
    for unit, scale in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= scale:
            return f"{ns / scale:.3g} {unit}"
    return f"{ns:.3g} ns"


@contextmanager
def own_shared_memory() -> Iterator[Path]:
    """Publish into a directory of one's own in shared memory, and remove it."""
    before = {key: os.environ.get(key) for key in ("TTMEM_SHM_DIR", "TTMEM_NAMESPACE", "TTMEM_DISABLE")}
    with tempfile.TemporaryDirectory(prefix=f"ttmem-bench-{os.getpid()}-", dir="/dev/shm") as directory:
        os.environ["TTMEM_SHM_DIR"] = directory
        os.environ["TTMEM_NAMESPACE"] = "bench"
        os.environ.pop("TTMEM_DISABLE", None)
        try:
            yield Path(directory)
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value


def best(rounds: list[float]) -> tuple[float, float]:
    """Return minimum and median."""
    return min(rounds), statistics.median(rounds)


def python_loop_ns(items: list[Any], rounds: int) -> float:
    """Return nanoseconds per turn of an empty loop."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter_ns()
        for _item in items:
            pass
        times.append((time.perf_counter_ns() - begin) / len(items))
    return min(times)
