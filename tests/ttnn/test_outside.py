"""ttmem looks at ttnn processes from outside: unmodified ones, several, killed ones, one that is about to fail."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import Environment
from stage import Stage

pytestmark = [pytest.mark.ttnn, pytest.mark.timeout(600)]


@pytest.fixture
def stage(ttnn: Environment, tmp_path: Path) -> Iterator[Stage]:
    with Stage(ttnn, tmp_path, "n150") as stage:
        yield stage


def used(device: dict[str, Any]) -> dict[str, int]:
    memory = device["memory"]
    found = {name: memory[name]["used_bytes"] for name in ("dram", "l1", "l1_small", "trace")}
    return {**found, "cb": memory["cb"]["physical_bytes"]}


NOTHING = {"dram": 0, "l1": 0, "l1_small": 0, "trace": 0, "cb": 0}


@pytest.mark.parametrize(
    ("cluster", "mesh", "slow"),
    [("n150", None, False), ("n150", None, True), ("p150", None, False), ("t3000", [1, 8], False)],
)
def test_an_unmodified_process_is_seen_to_the_byte_and_gone_once_killed(
    ttnn: Environment, tmp_path: Path, cluster: str, mesh: list[int] | None, slow: bool
) -> None:
    with Stage(ttnn, tmp_path, cluster) as stage:
        player = stage.start(slow=slow)
        opened = player.ask("open", "llama-server", mesh)
        assert opened["ttmem"] is False
        theirs = {int(chip): row for chip, row in player.ask("workload", "mlp")["regions"].items()}
        devices = stage.devices()
        assert sorted(devices) == sorted(opened["chips"])
        for chip, device in devices.items():
            assert (device["source"], device["state"]) == ("tt-metal", "live")
            assert used(device) == theirs[chip]
            assert theirs[chip]["cb"] > 0
            (process,) = device["processes"]
            assert (process["name"], process["pid"], process["state"]) == ("llama-server", opened["pid"], "live")
            assert process["dram_bytes"] == theirs[chip]["dram"]
        player.kill()
        for chip, device in stage.devices().items():
            assert device["state"] == "stale"
            assert used(device) == NOTHING
            (process,) = device["processes"]
            assert process["state"] == "stale"
            assert process["dram_bytes"] == theirs[chip]["dram"], "what it left is told"


def test_two_processes_on_one_chip_are_told_apart_and_the_dead_one_is_not_counted(stage: Stage) -> None:
    first, second = stage.start(), stage.start()
    first_pid = first.ask("open", "first")["pid"]
    first.ask("tensor", [1, 1, 512, 512], "L1")
    alone = first.ask("regions")["regions"]["0"]
    second_pid = second.ask("open", "second")["pid"]
    second.ask("tensor", [1, 1, 1024, 1024], "DRAM")
    both = second.ask("regions")["regions"]["0"]
    device = stage.devices()[0]
    assert used(device) == both
    rows = {row["pid"]: row for row in device["processes"]}
    assert {pid: row["name"] for pid, row in rows.items()} == {first_pid: "first", second_pid: "second"}
    assert rows[first_pid]["l1_bytes"] == alone["l1"] == both["l1"]
    assert rows[first_pid]["dram_bytes"] + rows[second_pid]["dram_bytes"] == both["dram"]
    second.kill()
    device = stage.devices()[0]
    assert device["state"] == "live"
    assert used(device) == {**alone, "cb": both["cb"]}
    assert {row["pid"]: row["state"] for row in device["processes"]} == {first_pid: "live", second_pid: "stale"}


def test_two_processes_on_chips_of_their_own_are_two_devices(ttnn: Environment, tmp_path: Path) -> None:
    with Stage(ttnn, tmp_path, "t3000") as stage:
        chips = {}
        for device_id, name in ((0, "first"), (3, "second")):
            player = stage.start()
            (chip,) = player.ask("open", name, None, device_id)["chips"]
            player.ask("tensor", [1, 1, 512, 512], "L1")
            chips[chip] = name
        devices = stage.devices()
        seen = {chip: row["name"] for chip, device in devices.items() for row in device["processes"]}
        assert seen == chips
        assert len(chips) == 2
        assert all(device["memory"]["l1"]["used_bytes"] == 512 * 512 * 2 for device in devices.values())


def test_beside_a_tracked_process_an_unmodified_one_shows_as_a_disagreement(stage: Stage) -> None:
    tracked, plain = stage.start(knows_ttmem=True), stage.start()
    tracked_pid = tracked.ask("open", "tracked")["pid"]
    assert tracked.ask("track") == {"active": True, "reason": ""}
    tracked.ask("tensor", [1, 1, 512, 512], "L1")
    tracked.ask("sync")
    plain.ask("open", "plain")
    plain.ask("tensor", [1, 1, 1024, 1024], "L1")
    (device,) = stage.devices().values()
    assert device["source"] == "ttmem"
    assert [row["pid"] for row in device["processes"]] == [tracked_pid]
    assert device["memory"]["l1"]["used_bytes"] == 512 * 512 * 2
    theirs = plain.ask("regions")["regions"]["0"]["l1"]
    said = f"TT-Metal's own region says L1 {theirs} bytes, ttmem counts {512 * 512 * 2}"
    assert any(text.startswith(said) for text in device["warnings"])


def test_a_clash_is_foretold_with_the_figures_with_which_tt_metal_then_throws(stage: Stage) -> None:
    program = [(409600, (0, 0, 1, 0))]
    player = stage.start(knows_ttmem=True)
    player.ask("open", "model")
    player.ask("track")
    assert player.ask("circular", program)["thrown"] == "", "there was room when it was laid out"
    player.ask("sync")
    code, found = stage.ttmem("explain", "-d", "0")
    assert (code, found["clashes"]) == (0, [])
    # It goes to the top of each core and reaches down into the program's region.
    player.ask("tensor", [1, 1, 2048, 17152], "L1")
    player.ask("sync")
    code, found = stage.ttmem("explain", "-d", "0")
    assert code == 3
    (clash,) = found["clashes"]
    thrown = player.ask("circular", program)["thrown"]
    pattern = r"core range \[([^\]]*)\]\. L1 buffer allocated at (\d+) and static circular buffer region ends at (\d+)"
    match = re.search(pattern, thrown)
    assert match, thrown
    core_range, lowest, end = match[1], int(match[2]), int(match[3])
    assert (clash["l1_lowest_address"], clash["cb_region_end"]) == (lowest, end)
    assert clash["shortfall_bytes"] == end - lowest > 0
    assert clash["core_range"] == f"[{core_range}]"


def test_a_shared_core_is_covered_once_though_the_region_charges_it_twice(stage: Stage) -> None:
    # The program of docs/ttnn.md.
    player = stage.start(knows_ttmem=True)
    player.ask("open", "model")
    player.ask("track")
    player.ask("circular", [(4096, (0, 0, 1, 0)), (8192, (1, 0, 2, 0))])
    assert player.ask("sync")["regions"]["0"]["cb"] == 36864
    device = stage.devices()[0]
    assert device["memory"]["cb"]["physical_bytes"] == 24576
    per_core = {(core["x"], core["y"]): core["cb_physical_bytes"] for core in device["cores"]}
    assert [per_core[x, 0] for x in range(4)] == [4096, 12288, 8192, 0]
    said = "TT-Metal's own region says CB (physical) 36864 bytes, ttmem counts 24576"
    assert any(text.startswith(said) for text in device["warnings"])


def test_the_processes_of_the_stage_leave_nothing_in_the_hosts_shared_memory(stage: Stage) -> None:
    before = sorted(os.listdir("/dev/shm"))
    player = stage.start()
    player.ask("open", "quiet")
    assert sorted(os.listdir("/dev/shm")) == before
    assert player.leave() == 0
