"""Reports of ttnn and TT-Metal as dumps; the bundled ones were written by ttnn 0.77.0 (an add, a matmul, a free)."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ttmem
from ttmem.dumps import DumpError, kind_of_file, read_dump

REPORTS = Path(__file__).parent / "reports"
DATABASE, TABLE = REPORTS / "add_matmul.sqlite", REPORTS / "detailed_memory_usage.csv"


def test_a_database_is_the_state_after_its_last_operation():
    assert kind_of_file(DATABASE) == "dump"
    dump = read_dump(DATABASE)
    assert dump.taken_ns == 1795240405567807532
    (device,) = dump.devices
    # The arch stands in the cluster descriptor beside it.
    assert (device["device_id"], device["arch"], device["grid"]) == (0, "wormhole_b0", {"x": 8, "y": 8})
    assert device["origin"] == "replay"
    memory = device["memory"]
    # Three CBs of 4,096 on 64 cores, which those of the matmul on four of them reuse.
    assert memory["cb"]["physical_bytes"] == 64 * 3 * 4096
    assert memory["cb"]["logical_bytes"] == (64 + 4) * 3 * 4096
    # Of 64 x 64 tensors in bfloat16 one lies in DRAM and two in L1, and one was freed.
    assert (memory["dram"]["used_bytes"], memory["l1"]["used_bytes"]) == (8192, 2 * 8192)
    assert (memory["l1_small"]["total_bytes"], memory["trace"]["total_bytes"]) == (64 * 24576, None)
    assert min(core["l1_lowest_address"] for core in device["cores"]) == 1470464
    assert {core["cb_region_end"] for core in device["cores"]} == {105664 + 3 * 4096}
    assert [row["name"] for row in device["programs"]] == ["BinaryNgDeviceOperation", "MatmulDeviceOperation"]
    parts = device["l1_accounting"]
    added = sum(parts[f"{name}_bytes"] for name in ("reserved", "cb", "buffer", "l1_small", "free"))
    assert parts["total_bytes"] == added - parts["overlap_bytes"] == 64 * 1499136


def test_a_memory_report_has_totals_and_blocks_and_claims_nothing_else():
    assert kind_of_file(TABLE) == "dump"
    (device,) = read_dump(TABLE).devices
    memory = device["memory"]
    dram = [memory["dram"][f"{name}_bytes"] for name in ("used", "total", "free", "peak")]
    assert dram == [24576, 12872318208, 12872293632, None]
    assert (memory["l1"]["used_bytes"], memory["l1_small"]["used_bytes"]) == (64 * 4096, 0)
    assert (memory["trace"]["used_bytes"], memory["cb"]["physical_bytes"]) == (None, None)
    assert (device["cores"], device["programs"], device["arch"]) == (None, None, None)
    blocks = [(row["buffer_type"], row["size_per_bank"], row["size_bytes"]) for row in device["buffers"]]
    assert blocks == [("DRAM", 2048, 12 * 2048), ("L1", 2048, 64 * 2048), ("L1", 2048, 64 * 2048)]


@pytest.mark.parametrize("path", [DATABASE, TABLE], ids=lambda path: path.name)
def test_the_commands_take_a_report_where_they_take_a_dump(command, path):
    shown = command("dump", path, "--json")
    assert shown.returncode == 0
    schema = json.loads((Path(ttmem.__file__).parent / "schema.json").read_text())
    jsonschema.validate(json.loads(shown.stdout), schema)
    assert command("dump", path, "--processes").returncode == 0
    same = command("diff", path, path, "--json")
    assert same.returncode == 0
    explained = command("explain", path, "--json")
    # A memory report tells neither cores nor programs.
    assert explained.returncode == (0 if path == DATABASE else 1)
    if path == DATABASE:
        rows = json.loads(explained.stdout)["programs"]
        assert [row["headroom_bytes"] for row in rows] == [1470464 - 117952] * 2


def test_an_older_database_without_newer_columns_and_descriptor_is_read(tmp_path):
    path = tmp_path / "db.sqlite"
    shutil.copy(DATABASE, path)
    with sqlite3.connect(path) as connection:
        for column in ("rank", "buffer_layout"):
            connection.execute(f"ALTER TABLE buffers DROP COLUMN {column}")
        connection.execute("ALTER TABLE devices DROP COLUMN num_storage_cores")
        connection.execute("DROP TABLE report_metadata")
        connection.execute("DROP TABLE captured_graph")
    connection.close()
    dump = read_dump(path)
    assert dump.taken_ns is None
    (device,) = dump.devices
    assert device["arch"] is None
    assert device["memory"]["cb"]["physical_bytes"] == 0
    # Whole sizes stand in the graph only.
    assert device["memory"]["l1"]["used_bytes"] is None
    assert {row["address"] for row in device["buffers"] if row["buffer_type"] == "L1"} == {1470464, 1472512}


def test_without_detailed_tracing_the_totals_of_buffers_are_unknown_and_why_is_said(tmp_path):
    path = tmp_path / "db.sqlite"
    shutil.copy(DATABASE, path)
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM buffer_chunks")
    connection.close()
    (device,) = read_dump(path).devices
    assert {device["memory"][name]["used_bytes"] for name in ("dram", "l1", "l1_small", "trace")} == {None}
    assert device["memory"]["cb"]["physical_bytes"] == 64 * 3 * 4096
    assert "enable_detailed_buffer_tracing" in device["warnings"][-1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (DATABASE.read_bytes()[:30000], "cannot read the report"),
        (b"SQLite format 3\0", "cannot read the report"),
        (b",DRAM\n,Total allocatable (B):,x\n", "has no figures"),
        (TABLE.read_bytes() + TABLE.read_bytes(), "several devices"),
    ],
    ids=["cut", "header only", "no figures", "two devices"],
)
def test_what_is_no_whole_report_is_refused_with_the_reason(tmp_path, command, content, reason):
    path = tmp_path / "report"
    path.write_bytes(content)
    done = command("explain", path)
    assert (done.returncode, done.stdout) == (4, "")
    assert "Traceback" not in done.stderr
    assert reason in done.stderr


def test_a_database_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (a)")
    connection.close()
    with pytest.raises(DumpError, match="without devices"):
        read_dump(path)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_makes_anything_but_a_dump_or_a_refusal(tmp_path, data):
    source = data.draw(st.sampled_from([DATABASE, TABLE]))
    content = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        content[data.draw(st.integers(16, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with contextlib.suppress(DumpError):
        json.dumps(read_dump(path).to_dict())
