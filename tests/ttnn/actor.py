"""A ttnn process that a test leads line by line: it reads ``[command, argument, ...]`` in JSON and answers each.

It imports nothing of ttmem unless a command needs it, so that it can be a process that knows nothing of ttmem.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

from workloads import DRAM, L1, WORKLOADS, Bench, answer, regions

MEMORY = {"DRAM": DRAM, "L1": L1}


class Actor:
    """What a test may ask for, a method each; what it returns is the answer."""

    def __init__(self):
        self.bench = None
        self.kept = []
        self.tracker = None

    def open(self, name, mesh=None, device_id=0):
        # TT-Metal takes a process's name from here when it first uses a device.
        Path("/proc/self/comm").write_text(name)
        self.bench = Bench(mesh, device_id=device_id)
        return {"pid": os.getpid(), "chips": list(self.bench.device.get_device_ids()), "ttmem": "ttmem" in sys.modules}

    def workload(self, name):
        self.kept += WORKLOADS[name](self.bench)
        self.bench.refresh()
        return {"regions": regions()}

    def tensor(self, shape, memory):
        self.kept.append(self.bench.tensor(*shape, memory=MEMORY[memory]))
        return {}

    def circular(self, buffers, page_size=1024):
        try:
            self.bench.circular(buffers, page_size)
        except RuntimeError as error:
            return {"thrown": str(error)}
        return {"thrown": ""}

    def forget(self):
        """Drop every program from the cache."""
        self.bench.device.clear_program_cache()
        return {}

    def track(self):
        import ttmem.ttnn

        self.tracker = ttmem.ttnn.track(self.bench.device)
        return {"active": self.tracker.active, "reason": self.tracker.reason}

    def lose_hook(self):
        """Be a machine for which the hook is not built."""
        sys.modules["ttmem._ttnn_hook"] = None
        return {}

    def hook(self):
        """Follow TT-Metal's calls and leave what they mean to the test."""
        from ttmem import _ttnn_hook

        return {"reason": _ttnn_hook.start(), "kept": len(_ttnn_hook.drain())}

    def footprints(self):
        """Return the footprints of the programs laid out since the last call, and TT-Metal's own sum at this moment."""
        from ttmem import _ttnn_hook

        added = [event[4] for event in _ttnn_hook.drain() if event[0] == "program_add"]
        return {"footprints": added, "total_cb": _ttnn_hook.total_cb(0)}

    def sync(self):
        self.tracker.sync()
        return {"regions": regions(), "warnings": self.tracker.warnings}

    def regions(self):
        return {"regions": regions()}

    def base(self):
        """Return the first address that circular buffers may take."""
        import ttmem.ttnn

        return {"base": ttmem.ttnn.geometry_of(self.bench.device)["l1_cb_base"]}


def main():
    actor = Actor()
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        answer(**getattr(actor, command)(*arguments))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
