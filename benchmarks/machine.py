"""What a result was measured on."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def _field(path: str, key: str) -> str:
    try:
        for line in Path(path).read_text().splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _version(command: str) -> str:
    try:
        return subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout.split("\n")[0]
    except OSError:
        return "none"


def describe(packages: tuple[str, ...]) -> dict[str, Any]:
    """Return machine, commit, versions and time, for the head of a result."""
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    changed = [line for line in _git("status", "--porcelain").splitlines() if "benchmarks/results/" not in line]
    return {
        "taken": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(changed),
        "machine": {
            "processor": _field("/proc/cpuinfo", "model name"),
            "cores": len(os.sched_getaffinity(0)),
            "virtual": "hypervisor" in _field("/proc/cpuinfo", "flags").split(),
            "memory": _field("/proc/meminfo", "MemTotal"),
            "kernel": platform.release(),
            "load_at_start": os.getloadavg()[0],
        },
        "python": platform.python_version(),
        "compiler": _version("gcc"),
        "packages": versions,
    }
