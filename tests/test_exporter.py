"""ttmem-exporter: what Prometheus gets equals the JSON of the same devices, and unknown is never 0."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from made_devices import n150, p150, tt_metal
from prometheus_client import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

import ttmem
from ttmem.cli.dump import main as dump_main
from ttmem.cli.exporter import main
from ttmem.dumps import read_live
from ttmem.exporter import DeviceCollector, registry_of
from ttmem.reader import HostReading
from ttmem.snapshot import Snapshot

ROOT = Path(__file__).parent.parent
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
GEOMETRY: dict[str, Any] = {
    "arch": "wormhole_b0",
    "asic_id": 0xA0,
    "grid": (8, 8),
    "l1_cb_base": 105664,
    "l1_small_size": 24576,
    "dram_size": 12 * 1024**3,
    "trace_region_size": 0,
}


@pytest.fixture(autouse=True)
def shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TTMEM_SHM_DIR", str(tmp_path))
    monkeypatch.delenv("TTMEM_NAMESPACE", raising=False)
    monkeypatch.delenv("TTMEM_DISABLE", raising=False)
    return tmp_path


@pytest.fixture
def device() -> Iterator[ttmem.Publisher]:
    with ttmem.publish(3, **GEOMETRY) as publisher:
        cores = ttmem.CoreRange(ttmem.CoreCoord(0, 0), ttmem.CoreCoord(5, 3))
        program = publisher.add_program([ttmem.CircularBuffer(105664, 65536, cores)], name="matmul")
        publisher.add_program([ttmem.CircularBuffer(105664, 131072, cores)], name="softmax")
        publisher.dispatch(program)
        publisher.allocate(ttmem.BufferType.L1, 64 * 2048, address=1400000, size_per_bank=2048)
        publisher.allocate(ttmem.BufferType.DRAM, 777216)
        publisher.load_kernel(4096, persistent=True)
        yield publisher


@contextmanager
def serving(*options: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """A real ttmem-exporter on a free port; gives its address and process."""
    code = "import sys; from ttmem.cli.exporter import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--listen", "127.0.0.1:0", *options],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "serving http://127.0.0.1:" in line, line
        yield line.split()[-1].removesuffix("/metrics"), process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(30)
        if process.stderr is not None:
            process.stderr.close()


def get(url: str, accept: str = "") -> tuple[int, str, str]:
    request = urllib.request.Request(url, headers={"Accept": accept} if accept else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.headers["Content-Type"], response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def samples(text: str, parser: Any = parse) -> Samples:
    found: Samples = {}
    for family in parser(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, f"two samples of {key}"
            found[key] = sample.value
    return found


def value(found: Samples, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


def exported(*devices: dict[str, Any], problems: list[str] | None = None, **options: Any) -> str:
    reading = HostReading(1, [Snapshot.of_dict(device) for device in devices], problems or [], len(devices))
    return generate_latest(registry_of(DeviceCollector(lambda: reading, **options))).decode()


def assert_equals_json(found: Samples, device: dict[str, Any]) -> None:
    at = {"device": str(device["device_id"]), "asic_id": device["asic_id"] or ""}
    for kind in ("dram", "l1", "l1_small", "trace"):
        for figure in ("used", "total", "free", "peak"):
            got = value(found, f"ttmem_memory_{figure}_bytes", type=kind, **at)
            assert got == device["memory"][kind][f"{figure}_bytes"], (kind, figure)
    cb, kernel = device["memory"]["cb"], device["memory"]["kernel"]
    assert value(found, "ttmem_memory_used_bytes", type="cb", **at) == cb["physical_bytes"]
    assert value(found, "ttmem_memory_peak_bytes", type="cb", **at) == cb["peak_bytes"]
    for kind in ("physical", "logical", "resident"):
        assert value(found, "ttmem_cb_bytes", kind=kind, **at) == cb[f"{kind}_bytes"]
    assert value(found, "ttmem_memory_used_bytes", type="kernel", **at) == kernel["used_bytes"]
    assert value(found, "ttmem_kernel_persistent_bytes", **at) == kernel["persistent_bytes"]
    for name, size in device["l1_accounting"].items():
        assert value(found, "ttmem_l1_accounting_bytes", part=name.removesuffix("_bytes"), **at) == size
    headroom = [core["headroom_bytes"] for core in device["cores"] or ()]
    smallest = min(headroom) if headroom and None not in headroom else None
    assert value(found, "ttmem_l1_core_headroom_bytes", stat="min", **at) == smallest
    assert value(found, "ttmem_shm_state", state=device["state"], **at) == 1
    updated = value(found, "ttmem_last_update_timestamp_seconds", **at)
    assert updated == (None if device["updated_ns"] is None else device["updated_ns"] / 1e9)


def test_the_server_exports_what_the_snapshot_says(device: ttmem.Publisher) -> None:
    with serving("--per-core", "--per-process") as (address, _):
        status, kind, text = get(f"{address}/metrics")
        whole = json.loads(get(f"{address}/snapshot")[2])
    assert status == 200
    assert kind.startswith("text/plain; version=")
    found = samples(text)
    (json_device,) = whole["devices"]
    (dumped,) = read_live().devices
    assert json_device == dumped
    assert next(iter(json_device)) == "device_id"
    assert json_device["memory"]["cb"]["physical_bytes"] == 131072 * 24
    assert_equals_json(found, json_device)
    at = {"device": "3", "asic_id": "0xa0"}
    for core in json_device["cores"]:
        where = {**at, "core_x": str(core["x"]), "core_y": str(core["y"])}
        assert value(found, "ttmem_l1_core_used_bytes", **where) == core["l1_used_bytes"]
        assert value(found, "ttmem_l1_core_cb_bytes", kind="physical", **where) == core["cb_physical_bytes"]
        assert value(found, "ttmem_l1_core_cb_bytes", kind="resident", **where) == core["cb_resident_bytes"]
        assert value(found, "ttmem_cb_region_end_bytes", **where) == core["cb_region_end"]
        assert value(found, "ttmem_l1_headroom_bytes", **where) == core["headroom_bytes"]
    (row,) = json_device["processes"]
    who = {"pid": str(row["pid"]), "process": row["name"], "user": row["user"], "state": "live"}
    assert value(found, "ttmem_process_memory_bytes", type="cb", **at, **who) == row["cb_physical_bytes"]
    assert value(found, "ttmem_process_memory_bytes", type="dram", **at, **who) == 777216
    assert value(found, "ttmem_up") == 1


@pytest.mark.parametrize(
    "region", sorted((Path(__file__).parent / "captures").glob("n150_*.bin")), ids=lambda p: p.stem
)
def test_what_tt_metal_publishes_is_exported_as_its_json_says(
    region: Path, shm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(region, shm / region.name.partition(".")[2].removesuffix(".bin"))
    assert main(["--json"]) == 0
    (device,) = json.loads(capsys.readouterr().out)["devices"]
    assert device["source"] == "tt-metal"
    assert main(["--once"]) == 0
    assert_equals_json(samples(capsys.readouterr().out), device)


def test_the_numbers_add_up(device: ttmem.Publisher) -> None:
    found = samples(exported(device.snapshot().to_dict()))
    at = {"device": "3", "asic_id": "0xa0"}
    part = {
        name: value(found, "ttmem_l1_accounting_bytes", part=name, **at)
        for name in ("total", "reserved", "cb", "buffer", "l1_small", "overlap", "free")
    }
    assert None not in part.values()
    assert part["total"] == (
        part["reserved"] + part["cb"] + part["buffer"] + part["l1_small"] - part["overlap"] + part["free"]  # type: ignore[operator]
    )


def test_a_device_that_comes_and_goes_is_followed_between_scrapes() -> None:
    with serving() as (address, _):
        assert value(samples(get(f"{address}/metrics")[2]), "ttmem_up") == 1
        with ttmem.publish(0, **GEOMETRY) as publisher:
            publisher.allocate(ttmem.BufferType.DRAM, 4096)
            found = samples(get(f"{address}/metrics")[2])
            assert value(found, "ttmem_memory_used_bytes", device="0", asic_id="0xa0", type="dram") == 4096
            publisher.allocate(ttmem.BufferType.DRAM, 4096)
            found = samples(get(f"{address}/metrics")[2])
            assert value(found, "ttmem_memory_used_bytes", device="0", asic_id="0xa0", type="dram") == 8192
        assert 'device="0"' not in get(f"{address}/metrics")[2]


def test_unknown_figures_have_help_and_type_and_no_sample() -> None:
    text = exported(tt_metal())
    assert "# HELP ttmem_memory_used_bytes" in text
    assert "# TYPE ttmem_memory_used_bytes gauge" in text
    names = {name for name, _ in samples(text)}
    assert not names & {"ttmem_memory_used_bytes", "ttmem_cb_bytes", "ttmem_l1_core_headroom_bytes"}
    assert value(samples(text), "ttmem_shm_state", device="0", asic_id="", state="idle") == 1


def test_every_metric_has_help_and_type_even_without_devices() -> None:
    text = exported(per_core=True, per_process=True)
    families = {family.name: family for family in parse(text)}
    for name in (
        "ttmem_memory_used_bytes",
        "ttmem_process_memory_bytes",
        "ttmem_l1_core_used_bytes",
        "ttmem_shm_state",
    ):
        assert families[name].documentation
        assert families[name].type == "gauge"
        assert not families[name].samples
    assert families["ttmem_scrape_errors"].type == "counter"


@pytest.mark.parametrize("make", [n150, p150, tt_metal])
def test_made_devices_equal_their_json(make: Any) -> None:
    made = make()
    assert_equals_json(samples(exported(made)), made)


def test_cores_and_processes_are_opt_in() -> None:
    text = exported(n150())
    assert "core_x" not in text
    assert "pid=" not in text
    assert "core_x" in exported(n150(), per_core=True)


def test_a_chip_that_is_there_twice_is_exported_once_and_said() -> None:
    told: list[str] = []
    replayed = p150(asic_id="0x1", device_id=0, origin="replay")
    real = n150(asic_id="0x1", device_id=0)
    text = exported(replayed, real, tell=told.append)
    found = samples(text)
    assert_equals_json(found, real)
    assert value(found, "ttmem_scrape_errors_total", reason="duplicate") == 1
    assert "origin replay" in told[0]


def test_errors_of_scrapes_are_counted_by_reason() -> None:
    reading = HostReading(1, [], ["/dev/shm/a: Permission denied: the file is 0600", "/dev/shm/b: layout 9"], 2)
    registry = registry_of(DeviceCollector(lambda: reading))
    samples(generate_latest(registry).decode())
    found = samples(generate_latest(registry).decode())
    assert value(found, "ttmem_scrape_errors_total", reason="permission") == 2
    assert value(found, "ttmem_scrape_errors_total", reason="version") == 2
    assert value(found, "ttmem_scrape_errors_total", reason="other") == 0
    assert value(found, "ttmem_up") == 0


def test_names_of_processes_cannot_break_the_text() -> None:
    evil = 'a"b\\c\nttmem_up 7\udcff'
    made = n150()
    made["processes"] = [{**made["processes"][0], "name": evil}]
    text = exported(made, per_process=True)
    assert value(samples(text), "ttmem_up") == 1
    assert "\nttmem_up 7" not in text


def test_openmetrics_is_served_to_those_who_ask(device: ttmem.Publisher) -> None:
    with serving() as (address, _):
        _, kind, text = get(f"{address}/metrics", "application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    found = samples(text, parse_openmetrics)
    assert value(found, "ttmem_memory_used_bytes", device="3", asic_id="0xa0", type="dram") == 777216


def test_only_the_metrics_asked_for_come(device: ttmem.Publisher) -> None:
    with serving() as (address, _):
        text = get(f"{address}/metrics?name[]=ttmem_up&name[]=ttmem_scrape_errors_total")[2]
    assert {name for name, _ in samples(text)} == {"ttmem_up", "ttmem_scrape_errors_total"}


def test_health_readiness_and_unknown_paths(shm: Path) -> None:
    with serving() as (address, _):
        assert get(f"{address}/-/healthy")[0] == 200
        assert get(f"{address}/-/ready")[0] == 200
        assert get(f"{address}/nothing")[0] == 404
        shm.rename(shm.with_name("gone"))
        status, _, text = get(f"{address}/-/ready")
        assert status == 503
        assert "TTMEM_SHM_DIR" in text
        assert get(f"{address}/-/healthy")[0] == 200
        assert value(samples(get(f"{address}/metrics")[2]), "ttmem_up") == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_and_quietly(number: signal.Signals) -> None:
    with serving() as (address, process):
        get(f"{address}/metrics")
        process.send_signal(number)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_busy_port_is_told_with_cause_and_cure(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--listen", f"127.0.0.1:{port}"]) == 2
    err = capsys.readouterr().err
    assert f"port {port}: another process has that port" in err
    assert "--listen" in err


@pytest.mark.parametrize("text", ["9417", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536"])
def test_an_address_that_is_none_is_wrong_usage(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--listen", text]) == 2
    assert "ADDR:PORT" in capsys.readouterr().err


def test_once_prints_the_metrics_and_ends(device: ttmem.Publisher, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--once"]) == 0
    assert_equals_json(samples(capsys.readouterr().out), device.snapshot().to_dict())


def test_json_prints_the_object_of_the_dump(device: ttmem.Publisher, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert dump_main(["--json"]) == 0
    dumped = json.loads(capsys.readouterr().out)
    assert list(whole) == list(dumped) == ["schema", "host", "taken_ns", "devices"]
    assert whole["devices"] == dumped["devices"]


def test_once_with_nothing_to_read_is_1_and_still_prints_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--once"]) == 1
    out, err = capsys.readouterr()
    assert value(samples(out), "ttmem_up") == 1
    assert "no device is published" in err


def test_once_with_only_unreadable_files_is_4(shm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ttmem.publish(0) as publisher:
        name = Path(publisher.path).name
    (shm / name).write_bytes(b"garbage" * 4096)
    assert main(["--once"]) == 4
    out, err = capsys.readouterr()
    assert value(samples(out), "ttmem_up") == 0
    assert name in err


# The names of others, and conventions


def exposed(*devices: dict[str, Any], **options: Any) -> str:
    found = [Snapshot.of_dict(device, taken_ns=1) for device in devices]
    collector = DeviceCollector(lambda: HostReading(1, found, [], len(found)), **options)
    return generate_latest(registry_of(collector)).decode()


def test_the_names_of_tt_exporter_carry_the_figures_of_the_json() -> None:
    device = n150()
    rows = [
        {**device["processes"][0], "pid": 7, "state": "live"},
        {**device["processes"][0], "pid": 8, "state": "stale"},
    ]
    device["processes"] = rows
    found = samples(exposed(device, compat=["tenstorrent"], per_process=True))
    chip = {"asic_id": f"0x{int(device['asic_id'], 16):016x}", "device_id": ""}
    assert value(found, "tenstorrent_dram_used_bytes", **chip) == device["memory"]["dram"]["used_bytes"]
    assert value(found, "tenstorrent_l1_used_bytes", **chip) == device["memory"]["l1"]["used_bytes"]
    assert value(found, "tenstorrent_mem_phantom", **chip) == 0
    assert value(found, "tenstorrent_shm_num_active_processes", **chip) == 1
    held = [(labels, held) for (name, labels), held in found.items() if name == "tenstorrent_proc_dram_used_bytes"]
    assert held == [(frozenset({**chip, "pid": "7", "process_name": rows[0]["name"]}.items()), rows[0]["dram_bytes"])]


def test_the_names_of_tt_mgmtd_carry_the_figures_of_the_json() -> None:
    device = n150()
    found = samples(exposed(device, tt_metal(5), compat=["tt-mgmt"]))
    board = {"device": "0", "arch": "wormhole_b0"}
    memory = device["memory"]
    assert value(found, "tt_cb_used_bytes", **board) == memory["cb"]["physical_bytes"]
    for kind in ("dram", "l1", "l1_small", "trace"):
        assert value(found, f"tt_{kind}_used_bytes", **board) == memory[kind]["used_bytes"]
    assert value(found, "tt_l1_total_bytes", **board) == memory["l1"]["total_bytes"]
    assert not any(name.startswith("tt_process_") for name, _ in found)


def test_without_compat_there_are_only_our_names() -> None:
    assert {name.partition("_")[0] for name, _ in samples(exposed(n150(), per_core=True, per_process=True))} == {
        "ttmem"
    }


def test_a_name_of_nobody_is_wrong_usage() -> None:
    assert main(["--compat", "nobody", "--once"]) == 2


UNITS = ("_bytes", "_seconds", "_total", "_info", "_ratio")
COUNTS = {"ttmem_up", "ttmem_shm_state", "ttmem_clash_predicted", "ttmem_processes", "ttmem_programs"}
THEIRS = {"tenstorrent_mem_phantom", "tenstorrent_shm_num_active_processes"}


def test_names_types_help_and_units_keep_the_conventions_of_prometheus() -> None:
    """What ``promtool check metrics`` asks for: help, no unit but base units, at the end, counters and only they _total."""
    text = exposed(n150(), per_core=True, per_process=True, compat=["tenstorrent", "tt-mgmt"])
    families = list(parse(text))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        sampled = {sample.name for sample in family.samples} or {family.name}
        assert family.documentation.endswith(".")
        assert family.type in ("gauge", "counter")
        for name in sampled:
            assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
            assert name.endswith("_total") == (family.type == "counter")
            assert name.endswith(UNITS) or name in COUNTS | THEIRS
            assert not re.search(r"_(kb|kib|mb|mib|gb|gib|ms|ns|us|percent|gauge|counter)(_|$)", name)
        for sample in family.samples:
            assert all(
                re.fullmatch(r"[a-z][a-z0-9_]*", label) and not label.startswith("__") for label in sample.labels
            )


def test_processes_beyond_the_limit_have_no_series_and_are_said() -> None:
    device = n150()
    first = device["processes"][0]
    device["processes"] = [{**first, "pid": i, "state": "live", "dram_bytes": i} for i in range(1, 301)]
    told: list[str] = []
    text = exposed(device, per_process=True, compat=["tt-mgmt"], tell=told.append)
    pids = {dict(labels)["pid"] for name, labels in samples(text) if name == "ttmem_process_memory_bytes"}
    assert pids == {str(i) for i in range(45, 301)}
    assert pids == {dict(labels)["pid"] for name, labels in samples(text) if name == "tt_process_dram_bytes"}
    assert told == [f"device 0 ({device['asic_id']}): 44 processes are not exported one by one"]
    assert value(samples(text), "ttmem_scrape_errors_total", reason="limit") == 1


def test_processes_without_series_of_their_own_are_counted_under_every_name() -> None:
    device = n150()
    device["processes"] = [{**device["processes"][0], "pid": i, "state": "live"} for i in range(1, 301)]
    for per_process in (False, True):
        found = samples(exposed(device, per_process=per_process, compat=["tenstorrent"]))
        assert value(found, "ttmem_processes", device="0", asic_id=device["asic_id"], state="live") == 300
        assert [v for (name, _), v in found.items() if name == "tenstorrent_shm_num_active_processes"] == [300]


def test_the_number_of_series_is_bounded_by_devices_cores_and_the_limits() -> None:
    device = p150()
    device["processes"] = [{**n150()["processes"][0], "pid": i} for i in range(1000)]
    found = samples(exposed(device, per_core=True, per_process=True))
    cores = len(device["cores"])
    assert len(found) < 120 + 8 * cores + 6 * 256
