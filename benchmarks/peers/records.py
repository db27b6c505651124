"""Other ways to show eight figures of a process to others: as much as a ttmem device keeps of a kind of memory.

Each peer can be written by one process and read by another; all eight figures are set to one value, so that a reader
can tell a record that is torn.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import struct
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from typing import Any, Protocol

RECORD = struct.Struct("<8Q")
FIELDS = tuple("abcdefgh")


class RecordPeer(Protocol):
    """Eight figures that one process writes and another reads."""

    name: str

    def open_writer(self) -> None:
        """Get ready to write, in the process that writes."""

    def update(self, value: int) -> None:
        """Set all figures."""

    def read(self) -> tuple[int, ...] | None:
        """Return the figures, None if there are none."""

    def close(self) -> None:
        """Free everything, in the process that made this object."""


class SharedMemoryPeer:
    """multiprocessing.shared_memory and struct: bytes, and nothing that says whole, alive or which layout."""

    name = "shared_memory + struct"

    def __init__(self, directory: Path) -> None:
        self._memory = shared_memory.SharedMemory(create=True, size=64, name=directory.name + "-shm")
        self._buffer: Any = self._memory.buf

    def open_writer(self) -> None:
        """Inherited by fork."""

    def update(self, value: int) -> None:
        """Set all figures."""
        RECORD.pack_into(self._buffer, 0, value, value, value, value, value, value, value, value)

    def read(self) -> tuple[int, ...] | None:
        """Return the figures."""
        return RECORD.unpack_from(self._buffer)

    def close(self) -> None:
        """Remove the memory."""
        self._buffer = None
        self._memory.close()
        self._memory.unlink()
        # Its tracker is a process that holds this one's pipes.
        resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


class PrometheusPeer:
    """prometheus_client's multiprocess mode: a mapped file for each process, eight gauges of mode livesum."""

    name = "prometheus_client multiprocess"

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "prometheus"
        self._directory.mkdir(exist_ok=True)
        # Read once, when the library is imported.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self._directory)
        import prometheus_client
        from prometheus_client import multiprocess

        self._client, self._multiprocess = prometheus_client, multiprocess
        self._registry = prometheus_client.CollectorRegistry()
        self._gauges: list[Any] = []

    def open_writer(self) -> None:
        """Make the gauges."""
        self._gauges = [
            self._client.Gauge(f"record_{field}", "a figure", multiprocess_mode="livesum", registry=self._registry)
            for field in FIELDS
        ]

    def update(self, value: int) -> None:
        """Set all figures, one after the other."""
        for gauge in self._gauges:
            gauge.set(value)

    def read(self) -> tuple[int, ...] | None:
        """Return the figures, summed over processes as the library does."""
        collector = self._multiprocess.MultiProcessCollector(self._client.CollectorRegistry(), str(self._directory))
        figures = {metric.name: int(metric.samples[0].value) for metric in collector.collect() if metric.samples}
        return tuple(figures[f"record_{field}"] for field in FIELDS if f"record_{field}" in figures) or None

    def forget(self) -> None:
        """Remove what dead processes left, so that the next trial starts afresh."""
        for path in self._directory.glob("*.db"):
            path.unlink()

    def close(self) -> None:
        """Remove the files."""
        self.forget()
        os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)


class SqlitePeer:
    """SQLite in shared memory, write-ahead log, no waiting for a disk."""

    name = "SQLite, WAL on tmpfs"

    def __init__(self, directory: Path) -> None:
        self._path = directory / "figures.db"
        self._reader = self._connect()
        columns = ", ".join(f"{field} INTEGER" for field in FIELDS)
        self._reader.execute(f"CREATE TABLE IF NOT EXISTS record (id INTEGER PRIMARY KEY, {columns})")
        self._reader.execute("INSERT OR REPLACE INTO record VALUES (1, 0, 0, 0, 0, 0, 0, 0, 0)")
        self._writer: sqlite3.Connection | None = None

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=OFF")
        return connection

    def open_writer(self) -> None:
        """Connect anew: a connection must not cross a fork."""
        self._writer = self._connect()

    def update(self, value: int) -> None:
        """Set all figures in one transaction."""
        assert self._writer is not None
        columns = ", ".join(f"{field}=?1" for field in FIELDS)
        self._writer.execute(f"UPDATE record SET {columns} WHERE id=1", (value,))

    def read(self) -> tuple[int, ...] | None:
        """Return the figures."""
        row = self._reader.execute("SELECT a, b, c, d, e, f, g, h FROM record WHERE id=1").fetchone()
        return tuple(row) if row else None

    def close(self) -> None:
        """Close the connections."""
        self._reader.close()
        if self._writer is not None:
            self._writer.close()


class SocketPeer:
    """A daemon behind a Unix socket, which keeps what each client sent last, until the client hangs up."""

    name = "daemon on a Unix socket"

    def __init__(self, directory: Path) -> None:
        self._path = str(directory / "daemon.sock")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(self._path)
        listener.listen(16)
        self._daemon = os.fork()
        if self._daemon == 0:
            try:
                _serve(listener)
            finally:
                os._exit(0)
        listener.close()
        self._reader = self._connect()
        self._writer: socket.socket | None = None

    def _connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.connect(self._path)
        return client

    def open_writer(self) -> None:
        """Connect as a writer."""
        self._writer = self._connect()

    def update(self, value: int) -> None:
        """Send the figures; nobody answers."""
        assert self._writer is not None
        self._writer.send(RECORD.pack(value, value, value, value, value, value, value, value))

    def read(self) -> tuple[int, ...] | None:
        """Ask the daemon."""
        self._reader.send(b"?")
        answer = self._reader.recv(64)
        return RECORD.unpack(answer) if len(answer) == RECORD.size else None

    def close(self) -> None:
        """End the daemon."""
        if self._writer is not None:
            self._writer.close()
        self._reader.send(b"!")
        self._reader.close()
        os.waitpid(self._daemon, 0)


def _serve(listener: socket.socket) -> None:
    import selectors

    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    figures: dict[Any, bytes] = {}
    while True:
        for key, _ in selector.select():
            client: Any = key.fileobj
            if client is listener:
                accepted, _address = listener.accept()
                selector.register(accepted, selectors.EVENT_READ)
                continue
            try:
                message = client.recv(64)
            except ConnectionError:
                message = b""
            if message == b"!":
                return
            if message == b"?":
                client.send(next(iter(figures.values()), b"-"))
            elif len(message) == RECORD.size:
                figures[client] = message
            else:
                figures.pop(client, None)
                selector.unregister(client)
                client.close()


PEERS: tuple[type[RecordPeer], ...] = (SharedMemoryPeer, PrometheusPeer, SqlitePeer, SocketPeer)

PCP_PYTHON = "/usr/bin/python3"
PCP_SCRIPT = """
import json, os, sys, time
from pcp import mmv, pmapi
import cpmapi, cmmv
values = mmv.MemoryMappedValues("ttmembench", flags=cmmv.MMV_FLAG_PROCESS)
unit = pmapi.pmUnits(1, 0, 0, cpmapi.PM_SPACE_BYTE, 0, 0)
values.add_metrics([mmv.mmv_metric(f"record.{f}", i + 1, cmmv.MMV_TYPE_U64, cpmapi.PM_SEM_INSTANT, unit, 0, "", "")
                    for i, f in enumerate("abcdefgh")])
values.start()
maps = [values.lookup_mapping(f"record.{f}", None) for f in "abcdefgh"]
assert values.started() and all(maps), "mmv_stats_init failed"
times = []
for _ in range(int(sys.argv[1])):
    begin = time.perf_counter_ns()
    for value in range(100):
        for mapping in maps:
            values.set(mapping, value)
    times.append((time.perf_counter_ns() - begin) / 100)
values.stop()
print(json.dumps(times))
"""
