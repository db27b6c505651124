"""The command ttmem-dump: options, exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from made_devices import TAKEN_NS, n150, p150, stale, tt_metal

from ttmem.cli.dump import _nap, main
from ttmem.cli.screens import screen_of
from ttmem.units import format_bytes


@dataclass
class FakeSnapshot:
    device: dict[str, Any]
    buffers_omitted = None

    def to_dict(self) -> dict[str, Any]:
        return self.device

    def core_map(self, x: int, y: int) -> dict[str, list[list[int]]]:
        return {"cb_ranges": [[105664, 580800]], "l1_ranges": [[1454080, 1474560]]}

    def buffers(self) -> list[dict[str, Any]]:
        return []


@dataclass
class FakeReading:
    devices: list[FakeSnapshot] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    found: int = 0
    taken_ns: int = TAKEN_NS


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> FakeReading:
    """A host whose devices a test sets; the command reads it in place of shared memory."""
    reading = FakeReading()
    module = types.ModuleType("ttmem.reader")
    reading.sources = []  # type: ignore[attr-defined]

    def read_host(source: str = "auto") -> FakeReading:
        reading.sources.append(source)  # type: ignore[attr-defined]
        reading.found = max(reading.found, len(reading.devices))
        return reading

    module.read_host = read_host  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ttmem.reader", module)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("TTMEM_SHM_DIR", raising=False)
    return reading


def fill(host: FakeReading, *devices: dict[str, Any]) -> None:
    host.devices = [FakeSnapshot(device) for device in devices]


def test_the_default_is_the_breakdown_without_colour(host: FakeReading, capsys: pytest.CaptureFixture[str]) -> None:
    fill(host, n150(), p150(1))
    assert main([]) == 0
    out, err = capsys.readouterr()
    kept = [line for line in out.splitlines() if "Device" in line or "CB:" in line]
    assert [line.split()[0] for line in kept] == ["Device", "CB:", "Device", "CB:"]
    assert "\x1b" not in out
    assert not err
    assert host.sources == ["auto"]  # type: ignore[attr-defined]


def test_json_is_the_contract_object(host: FakeReading, capsys: pytest.CaptureFixture[str]) -> None:
    fill(host, n150(), tt_metal(1))
    assert main(["--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert list(whole) == ["schema", "host", "taken_ns", "devices"]
    assert (whole["schema"], whole["taken_ns"]) == (1, TAKEN_NS)
    no_buffers = {"buffers": None, "buffers_omitted": None}
    assert whole["devices"] == [{**n150(), **no_buffers}, {**tt_metal(1), **no_buffers}]


@pytest.mark.parametrize(("found", "code"), [(0, 1), (2, 4)])
def test_without_devices_json_still_holds_the_object(
    host: FakeReading, capsys: pytest.CaptureFixture[str], found: int, code: int
) -> None:
    host.found = found
    host.problems = ["/dev/shm/x: permission denied"]
    assert main(["--json"]) == code
    out, err = capsys.readouterr()
    assert json.loads(out)["devices"] == []
    assert "permission denied" in err


def test_a_reader_that_fails_is_4_and_json_still_holds_the_object(
    host: FakeReading, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: str = "auto") -> FakeReading:
        raise PermissionError(13, "Permission denied", "/dev/shm")

    monkeypatch.setattr(sys.modules["ttmem.reader"], "read_host", fail)
    assert main(["--json"]) == 4
    out, err = capsys.readouterr()
    assert json.loads(out)["devices"] == []
    assert "Permission denied" in err


def test_nothing_to_read_says_what_to_do(host: FakeReading, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert "ttmem.publish" in err


def test_stale_devices_count_as_read_and_unreadable_ones_do_not(host: FakeReading) -> None:
    fill(host, stale())
    assert main([]) == 0
    fill(host, tt_metal(state="foreign-version"), tt_metal(1, state="unreadable"))
    assert main([]) == 4


def test_problems_of_other_files_go_to_stderr_only(host: FakeReading, capsys: pytest.CaptureFixture[str]) -> None:
    fill(host, n150())
    host.problems = ["/dev/shm/y: layout 9 is not read"]
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert "layout 9" not in out
    assert err == "ttmem-dump: /dev/shm/y: layout 9 is not read\n"


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        (["-d", "1"], [1]),
        (["-d", "0,2"], [0, 2]),
        (["-d", "0", "--device", "3"], [0, 3]),
        (["-d", "0x10000000a2"], [2]),
        ([], [0, 1, 2, 3]),
    ],
)
def test_devices_are_chosen_by_id_or_chip(
    host: FakeReading, capsys: pytest.CaptureFixture[str], options: list[str], ids: list[int]
) -> None:
    fill(host, *(n150(i) for i in range(4)))
    assert main(["--json", *options]) == 0
    assert [device["device_id"] for device in json.loads(capsys.readouterr().out)["devices"]] == ids


def test_a_device_that_is_not_there_is_nothing_to_read(host: FakeReading, capsys: pytest.CaptureFixture[str]) -> None:
    fill(host, n150())
    assert main(["-d", "7"]) == 1
    assert "no such device: 7; there is 0" in capsys.readouterr().err


def test_query_and_csv_have_a_row_for_each_device(host: FakeReading, capsys: pytest.CaptureFixture[str]) -> None:
    fill(host, n150(), p150(1))
    assert main(["--query", "device_id,memory.cb.physical", "--format", "csv,noheader,nounits"]) == 0
    assert capsys.readouterr().out == "0, 23101440\n1, 32440320\n"
    assert main(["--query", "memory.cb.physical"]) == 0
    assert capsys.readouterr().out == "memory.cb.physical [MiB]\n22.0 MiB\n30.9 MiB\n"
    assert main(["--csv"]) == 0
    assert capsys.readouterr().out.count("\n") == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-L"], "Device 0: wormhole_b0 (ASIC: 0x"),
        (["--cores"], "physical CB of each core"),
        (["--cores", "headroom"], "headroom of each core"),
        (["--map", "3,4"], "core 3,4: L1 of 1,499,136 B"),
        (["--processes"], "alice"),
        (["--programs"], "ttnn::matmul"),
        (["--compact"], "Total L1"),
    ],
)
def test_each_view_prints_its_text(
    host: FakeReading, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    fill(host, n150())
    assert main(options) == 0
    assert words in capsys.readouterr().out


def test_views_of_text_stand_below_each_other(host: FakeReading, capsys: pytest.CaptureFixture[str]) -> None:
    fill(host, n150())
    assert main(["--processes", "--programs"]) == 0
    out = capsys.readouterr().out
    assert out.index("1 process") < out.index("40 cached programs")


@pytest.mark.parametrize(
    "options",
    [
        ["--nonsense"],
        ["-d", "one"],
        ["-d", "0xzz"],
        ["--map", "3"],
        ["--map", "99,0"],
        ["--cores", "colour"],
        ["--json", "--csv"],
        ["--csv", "--cores"],
        ["--format", "csv"],
        ["--query", "memory.cb.phisical"],
        ["--query", ""],
        ["--query", "memory.cb.physical", "--format", "xml"],
        ["--fail-if", "memory.cb.physical"],
        ["--fail-if", "memory.cb.phisical > 1"],
        ["-w", "0"],
        ["-w", "often"],
        ["--source", "file"],
    ],
)
def test_wrong_usage_is_2_and_prints_nothing_on_stdout(
    host: FakeReading, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    fill(host, n150())
    assert main(options) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "error:" in err


def test_a_condition_that_is_true_on_any_device_is_3(host: FakeReading, capsys: pytest.CaptureFixture[str]) -> None:
    fill(host, p150(0), n150(1))
    assert main(["--fail-if", "l1.core.min_headroom < 64KiB", "--json"]) == 3
    out, err = capsys.readouterr()
    assert len(json.loads(out)["devices"]) == 2
    assert "device 1: l1.core.min_headroom < 64KiB" in err
    assert "-154816 bytes" in err
    assert main(["--fail-if", "l1.core.min_headroom < -1MiB"]) == 0


def test_a_condition_on_an_unknown_figure_is_not_met_but_said(
    host: FakeReading, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(host, tt_metal(2))
    assert main(["--fail-if", "memory.dram.used > 1"]) == 0
    assert "device 2: memory.dram.used is unknown (N/A)" in capsys.readouterr().err


def test_help_query_lists_fields_and_reads_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help-query"]) == 0
    assert '"memory.cb.physical"' in capsys.readouterr().out


def test_help_and_version_are_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main(["--version"]) == 0
    assert "exit codes" in capsys.readouterr().out


def test_source_is_passed_on(host: FakeReading) -> None:
    fill(host, n150())
    assert main(["--source", "tt-metal"]) == 0
    assert host.sources == ["tt-metal"]  # type: ignore[attr-defined]


def test_watch_repeats_until_interrupted_and_ends_with_0(
    host: FakeReading, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(host, n150())
    host.problems = ["one bad file"]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("ttmem.cli.dump._nap", lambda: (sleep, lambda: None))
    assert main(["-w", "5", "--query", "memory.cb.physical"]) == 0
    out, err = capsys.readouterr()
    assert out == "memory.cb.physical [MiB]\n" + 3 * "22.0 MiB\n"
    assert err.count("one bad file") == 1
    assert len(slept) == 3


def test_watched_json_is_one_object_a_line(
    host: FakeReading, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(host, n150())
    turns = iter([None, KeyboardInterrupt])

    def sleep(seconds: float) -> None:
        if (stop := next(turns)) is not None:
            raise stop

    monkeypatch.setattr("ttmem.cli.dump._nap", lambda: (sleep, lambda: None))
    assert main(["--json", "--watch"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["schema"] for line in lines] == [1, 1]


def test_watch_ends_when_the_condition_is_met(host: FakeReading, capsys: pytest.CaptureFixture[str]) -> None:
    fill(host, n150())
    assert main(["-w", "--fail-if", "state == live"]) == 3
    assert "state is live" in capsys.readouterr().err


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_colour_needs_a_terminal_and_no_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert screen_of(Terminal()).color
    assert not screen_of(Terminal(), no_color=True).color
    assert not screen_of(io.StringIO()).color
    monkeypatch.setenv("NO_COLOR", "1")
    assert not screen_of(Terminal()).color


def test_width_is_the_terminals_between_40_and_200(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns, width in (("20", 40), ("100", 100), ("500", 200)):
        monkeypatch.setenv("COLUMNS", columns)
        assert screen_of(Terminal()).width == width


def test_a_stream_that_is_not_utf8_gets_ascii() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    assert not screen_of(stream).unicode
    assert screen_of(io.TextIOWrapper(io.BytesIO(), encoding="UTF8")).unicode


def test_a_watched_terminal_is_repainted_within_its_height(
    host: FakeReading, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(host, *(n150(i) for i in range(40)))
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setattr("ttmem.cli.dump._nap", lambda: (lambda seconds: True, lambda: None))
    assert main(["-w", "--no-color"]) == 0
    text = out.getvalue()
    assert text.startswith("\x1b[H")
    assert text.endswith("\x1b[J")
    assert text.count("\n") == 23
    assert "more lines" in text


SCRIPT = """
import sys, types
sys.path.insert(0, sys.argv[1])
from made_devices import n150
class Snapshot:
    def to_dict(self): return n150()
import ttmem.reader
from ttmem.cli.dump import _nap, main
ttmem.reader.read_host = lambda source="auto": types.SimpleNamespace(
    devices=[Snapshot()] * 200, problems=[], found=1, taken_ns=1
)
sys.exit(main(sys.argv[2:]))
"""


def start(*options: str, **more: Any) -> subprocess.Popen[str]:
    here = Path(__file__).parent
    command = [sys.executable, "-c", SCRIPT, str(here), *options]
    environment = {**os.environ, "PYTHONPATH": str(here.parent)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, env=environment, **more
    )


def test_a_pipe_that_closes_early_is_no_error() -> None:
    with start() as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("Device 0:")
        process.stdout.close()
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


def test_a_signal_that_came_before_the_wait_ends_it_at_once() -> None:
    woken, close = _nap()
    try:
        # As when the exception was lost: Python ignores those of finalizers.
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert woken(3600.0)
        assert not woken(0.0)
    finally:
        close()
    assert signal.set_wakeup_fd(-1) == -1


def test_sigint_ends_a_real_watch_with_0_and_a_quiet_stderr() -> None:
    with start("-w", "30", "--query", "memory.cb.physical") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "memory.cb.physical [MiB]\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


def test_an_ascii_terminal_gets_only_ascii(host: FakeReading, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(host, n150(warnings=["größer"]))
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    assert main([]) == 0
    assert main(["--cores", "--map", "0,0", "--processes", "--programs"]) == 0
    assert main(["--csv"]) == main(["--query", "warnings"]) == main(["-L"]) == 0
    assert format_bytes(23101440) in raw.getvalue().decode("ascii")
