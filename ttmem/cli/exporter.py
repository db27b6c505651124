"""Serve the memory of all Tenstorrent devices of this host to Prometheus."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import signal
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ttmem._version import __version__
from ttmem.cli import EXIT_DONE, EXIT_NOTHING, EXIT_UNREADABLE, EXIT_USAGE, all_unread, ends_well, parse, write
from ttmem.cli.selection import nothing_published
from ttmem.views.text import clean

DEFAULT_ADDRESS = ("127.0.0.1", 9417)
_CLIENT_SECONDS = 10.0
"""How long a client may keep the exporter waiting for a request."""
_EPILOG = """\
endpoints: /metrics, /snapshot (the object of ttmem-dump --json), /-/healthy, /-/ready
exit codes: 0 ended by SIGTERM or SIGINT; 2 wrong usage, or the address cannot be taken;
            with --once or --json: 0 done, 1 nothing to read, 4 files there, none readable
"""


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"expected ADDR:PORT as in 127.0.0.1:9417, got {text!r}")
    return host, int(port)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``ttmem-exporter``."""
    parser = argparse.ArgumentParser(
        prog="ttmem-exporter", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--listen",
        type=_address,
        default=DEFAULT_ADDRESS,
        metavar="ADDR:PORT",
        help="where to serve; port 0 takes a free one, no ADDR all interfaces (default 127.0.0.1:9417)",
    )
    add("--per-core", action="store_true", help="also the figures of each core: about 1000 series for a chip")
    add("--per-process", action="store_true", help="also the figures of each process")
    add(
        "--compat",
        action="append",
        choices=("tenstorrent", "tt-mgmt"),
        default=[],
        help="also the names that tt-exporter (tenstorrent_*) or tt-mgmtd (tt_*) use, for dashboards made for them",
    )
    add("--once", action="store_true", help="print the metrics once and end")
    add("--json", action="store_true", help="print the object of ttmem-dump --json once and end")
    add("--source", choices=("auto", "ttmem", "tt-metal"), default="auto", help="who published it (default auto)")
    add("-V", "--version", action="version", version=f"ttmem {__version__}")
    return parser


def _tell(text: str) -> None:
    print(f"ttmem-exporter: {clean(text)}", file=sys.stderr, flush=True)


class _Teller:
    """Says each thing once on stderr: a scrape every few seconds must not fill the journal."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __call__(self, text: str) -> None:
        if text not in self._told and len(self._told) < 1000:
            self._told.add(text)
            _tell(text)


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """One thread a connection; none of them keeps the process from ending."""

    # Not http.server.HTTPServer: it looks up the host's name when it binds, which may take long and is not needed.
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], source: Any, registry: Any) -> None:
        self.source = source
        self.registry = registry
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what failed; a client that went away is no failure."""
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError)):
            _tell(f"a request failed: {type(error).__name__}: {error}")


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: _Server
    timeout = _CLIENT_SECONDS
    protocol_version = "HTTP/1.1"
    server_version = f"ttmem-exporter/{__version__}"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer with what the path names."""
        url = urlsplit(self.path)
        if url.path == "/metrics":
            self._metrics(parse_qs(url.query).get("name[]", []))
        elif url.path == "/snapshot":
            self._answer(json.dumps(self.server.source.dump()).encode(), "application/json")
        elif url.path == "/-/healthy":
            self._answer(b"healthy\n")
        elif url.path == "/-/ready":
            trouble = self.server.source.trouble()
            if trouble is None:
                self._answer(b"ready\n")
            else:
                text = f"not ready: {trouble}\n".encode("utf-8", "replace")
                self._answer(text, status=HTTPStatus.SERVICE_UNAVAILABLE)
        elif url.path == "/":
            self._answer(b"ttmem-exporter: /metrics, /snapshot, /-/healthy, /-/ready\n")
        else:
            self._answer(
                b"not found: there are /metrics, /snapshot, /-/healthy, /-/ready\n", status=HTTPStatus.NOT_FOUND
            )

    def do_HEAD(self) -> None:
        """Answer as GET, without the body."""
        self.do_GET()

    def _metrics(self, names: list[str]) -> None:
        from prometheus_client.exposition import choose_encoder

        encode, kind = choose_encoder(self.headers.get("Accept", ""))
        registry = self.server.registry
        self._answer(encode(registry.restricted_registry(names) if names else registry), kind)

    def _answer(
        self, body: bytes, kind: str = "text/plain; charset=utf-8", *, status: HTTPStatus = HTTPStatus.OK
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a line for each scrape tells nothing."""


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Set the event that is given out when SIGTERM or SIGINT comes."""
    stop = threading.Event()
    before = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, lambda *_: stop.set())
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cannot_listen(address: tuple[str, int], error: OSError) -> str:
    """Return why the address cannot be taken and what helps."""
    where = f"{address[0] or 'all interfaces'}, port {address[1]}"
    if error.errno == errno.EADDRINUSE:
        return (
            f"cannot listen on {where}: another process has that port, maybe another ttmem-exporter; "
            "stop it, or choose another port with --listen ADDR:PORT (port 0 takes a free one)"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"cannot listen on {where}: not permitted for this user; choose a port from 1024 on with --listen"
    return f"cannot listen on {where}: {error.strerror or error}; --listen takes an address of this host and a port"


def _serve(args: argparse.Namespace, source: Any, registry: Any) -> int:
    try:
        server = _Server(args.listen, source, registry)
    except OSError as error:
        _tell(_cannot_listen(args.listen, error))
        return EXIT_USAGE
    with server, _stop_on_signals() as stop:
        host, port = server.server_address[:2]
        # The thread that serves must not take the signals' time; the main thread waits for them.
        thread = threading.Thread(target=server.serve_forever, name="ttmem-exporter", daemon=True)
        thread.start()
        shown = f"[{host!s}]" if ":" in str(host) else str(host)
        _tell(f"serving http://{shown}:{port}/metrics")
        stop.wait()
        server.shutdown()
        thread.join()
    return EXIT_DONE


def _wanted(args: argparse.Namespace) -> dict[str, Any]:
    return {"per_core": args.per_core, "per_process": args.per_process, "compat": args.compat}


def _once(args: argparse.Namespace, source: Any) -> int:
    from prometheus_client import generate_latest

    from ttmem.dumps import dump_of_snapshots
    from ttmem.exporter import DeviceCollector, registry_of

    reading = source.read()
    if args.json:
        text = json.dumps(dump_of_snapshots(reading.devices, taken_ns=reading.taken_ns), indent=2) + "\n"
        for problem in reading.problems:
            _tell(problem)
    else:
        collector = DeviceCollector(lambda: reading, **_wanted(args), tell=_tell)
        text = generate_latest(registry_of(collector)).decode()
    write(text)
    if reading.devices:
        return EXIT_UNREADABLE if all_unread(device.state for device in reading.devices) else EXIT_DONE
    if reading.found:
        return EXIT_UNREADABLE
    _tell(source.trouble() or nothing_published(args.source))
    return EXIT_NOTHING


@ends_well("ttmem-exporter")
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ttmem-exporter`` and return its exit code.

    Args:
        argv: the arguments; None takes the process's.
    """
    args = parse(build_parser(), argv)
    if isinstance(args, int):
        return args
    from ttmem.exporter import DeviceCollector, HostSource, registry_of  # so that --help costs nothing

    source = HostSource(args.source)
    try:
        if args.once or args.json:
            return _once(args, source)
        collector = DeviceCollector(source.read, **_wanted(args), tell=_Teller())
        return _serve(args, source, registry_of(collector))
    finally:
        source.close()
