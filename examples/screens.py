"""Makes the pictures of README from a real capture: `python examples/screens.py`, in the sources' root."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from ttmem.snapshot import Snapshot
    from ttmem.views.text import Screen

ROOT = Path(__file__).resolve().parent.parent
SCREENS = ROOT / "docs" / "screens"
CAPTURE = ROOT / "tests" / "captures" / "p150_transformer.json.gz"
GEOMETRY = ["--arch", "blackhole", "--grid", "11x10", "--l1-cb-base", "111488", "--l1-small-size", "24576"]
GEOMETRY += ["--dram-size", "32GiB"]
WIDTH = 100
SPEED = "0.05"
"""The capture lasted about a second: slowed down, the charts of ttmem-top have something to show."""
TOP_SIZE = (110, 34)
PAGE_SIZE = (1280, 1700)


def without_network(svg: str) -> str:
    """Return the picture without the fonts and the comment that name addresses; readers have a monospaced font."""
    svg = re.sub(r"@font-face\s*{[^}]*}", "", svg)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code, monospace", "Fira Code, DejaVu Sans Mono, Menlo, Consolas, monospace")
    return "\n".join(line.rstrip() for line in svg.splitlines() if line.strip()) + "\n"


def write(name: str, svg: str) -> None:
    (SCREENS / name).write_text(without_network(svg), encoding="utf-8")


def picture(name: str, title: str, ansi: str) -> None:
    """Write what a terminal would show."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True, color_system="truecolor")
        console.print(Text.from_ansi(ansi.rstrip("\n")), no_wrap=True, crop=False)
    write(name, console.export_svg(title=title, unique_id=name.partition(".")[0]))


async def top(replay: list[str]) -> subprocess.Popen[str]:
    """Watch a replay in ttmem-top, write its pictures when everything is published, and return the replay."""
    from ttmem.top.app import TopApp
    from ttmem.top.model import Model
    from ttmem.top.source import LiveSource, Sampler

    model = Model()
    app = TopApp(model, sampler=Sampler(LiveSource(), model, 0.1))
    async with app.run_test(size=TOP_SIZE) as pilot:
        writer = subprocess.Popen(replay, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert writer.stderr is not None
        lines = iter(writer.stderr.readline, "")
        while "holding device" not in (line := await asyncio.to_thread(next, lines, "")):
            if not line:
                raise RuntimeError(f"ttmem-replay ended with {writer.wait()}")
        # A sample and a painting that are newer than the end.
        await pilot.pause(1.0)
        write("top.svg", app.export_screenshot(title="ttmem-top"))
        await pilot.press("2")
        await pilot.pause()
        write("top_cores.svg", app.export_screenshot(title="ttmem-top, the cores of a device"))
    return writer


def page(recording: Path) -> None:
    """Write the picture of a recording's page, where there is a Chromium to draw it."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        print("html.png is left as it is: there is no chromium here", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.html"
        command = [sys.executable, "-m", "ttmem", "dump", "--html", str(report), str(recording)]
        subprocess.run(command, check=True, cwd=ROOT)
        size = f"--window-size={PAGE_SIZE[0]},{PAGE_SIZE[1]}"
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        flags += " --disable-component-update --disable-sync --hide-scrollbars"
        shot = f"--screenshot={SCREENS / 'html.png'}"
        command = [binary, *flags.split(), f"--user-data-dir={directory}/profile", size, shot, report.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


def address_map(snapshot: "Snapshot", screen: "Screen") -> str:
    """Return what `ttmem-dump --map 0,0` prints of a device."""
    from ttmem.views.address import render_map
    from ttmem.views.holders import Holders

    device = snapshot.to_dict()
    holders = Holders(device, snapshot.buffers())
    details = holders.details(0, 0, snapshot.core_map(0, 0))
    return render_map(device, (0, 0), details, screen, holdings=holders.on(0, 0))


def main() -> None:
    """Replay the capture in a directory of its own and look at it in every way."""
    SCREENS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        os.environ["TTMEM_SHM_DIR"] = directory
        os.environ["PYTHONPATH"] = str(ROOT)
        os.environ.pop("NO_COLOR", None)
        sys.path.insert(0, str(ROOT))
        command = [sys.executable, "-m", "ttmem", "replay", str(CAPTURE), *GEOMETRY, "--speed", SPEED, "--hold"]
        recording = Path(directory) / "run.ttmem"
        record = [sys.executable, "-m", "ttmem", "record", "-o", str(recording), "-i", "0.1"]
        recorder = subprocess.Popen(record, stderr=subprocess.DEVNULL)
        writer = asyncio.run(top(command))
        try:
            recorder.send_signal(signal.SIGINT)
            recorder.wait(60)
            from ttmem.reader import read_host
            from ttmem.views.dump import render_devices
            from ttmem.views.heat import render_heat_map
            from ttmem.views.text import Screen

            reading = read_host()
            devices = [snapshot.to_dict() for snapshot in reading.devices]
            screen = Screen(width=WIDTH, height=None, color=True, unicode=True)
            picture("dump.svg", "ttmem-dump", render_devices(devices, screen, now_ns=reading.taken_ns))
            heat = "\n".join(render_heat_map(device, screen, metric="cb_physical") for device in devices)
            picture("cores.svg", "ttmem-dump --cores", heat)
            picture("map.svg", "ttmem-dump --map 0,0", "\n".join(address_map(one, screen) for one in reading.devices))
            page(recording)
        finally:
            writer.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                writer.wait(60)
    for path in sorted(SCREENS.iterdir()):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
