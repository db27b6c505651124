"""Reports for ttnn-visualizer: what its tables get, and that ttmem reads the same out of them again."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from made_devices import N150

import ttmem
from ttmem.dumps import Dump, DumpError, buffers_of, read_dump
from ttmem.visualizer import write_visualizer


@pytest.fixture
def published():
    """A device with two programs and three buffers, published while the test lasts."""
    with ttmem.publish(0, **N150) as pub:
        first = [
            ttmem.CircularBuffer(105664, 4096, "{[0-0 - 7-7]}"),
            ttmem.CircularBuffer(109760, 2048, "{[1-1 - 2-2]}"),
        ]
        pub.dispatch(pub.add_program(first, name="Add"))
        pub.add_program([ttmem.CircularBuffer(105664, 8192, "{[0-0 - 0-3]}", kind="dataflow_buffer")], name="Matmul")
        pub.allocate("L1", 64 * 30720, address=1443840, size_per_bank=30720, name="weights")
        pub.allocate("L1_SMALL", 64 * 32, address=1474560, size_per_bank=32)
        pub.allocate("DRAM", 4096)
        yield pub


def dump_of(pub) -> Dump:
    snapshot = pub.snapshot()
    return Dump([{**buffers_of(snapshot), **snapshot.to_dict()}])


def test_every_program_is_an_operation_with_its_circular_buffers_and_all_live_buffers(published, tmp_path):
    assert write_visualizer(dump_of(published), tmp_path / "report", name="mine") == 3
    assert json.loads((tmp_path / "report" / "config.json").read_text())["report_name"] == "mine"
    connection = sqlite3.connect(tmp_path / "report" / "db.sqlite")
    operations = dict(connection.execute("SELECT operation_id, name FROM operations"))
    assert sorted(operations.values()) == ["Add", "Matmul", "ttmem: live buffers"]
    rows = connection.execute("SELECT operation_id, device_id, address, max_size_per_bank, buffer_type FROM buffers")
    # A buffer in DRAM without an address lies nowhere.
    buffers = [(0, 1443840, 30720, 1), (0, 1474560, 32, 3)]
    assert sorted(rows) == [(operation, *buffer) for operation in (1, 2, 3) for buffer in buffers]
    laid_out = {}
    for operation, text in connection.execute("SELECT operation_id, captured_graph FROM captured_graph"):
        nodes = json.loads(text)
        assert [node["counter"] for node in nodes] == list(range(len(nodes)))
        laid_out[operations[operation]] = [
            (node["node_type"], node["params"]["address"], node["params"]["size"], node["params"]["core_range_set"])
            for node in nodes
            if node["node_type"].endswith("_buffer_allocate")
        ]
    assert laid_out == {
        "ttmem: live buffers": [],
        "Add": [
            ("circular_buffer_allocate", 105664, 4096, "{[0-0 - 7-7]}"),
            ("circular_buffer_allocate", 109760, 2048, "{[1-1 - 2-2]}"),
        ],
        "Matmul": [("dataflow_buffer_allocate", 105664, 8192, "{[0-0 - 0-3]}")],
    }
    (device,) = connection.execute(
        "SELECT num_x_compute_cores, num_y_compute_cores, worker_l1_size, address_at_first_l1_cb_buffer, l1_bank_size, "
        "cb_limit FROM devices"
    )
    assert device == (8, 8, 1499136, 105664, 1499136 - 105664 - 24576, 1499136 - 105664)
    connection.close()


def test_what_was_written_reads_back_as_it_was(published, tmp_path):
    write_visualizer(dump_of(published), tmp_path)
    before, (after,) = published.snapshot().to_dict(), read_dump(tmp_path / "db.sqlite").devices
    assert after["memory"]["cb"]["physical_bytes"] == before["memory"]["cb"]["physical_bytes"]
    assert after["memory"]["cb"]["logical_bytes"] == before["memory"]["cb"]["logical_bytes"]
    assert after["l1_accounting"] == before["l1_accounting"]
    for name in ("cb_physical_bytes", "cb_region_end", "l1_lowest_address", "headroom_bytes"):
        assert [core[name] for core in after["cores"]] == [core[name] for core in before["cores"]]


def test_a_report_is_never_written_over_another(published, tmp_path):
    write_visualizer(dump_of(published), tmp_path)
    with pytest.raises(FileExistsError):
        write_visualizer(dump_of(published), tmp_path)


def test_without_a_geometry_nothing_is_written(tmp_path):
    with ttmem.publish(0) as pub, pytest.raises(DumpError, match="geometry"):
        write_visualizer(dump_of(pub), tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_the_verb_writes_what_is_live_what_a_file_holds_and_says_what_it_cannot(published, tmp_path, command):
    live = command("export", "--visualizer", tmp_path / "live", "-d", "0", "--json")
    assert (live.returncode, json.loads(live.stdout)["operations"]) == (0, 3)
    again = command("export", "--visualizer", tmp_path / "live", "-d", "0")
    assert again.returncode == 2
    assert "name a new folder" in again.stderr
    report = Path(__file__).parent / "reports" / "add_matmul.sqlite"
    done = command("export", report, "--visualizer", tmp_path / "copy")
    assert (done.returncode, done.stdout) == (0, "")
    assert command("export", report).returncode == 2
    capture = Path(__file__).parent / "captures" / "n150_mlp.json"
    assert command("export", capture, "--visualizer", tmp_path / "none").returncode == 4
    assert command("export", tmp_path / "absent", "--visualizer", tmp_path / "none").returncode == 1
