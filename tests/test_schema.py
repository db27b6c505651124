"""What `ttmem-dump --json` prints is what ttmem/schema.json says, and `--csv` holds the same numbers."""

from __future__ import annotations

import copy
import csv
import functools
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import ttmem
from ttmem.cli import dump as command
from ttmem.replay import replay

CAPTURES = Path(__file__).parent / "captures"
GRAPHS = sorted([p for p in CAPTURES.glob("*.json") if ".meta." not in p.name] + list(CAPTURES.glob("*.json.gz")))
REGIONS = sorted(CAPTURES.glob("*.bin"))
SCHEMA = json.loads((Path(ttmem.__file__).parent / "schema.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA)
publish_replay = functools.partial(ttmem.publish, origin="replay")
WORMHOLE = {"arch": "wormhole_b0", "grid": (8, 9), "l1_cb_base": 105664, "l1_small_size": 24576}
CORE_COLUMNS = {
    "cb_physical_bytes": "cb_physical_bytes",
    "cb_logical_bytes": "cb_logical_bytes",
    "cb_resident_bytes": "cb_resident_bytes",
    "cb_region_end": "cb_region_end",
    "l1_used_bytes": "used_bytes",
    "l1_lowest_address": "lowest_address",
    "headroom_bytes": "headroom_bytes",
}
"""The columns of `--csv` that tell the least and the largest of a figure of the cores."""


@pytest.fixture(autouse=True)
def shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TTMEM_SHM_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        capsys.readouterr()
        command.main(list(arguments))
        return capsys.readouterr().out

    return run


def faults(found: Any) -> list[str]:
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in VALIDATOR.iter_errors(found)]


def dump_of(shown: Callable[..., str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shown("--json"))
    assert faults(found) == []
    return found


def test_the_schema_is_a_schema_and_every_reference_leads_somewhere():
    Draft202012Validator.check_schema(SCHEMA)
    text = json.dumps(SCHEMA)
    for name in SCHEMA["$defs"]:
        assert f'"#/$defs/{name}"' in text
    assert text.count('"$ref"') == sum(text.count(f'"#/$defs/{name}"') for name in SCHEMA["$defs"])


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda path: path.name.partition(".")[0])
@pytest.mark.parametrize("told", [WORMHOLE, {}], ids=["geometry", "no-geometry"])
def test_a_replayed_capture_is_as_the_schema_says(graph, told, shown):
    if told and graph.name.startswith("p1"):
        told = {"arch": "blackhole", "grid": (13, 10), "l1_cb_base": 111488, "l1_small_size": 24576}
    run, _ = replay(graph, publish=publish_replay, **told)
    try:
        devices = dump_of(shown)["devices"]
    finally:
        run.close()
    assert {(device["origin"], device["state"]) for device in devices} == {("replay", "live")}
    assert {device["grid"] is None for device in devices} == {not told}


@pytest.mark.parametrize("region", REGIONS, ids=lambda path: path.name.removesuffix("_memory.bin"))
def test_a_region_of_tt_metal_is_as_the_schema_says(region, shm, shown):
    shutil.copy(region, shm / region.name.partition(".")[2].removesuffix(".bin"))
    (device,) = dump_of(shown)["devices"]
    assert (device["source"], device["cores"], device["buffers"]) == ("tt-metal", None, None)


@pytest.mark.parametrize(
    "content", [b"", bytes(100), bytes(8576), b"\xff" * 8576], ids=["empty", "short", "zero", "ones"]
)
def test_a_region_that_cannot_be_read_is_as_the_schema_says(content, shm, shown):
    (shm / "tt_device_7_memory").write_bytes(content)
    (device,) = dump_of(shown)["devices"]
    assert device["state"] in ("initializing", "foreign-version", "unreadable")


@pytest.mark.parametrize("geometry", [WORMHOLE, {}], ids=["geometry", "no-geometry"])
def test_a_stale_device_is_as_the_schema_says(geometry, shown):
    script = (
        "import os, ttmem\n"
        f"pub = ttmem.publish(3, **{geometry!r})\n"
        "pub.allocate('DRAM', 4096, name='left behind')\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    (device,) = dump_of(shown)["devices"]
    assert (device["state"], device["processes"][0]["state"]) == ("stale", "stale")


def test_a_published_device_with_a_bit_of_everything_is_as_the_schema_says(shown):
    with ttmem.publish(0, asic_id=2**64 - 1, dram_size=2**34, trace_region_size=2**20, **WORMHOLE) as pub:
        program = pub.add_program([ttmem.CircularBuffer(105664, 4096, "{[0-0 - 7-7]}")], name="Add")
        pub.dispatch(program)
        # It reaches down to where the program is: the headroom is negative, and there is overlap.
        pub.allocate("L1", 72 * 2048, address=105664, size_per_bank=2048)
        pub.allocate("TRACE", 2**21)
        pub.load_kernel(1024)
        (device,) = dump_of(shown)["devices"]
    assert [row["buffer_type"] for row in device["buffers"]] == ["L1", "TRACE"]
    assert device["buffers_omitted"] == 0
    assert min(core["headroom_bytes"] for core in device["cores"]) == -4096
    assert device["memory"]["trace"]["free_bytes"] == -(2**20)


def test_a_host_without_devices_is_as_the_schema_says(shown):
    assert dump_of(shown)["devices"] == []


@pytest.fixture
def whole(shown: Callable[..., str]) -> Iterator[dict[str, Any]]:
    run, _ = replay(CAPTURES / "n150_mlp.json", publish=publish_replay, **WORMHOLE)
    yield dump_of(shown)
    run.close()


@pytest.mark.parametrize(
    "path",
    [
        ("schema",), ("host",), ("taken_ns",), ("devices",),
        *[("devices", 0, name) for name in (
            "device_id", "asic_id", "arch", "source", "state", "grid", "updated_ns", "consistent", "memory",
            "l1_accounting", "cores", "programs", "processes",
        )],
        ("devices", 0, "grid", "y"),
        *[("devices", 0, "memory", kind) for kind in ("dram", "l1", "l1_small", "trace", "cb", "kernel")],
        ("devices", 0, "memory", "trace", "peak_bytes"),
        ("devices", 0, "memory", "cb", "resident_bytes"),
        ("devices", 0, "l1_accounting", "overlap_bytes"),
        ("devices", 0, "cores", 5, "headroom_bytes"),
        ("devices", 0, "programs", 0, "count"),
        ("devices", 0, "processes", 0, "kernel_bytes"),
    ],
    ids=lambda path: ".".join(map(str, path)),
)  # fmt: skip
def test_what_lacks_a_member_or_has_a_text_for_a_number_does_not_pass(path, whole):
    *parents, name = path
    damaged = copy.deepcopy(whole)
    parent = damaged
    for step in parents:
        parent = parent[step]
    value = parent.pop(name)
    assert faults(damaged)
    # A name, an id and an architecture are texts anyway: those get a number instead.
    parent[name] = 1.5 if isinstance(value, str) or name == "asic_id" else "12"
    assert faults(damaged)
    parent[name] = value
    assert faults(damaged) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("state",), "dead"), (("source",), "elsewhere"), (("origin",), "dream"), (("arch",), "volta"),
        (("asic_id",), "4660"), (("memory", "cb", "physical_bytes"), -1), (("memory", "cb", "physical_bytes"), 1.5),
        (("memory", "cb", "used_bytes"), 1), (("cores", 0, "z"), 0), (("processes", 0, "state"), "idle"),
        (("warnings",), "one"), (("memory", "dram", "used_bytes"), True),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_does_not_pass(path, value, whole):
    *parents, name = path
    parent = whole["devices"][0]
    for step in parents:
        parent = parent[step]
    parent[name] = value
    assert faults(whole)


def test_devices_and_programs_may_gain_members(whole):
    whole["devices"][0]["clock_mhz"] = whole["devices"][0]["programs"][0]["runs"] = 1000
    assert faults(whole) == []


# --csv


def scalars(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, member in value.items():
            yield from scalars(member, f"{path}.{name}" if path else name)
    elif not isinstance(value, list):
        yield path, value


def expected_row(device: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a device, worked out from its JSON alone."""
    left_out = ("region", "buffers", "buffers_omitted")
    row = dict(scalars({name: value for name, value in device.items() if name not in left_out}))
    for name in ("cores", "programs", "processes"):
        rows = device[name]
        row.pop(name, None)
        row[f"{name}.count"] = None if rows is None else len(rows)
    if device["programs"] is not None:
        # A row stands for all programs that are alike; those that are not listed count, too.
        row["programs.count"] = sum(row["count"] for row in device["programs"]) + device["programs_omitted"]
    grid = device["grid"]
    row["grid"] = None if grid is None else f"{grid['x']}x{grid['y']}"
    if grid is None:
        row["grid.x"] = row["grid.y"] = None
    row.setdefault("programs_omitted", None)
    row["warnings"] = "; ".join(device["warnings"])
    for figure, column in CORE_COLUMNS.items():
        values = [core[figure] for core in device["cores"] or () if core[figure] is not None]
        row[f"l1.core.min_{column}"] = min(values, default=None)
        row[f"l1.core.max_{column}"] = max(values, default=None)
    return row


def cell(value: Any) -> str:
    return "N/A" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def check_csv(shown: Callable[..., str]) -> None:
    devices = dump_of(shown)["devices"]
    rows = list(csv.DictReader(io.StringIO(shown("--csv"))))
    assert rows == [{name: cell(value) for name, value in expected_row(device).items()} for device in devices]


@pytest.mark.parametrize("name", ["n150_mlp.json", "n150_conv.json.gz", "t3k_mesh_transformer.json.gz"])
@pytest.mark.parametrize("geometry", [WORMHOLE, {}], ids=["geometry", "no-geometry"])
def test_csv_has_a_column_for_each_field_and_the_numbers_of_the_json(name, geometry, shown):
    run, _ = replay(CAPTURES / name, publish=publish_replay, **geometry)
    try:
        check_csv(shown)
    finally:
        run.close()


def test_csv_of_a_region_has_the_numbers_of_the_json(shm, shown):
    shutil.copy(CAPTURES / "n150_mlp.tt_device_0_memory.bin", shm / "tt_device_0_memory")
    check_csv(shown)
