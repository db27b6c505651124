"""How large does a recording grow: 32 devices with their cores, each in a loop of the transformer's capture, at 10 Hz?

    python -m benchmarks.recording --seconds 60

The recorder is the command itself, in a process of its own. The loops run in threads here, each at a twentieth of the
recorded speed and begun at another moment, so that two cores suffice.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

CAPTURE = Path(__file__).parent.parent / "tests" / "captures" / "p150_transformer.json.gz"
DEVICES = 32
SPEED = 0.05
GOAL_BYTES = 50_000_000


class _Ended(BaseException):
    """The measurement is over."""


def main() -> int:
    """Run the loops and the recorder, and print what an hour would take."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as directory:
        os.environ["TTMEM_SHM_DIR"] = directory
        file = Path(directory) / "run.ttmem"
        command = [sys.executable, "-m", "ttmem", "record", "-o", str(file), "-i", "0.1", "--duration", str(seconds)]
        ended = threading.Event()
        threads = [threading.Thread(target=_loop, args=(number, ended)) for number in range(DEVICES)]
        for thread in threads:
            thread.start()
        try:
            done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        told = json.loads(done.stdout)
        _check(file)
    hour = told["size_bytes"] * 3600 / seconds
    assert told["devices"] == DEVICES, told
    print(json.dumps({**told, "file": None, "hour_bytes": round(hour), "goal_bytes": GOAL_BYTES}))
    return 0 if hour < GOAL_BYTES else 1


def _loop(number: int, ended: threading.Event) -> None:
    import ttmem
    from ttmem.model import Geometry
    from ttmem.replay import Replay

    def sleep(seconds: float) -> None:
        if ended.wait(seconds):
            raise _Ended

    geometry = Geometry.of(arch="blackhole", grid=(11, 10), l1_cb_base=111488, l1_small_size=24576)
    with Replay(CAPTURE, ttmem.publish, device_id=number, geometry=geometry, speed=SPEED, sleep=sleep) as replay:
        try:
            sleep(number * 0.5)
            while not ended.is_set():
                replay.run()
        except _Ended:
            pass


def _check(file: Path) -> None:
    """Hold the recording to what it must have: every device with every core, and moments that differ."""
    from ttmem.recording import open_recording

    with open_recording(file) as recording:
        last = recording[-1].devices
        assert all(len(device["cores"]) == 110 for device in last)
        assert len({str(recording.marks(index)) for index in range(0, len(recording), 7)}) > 10


if __name__ == "__main__":
    sys.exit(main())
