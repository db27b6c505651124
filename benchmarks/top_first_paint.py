"""How long after an empty textual program does ttmem-top paint its first screen, and its first figures?

``python -m benchmarks.top_first_paint [RUNS]`` runs both in a pseudo terminal, in turn, while one device is published in a
directory of its own, and prints medians: seconds from the start, and the processor time until the first figures.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import statistics
import struct
import sys
import tempfile
import termios
import time

EMPTY = """
from textual.app import App
class Empty(App):
    def compose(self):
        from textual.widgets import Static
        yield Static("Device 0: ttmem")
Empty().run()
"""
TOP = "import sys; from ttmem.cli.top import main; sys.exit(main([]))"


def paint_seconds(code: str, markers: tuple[bytes, ...]) -> list[float]:
    """Return the seconds from the start of a program until each text is on its screen, and its processor time till then."""
    begin = time.monotonic()
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", code])
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    seen = b""
    times: list[float] = []
    while len(times) < len(markers):
        if not select.select([fd], [], [], 30)[0]:
            raise RuntimeError(f"{markers[len(times)]!r} did not appear: {seen[-200:]!r}")
        seen += os.read(fd, 65536)
        while len(times) < len(markers) and markers[len(times)] in seen:
            times.append(time.monotonic() - begin)
    os.kill(pid, signal.SIGKILL)
    usage = os.wait4(pid, 0)[2]
    os.close(fd)
    return [*times, usage.ru_utime + usage.ru_stime]


def main() -> int:
    """Measure and print."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with tempfile.TemporaryDirectory() as directory:
        os.environ.update(TTMEM_SHM_DIR=directory, TERM="xterm-256color", PYTHONPATH=os.getcwd())
        import ttmem

        with ttmem.publish(0, arch="wormhole_b0", grid=(8, 8)):
            found: dict[str, list[float]] = {}
            for _ in range(runs):
                names = ("empty", "empty_cpu", "first_paint", "first_figures", "first_figures_cpu")
                times = paint_seconds(EMPTY, (b"ttmem",)) + paint_seconds(TOP, (b"ttmem", b"Device 0"))
                for name, seconds in zip(names, times, strict=True):
                    found.setdefault(name, []).append(seconds)
    result = {
        name: {"median_s": round(statistics.median(times), 3), "range_s": [round(min(times), 3), round(max(times), 3)]}
        for name, times in found.items()
    }
    print(json.dumps({"runs": runs, **result}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
