"""What `fit` says of circular buffers that do not exist yet."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from made_devices import N150

import ttmem
from ttmem.cli.fit import main
from ttmem.cores import CoreRangeSet
from ttmem.dumps import read_live
from ttmem.fit import Room, fit, parse_cb, parse_cores
from ttmem.replay import replay

pytestmark = pytest.mark.usefixtures("directory")

CAPTURES = Path(__file__).parent / "captures"
TOP = 1499136 - 24576


def answer(capsys, *argv, code):
    found = main([*map(str, argv), "--json"])
    out, err = capsys.readouterr()
    assert found == code, err
    return json.loads(out)


def test_tiles_times_bytes_times_buffers_is_the_size_on_a_core():
    cores = parse_cores("0-0:7-7")
    assert parse_cb("8x2048x2", cores).size == 32768
    assert parse_cb("8x2048", cores).size == 16384
    assert parse_cb("64KiB", cores).size == 65536
    assert parse_cb("1x1@3-4", cores).core_ranges == CoreRangeSet("[3-4 - 3-4]")


@pytest.mark.parametrize("text", ["0-0:7-7", "0,0:7,7", "[0-0 - 7-7]", "{[(x=0,y=0) - (x=7,y=7)]}"])
def test_cores_are_read_in_every_spelling(text):
    assert parse_cores(text) == CoreRangeSet("[0-0 - 7-7]")
    assert parse_cores("0-0:3-3+5-5").num_cores == 17


@pytest.mark.parametrize("text", ["", "x", "8x", "0x2048", "8x0x2", "-1", "8x2048x2x2", "99999999999"])
def test_what_is_no_circular_buffer_is_refused_with_an_example(text, capsys):
    assert main([f"--cb={text}", "--cores", "0-0:7-7", "--l1", "1MiB"]) == 2
    assert repr(text) in capsys.readouterr().err


def test_the_example_of_the_manual_fits_with_its_headroom(capsys):
    found = answer(capsys, "--cb", "8x2048x2", "--cores", "0-0:7-7", "--l1", "1.3MiB", code=0)
    (device,) = found["devices"]
    assert found["fits"] is True
    assert device["ranges"][0]["headroom_bytes"] == 1363149 - 32768
    (cb,) = device["circular_buffers"]
    assert cb["largest_tiles"] == 1363149 // 4096


def test_the_largest_size_fits_and_one_tile_more_does_not(capsys):
    found = answer(capsys, "--cb", "8x2048x2", "--cb", "3x1088", "--cores", "0-0:7-7", "--l1", "200KiB", code=0)
    for index, cb in enumerate(found["devices"][0]["circular_buffers"]):
        texts = ["8x2048x2", "3x1088"]
        for tiles, fits in ((cb["largest_tiles"], True), (cb["largest_tiles"] + 1, False)):
            texts[index] = f"{tiles}x2048x2" if index == 0 else f"{tiles}x1088"
            specs = [parse_cb(text, parse_cores("0-0:7-7")) for text in texts]
            assert fit(specs, Room(0, 64, 200 * 1024)).fits is fits


def test_what_does_not_fit_ends_with_3_and_says_by_how_much(capsys):
    assert main(["--cb", "200KiB", "--cores", "0-0:7-7", "--l1", "100KiB"]) == 3
    out = " ".join(capsys.readouterr().out.split())
    assert "does not fit" in out
    assert "102,400 bytes (100.0 KiB) above 102400" in out
    assert "at most 102,400 bytes" in out


def test_the_core_that_fails_on_a_live_device_is_named(capsys):
    with ttmem.publish(0, **N150) as pub:
        pub.allocate("L1", 4096, address=200000, size_per_bank=4096, core_ranges="{[3-4 - 3-4]}")
        found = answer(capsys, "--cb", "64x2048", "--cores", "0-0:7-7", "-d", 0, code=3)
        (row,) = found["devices"][0]["ranges"]
        assert row["binding_core"] == {"x": 3, "y": 4}
        assert row["headroom_bytes"] == 200000 - (105664 + 131072)
        found = answer(capsys, "--cb", "64x2048", "--cores", "0-0:2-7", "-d", 0, code=0)
        assert found["devices"][0]["ranges"][0]["headroom_bytes"] == TOP - 105664 - 131072


def test_cores_outside_the_grid_do_not_fit(capsys):
    with ttmem.publish(0, **N150):
        found = answer(capsys, "--cb", "1x2048", "--cores", "0-0:8-8", "-d", 0, code=3)
        assert found["devices"][0]["ranges"][0]["outside_grid"] is True
        assert main(["--cb", "1x2048", "--cores", "0-0:8-8", "-d", "0"]) == 3
    text = capsys.readouterr().out
    assert "the grid has 8x8" in text
    assert "it may hold" not in text


def test_a_dump_gives_the_same_answer_as_the_live_device(capsys, tmp_path):
    with ttmem.publish(0, **N150) as pub:
        pub.allocate("L1", 64 * 4096, address=200000, size_per_bank=4096)
        live = answer(capsys, "--cb", "64x2048", "--cores", "0-0:7-7", "-d", 0, code=3)
        file = tmp_path / "dump.json"
        file.write_text(json.dumps(read_live().to_dict()))
    assert answer(capsys, "--cb", "64x2048", "--cores", "0-0:7-7", file, code=3) == live


def test_a_capture_is_judged_at_the_moment_when_its_buffers_reached_lowest(capsys):
    clash = CAPTURES / "n150_clash_8.json"
    size = 527552 - 105664
    found = answer(capsys, "--cb", size, "--cores", "0-0:7-3", clash, code=3)
    (row,) = found["devices"][0]["ranges"]
    assert (row["cb_region_end"], row["limit"], row["headroom_bytes"]) == (527552, 425984, -101568)
    largest = found["devices"][0]["circular_buffers"][0]["largest_size_bytes"]
    assert largest == 425984 - 105664
    answer(capsys, "--cb", largest, "--cores", "0-0:7-3", clash, code=0)


def test_buffers_to_come_take_their_part(capsys):
    argv = ("--cb", "600KiB", "--cores", "0-0:0-0", "--l1", "1MiB")
    answer(capsys, *argv, "--buffer", "424KiB", code=0)
    answer(capsys, *argv, "--buffer", "424KiB", "--buffer", "1", code=3)


def test_an_unknown_limit_is_no_answer(capsys):
    file = CAPTURES / "n150_mlp_nodispatch.json"
    found = answer(capsys, "--cb", "1x2048", "--cores", "0-0:0-0", file, code=1)
    assert found["fits"] is None


def test_no_device_ends_with_1(capsys):
    assert main(["--cb", "1x2048", "--cores", "0-0:0-0"]) == 1
    assert "no device is published" in capsys.readouterr().err


# Right-sizing.


def test_sizes_are_suggested_from_the_peaks_of_a_device_with_a_margin(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TTMEM_SHM_DIR", str(tmp_path))
    # What ttmem.ttnn.track publishes: a region of 64 KiB in each of 12 banks.
    with ttmem.publish(
        0, arch="wormhole_b0", grid=(8, 8), l1_small_size=24576, dram_size=12 * 2**30, trace_region_size=12 * 65536
    ) as pub:
        for offset, size in ((1000, 600), (4000, 400)):
            # A small buffer: of 1,000 bytes in all, which is 16 of each core, and yet there in each of them.
            pub.deallocate(pub.allocate("L1_SMALL", 1000, address=1499136 - offset, size_per_bank=size))
        traces = [pub.allocate("TRACE", size) for size in (100_000, 23_000)]
        for trace in traces:
            pub.deallocate(trace)
        assert main(["--suggest", "--json"]) == 0
        (device,) = json.loads(capsys.readouterr().out)["devices"]
        small, trace = device["suggestions"]
        assert main(["--suggest", "--margin", "0"]) == 0
        text = " ".join(capsys.readouterr().out.split())
    aligned = {size: -(-size // 64) * 64 for size in (3600, 123_000)}
    assert (small["option"], small["needed_bytes"], small["configured_bytes"]) == (
        "l1_small_size",
        aligned[3600],
        24576,
    )
    assert (trace["option"], trace["needed_bytes"]) == ("trace_region_size", aligned[123_000])
    assert trace["configured_bytes"] == 65536
    for size in (small, trace):
        assert size["suggested_bytes"] % 64 == 0
        assert 1.1 * size["needed_bytes"] <= size["suggested_bytes"] < 1.1 * size["needed_bytes"] + 64
    assert f"trace_region_size={aligned[123_000]} is suggested" in text
    assert f"it was 65536, {aligned[123_000] - 65536} too few" in text


def test_a_capture_suggests_what_its_own_buffers_need(capsys):
    capture = str(CAPTURES / "n150_conv.json.gz")
    assert main([capture, "--suggest", "--json"]) == 0
    (device,) = json.loads(capsys.readouterr().out)["devices"]
    view = json.loads((CAPTURES / "n150_conv.meta.json").read_text())["view_L1_SMALL"]
    (size,) = device["suggestions"]
    assert view["total_bytes_allocated_per_bank"] <= size["needed_bytes"] < size["suggested_bytes"]
    assert size["suggested_bytes"] <= view["total_bytes_per_bank"]


def test_a_replayed_capture_suggests_what_the_capture_itself_does(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TTMEM_SHM_DIR", str(tmp_path))
    capture = CAPTURES / "n150_conv.json.gz"
    assert main([str(capture), "--suggest", "--json"]) == 0
    (of_capture,) = json.loads(capsys.readouterr().out)["devices"][0]["suggestions"]
    run, _ = replay(capture, publish=ttmem.publish, arch="wormhole_b0", grid=(8, 8), l1_small_size=24576)
    with run:
        assert main(["--suggest", "--json"]) == 0
    small, _ = json.loads(capsys.readouterr().out)["devices"][0]["suggestions"]
    assert small == {**of_capture, "configured_bytes": 24576}
    assert small["exact"]


def test_no_size_is_suggested_where_it_is_unknown_how_buffers_lay_in_a_bank(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TTMEM_SHM_DIR", str(tmp_path))
    with ttmem.publish(0, arch="wormhole_b0", grid=(8, 8), l1_small_size=24576) as pub:
        pub.allocate("L1_SMALL", 64 * 1000)
        assert main(["--suggest", "--json"]) == 0
        small, _ = json.loads(capsys.readouterr().out)["devices"][0]["suggestions"]
        assert (small["needed_bytes"], small["suggested_bytes"], small["exact"]) == (1024, None, False)
        assert main(["--suggest"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "no size can be suggested" in text
    assert "more than needed" not in text


def test_the_span_of_two_processes_is_that_from_the_lowest_to_the_highest_byte(tmp_path, monkeypatch):
    monkeypatch.setenv("TTMEM_SHM_DIR", str(tmp_path))
    code = (
        "import sys, ttmem; p = ttmem.publish(0); p.allocate('L1_SMALL', 64, address=5000, size_per_bank=64); "
        "print(flush=True); sys.stdin.read()"
    )
    with ttmem.publish(0) as pub:
        assert ttmem.attach(0).snapshot().to_dict()["memory"]["l1_small"]["peak_span_bytes"] == 0
        pub.deallocate(pub.allocate("L1_SMALL", 64, address=9000, size_per_bank=500))
        command = [sys.executable, "-c", code]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            other.stdout.readline()
            spans = [ttmem.attach(0).snapshot().to_dict()["memory"]["l1_small"]["peak_span_bytes"]]
            other.communicate()
        spans.append(ttmem.attach(0).snapshot().to_dict()["memory"]["l1_small"]["peak_span_bytes"])
    assert spans == [9500 - 5000, 500]


@pytest.mark.parametrize("argv", [["--suggest", "--cb", "1x1"], [], ["--suggest", "--margin", "-1"]])
def test_suggest_and_cb_exclude_each_other(argv, capsys):
    assert main(argv) == 2
    assert "usage" in capsys.readouterr().err
