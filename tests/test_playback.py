"""A recording that is played is published with the figures that it holds."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_devices import N150, n150, p150, tt_metal

import ttmem
from ttmem.cli.record import main as record_main
from ttmem.cli.replay import main
from ttmem.dumps import Dump, read_live
from ttmem.model import Geometry
from ttmem.playback import Playback, place_buffers
from ttmem.reader import Host
from ttmem.recording import RecordingWriter, open_recording, read_host_for_recording
from ttmem.replay import Replay

pytestmark = pytest.mark.usefixtures("directory")

CAPTURES = Path(__file__).parent / "captures"
P150 = {"arch": "blackhole", "grid": (11, 10), "l1_cb_base": 111488, "l1_small_size": 24576}
KINDS = ("dram", "l1", "l1_small", "trace")
publish_replay = functools.partial(ttmem.publish, origin="replay")


def figures(device):
    """What a played device must show as it was recorded; peaks, ids and processes are its own."""
    memory = device["memory"]
    return {
        **{kind: {n: memory[kind][n] for n in ("used_bytes", "total_bytes", "free_bytes")} for kind in KINDS},
        "cb": {n: memory["cb"][n] for n in ("physical_bytes", "logical_bytes", "resident_bytes")},
        "kernel": memory["kernel"],
        "l1_accounting": device["l1_accounting"],
        "cores": [{n: v for n, v in core.items() if n != "cb_peak_bytes"} for core in device["cores"]],
        "grid": device["grid"],
        "arch": device["arch"],
    }


def programs(device):
    return sorted(
        (row["name"], row["num_cores"], row["cb_bytes_per_core"], row["cb_region_end"], row["count"])
        for row in device["programs"]
    )


def record_capture(path, name, geometry, every):
    (graph,) = (p for p in CAPTURES.glob(f"{name}.json*") if ".meta." not in p.name)
    host, count = Host(), 0
    with RecordingWriter(path) as writer:

        class Recorded(Replay):
            def advance(self, duration_ns):
                nonlocal count
                count += 1
                if count % every == 0:
                    writer.write(read_host_for_recording(host))

        with Recorded(graph, ttmem.publish, geometry=Geometry.of(**geometry)) as run:
            run.run()
            for publisher in run.publishers.values():
                publisher.load_kernel(4096, persistent=True)
                publisher.load_kernel(1000)
            writer.write(read_host_for_recording(host), key=True)
    host.close()


def played(path, **options):
    """Yield the recorded and the published devices of each moment."""
    pairs = []
    with open_recording(path) as recording:

        def look(progress):
            pairs.append((recording[progress.moments - 1].devices, read_live().devices))

        with Playback(path, publish_replay, on_progress=look, **options) as playback:
            summary = playback.run()
    return pairs, summary


@pytest.mark.parametrize(
    ("name", "geometry", "every"),
    [
        ("n150_clash_8", N150, 1),
        ("n150_conv", N150, 5),
        ("n150_mlp", N150, 3),
        ("p150_transformer", P150, 60),
        ("t3k_mesh_transformer", N150, 150),
        ("n150_conv", {}, 11),
    ],
)
def test_each_moment_of_a_recorded_capture_shows_the_recorded_figures(name, geometry, every, tmp_path):
    record_capture(tmp_path / "r", name, geometry, every)
    pairs, summary = played(tmp_path / "r")
    assert summary.warnings == []
    assert summary.moments == len(pairs) > 2
    for recorded, shown in pairs:
        assert [figures(device) for device in shown] == [figures(device) for device in recorded]
        for old, new in zip(recorded, shown, strict=True):
            if all(row["circular_buffers"] is not None for row in old["programs"]):
                assert programs(new) == programs(old)
    last, shown = pairs[-1]
    assert [d["memory"]["kernel"] for d in shown] == [{"used_bytes": 5096, "persistent_bytes": 4096}] * len(shown)
    for old, new in zip(last, shown, strict=True):
        named = [sorted((b["name"], b["size_bytes"], b["buffer_type"]) for b in d["buffers"]) for d in (old, new)]
        assert named[0] == named[1]
        assert {device["origin"] for device in shown} == {"replay"}


def test_programs_whose_circular_buffers_are_known_keep_their_names(tmp_path):
    with ttmem.publish(0, **N150) as pub:
        one = [ttmem.CircularBuffer(105664, 4096, "{[0-0 - 7-3]}"), ttmem.CircularBuffer(109760, 64, "{[1-1 - 2-2]}")]
        pub.add_program(one, name="matmul")
        pub.add_program(one, name="matmul")
        pub.dispatch(pub.add_program([ttmem.CircularBuffer(109760, 8192, "{[2-2 - 5-5]}")], name="softmax"))
        (device,) = read_live().devices
    with RecordingWriter(tmp_path / "r") as writer:
        writer.write(Dump([device], 1))
        # What does not add up must not be shown: the figures come first.
        wrong = json.loads(json.dumps(device))
        wrong["programs"][0]["circular_buffers"][0]["size"] += 64
        writer.write(Dump([wrong], 2))
    pairs, summary = played(tmp_path / "r")
    rows = [{row["name"]: row["count"] for row in shown[0]["programs"]} for _, shown in pairs]
    assert rows[0] == {"matmul": 2, "softmax": 1}
    assert set(rows[1]) == {"recorded"}
    assert summary.warnings == []
    for recorded, shown in pairs:
        assert figures(shown[0]) == figures(recorded[0])


def test_devices_that_come_and_go_are_published_while_they_are_there(tmp_path):
    def device(number, used):
        with ttmem.publish(number, **N150) as pub:
            pub.allocate("DRAM", used)
            return read_live().devices[0]

    a, b = device(0, 5), device(1, 6)
    with RecordingWriter(tmp_path / "r") as writer:
        for index, devices in enumerate([[a], [a, b], [b], [], [a]]):
            writer.write(Dump(devices, index))
    pairs, summary = played(tmp_path / "r", device_id=10)
    assert [[d["device_id"] for d in shown] for _, shown in pairs] == [[10], [10, 11], [11], [], [10]]
    assert summary.device_ids == [10]


def test_two_chips_of_one_logical_id_are_told_apart(tmp_path):
    a, b = p150(0), p150(0)
    b["asic_id"] = "0x77"
    with RecordingWriter(tmp_path / "r") as writer:
        writer.write(Dump([a, b], 1))
    pairs, summary = played(tmp_path / "r")
    assert [d["device_id"] for d in pairs[0][1]] == [0, 1]
    assert any("logical id 0" in text for text in summary.warnings)


def test_a_source_without_cores_keeps_its_totals_and_says_what_is_made_up(tmp_path):
    device = tt_metal(0)
    assert device["cores"] is None
    with RecordingWriter(tmp_path / "r") as writer:
        writer.write(Dump([device], 1))
        for resident in (3 * 2**20 + 5, 70):
            device = json.loads(json.dumps(device))
            device["memory"]["cb"]["resident_bytes"] = resident
            writer.write(Dump([device], resident))
        device = tt_metal(0)
    pairs, summary = played(tmp_path / "r")
    for kind in KINDS:
        # A publisher cannot say that it does not know: what is unknown is not there, and said to be so.
        assert pairs[0][1][0]["memory"][kind]["used_bytes"] == (device["memory"][kind]["used_bytes"] or 0)
    assert any("shows 0 for what" in text for text in summary.warnings)
    resident = [shown[0]["memory"]["cb"]["resident_bytes"] for _, shown in pairs]
    assert resident[1:] == [3 * 2**20 + 5, 70]
    assert any("made up" in text for text in summary.warnings)


def test_figures_that_no_device_can_have_are_said_to_be_missing(tmp_path):
    device = n150(0)
    device["cores"][0]["cb_physical_bytes"] = device["cores"][0]["cb_region_end"] + 1
    with RecordingWriter(tmp_path / "r") as writer:
        writer.write(Dump([device], 1))
    _, summary = played(tmp_path / "r")
    assert summary.error is not None or summary.warnings


def test_a_recording_is_played_at_the_pace_that_is_asked_for(tmp_path):
    device = p150(0)
    with RecordingWriter(tmp_path / "r") as writer:
        for second in (0, 1, 3):
            writer.write(Dump([device], 10**18 + second * 10**9))
    now, slept = [0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += round(seconds * 1e9)

    with Playback(tmp_path / "r", publish_replay, speed=2, sleep=sleep, clock_ns=lambda: now[0]) as playback:
        assert playback.run().duration_ns == 3 * 10**9
    assert slept == [0.5, 1.0]


def test_a_recording_that_was_cut_is_played_as_far_as_it_goes_and_again(tmp_path):
    record_capture(tmp_path / "r", "n150_conv", N150, 5)
    data = (tmp_path / "r").read_bytes()
    (tmp_path / "cut").write_bytes(data[: len(data) * 2 // 3])
    with open_recording(tmp_path / "cut") as recording:
        count, last = len(recording), recording[-1].devices
    with Playback(tmp_path / "cut", publish_replay) as playback:
        for _ in range(2):
            assert playback.run().moments == count > 2
            assert [figures(device) for device in read_live().devices] == [figures(device) for device in last]
    assert read_live().devices == []


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_stand_ins_for_buffers_have_the_bytes_and_the_overlap_of_a_set(data):
    bits = data.draw(st.lists(st.sampled_from("cboO."), min_size=1, max_size=24))
    # c: claimed by circular buffers; b: a buffer; o, O: both.
    claimed = [i for i, bit in enumerate(bits) if bit in "coO"]
    held = [i for i, bit in enumerate(bits) if bit in "boO"]
    if not held:
        return
    merged: list[tuple[int, int]] = []
    for i in claimed:
        if merged and merged[-1][1] == i:
            merged[-1] = (merged[-1][0], i + 1)
        else:
            merged.append((i, i + 1))
    overlap = len(set(claimed) & set(held))
    found = place_buffers(held[0], len(held), overlap, merged, len(bits))
    covered = [i for low, high in found for i in range(low, high)]
    assert len(covered) == len(set(covered)) == len(held)
    assert min(covered) == held[0]
    assert len(set(covered) & set(claimed)) == overlap


# The command.


def test_the_command_replays_a_recording_and_dumps_it(tmp_path, capsys):
    file = str(tmp_path / "r.ttmem")
    with ttmem.publish(3, **N150) as pub:
        pub.dispatch(pub.add_program([ttmem.CircularBuffer(105664, 4096, "{[0-0 - 7-7]}")]))
        pub.allocate("L1", 64 * 2048, address=1400000, size_per_bank=2048, name="weights")
        assert record_main(["-o", file, "-i", "0.01", "--duration", "0.02"]) == 0
    capsys.readouterr()
    assert main([file, "--dump", "--json", "--device-id", "4", "-q"]) == 0
    (device,) = json.loads(capsys.readouterr().out)["devices"]
    with open_recording(file) as recording:
        (recorded,) = recording[-1].devices
    assert device["device_id"] == 7
    assert figures(device) == figures(recorded)
    assert [row["name"] for row in device["buffers"]] == ["weights"]
    assert main([file, "--json", "-q", "--speed", "1000"]) == 0
    assert json.loads(capsys.readouterr().out)["moments"] >= 2


def test_a_damaged_file_is_no_recording_that_can_be_played(tmp_path, capsys):
    (tmp_path / "r").write_bytes(b"ttmemrec" + (9).to_bytes(8, "little"))
    assert main([str(tmp_path / "r")]) == 4
    assert "version 9" in capsys.readouterr().err
