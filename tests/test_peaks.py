"""The most that was used, whoever asks since when."""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_devices import N150, n150, tt_metal

import ttmem
from ttmem.cli.dump import main as dump_main
from ttmem.cli.peaks import main
from ttmem.peaks import KINDS, Peaks
from ttmem.reader import Host
from ttmem.recording import RecordingWriter, read_host_for_recording
from ttmem.replay import replay

pytestmark = pytest.mark.usefixtures("directory")

CAPTURES = Path(__file__).parent / "captures"


def whole_grid(size):
    return [ttmem.CircularBuffer(105664, size, "{[0-0 - 7-7]}")]


def test_the_peak_between_two_readings_is_told_with_its_moment_and_what_made_it():
    peaks = Peaks()
    with ttmem.publish(0, **N150) as pub, ttmem.attach(0) as reader:
        pub.allocate("DRAM", 100, name="weights")
        peaks.add(reader.snapshot())
        pub.deallocate(pub.allocate("DRAM", 5000, name="ttnn.matmul"))
        pub.remove_program(pub.add_program(whole_grid(4096), name="softmax"))
        snapshot = reader.snapshot()
        peaks.add(snapshot)
    dram, cb = peaks.peak("dram"), peaks.peak("cb")
    assert (dram.bytes, dram.by, dram.count, dram.exact) == (5100, "ttnn.matmul", 2, True)
    assert (cb.bytes, cb.by, cb.count, cb.exact) == (64 * 4096, "softmax", 1, True)
    assert 0 < dram.at_ns <= snapshot.taken_ns
    assert {(core.cb_bytes, core.cb_exact) for core in peaks.cores()} == {(4096, True)}
    assert len(peaks.cores()) == 64


def test_a_reset_starts_anew_and_touches_nothing_of_the_writer():
    peaks, other = Peaks(), Peaks()
    with ttmem.publish(0, **N150) as pub, ttmem.attach(0) as reader:
        pub.deallocate(pub.allocate("DRAM", 5000, name="early"))
        before = {path: path.read_bytes() for path in Path(os.environ["TTMEM_SHM_DIR"]).glob("ttmem*")}
        first = reader.snapshot()
        peaks.add(first)
        peaks.reset()
        assert {path: path.read_bytes() for path in before} == before
        assert (peaks.peak("dram").bytes, peaks.since_ns) == (0, first.taken_ns)
        kept = pub.allocate("DRAM", 70, name="kept")
        peaks.add(reader.snapshot())
        other.add(reader.snapshot())
        # Below the writer's older mark: what was read is the least that it can be, and the mark the most.
        dram = peaks.peak("dram")
        assert (dram.bytes, dram.exact, dram.at_most, dram.by) == (70, False, 5000, None)
        assert (other.peak("dram").bytes, other.peak("dram").by) == (5000, "early")
        pub.deallocate(kept)
        pub.deallocate(pub.allocate("DRAM", 6000, name="late"))
        peaks.add(reader.snapshot())
        assert (peaks.peak("dram").bytes, peaks.peak("dram").by, peaks.peak("dram").exact) == (6000, "late", True)


def test_a_writer_that_resets_its_own_peaks_is_believed_from_then_on():
    peaks = Peaks()
    with ttmem.publish(0, **N150) as pub, ttmem.attach(0) as reader:
        pub.deallocate(pub.allocate("DRAM", 5000))
        peaks.add(reader.snapshot())
        peaks.reset()
        pub.reset_peaks()
        pub.deallocate(pub.allocate("DRAM", 70, name="small"))
        peaks.add(reader.snapshot())
    assert (peaks.peak("dram").bytes, peaks.peak("dram").by, peaks.peak("dram").exact) == (70, "small", True)


@given(st.lists(st.tuples(st.sampled_from(("set", "read", "reset")), st.integers(0, 9)), max_size=30))
@settings(max_examples=200, deadline=None)
def test_no_peak_is_above_what_was_used_or_below_what_was_read(steps):
    peaks, device = (
        Peaks(),
        {"device_id": 0, "memory": {"dram": {"used_bytes": 0, "peak_bytes": 0, "peak_at_ns": None}}},
    )
    figures = device["memory"]["dram"]
    true, read, clock = 0, 0, 1
    peaks.add(copy.deepcopy(device), taken_ns=clock)
    for step, value in steps:
        clock += 1
        if step == "set":
            figures["used_bytes"] = value
            true = max(true, value)
            if value > figures["peak_bytes"]:
                figures.update(peak_bytes=value, peak_at_ns=clock, peak_by="x")
        elif step == "read":
            peaks.add(copy.deepcopy(device), taken_ns=clock)
            read = max(read, figures["used_bytes"])
            found = peaks.peak("dram")
            assert read <= found.bytes <= true <= found.at_most
            if found.exact:
                assert found.bytes == true
        else:
            peaks.add(copy.deepcopy(device), taken_ns=clock)
            peaks.reset()
            true = read = figures["used_bytes"]
            assert peaks.peak("dram").bytes == true


def test_what_a_source_does_not_know_is_unknown():
    peaks = Peaks()
    assert all(peaks.peak(kind).bytes is None for kind in KINDS)
    device = tt_metal(0)
    peaks.add(device, taken_ns=7)
    dram, trace = peaks.peak("dram"), device["memory"]["trace"]["used_bytes"]
    assert (dram.bytes, dram.exact, dram.at_most) == (device["memory"]["dram"]["used_bytes"], False, None)
    assert peaks.peak("trace").bytes == trace
    assert peaks.cores() == []
    assert peaks.to_dict()["cores"] is None


def test_that_nothing_was_read_is_no_peak_of_a_writer_that_marks_none():
    device = tt_metal(0)
    device["memory"]["dram"]["used_bytes"], device["memory"]["l1"]["used_bytes"] = 0, 7
    peaks = Peaks()
    peaks.add(device, taken_ns=1)
    assert [(peaks.peak(kind).bytes, peaks.peak(kind).exact) for kind in ("dram", "l1")] == [(None, False), (7, False)]
    peaks.reset()
    assert (peaks.peak("dram").bytes, peaks.peak("l1").bytes) == (0, 7)


def test_of_several_writers_the_sum_of_their_marks_is_only_a_bound():
    device = n150(0)
    device["processes"] = [{"pid": pid, "state": "live"} for pid in (1, 2)]
    peaks = Peaks()
    peaks.add(device, taken_ns=7)
    memory = device["memory"]["dram"]
    dram = peaks.peak("dram")
    assert memory["used_bytes"] < memory["peak_bytes"]
    assert (dram.bytes, dram.exact, dram.at_most) == (memory["used_bytes"], False, memory["peak_bytes"])


@pytest.mark.parametrize(
    # The extractor adds up the CBs of a mesh's chips, and takes L1_SMALL for L1.
    ("name", "chips", "has_l1_small"),
    [
        ("n150_conv", 1, True),
        ("n150_mlp", 1, False),
        ("p150_transformer", 1, False),
        ("t3k_mesh_transformer", 8, False),
    ],
)
def test_the_peaks_of_a_core_are_those_that_tt_metal_extracts_from_the_same_capture(name, chips, has_l1_small):
    meta = json.loads((CAPTURES / f"{name}.meta.json").read_text())
    (graph,) = (path for path in CAPTURES.glob(f"{name}.json*") if ".meta" not in path.name)
    told = dict(re.findall(r"(CB|L1): +(\d+) bytes", meta["extract_resource_usage_per_core"]))
    run, _ = replay(graph, publish=ttmem.publish, grid=tuple(meta["grid"]))
    with run:
        for publisher in run.publishers.values():
            cores = publisher.core_peaks()
            assert max(cb for _, _, cb, _ in cores) == int(told["CB"]) // chips
            if not has_l1_small:
                assert max(l1 for _, _, _, l1 in cores) == int(told["L1"])
            peaks = Peaks()
            peaks.add(publisher.snapshot())
            assert [(c.x, c.y, c.cb_bytes) for c in peaks.cores()] == [(x, y, cb) for x, y, cb, _ in cores]


# The command.


def test_the_command_tells_the_peaks_of_the_host_a_dump_and_a_recording(capsys, tmp_path):
    host = Host()
    with ttmem.publish(0, **N150) as pub, RecordingWriter(tmp_path / "r") as writer:
        pub.deallocate(pub.allocate("L1", 9999, name="before"))
        writer.write(read_host_for_recording(host))
        pub.deallocate(pub.allocate("L1", 20000, name="ttnn.matmul"))
        pub.remove_program(pub.add_program(whole_grid(4096), name="softmax"))
        writer.write(read_host_for_recording(host))
        assert main(["--json"]) == 0
        live = json.loads(capsys.readouterr().out)["devices"][0]
        assert main([]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert dump_main(["--json"]) == 0
        (tmp_path / "d.json").write_text(capsys.readouterr().out)
    host.close()
    assert live["memory"]["l1"]["peak_by"] == "ttnn.matmul"
    assert live["memory"]["cb"] == {
        **live["memory"]["cb"], "peak_bytes": 64 * 4096, "peak_by": "softmax", "peak_programs": 1, "exact": True,
    }  # fmt: skip
    assert "by ttnn.matmul (1 buffer then)" in text
    assert "by softmax (1 cached program then)" in text
    assert "at most 4.0 KiB, on core 0,0 and 63 more" in text
    for name in ("d.json", "r"):
        assert main([str(tmp_path / name), "--json"]) == 0
        (device,) = json.loads(capsys.readouterr().out)["devices"]
        assert device["memory"]["l1"] == live["memory"]["l1"]
        assert device["cores"] == live["cores"]
        assert (device["since_ns"] is not None) == (name == "r")


def test_the_command_watches_for_a_while(capsys):
    with ttmem.publish(0, **N150) as pub:
        pub.deallocate(pub.allocate("DRAM", 5000, name="early"))
        assert main(["--for", "0.02", "-i", "0.01", "--json"]) == 0
        (device,) = json.loads(capsys.readouterr().out)["devices"]
        assert device["memory"]["dram"]["peak_bytes"] == 0
    assert main(["--json"]) == 1
    assert main(["x", "--for", "1"]) == 2


def test_a_device_that_came_later_in_a_recording_is_found(capsys, tmp_path):
    host = Host()
    with ttmem.publish(0, **N150), RecordingWriter(tmp_path / "r") as writer:
        writer.write(read_host_for_recording(host))
        with ttmem.publish(5, **N150) as late:
            late.deallocate(late.allocate("DRAM", 77, name="short"))
            writer.write(read_host_for_recording(host))
    host.close()
    assert main([str(tmp_path / "r"), "-d", "5", "--json"]) == 0
    (device,) = json.loads(capsys.readouterr().out)["devices"]
    assert (device["memory"]["dram"]["peak_bytes"], device["memory"]["dram"]["peak_by"]) == (77, "short")
    assert main([str(tmp_path / "r"), "-d", "6"]) == 1
    assert "no moment" in capsys.readouterr().err
