"""The main job: one process publishes a real capture, another reads it, and TT-Metal's own figures come out."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CAPTURES = Path(__file__).parent / "captures"
METAS = sorted(CAPTURES.glob("*.meta.json"))
NORMAL = [path for path in METAS if json.loads(path.read_text())["regions"]]


def capture_of(meta: Path) -> Path:
    plain = meta.with_name(meta.name.replace(".meta.json", ".json"))
    return plain if plain.exists() else plain.with_name(plain.name + ".gz")


@contextlib.contextmanager
def replaying(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Run ``ttmem-replay ... --hold`` and wait until it has published everything."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ttmem", "replay", *map(str, arguments), "--hold"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "holding device" in line:
                break
        else:
            pytest.fail(f"ttmem-replay ended early with {process.wait()}")
        yield process
    finally:
        process.terminate()
        process.wait(60)
        process.stderr.close()


@pytest.mark.parametrize("meta", NORMAL, ids=lambda path: path.name.removesuffix(".meta.json"))
def test_a_replayed_capture_shows_the_bytes_that_tt_metal_counted(meta, command):
    regions = json.loads(meta.read_text())["regions"].values()
    with replaying(capture_of(meta)) as writer:
        dump = json.loads(command("dump", "--json", "--source", "ttmem").stdout)
        writer.send_signal(signal.SIGTERM)
        assert writer.wait(60) == 0
    shown = {device["device_id"]: device["memory"] for device in dump["devices"]}
    assert {
        device: (
            memory["cb"]["physical_bytes"],
            memory["dram"]["used_bytes"],
            memory["l1"]["used_bytes"],
            memory["l1_small"]["used_bytes"],
        )
        for device, memory in shown.items()
    } == {
        region["device_id"]: tuple(region[f"{kind}_bytes"] for kind in ("cb", "dram", "l1", "l1_small"))
        for region in regions
    }


def test_a_killed_replay_is_stale_at_the_next_read_and_counts_nothing(command):
    with replaying(CAPTURES / "n150_mlp.json", "--arch", "wormhole_b0", "--grid", "8x9") as writer:
        before = json.loads(command("dump", "--json", "--source", "ttmem").stdout)["devices"][0]
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        after = json.loads(command("dump", "--json", "--source", "ttmem").stdout)["devices"][0]
        assert command("gc", "--now").returncode == 0
    assert (before["state"], before["memory"]["cb"]["physical_bytes"]) == ("live", 18677760)
    assert (after["state"], after["memory"]["cb"]["physical_bytes"]) == ("stale", 0)
    assert after["processes"][0]["cb_physical_bytes"] == 18677760
    assert after["programs"] == []


def test_the_accounting_closes_core_by_core_and_for_the_device(command):
    geometry = ("--arch", "wormhole_b0", "--grid", "8x9", "--l1-cb-base", "105664", "--l1-small-size", "24576")
    with replaying(CAPTURES / "n150_mlp.json", *geometry):
        device = json.loads(command("dump", "--json", "--source", "ttmem").stdout)["devices"][0]
    accounting = device["l1_accounting"]
    parts = ("reserved", "cb", "buffer", "l1_small", "free")
    assert accounting["total_bytes"] == 72 * 1499136
    assert sum(accounting[f"{p}_bytes"] for p in parts) - accounting["overlap_bytes"] == accounting["total_bytes"]
    assert sum(core["cb_physical_bytes"] for core in device["cores"]) == device["memory"]["cb"]["physical_bytes"]
    assert sum(core["l1_used_bytes"] for core in device["cores"]) == accounting["buffer_bytes"]
    assert sum(core["overlap_bytes"] for core in device["cores"]) == accounting["overlap_bytes"]
    for core in device["cores"]:
        assert core["headroom_bytes"] == core["l1_lowest_address"] - core["cb_region_end"]


def test_dump_prints_the_breakdown_of_the_replay_in_the_same_command(command):
    done = command("replay", CAPTURES / "n150_mlp.json", "--grid", "8x9", "--arch", "Arch.WORMHOLE_B0", "--dump")
    assert done.returncode == 0, done.stderr
    assert "Device 0:" in done.stdout
    assert "CB:" in done.stdout
    assert "17.8 MiB" in done.stdout


def test_ids_of_the_capture_are_moved_by_the_option(command):
    done = command("replay", CAPTURES / "t3k_mesh_transformer.json.gz", "--device-id", "100", "--dump", "--json")
    assert [device["device_id"] for device in json.loads(done.stdout)["devices"]] == list(range(100, 108))
    assert {device["origin"] for device in json.loads(done.stdout)["devices"]} == {"replay"}


def test_a_capture_that_breaks_off_is_published_up_to_there(tmp_path, command):
    whole = (CAPTURES / "n150_mlp.json").read_bytes()
    cut = tmp_path / "cut.json"
    cut.write_bytes(whole[: len(whole) // 2])
    done = command("replay", cut, "--dump", "--json")
    assert done.returncode == 4
    assert "what came before it is published" in done.stderr
    assert json.loads(done.stdout)["devices"][0]["memory"]["cb"]["physical_bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere.json"], 1, "no such file"),
        ([CAPTURES / "n150_mlp.json", "--grid", "8by8"], 2, "expected XxY"),
        ([CAPTURES / "n150_mlp.json", "--arch", "volta"], 2, "unknown arch"),
        ([CAPTURES / "README.md"], 4, "README.md"),
    ],
)
def test_wrong_use_is_told_by_exit_code_and_message(arguments, code, said, command):
    done = command("replay", *arguments)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
