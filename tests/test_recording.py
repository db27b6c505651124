"""A recording gives back what was put in, whatever becomes of its file."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from made_devices import N150, n150, p150

import ttmem
from ttmem.cli.diff import main as diff_main
from ttmem.cli.record import main
from ttmem.dumps import Dump, kind_of_file
from ttmem.export import COLUMNS, write_chrome, write_csv
from ttmem.reader import Host, read_host
from ttmem.recording import (
    KEY_FRAMES_APART,
    KEY_INTERVAL_NS,
    RecordingError,
    RecordingWriter,
    open_recording,
    read_host_for_recording,
)
from ttmem.replay import replay

pytestmark = pytest.mark.usefixtures("directory")

CAPTURES = Path(__file__).parent / "captures"
SECOND = 1_000_000_000


def moments(count, seed=1):
    """Dumps whose devices change, come and go."""
    rng = random.Random(seed)
    devices = [n150(0), p150(1)]
    out = []
    for index in range(count):
        devices = copy.deepcopy(devices)
        for device in devices:
            device["memory"]["dram"]["used_bytes"] = rng.choice([1, 2**40, 77])
            device["memory"]["trace"]["used_bytes"] = rng.choice([None, 5])
            device["updated_ns"] = rng.choice([None, 10**18 + rng.randrange(10**9), device["updated_ns"]])
            for core in rng.sample(device["cores"], 3):
                core["headroom_bytes"] = rng.choice([-1, None, -5, 10**6])
                core["l1_lowest_address"] = rng.choice([None, 0, 1454080])
            for row in device["programs"] or ():
                row["program_id"] += 50
        shown = devices if index % 7 != 3 else devices[: rng.randrange(3)]
        out.append(Dump(shown, 10**18 + index * SECOND // 10, "host"))
    return out


def record(path, dumps):
    with RecordingWriter(path) as writer:
        return [writer.write(dump) for dump in dumps]


def plain(dump):
    return dump.to_dict()


def test_what_was_recorded_is_read_again(tmp_path):
    dumps = moments(40)
    record(tmp_path / "r", dumps)
    with open_recording(tmp_path / "r") as found:
        assert len(found) == 40
        assert [plain(dump) for dump in found] == [plain(dump) for dump in dumps]
        assert found.times_ns == [dump.taken_ns for dump in dumps]
        assert found.damaged_bytes == 0


def test_a_moment_that_could_not_be_written_costs_no_other_one(tmp_path):
    first, second, third = moments(3)
    # What is seen for the first time in the one that fails is in no frame of the file.
    second.devices[0]["memory"]["dram"]["used_bytes"] = 12345
    second.devices[0]["warnings"] = [object()]
    third.devices[0]["memory"] = second.devices[0]["memory"]
    with RecordingWriter(tmp_path / "r") as writer:
        writer.write(first)
        with pytest.raises(TypeError, match="JSON"):
            writer.write(second)
        writer.write(third)
    with open_recording(tmp_path / "r") as found:
        assert [plain(dump) for dump in found] == [plain(first), plain(third)]


def test_any_moment_is_found_without_those_before_it(tmp_path):
    dumps = moments(40)
    record(tmp_path / "r", dumps)
    with open_recording(tmp_path / "r") as found:
        for index in random.Random(2).sample(range(40), 40):
            assert plain(found[index]) == plain(dumps[index])
        assert plain(found[-1]) == plain(dumps[39])
        with pytest.raises(IndexError, match="40 moments"):
            found[40]
        assert found.seek(0) == 0
        assert found.seek(dumps[7].taken_ns) == 7
        assert found.seek(dumps[7].taken_ns + 1) == 7
        assert found.seek(2**63) == 39


def test_a_recording_that_was_cut_at_any_byte_keeps_every_whole_moment(tmp_path):
    dumps = moments(5)
    for dump in dumps:
        for device in dump.devices:
            device["cores"] = device["cores"][:4]
    sizes = record(tmp_path / "r", dumps)
    data = (tmp_path / "r").read_bytes()
    ends = [16 + sum(sizes[: n + 1]) for n in range(5)]
    assert ends[-1] == len(data)
    for length in range(len(data) + 1):
        (tmp_path / "cut").write_bytes(data[:length])
        with open_recording(tmp_path / "cut") as found:
            assert len(found) == sum(end <= length for end in ends)
    with open_recording(tmp_path / "cut") as found:
        assert plain(found[-1]) == plain(dumps[-1])


def test_a_recording_that_was_cut_is_continued(tmp_path):
    dumps = moments(6)
    record(tmp_path / "r", dumps[:3])
    data = (tmp_path / "r").read_bytes()
    for cut in (0, 5, 16, 20, len(data) - 1, len(data)):
        (tmp_path / "r").write_bytes(data[:cut])
        with open_recording(tmp_path / "r") as before:
            kept = len(before)
        record(tmp_path / "r", dumps[3:])
        with open_recording(tmp_path / "r") as found:
            assert [plain(d) for d in found] == [plain(d) for d in [*dumps[:kept], *dumps[3:]]]
            assert found.damaged_bytes == 0


def test_damage_costs_the_moments_up_to_the_next_key_frame_and_no_others(tmp_path):
    dumps = moments(9)
    with RecordingWriter(tmp_path / "r") as writer:
        sizes = [writer.write(dump, key=index % 3 == 0) for index, dump in enumerate(dumps)]
    data = bytearray((tmp_path / "r").read_bytes())
    data[16 + sum(sizes[:3]) + sizes[3] // 2] ^= 0x40
    (tmp_path / "r").write_bytes(data)
    with open_recording(tmp_path / "r") as found:
        assert [plain(dump) for dump in found] == [plain(dump) for dump in dumps[:3] + dumps[6:]]
        assert found.damaged_bytes >= sizes[3]


def test_no_damage_makes_a_reader_fail_in_another_way(tmp_path):
    dumps = moments(4)
    record(tmp_path / "r", dumps)
    data = (tmp_path / "r").read_bytes()
    rng = random.Random(3)
    for _ in range(60):
        changed = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(16, len(changed))] = rng.randrange(256)
        (tmp_path / "x").write_bytes(changed)
        with open_recording(tmp_path / "x") as found:
            for dump in found:
                assert plain(dump) in [plain(d) for d in dumps]


def test_key_frames_come_by_number_and_by_time(tmp_path):
    device = n150()
    device["cores"] = None
    with RecordingWriter(tmp_path / "r") as writer:
        for index in range(KEY_FRAMES_APART + 1):
            writer.write(Dump([device], index))
        writer.write(Dump([device], KEY_INTERVAL_NS))
        writer.write(Dump([device], 2 * KEY_INTERVAL_NS))
        # A clock that was set back must not hold key frames off.
        writer.write(Dump([device], 5))
    with open_recording(tmp_path / "r") as found:
        assert found._keys == [0, KEY_FRAMES_APART, KEY_FRAMES_APART + 2, KEY_FRAMES_APART + 3]
        assert len(found) == KEY_FRAMES_APART + 4


def test_the_last_key_frame_up_to_a_moment_is_the_last_that_tells_its_buffers(tmp_path):
    path = tmp_path / "run.ttmem"
    with RecordingWriter(path) as writer:
        for index in range(7):
            writer.write(Dump([n150(buffers=[])], 10**18 + index), key=index in (3, 4))
    with open_recording(path) as found:
        told = [index for index, dump in enumerate(found) if "buffers" in dump.devices[0]]
        assert told == [0, 3, 4]
        assert [found.key_before(index) for index in range(7)] == [0, 0, 0, 3, 4, 4, 4]


def test_two_recorders_cannot_write_one_file(tmp_path):
    with RecordingWriter(tmp_path / "r"), pytest.raises(RecordingError, match="another process records"):
        RecordingWriter(tmp_path / "r")


def test_no_other_file_is_overwritten(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(RecordingError, match="no recording"):
        RecordingWriter(tmp_path / "notes.txt")
    assert main(["-o", str(tmp_path / "notes.txt"), "--duration", "0.01"]) == 4
    assert (tmp_path / "notes.txt").read_text() == "precious"
    with pytest.raises(RecordingError, match="no recording"):
        open_recording(tmp_path / "notes.txt")
    (tmp_path / "v9").write_bytes(b"ttmemrec" + (9).to_bytes(8, "little"))
    with pytest.raises(RecordingError, match="version 9"):
        open_recording(tmp_path / "v9")


def test_published_devices_are_recorded_as_a_dump_shows_them(tmp_path):
    run, _ = replay(
        CAPTURES / "p150_transformer.json.gz",
        publish=ttmem.publish,
        arch="blackhole",
        grid=(11, 10),
        l1_cb_base=111488,
        l1_small_size=24576,
    )
    host = Host()
    with run, RecordingWriter(tmp_path / "r.ttmem") as writer:
        dump = read_host_for_recording(host)
        (snapshot,) = read_host(host=host).devices
        expected = snapshot.to_dict()
        held = len(snapshot.buffers())
        writer.write(dump)
        writer.write(dump)
    host.close()
    assert kind_of_file(tmp_path / "r.ttmem") == "recording"
    with open_recording(tmp_path / "r.ttmem") as found:
        (device,) = found[0].devices
        assert len(device.pop("buffers")) == held
        assert device.pop("buffers_omitted") == 0
        assert device == expected
        # Only key frames hold the buffers, and what is not known is not there.
        assert found[1].devices == [expected]


def test_a_moment_like_one_before_takes_less_than_50_bytes(tmp_path):
    dumps = [Dump([p150(i) for i in range(32)], 10**18 + n) for n in range(3)]
    assert all(size < 50 for size in record(tmp_path / "r", dumps)[1:])


def test_programs_that_are_made_again_with_new_ids_are_not_stored_again(tmp_path):
    a, b = n150(), n150()
    for row in b["programs"]:
        row["program_id"] += 10**6
    sizes = record(tmp_path / "r", [Dump([a], 1), Dump([b], 2)])
    assert sizes[1] < 60
    with open_recording(tmp_path / "r") as found:
        assert found[1].devices == [b]


# The command.


def test_the_command_records_and_says_what(tmp_path, capsys):
    with ttmem.publish(0, **N150) as pub:
        pub.allocate("DRAM", 4096, name="weights")
        file = str(tmp_path / "r.ttmem")
        assert main(["-o", file, "--interval", "0.01", "--duration", "0.05", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        with open_recording(file) as found:
            assert told["moments"] == len(found) >= 2
            assert told["size_bytes"] == os.path.getsize(file)
            for index in (0, -1):
                assert found[index].devices[0]["buffers"][0]["name"] == "weights"


def test_a_recorder_that_is_stopped_ends_well_and_one_that_is_killed_leaves_a_recording(tmp_path):
    with ttmem.publish(0, **N150) as pub:
        pub.allocate("DRAM", 4096)
        for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -signal.SIGKILL)):
            file = tmp_path / f"r{int(number)}"
            code_text = "import sys; from ttmem.cli.record import main; sys.exit(main(sys.argv[1:]))"
            command = [sys.executable, "-c", code_text, "-o", str(file), "-i", "0.01"]
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
                while not (file.exists() and file.stat().st_size > 2000):
                    assert process.poll() is None
                process.send_signal(number)
                _, err = process.communicate(timeout=30)
            assert process.returncode == code, err
            assert "Traceback" not in err
            with open_recording(file) as found:
                assert found[-1].devices[0]["memory"]["dram"]["used_bytes"] == 4096


def test_without_any_device_the_end_is_1(tmp_path, capsys):
    assert main(["-o", str(tmp_path / "r"), "-i", "0.01", "--duration", "0.02"]) == 1
    assert "no device is published yet" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["--export", "csv"], ["x", "--export", "xml"], ["-o", "x", "-i", "0"], ["x"]])
def test_wrong_usage_ends_with_2(argv, capsys):
    assert main(argv) == 2
    assert "usage" in capsys.readouterr().err


def test_a_recording_is_compared_with_itself_and_names_what_leaked(tmp_path, capsys):
    host = Host()
    with ttmem.publish(0, **N150) as pub, RecordingWriter(tmp_path / "r") as writer:
        writer.write(read_host_for_recording(host))
        pub.allocate("DRAM", 4096, name="ttnn.matmul")
        writer.write(read_host_for_recording(host), key=True)
    host.close()
    assert diff_main([str(tmp_path / "r"), "--fail-on-leak", "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["devices"][0]["leaks"][0]["buffers"][0]["name"] == "ttnn.matmul"


# Export.


def test_a_chrome_trace_has_a_counter_track_for_each_figure(tmp_path):
    dumps = moments(10)
    record(tmp_path / "r", dumps)
    out = io.StringIO()
    with open_recording(tmp_path / "r") as found:
        count = write_chrome(found, out)
    events = json.loads(out.getvalue())["traceEvents"]
    assert len(events) == count
    names = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    assert names[0].startswith("Device 0 (0x")
    dram = [(e["ts"], e["args"]["used"]) for e in events if e["ph"] == "C" and e["pid"] == 0 and e["name"] == "DRAM"]
    for index, dump in enumerate(dumps):
        for device in dump.devices:
            if device["device_id"] == 0:
                before = [used for at, used in dram if at <= index * 100_000]
                assert before[-1] == device["memory"]["dram"]["used_bytes"]


def test_a_table_has_a_row_for_each_moment_and_device(tmp_path):
    dumps = moments(10)
    record(tmp_path / "r", dumps)
    out = io.StringIO()
    with open_recording(tmp_path / "r") as found:
        assert write_csv(found, out) == sum(len(dump.devices) for dump in dumps)
    rows = list(csv.DictReader(io.StringIO(out.getvalue())))
    pairs = [(dump, device) for dump in dumps for device in dump.devices]
    for row, (dump, device) in zip(rows, pairs, strict=True):
        assert int(row["taken_ns"]) == dump.taken_ns
        for name in COLUMNS[:-1]:
            kind, _, figure = name.partition(".")
            value = device["memory"].get(kind, {}).get(figure)
            assert row[name] == ("" if value is None else str(value))
        known = [core["headroom_bytes"] for core in device["cores"] or () if core["headroom_bytes"] is not None]
        assert row[COLUMNS[-1]] == (str(min(known)) if known else "")


def test_the_command_exports_to_a_file_and_to_stdout(tmp_path, capsys):
    record(tmp_path / "r", moments(4))
    assert main([str(tmp_path / "r"), "--export", "csv"]) == 0
    assert capsys.readouterr().out.startswith("taken_ns,device_id")
    assert main([str(tmp_path / "r"), "--export", "chrome", "-o", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["traceEvents"]
    assert main([str(tmp_path / "r"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["moments"] == 4
