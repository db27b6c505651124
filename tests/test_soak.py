"""Totals are sums over the living at every read, while writers change, die and come."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ttmem
from ttmem import soak
from ttmem.snapshot import Snapshot


def run(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(ttmem.__file__).parents[1]),
        "TTMEM_SHM_DIR": str(directory),
    }
    command = [sys.executable, "-m", "ttmem.soak", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_every_reading_is_right_while_writers_are_killed(tmp_path: Path) -> None:
    # TTMEM_SOAK_SECONDS and TTMEM_SOAK_WRITERS make it longer and wider.
    seconds, writers = os.environ.get("TTMEM_SOAK_SECONDS", "4"), os.environ.get("TTMEM_SOAK_WRITERS", "8")
    ran = run(tmp_path, "--duration", seconds, "--writers", writers, "--readers", "1", "--json")
    assert ran.returncode == 0, ran.stderr
    tally = json.loads(ran.stdout)
    assert tally["kills"] > 0
    assert tally["readings"] > 0
    assert tally["most_writers"] > 1
    assert list(tmp_path.iterdir()) == []


def test_the_soak_fails_where_nothing_can_be_published(tmp_path: Path) -> None:
    ran = run(tmp_path / "missing", "--duration", "5", "--writers", "1", "--readers", "0")
    assert ran.returncode == 1
    assert "soak:" in ran.stderr


def test_the_soak_notices_a_sum_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTMEM_SHM_DIR", str(tmp_path))
    with ttmem.publish(0, arch="wormhole_b0", grid=soak.GRID, l1_cb_base=soak.BASE, l1_small_size=0) as publisher:
        publisher.allocate("DRAM", 2)
        publisher.allocate("TRACE", 1)
        soak.check(publisher.snapshot())
        device = publisher.snapshot().to_dict()
        device["memory"]["dram"]["used_bytes"] = 3
        with pytest.raises(soak.ViolationError, match="dram is the sum"):
            soak.check(Snapshot.of_dict(device))
        publisher.allocate("DRAM", 2)
        with pytest.raises(soak.ViolationError, match="a publication is whole"):
            soak.check(publisher.snapshot())
