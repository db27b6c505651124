"""The hook and the tracker against the real TT-Metal."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit import ROOT, Environment

pytestmark = [pytest.mark.ttnn, pytest.mark.timeout(600)]

CASES = [
    ("n150", "mlp", ""),
    ("n150", "transformer", ""),
    ("n150", "conv", ""),
    ("p150", "transformer", ""),
    ("t3000", "transformer", "1x8"),
]


@pytest.mark.parametrize(("cluster", "workload", "mesh"), CASES)
def test_the_sum_of_events_equals_tt_metals_region_to_the_byte(
    ttnn: Environment, tmp_path: Path, cluster: str, workload: str, mesh: str
) -> None:
    found = ttnn.run(tmp_path, cluster, "scenes.py", "figures", workload, mesh)
    assert found["ours"] == found["theirs"]
    assert len(found["ours"]) == (8 if mesh else 1)
    assert all(ours == theirs for ours, theirs in found["now"].values()), (
        "TT-Metal's count without the lag of its region"
    )
    status = found["status"]
    assert (status["lost"], status["unknown_devices"], status["unknown_dispatches"]) == (0, 0, 0)
    assert "" not in found["dispatched"], "every dispatch has its operation's name"


def test_the_example_follows_a_loop_of_adds(ttnn: Environment, tmp_path: Path) -> None:
    found = ttnn.run(tmp_path, "n150", str(ROOT / "examples" / "follow_ttnn.py"))
    printed = [line for line in found["printed"] if ": " in line]
    # Three buffers of two tiles on each of 64 cores.
    assert printed[-3:] == ["L1 bytes: 524288", "CB bytes: 786432", "programs: ['BinaryNgDeviceOperation']"]


@pytest.mark.parametrize("cluster", ["n150", "p150"])
def test_slow_dispatch_is_followed_like_fast(ttnn: Environment, tmp_path: Path, cluster: str) -> None:
    found = ttnn.run(tmp_path, cluster, "scenes.py", "figures", "mlp", slow=True)
    assert found["ours"] == found["theirs"]
    assert found["dispatched"]["BinaryNgDeviceOperation"] == 2


def test_closing_the_device_leaves_nothing_on_it(ttnn: Environment, tmp_path: Path) -> None:
    found = ttnn.run(tmp_path, "n150", "scenes.py", "closed")
    assert all(found["open"])
    assert found["after"] == [0, 0, 0]
    assert found["warnings"] == ["programs that were laid out on chip 0 before tracking began are not known"]
    assert found["said"] == ["programs that were laid out before it began to follow are not known"], "readers are told"


def test_dataflow_buffers_cover_the_bytes_that_circular_buffers_did(
    ttnn_77: Environment, ttnn_81: Environment, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    before = ttnn_77.run(tmp_path / "a", "n150", "scenes.py", "figures", "mlp")
    after = ttnn_81.run(tmp_path / "b", "n150", "scenes.py", "figures", "mlp")
    assert after["all_kinds"] == before["all_kinds"]
    assert after["theirs"]["0"]["cb"] < after["all_kinds"]["0"], "TT-Metal's region counts circular buffers only"


def test_a_graph_capture_changes_no_event(ttnn: Environment, tmp_path: Path) -> None:
    plain = ttnn.run(tmp_path, "n150", "scenes.py", "counts", "mlp", "plain")
    captured = ttnn.run(tmp_path, "n150", "scenes.py", "counts", "mlp", "capture")
    assert captured["nodes"] > 0
    assert (captured["kinds"], captured["dispatched"]) == (plain["kinds"], plain["dispatched"])
    assert plain["dispatched"]["BinaryNgDeviceOperation"] == 2, "the second add was a cache hit"


def test_what_a_no_dispatch_capture_pretends_counts_nowhere(ttnn: Environment, tmp_path: Path) -> None:
    found = ttnn.run(tmp_path, "n150", "scenes.py", "pretended")
    assert found["inside"] == 0
    assert found["blocked"] >= 3
    assert found["after"] == found["before"]


def test_four_threads_lose_no_event(ttnn: Environment, tmp_path: Path) -> None:
    found = ttnn.run(tmp_path, "n150", "scenes.py", "threads")
    assert found["failures"] == []
    assert found["dispatched"]["BinaryNgDeviceOperation"] == 160
    assert found["ours"] == found["theirs"]


def test_a_shared_core_is_charged_twice_by_tt_metal_and_once_here(ttnn: Environment, tmp_path: Path) -> None:
    found = ttnn.run(tmp_path, "n150", "scenes.py", "overlap")
    assert found["ours"] == 4096 + 12288 + 8192
    assert found["theirs"] == 3 * 12288
    assert [part[4] for part in found["footprint"]] == [[[0, 0, 1, 0]], [[1, 0, 2, 0]]]


def test_a_clash_leaves_the_program_in_the_cache_of_0_77_and_not_of_0_81(ttnn: Environment, tmp_path: Path) -> None:
    found = ttnn.run(tmp_path, "n150", "scenes.py", "clash")
    assert "clash with L1 buffers" in found["thrown"]
    kept = 2 * 409600 - 2048 if ttnn.version == "0.77.0" else 0
    assert found["now"] - found["before"] == kept
    assert found["ours"] == found["now"]
    assert found["refreshed"] == found["ours_refreshed"] == found["now"] + 4096


def test_stopping_puts_every_call_back(ttnn: Environment, tmp_path: Path) -> None:
    found = ttnn.run(tmp_path, "n150", "scenes.py", "undone")
    assert found["started"] == ""
    assert found["held"] == found["slots"] > 10
    assert found["seen"] > 0
    assert (found["left"], found["silent"], found["held_after"]) == (0, 0, 0)
    # The program was laid out while the hook was on the first time; the second start knows nothing of it.
    assert found["again"] == ["buffer_allocate"]
    assert found["unknown"] == 1


def test_the_peaks_of_a_tracked_workload_are_those_between_two_looks(ttnn: Environment, tmp_path: Path) -> None:
    found = ttnn.run(tmp_path, "n150", "scenes.py", "peaked")
    (row,), (quiet,) = found["rows"], found["quiet"]
    held, other = 2 * 512 * 512, 2 * 1024 * 1024
    assert row["l1"] == held + other, "the tensor that was freed again counts"
    assert row["cb"] > 0
    assert row["by"]["cb"]
    assert row["core"] > other // 64
    assert quiet["l1"] <= 2 * held, "the marks began anew, and a tracker that stops is looked at before it goes"


@pytest.mark.parametrize(
    ("cluster", "workload", "mesh"),
    [("n150", "conv", ""), ("p150", "transformer", ""), ("t3000", "transformer", "1x8")],
)
def test_a_tracked_device_reads_like_tt_metals_region(
    ttnn: Environment, tmp_path: Path, cluster: str, workload: str, mesh: str
) -> None:
    found = ttnn.run(tmp_path, cluster, "scenes.py", "tracked", workload, mesh)
    assert found["raised"] == []
    if workload != "conv":
        # Softmax, and in 0.81 most operations, have dataflow buffers, which count here and not there.
        assert all(ours.pop("cb") >= found["theirs"][chip].pop("cb") for chip, ours in found["ours"].items())
    assert found["ours"] == found["theirs"]
    assert found["l1_after"] == found["l1_theirs"], "a buffer from before was freed"
    assert found["geometry"]["source"] == "ttmem"
    assert found["geometry"]["state"] == "live"
    assert found["pids"] == [found["pid"]]
    accounting = found["accounting"]
    parts = ("reserved_bytes", "cb_bytes", "buffer_bytes", "l1_small_bytes", "free_bytes")
    assert sum(accounting[part] for part in parts) - accounting["overlap_bytes"] == accounting["total_bytes"]
    assert found["programs"]
    assert all(found["programs"])
    assert set(found["sources_after"]) == {"tt-metal"}
    assert found["held_after"] == 0
    if mesh:
        assert found["asic_ids"] == {str(chip): hex(0x300000000 + 17 * chip) for chip in range(8)}


@pytest.mark.parametrize("method", ["auto", "hook", "capture"])
def test_a_ttnn_that_answers_otherwise_ends_no_program(ttnn: Environment, tmp_path: Path, method: str) -> None:
    found = ttnn.run(tmp_path, "n150", "scenes.py", "unforeseen", method)
    assert (found["shape"], found["again"]) == ([1, 1, 64, 64], True)
    assert (found["active"], found["patched"], found["devices"]) == (False, False, 0)
    assert found["reason"] == "AttributeError: no such figure"
    said = found["said"]
    assert isinstance(said, list)
    assert len(said) == (2 if method == "auto" else 1)
    assert "no such figure" in said[-1]


def test_a_second_tracker_that_fails_costs_the_first_one_no_event(ttnn: Environment, tmp_path: Path) -> None:
    found = ttnn.run(tmp_path, "n150", "scenes.py", "twice")
    assert "already" in str(found["said"])
    assert (found["kept"], found["active"]) == (1, True)
    assert found["ours"] == found["theirs"]
