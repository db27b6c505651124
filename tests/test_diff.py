"""What `diff` says of two moments."""

from __future__ import annotations

import copy
import json

import pytest
from made_devices import N150, n150

import ttmem
from ttmem.cli.diff import main
from ttmem.cli.dump import main as dump_main
from ttmem.diff import diff
from ttmem.dumps import Dump, DumpError, dump_of_text, kind_of_file, read_dump, read_live

pytestmark = pytest.mark.usefixtures("directory")


def save(path, dump):
    path.write_text(json.dumps(dump.to_dict()))
    return str(path)


def answer(capsys, *argv, code):
    found = main([*argv, "--json"])
    out, err = capsys.readouterr()
    assert found == code, err
    return json.loads(out), err


def test_a_buffer_that_stays_is_a_leak_named_by_its_maker(capsys, tmp_path):
    with ttmem.publish(0, **N150) as pub:
        pub.allocate("L1", 4096, address=1000000, size_per_bank=64, name="weights")
        a = save(tmp_path / "a.json", read_live())
        pub.allocate("DRAM", 1000, name="ttnn.matmul")
        pub.allocate("DRAM", 500, name="ttnn.matmul")
        pub.deallocate(pub.allocate("DRAM", 700, name="ttnn.add"))
        b = save(tmp_path / "b.json", read_live())
    found, err = answer(capsys, a, b, "--fail-on-leak", code=3)
    assert found["leak_bytes"] == 1500
    (leak,) = found["devices"][0]["leaks"]
    assert (leak["type"], leak["bytes"]) == ("dram", 1500)
    (group,) = leak["buffers"]
    assert (group["name"], group["count"]["delta"], group["size_bytes"]["delta"]) == ("ttnn.matmul", 2, 1500)
    assert "dram" in err
    assert found["devices"][0]["oldest_buffers"][0]["name"] == "weights"
    assert found["devices"][0]["oldest_buffers"][0]["age_ns"] >= 0


def test_two_plain_dumps_name_a_leak_and_the_oldest_live_buffers(capsys, tmp_path):
    def dumped(name):
        assert dump_main(["--json"]) == 0
        (tmp_path / name).write_text(capsys.readouterr().out)
        return str(tmp_path / name)

    with ttmem.publish(0, **N150) as pub:
        pub.allocate("DRAM", 4096, name="weights")
        pub.deallocate(pub.allocate("DRAM", 4096, name="freed"))
        a = dumped("a.json")
        pub.allocate("L1", 64 * 2048, address=1400000, size_per_bank=2048, name="ttnn.matmul")
        b = dumped("b.json")
    found, err = answer(capsys, a, b, "--fail-on-leak", code=3)
    assert "cannot be named" not in err
    (device,) = found["devices"]
    (leak,) = device["leaks"]
    assert [(row["name"], row["size_bytes"]["delta"]) for row in leak["buffers"]] == [("ttnn.matmul", 64 * 2048)]
    dump = json.loads((tmp_path / "b.json").read_text())
    allocated = {row["name"]: row["allocated_ns"] for row in dump["devices"][0]["buffers"]}
    assert [(row["name"], row["age_ns"]) for row in device["oldest_buffers"]] == [
        (name, max(0, dump["taken_ns"] - allocated[name])) for name in ("weights", "ttnn.matmul")
    ]


def test_buffers_beyond_the_table_are_counted_and_a_diff_says_that_they_are_not_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("ttmem.dumps.BUFFERS_MAX", 3)
    with ttmem.publish(0, **N150) as pub:
        a = save(tmp_path / "a.json", read_live())
        for size in range(1, 6):
            pub.allocate("DRAM", size, name=f"b{size}")
        dump = read_live()
        b = save(tmp_path / "b.json", dump)
    assert [row["name"] for row in dump.devices[0]["buffers"]] == ["b5", "b4", "b3"]
    assert dump.devices[0]["buffers_omitted"] == 2
    _, err = answer(capsys, a, b, code=0)
    assert "2 of its live buffers" in err


def test_without_the_option_a_leak_is_shown_and_the_end_is_0(capsys, tmp_path):
    with ttmem.publish(0, **N150) as pub:
        a = save(tmp_path / "a.json", read_live())
        pub.allocate("DRAM", 2**20, name="ttnn.matmul")
        b = save(tmp_path / "b.json", read_live())
    assert main([a, b]) == 0
    out = capsys.readouterr().out
    assert "Device 0:" in out
    assert "+1.0 MiB" in out
    assert "+1 DRAM  ttnn.matmul" in out
    assert main([a, b, "--fail-on-leak", "--tolerance", "1MiB"]) == 0
    assert main([b, a, "--fail-on-leak"]) == 0


def test_growth_of_the_program_cache_is_no_leak(capsys, tmp_path):
    with ttmem.publish(0, **N150) as pub:
        pub.add_program([ttmem.CircularBuffer(105664, 4096, "{[0-0 - 7-7]}")], name="matmul")
        a = save(tmp_path / "a.json", read_live())
        pub.add_program([ttmem.CircularBuffer(109760, 4096, "{[0-0 - 7-7]}")], name="softmax")
        pub.add_program([ttmem.CircularBuffer(105664, 4096, "{[0-0 - 7-7]}")], name="matmul")
        b = save(tmp_path / "b.json", read_live())
    found, _ = answer(capsys, a, b, "--fail-on-leak", code=0)
    (device,) = found["devices"]
    assert device["leaks"] == []
    cache = device["program_cache"]
    assert cache["programs"] == {"before": 1, "after": 3, "delta": 2}
    assert cache["cb_growth_bytes"] == 64 * 4096
    assert {row["name"]: row["count"]["delta"] for row in cache["changed"]} == {"matmul": 1, "softmax": 1}
    assert main([a, b]) == 0
    assert "kept on purpose, no leak" in " ".join(capsys.readouterr().out.split())


def test_processes_that_came_and_went_are_listed():
    old, new = n150(), n150()
    old["processes"] = [{"pid": 1, "name": "a", "state": "live", "dram_bytes": 10}]
    new["processes"] = [
        {"pid": 1, "name": "a", "state": "stale", "dram_bytes": 10},
        {"pid": 2, "name": "b", "state": "live", "dram_bytes": 7},
    ]
    rows = {row["pid"]: row for row in diff(Dump([old]), Dump([new]))[0].to_dict()["processes"]}
    assert (rows[1]["state_before"], rows[1]["state_after"]) == ("live", "stale")
    assert (rows[2]["state_before"], rows[2]["state_after"]) == (None, "live")
    assert rows[2]["dram_bytes"]["delta"] == 7


def test_devices_are_matched_by_chip_and_else_by_id():
    a, b = n150(0), n150(0)
    b["device_id"] = 5
    (found,) = diff(Dump([a]), Dump([b]))
    assert (found.presence, found.device_id) == ("both", 5)
    b["asic_id"] = "0x77"
    assert [f.presence for f in diff(Dump([a]), Dump([b]))] == ["a", "b"]
    a["asic_id"] = None
    b["device_id"] = 0
    assert [f.presence for f in diff(Dump([a]), Dump([b]))] == ["both"]


def test_two_equal_dumps_differ_in_nothing():
    device = n150()
    (found,) = diff(Dump([device]), Dump([copy.deepcopy(device)]))
    assert found.leaks == {}
    assert found.programs == []
    assert found.processes == []
    assert all(change.delta == 0 for change in found.memory.values())


def test_an_unknown_figure_is_neither_growth_nor_zero():
    old, new = n150(), n150()
    old["memory"]["trace"]["used_bytes"] = None
    new["memory"]["trace"]["used_bytes"] = 5
    (found,) = diff(Dump([old]), Dump([new]))
    assert found.memory["trace"].delta is None
    assert "trace" not in found.leaks


def test_a_dump_without_buffers_says_why_nothing_is_named(capsys, tmp_path):
    old, new = n150(), n150()
    new["memory"]["dram"]["used_bytes"] += 1
    a, b = save(tmp_path / "a.json", Dump([old])), save(tmp_path / "b.json", Dump([new]))
    _, err = answer(capsys, a, b, "--fail-on-leak", code=3)
    assert "cannot be named" in err


@pytest.mark.parametrize(
    "text", ["", "nonsense", "{}", "[1]", '{"devices": 1}', '{"schema": 1, "devices": [{"cores": 1}]}']
)
def test_what_is_no_dump_is_refused(text, tmp_path):
    with pytest.raises(DumpError):
        dump_of_text(text, "x")
    file = tmp_path / "x.json"
    file.write_text(text)
    assert main([str(file), str(file)]) == 4


def test_a_missing_file_ends_with_1(capsys):
    assert main(["/nonexistent/a.json", "/nonexistent/b.json"]) == 1
    assert "/nonexistent/a.json" in capsys.readouterr().err


def test_of_dumps_one_a_line_the_last_whole_one_counts():
    lines = "\n".join(json.dumps(Dump([n150(i)]).to_dict()) for i in range(3))
    assert dump_of_text(lines + '\n{"sche', "x").devices[0]["device_id"] == 2


def test_a_dump_is_told_from_a_capture_and_a_report(tmp_path):
    for name, text, kind in (
        ("d", json.dumps(Dump([n150()]).to_dict()), "dump"),
        ("c", "[]", "capture"),
        ("r", '{"version": 1, "devices": [], "graph": []}', "capture"),
    ):
        (tmp_path / name).write_text(text)
        assert kind_of_file(tmp_path / name) == kind
    assert read_dump(tmp_path / "d").devices[0]["device_id"] == 0
