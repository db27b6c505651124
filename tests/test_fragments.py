"""How L1 is cut up, and what the regions set aside would have needed."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_devices import N150

import ttmem
from ttmem.cli.fit import main as fit_main
from ttmem.cli.fragmentation import main
from ttmem.fragments import fragments, smallest_release
from ttmem.reader import Host
from ttmem.recording import RecordingWriter, read_host_for_recording
from ttmem.replay import replay

pytestmark = pytest.mark.usefixtures("directory")

CAPTURES = Path(__file__).parent / "captures"
TRACED = {**N150, "trace_region_size": 4096}
TOP = 1499136 - 24576


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8))
@settings(max_examples=100, deadline=None)
def test_free_and_used_are_the_bytes_of_a_set(intervals):
    found = fragments(intervals, begin=5, end=50)
    covered = {byte for low, high in intervals for byte in range(low, high)} & set(range(5, 50))
    free = set(range(5, 50)) - covered
    assert found.used_bytes == len(covered)
    assert {byte for low, high in found.holes for byte in range(low, high)} == free
    assert found.free_bytes == len(free)
    assert all(a[1] < b[0] for a, b in zip(found.holes, found.holes[1:], strict=False))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), max_size=7), st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_the_least_that_makes_room_is_that_of_all_ways_to_free(spaces, needed):
    rows, at = [], 5
    for gap, size in spaces:
        rows.append({"address": at + gap, "size_per_bank": size})
        at += gap + size
    end = at + 3
    best = None
    for kept in itertools.product((True, False), repeat=len(rows)):
        left = [row for row, keep in zip(rows, kept, strict=True) if keep]
        pieces = fragments([(r["address"], r["address"] + r["size_per_bank"]) for r in left], begin=5, end=end)
        freed = sum(row["size_per_bank"] for row, keep in zip(rows, kept, strict=True) if not keep)
        if freed and pieces.largest_free_bytes >= needed and (best is None or freed < best):
            best = freed
    found = smallest_release(rows, begin=5, end=end, needed_bytes=needed)
    if max((b - a for a, b in fragments(
        [(r["address"], r["address"] + r["size_per_bank"]) for r in rows], begin=5, end=end
    ).holes), default=0) >= needed:  # fmt: skip
        return
    assert (None if found is None else found.freed_bytes) == best
    if found is not None:
        assert found.hole_bytes >= needed
        assert found.freed_bytes == sum(row["size_per_bank"] for row in found.rows)


def test_the_index_tells_one_hole_from_dust():
    assert fragments([], begin=0, end=100).index == 0
    assert fragments([(0, 100)], begin=0, end=100).index == 0
    assert fragments([(10 * i + 5, 10 * i + 10) for i in range(10)], begin=0, end=100).index == 0.9


def test_the_holes_of_a_live_device_and_of_its_recording_are_told(capsys, tmp_path):
    host = Host()
    with ttmem.publish(0, **TRACED) as pub:
        for number in range(4):
            pub.allocate("L1", 64 * 1024, address=TOP - 1024 * (2 * number + 1), size_per_bank=1024)
        pub.allocate("TRACE", 1000)
        pub.allocate("L1_SMALL", 64 * 32)
        with RecordingWriter(tmp_path / "r") as writer:
            writer.write(read_host_for_recording(host))
            writer.write(read_host_for_recording(host))
        assert main(["--json"]) == 0
        live = json.loads(capsys.readouterr().out)
    host.close()
    l1 = live["devices"][0]["l1"]
    assert l1["used_bytes"] == 4096
    assert l1["free_segments"] == 4
    assert l1["free_bytes"] == TOP - 105664 - 4096
    assert l1["largest_free_bytes"] == TOP - 7 * 1024 - 105664
    assert {s["option"]: s["needed_bytes"] for s in live["devices"][0]["suggestions"]} == {
        "l1_small_size": 64,
        "trace_region_size": 1024,
    }
    assert main([str(tmp_path / "r"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == live
    assert main([str(tmp_path / "r")]) == 0
    assert "fragmentation" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["n150_conv", "n150_clash_8"])
def test_the_figures_of_a_replay_are_those_that_tt_metal_told_of_the_same_moment(name, capsys):
    meta = json.loads((CAPTURES / f"{name}.meta.json").read_text())
    (file,) = (p for p in CAPTURES.glob(f"{name}.json*") if ".meta" not in p.name)
    view = meta["view_L1"]
    base = 1499136 - 24576 - view["total_bytes_per_bank"]
    run, _ = replay(file, publish=ttmem.publish, arch="wormhole_b0", grid=(8, 8), l1_cb_base=base, l1_small_size=24576)
    with run:
        assert main(["--json"]) == 0
    l1 = json.loads(capsys.readouterr().out)["devices"][0]["l1"]
    assert l1["used_bytes"] == view["total_bytes_allocated_per_bank"]
    assert l1["free_bytes"] == view["total_bytes_free_per_bank"]
    assert l1["largest_free_bytes"] == view["largest_contiguous_bytes_free_per_bank"]


@pytest.mark.parametrize("name", ["n150_conv", "n150_mlp", "p150_transformer", "t3k_mesh_transformer"])
def test_a_bank_of_dram_is_cut_up_as_tt_metal_told_of_the_same_moment(name, capsys):
    meta = json.loads((CAPTURES / f"{name}.meta.json").read_text())
    (file,) = (p for p in CAPTURES.glob(f"{name}.json*") if ".meta" not in p.name)
    view = meta["view_DRAM"]
    arch = meta["arch"].rpartition(".")[2].lower()
    size = view["num_banks"] * view["total_bytes_per_bank"]
    run, _ = replay(file, publish=ttmem.publish, arch=arch, grid=tuple(meta["grid"]), dram_size=size)
    with run:
        assert main(["--json"]) == 0
    dram = json.loads(capsys.readouterr().out)["devices"][0]["dram"]
    assert (dram["num_banks"], dram["begin_known"], dram["end_known"]) == (view["num_banks"], True, True)
    assert dram["used_bytes"] == view["total_bytes_allocated_per_bank"]
    assert dram["free_bytes"] == view["total_bytes_free_per_bank"]
    assert dram["largest_free_bytes"] == view["largest_contiguous_bytes_free_per_bank"]


def test_what_is_not_known_of_a_bank_of_dram_is_not_told(capsys):
    with ttmem.publish(0, arch="wormhole_b0") as pub:
        for number in (0, 2, 3):
            pub.allocate("DRAM", 12288, address=1048640 + 1024 * number, size_per_bank=1024)
        assert main(["--json"]) == 0
        out, err = capsys.readouterr()
        dram = json.loads(out)["devices"][0]["dram"]
        assert (dram["free_bytes"], dram["largest_free_bytes"], dram["fragmentation"], dram["end"]) == (None,) * 4
        assert (dram["free_between_bytes"], dram["used_bytes"]) == (1024, 3072)
        assert "--dram-banks" in err
        assert main([]) == 0
        assert "N/A above them" in " ".join(capsys.readouterr().out.split())
        pub.allocate("DRAM", 5)
        assert main(["--json"]) == 0
        assert json.loads(capsys.readouterr().out)["devices"][0]["dram"] is None
    with ttmem.publish(0, dram_size=12 * 2**30) as pub:
        pub.allocate("DRAM", 12288, address=2**20, size_per_bank=1024)
        assert main(["--json", "--dram-banks", "12", "--dram-bank-size", "1GiB"]) == 0
        dram = json.loads(capsys.readouterr().out)["devices"][0]["dram"]
        assert (dram["begin_known"], dram["end_known"], dram["free_bytes"]) == (False, True, 2**30 - 2**20 - 1024)
    assert main(["--dram-banks", "0"]) == 2


def test_a_capture_tells_the_l1_small_size_that_it_needed(capsys):
    assert main([str(CAPTURES / "n150_conv.json.gz"), "--json"]) == 0
    (device,) = json.loads(capsys.readouterr().out)["devices"]
    (size,) = device["suggestions"]
    meta = json.loads((CAPTURES / "n150_conv.meta.json").read_text())
    used = meta["view_L1_SMALL"]["total_bytes_allocated_per_bank"]
    assert size["option"] == "l1_small_size"
    assert size["exact"] is True
    assert used <= size["needed_bytes"] <= meta["view_L1_SMALL"]["total_bytes_per_bank"]


def test_of_a_capture_only_the_chips_count_that_are_named(capsys):
    capture = str(CAPTURES / "n150_conv.json.gz")
    for verb in (main, lambda argv: fit_main([*argv, "--suggest"])):
        for named, there in (("0,7", [0]), ("7", [])):
            assert verb([capture, "-d", named, "--json"]) == 0
            out, err = capsys.readouterr()
            assert [device["device_id"] for device in json.loads(out)["devices"]] == there
            assert ("neither L1_SMALL nor TRACE buffers on device 7" in err) == (not there)
        assert verb([capture, "-d", "x"]) == 2
        assert "expected a device id" in capsys.readouterr().err


def test_a_capture_without_such_buffers_needs_none(capsys):
    assert main([str(CAPTURES / "n150_mlp.json")]) == 0
    assert "0 is enough for both" in capsys.readouterr().err
