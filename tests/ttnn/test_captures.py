"""Following by graph captures, where the hook cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit import Environment
from stage import Stage

pytestmark = [pytest.mark.ttnn, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("cluster", "workload", "mesh"),
    [("n150", "conv", ""), ("p150", "transformer", ""), ("t3000", "transformer", "1x8")],
)
def test_without_the_hook_captures_give_the_regions_figures(
    ttnn: Environment, tmp_path: Path, cluster: str, workload: str, mesh: str
) -> None:
    found = ttnn.run(tmp_path, cluster, "scenes.py", "captured", workload, mesh)
    assert found["raised"] == ["ttmem follows ttnn through graph captures, which tell less: there is no such call"], (
        "one warning that says why"
    )
    # Neither counts dataflow buffers, the captures because they cannot.
    programs = ["BinaryNgDeviceOperation"]
    if mesh and ttnn.version == "0.81.1":
        # Here that is all but the program that the refresh lays out, on a mesh on threads of TT-Metal's own.
        assert all(row.pop("cb") == 2048 for row in found["theirs"].values())
        assert all(row.pop("cb") == 0 for row in found["ours"].values())
    else:
        assert all(row["cb"] > 0 for row in found["ours"].values())
        assert found["resident"] > 0
        assert found["programs"]
    assert found["ours"] == found["theirs"]
    assert len(found["ours"]) == (8 if mesh else 1)
    assert set(found["lowest"].values()) == {found["lowest_address"]}, "the lowest L1 buffer is the allocator's"
    assert found["missed"] == 0
    assert all(found["programs"])
    assert found["cleared"] == programs, "clearing the cache takes its programs away"
    assert (found["restored"], set(found["sources_after"])) == ([True], {"tt-metal"})


def test_a_call_that_was_seen_is_not_captured_again(ttnn: Environment, tmp_path: Path) -> None:
    found = ttnn.run(tmp_path, "n150", "scenes.py", "captured", "mlp")
    # Whatever failed on this grid is looked at again.
    assert found["again"] <= 1
    assert found["missed"] == 0
    assert ttnn.run(tmp_path, "n150", "scenes.py", "capture_cost", "1")["windows"] == 1


def test_a_users_own_capture_is_left_alone_and_what_it_hid_is_said(ttnn: Environment, tmp_path: Path) -> None:
    found = ttnn.run(tmp_path, "n150", "scenes.py", "stepping_aside")
    assert found["beside"] == found["alone"]
    assert (found["inside"], found["missed"]) == (0, 1)
    assert found["warnings"][-1] == "programs that were laid out where no capture was made are not known"
    assert (found["failed"], found["active"]) == (True, False), "a window is closed where TT-Metal throws"
    assert found["programs"] == ["BinaryNgDeviceOperation"]
    active, reason = found["after_close"]
    assert active is False
    assert reason.startswith("the device was closed")


def test_where_the_hook_is_not_built_a_process_is_followed_all_the_same(ttnn: Environment, tmp_path: Path) -> None:
    with Stage(ttnn, tmp_path, "n150") as stage:
        player = stage.start(knows_ttmem=True)
        player.ask("open", "model")
        player.ask("lose_hook")
        assert player.ask("track") == {"active": True, "reason": ""}
        player.ask("circular", [(4096, (0, 0, 1, 0)), (8192, (1, 0, 2, 0))])
        player.ask("tensor", [1, 1, 512, 512], "L1")
        theirs = player.ask("sync")["regions"]["0"]
        memory = stage.devices()[0]["memory"]
        assert memory["cb"]["physical_bytes"] == 24576
        assert memory["l1"]["used_bytes"] == theirs["l1"] == 512 * 512 * 2
        assert "the hook is not built for this machine" in player.words.read_text()


@pytest.mark.parametrize("what", ["begin", "nodes", "dispatch", "poll"])
def test_a_fault_of_ttmem_never_reaches_the_users_operation(ttnn: Environment, tmp_path: Path, what: str) -> None:
    found = ttnn.run(tmp_path, "n150", "scenes.py", "spoilt", what)
    assert found["shapes"] == [[1, 1, 64, 64], [1, 1, 64 if what == "dispatch" else 128, 64]]
    assert (found["active"], found["patched"], found["capturing"]) == (False, 0, False)
    assert ("closed" if what == "dispatch" else "broken") in str(found["reason"])
