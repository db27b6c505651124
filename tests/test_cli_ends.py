"""How commands end: one line on stderr and one exit code for the same cause, whichever command meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ttmem
from ttmem.__main__ import main

CAPTURES = Path(__file__).parent / "captures"
MLP = CAPTURES / "n150_mlp.json"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def dump_file(directory: Path, command: Run) -> Path:
    """Return a dump of device 0, which is withdrawn again."""
    with ttmem.publish(0, arch="wormhole_b0", grid=(8, 8), l1_cb_base=105664, l1_small_size=24576) as publisher:
        publisher.allocate("L1", 65536, address=1400000, size_per_bank=1024, name="weights")
        publisher.dispatch(publisher.add_program([ttmem.CircularBuffer(105664, 4096, "{[0-0 - 7-7]}")], name="matmul"))
        path = directory / "dump.json"
        path.write_text(command("dump", "--json").stdout)
    return path


SPEAKING = [
    ["dump", "{}"],
    ["dump", "{}", "--json"],
    ["dump", "{}", "--csv"],
    ["dump", "{}", "--html", "-"],
    ["dump", "--help-query"],
    ["exporter", "--once"],
    ["explain", "{}"],
    ["explain", "{}", "--json"],
    ["fit", "{}", "--cb", "1KiB", "--cores", "0-0:7-7"],
    ["peaks", "{}"],
    ["fragmentation", "{}"],
    ["diff", "{}", "{}", "--json"],
    ["replay", str(MLP), "--json"],
    ["replay", str(MLP), "--dump"],
    ["doctor", "--no-measure"],
    ["gc"],
    ["--version"],
    ["--help"],
]


@pytest.mark.parametrize("arguments", SPEAKING, ids=" ".join)
@pytest.mark.parametrize("kind", ["full", "closed"])
def test_a_stdout_that_takes_nothing_is_one_line_and_2(dump_file: Path, arguments: list[str], kind: str) -> None:
    words = [argument.format(dump_file) for argument in arguments]
    redirection = {"full": ">/dev/full", "closed": ">&-"}[kind]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "ttmem", *words],
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if "stdout" in line]
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_help_that_stdout_does_not_take_is_2(command: Run) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ttmem", "dump", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert "cannot write to stdout" in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_page_needs_no_stdout(dump_file: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "ttmem", "dump", str(dump_file), "--html", str(page)],
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert page.stat().st_size > 10000


def test_a_replay_that_publishes_nothing_is_2_and_names_the_cause(
    directory: Path, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTMEM_SHM_DIR", str(directory / "nowhere"))
    done = command("replay", MLP, "--hold")
    assert done.returncode == 2
    assert "nothing is published: device 0: No such file or directory" in done.stderr
    assert "holding" not in done.stderr


@pytest.mark.parametrize("options", [["--hold"], ["--dump"], ["--loop"]])
def test_a_replay_under_ttmem_disable_is_2_and_says_so(
    directory: Path, command: Run, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setenv("TTMEM_DISABLE", "1")
    done = command("replay", MLP, *options)
    assert done.returncode == 2
    assert "nothing is published: TTMEM_DISABLE is set" in done.stderr
    assert "no such device" not in done.stderr
    assert "holding" not in done.stderr


def test_a_replay_that_holds_for_a_time_says_for_how_long(directory: Path, command: Run) -> None:
    done = command("replay", MLP, "--hold", "0.1")
    assert done.returncode == 0
    assert "holding device 0 for 0.1 s or until SIGINT or SIGTERM" in done.stderr


@pytest.mark.parametrize("verb", ["dump", "diff", "peaks", "lockstep", "explain", "fragmentation"])
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("memory", "dram", "used_bytes"), "x"),
        (("memory", "cb", "peak_at_ns"), True),
        (("l1_accounting", "total_bytes"), 1.5),
        (("grid", "x"), 0),
        (("device_id",), "0"),
        (("asic_id",), ["0x1"]),
        (("programs_omitted",), "x"),
        (("cores", 0, "x"), None),
        (("cores", 3, "headroom_bytes"), "x"),
        (("programs", 0, "count"), "x"),
        (("programs", 0, "name"), []),
        (("processes", 0, "dram_bytes"), "x"),
        (("processes", 0, "state"), {}),
        (("buffers", 0, "size_bytes"), "x"),
        (("buffers", 0, "address"), "x"),
    ],
    ids=str,
)
def test_a_dump_with_something_else_where_a_figure_belongs_is_refused(
    dump_file: Path, capsys: pytest.CaptureFixture[str], verb: str, path: tuple[str | int, ...], value: object
) -> None:
    whole = json.loads(dump_file.read_text())
    at = whole["devices"][0]
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    bad = dump_file.with_name("bad.json")
    bad.write_text(json.dumps(whole))
    assert main([verb, str(bad), *([str(dump_file)] if verb == "diff" else [])]) == 4
    said = capsys.readouterr().err
    assert "is no dump" in said
    assert f'"{path[-1] if path[0] != "grid" else "grid"}"' in said or "has no x and y" in said


def test_a_chip_is_looked_for_among_chips_that_have_no_number(dump_file: Path) -> None:
    dump_file.write_text(dump_file.read_text().replace('"asic_id": null', '"asic_id": "n/a"'))
    assert main(["peaks", str(dump_file), "-d", "0x12"]) == 1
    assert main(["peaks", str(dump_file), "-d", "0"]) == 0


@pytest.mark.parametrize("text", ["[1,2]", "[]", '[{"a": 1}]', '{"graph": []}', '{"graph": [7]}'])
@pytest.mark.parametrize(
    "verb",
    [["replay"], ["replay", "--dump"], ["explain"], ["fit", "--cb", "1KiB", "--cores", "0-0:1-1"], ["fragmentation"]],
    ids=" ".join,
)
def test_a_list_that_holds_no_node_is_no_capture(
    directory: Path, capsys: pytest.CaptureFixture[str], text: str, verb: list[str]
) -> None:
    path = directory / "list.json"
    path.write_text(text)
    assert main([verb[0], str(path), *verb[1:]]) == 4
    said = capsys.readouterr().err
    assert "is no graph capture" in said
    assert "is published" not in said


@pytest.mark.parametrize(
    "verb", [["replay"], ["explain"], ["fit", "--cb", "1KiB", "--cores", "0-0:1-1", "--l1", "1MiB"]], ids=" ".join
)
def test_a_capture_that_breaks_off_is_answered_up_to_there_and_4(
    directory: Path, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    whole = MLP.read_bytes()
    cut = directory / "cut.json"
    cut.write_bytes(whole[: len(whole) // 2])
    assert main([verb[0], str(cut), *verb[1:]]) == 4
    out, err = capsys.readouterr()
    assert "breaks off after" in err
    assert out or verb == ["replay"]


def test_a_clash_before_a_capture_breaks_off_is_still_3(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (CAPTURES / "n150_clash_8.json").read_bytes()
    cut = directory / "cut.json"
    cut.write_bytes(whole.rstrip()[:-2])
    assert main(["explain", str(cut), "--json"]) == 3
    assert "breaks off after" in capsys.readouterr().err


def test_a_dump_of_a_replay_without_devices_shows_no_other_ones(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = directory / "bare.json"
    path.write_text('[{"counter": 0, "node_type": "capture_start"}, {"counter": 1, "node_type": "capture_end"}]')
    with ttmem.publish(7):
        assert main(["replay", str(path), "--dump"]) == 1
        out, err = capsys.readouterr()
        assert (out, "nothing to show" in err) == ("", True)
        assert main(["replay", str(path), "--dump", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["devices"] == []
