"""What `lockstep` says of devices that should hold the same."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path

import pytest
from made_devices import n150

import ttmem
from ttmem.cli import lockstep as cli
from ttmem.dumps import Dump
from ttmem.lockstep import Difference, lasting, outliers
from ttmem.replay import replay

pytestmark = pytest.mark.usefixtures("directory")

T3K = Path(__file__).parent / "captures" / "t3k_mesh_transformer.json.gz"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(cli, "PAUSE_SECONDS", 0)


def test_the_chips_of_a_real_mesh_are_in_step_until_one_leaves_it(capsys):
    geometry = {"arch": "wormhole_b0", "grid": (8, 8), "l1_cb_base": 105664, "l1_small_size": 24576}
    run, _ = replay(T3K, publish=ttmem.publish, **geometry)
    with run:
        assert cli.main([]) == 0
        assert "8 devices hold the same" in capsys.readouterr().out
        run.publishers[5].allocate("L1", 64 * 2048, address=1000000, size_per_bank=2048)
        assert cli.main(["--json"]) == 3
        (outlier,) = json.loads(capsys.readouterr().out)["outliers"]
        assert outlier["device_id"] == 5
        by = {d["field"]: (d["value"], d["expected"]) for d in outlier["differences"]}
        value, expected = by["memory.l1.used_bytes"]
        assert value - expected == 64 * 2048
        assert cli.main(["-d", "0,1,2"]) == 0


def test_a_program_that_only_one_device_has_is_named():
    devices = [n150(i) for i in range(3)]
    devices[1]["programs"] = [*devices[1]["programs"], {"name": "stray", "num_cores": 4, "cb_bytes_per_core": 64}]
    (outlier,) = outliers(devices)
    assert outlier.device_id == 1
    assert outlier.differences == (Difference("programs: stray on 4 cores, 64 bytes per core", 1, 0),)


def test_what_is_gone_at_the_next_look_does_not_count():
    devices = [n150(i) for i in range(3)]
    later = copy.deepcopy(devices)
    devices[0]["memory"]["dram"]["used_bytes"] = 1
    devices[2]["memory"]["dram"]["used_bytes"] = later[2]["memory"]["dram"]["used_bytes"] = 2
    assert [o.device_id for o in lasting(outliers(devices), outliers(later))] == [2]


def test_a_dump_is_compared_and_one_device_is_not_enough(tmp_path, capsys):
    devices = [n150(i) for i in range(3)]
    devices[2]["memory"]["dram"]["used_bytes"] += 1
    file = tmp_path / "a.json"
    file.write_text(json.dumps(Dump(devices).to_dict()))
    assert cli.main([str(file)]) == 3
    assert "Device 2:" in capsys.readouterr().out
    assert cli.main([str(file), "-d", "0"]) == 1
    assert "two devices or more" in capsys.readouterr().err
    with contextlib.suppress(OSError):
        assert cli.main([str(T3K)]) == 4
