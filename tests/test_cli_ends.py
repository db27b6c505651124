"""How commands end: one line on stderr and one exit code for the same cause, whichever command meets it."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import ttmem
from ttmem.__main__ import main
from ttmem.cli import top
from ttmem.dumps import read_live
from ttmem.frames import MARK
from ttmem.recording import RecordingWriter

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


@pytest.fixture
def recording_file(directory: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Return a recording of many moments, of which the first and the last are key frames."""
    path = directory / "run.ttmem"
    with ttmem.publish(0, arch="wormhole_b0", grid=(8, 8), l1_cb_base=105664, l1_small_size=24576) as publisher:
        publisher.allocate("DRAM", 4096)
        with RecordingWriter(path) as writer:
            writer.write(read_live(), key=True)
            for _ in range(20):
                publisher.allocate("DRAM", 4096)
                writer.write(read_live())
            writer.write(read_live(), key=True)
    capsys.readouterr()
    return path


def damage(path: Path) -> Path:
    """Return a copy of a recording in which the first half cannot be read, up to its last key frame."""
    data = bytearray(path.read_bytes())
    first = data.index(MARK)
    data[first + 4 : first + 200] = bytes(196)
    out = path.with_name("damaged.ttmem")
    out.write_bytes(data)
    return out


READING = [
    ["dump"],
    ["dump", "--json"],
    ["dump", "--html", "-"],
    ["peaks"],
    ["explain"],
    ["fit", "--cb", "1KiB", "--cores", "0-0:7-7"],
    ["fragmentation"],
    ["replay"],
    ["record", "--json"],
]


@pytest.mark.parametrize("verb", READING, ids=" ".join)
def test_what_is_damaged_of_a_recording_is_told(
    recording_file: Path, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    assert main([verb[0], str(damage(recording_file)), *verb[1:]]) == 0
    assert "are damaged and left out" in capsys.readouterr().err
    assert main([verb[0], str(recording_file), *verb[1:]]) == 0
    assert "are damaged" not in capsys.readouterr().err


def test_the_one_moment_that_damage_left_is_not_compared_with_itself(
    recording_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", str(recording_file), "--fail-on-leak"]) == 3
    capsys.readouterr()
    assert main(["diff", str(damage(recording_file)), "--fail-on-leak"]) == 4
    said = capsys.readouterr().err
    assert "are damaged and left out" in said
    assert "nothing to compare" in said
    assert main(["diff", str(recording_file), str(damage(recording_file))]) == 0
    assert "are damaged and left out" in capsys.readouterr().err


def test_a_recording_of_one_moment_says_that_it_is_compared_with_itself(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ttmem.publish(0), RecordingWriter(directory / "one.ttmem") as writer:
        writer.write(read_live())
    assert main(["diff", str(directory / "one.ttmem")]) == 0
    assert "compared with itself" in capsys.readouterr().err


ANSWERING = [*READING, ["diff"], ["lockstep"], ["export", "--visualizer", "{}/report"]]


@pytest.mark.parametrize("verb", ANSWERING, ids=" ".join)
def test_a_recording_without_a_moment_is_nothing_to_read(
    directory: Path, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    path = directory / "empty.ttmem"
    RecordingWriter(path).close()
    assert main([verb[0], str(path), *(word.format(directory) for word in verb[1:])]) == 1
    assert "the recording holds no moment yet" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ANSWERING, ids=" ".join)
def test_a_recording_of_which_nothing_is_whole_is_unreadable(
    recording_file: Path, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    data = recording_file.read_bytes()
    head, *frames = data.split(MARK)
    broken = recording_file.with_name("broken.ttmem")
    broken.write_bytes(MARK.join([head, *(b"\0" * len(frame) for frame in frames)]))
    assert main([verb[0], str(broken), *(word.format(broken.parent) for word in verb[1:])]) == 4
    assert "can be read" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ANSWERING, ids=" ".join)
def test_garbage_is_unreadable(directory: Path, capsys: pytest.CaptureFixture[str], verb: list[str]) -> None:
    path = directory / "garbage"
    path.write_bytes(bytes(range(256)) * 20)
    assert main([verb[0], str(path), *(word.format(directory) for word in verb[1:])]) == 4
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("verb", ANSWERING, ids=" ".join)
def test_a_file_that_is_not_there_is_nothing_to_read(
    directory: Path, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    assert main([verb[0], str(directory / "none"), *(word.format(directory) for word in verb[1:])]) == 1
    assert "Errno" not in capsys.readouterr().err


@pytest.mark.parametrize(("text", "code"), [("garbage", 4), (None, 1)])
def test_top_ends_as_the_others_do(directory: Path, text: str | None, code: int) -> None:
    path = directory / "file"
    if text is not None:
        path.write_text(text)
    master, slave = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ttmem", "top", "--replay", str(path)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            timeout=60,
            check=False,
        )
        assert done.returncode == code
        assert str(path).encode() in os.read(master, 65536)
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize(
    "words",
    [
        ["record", "-o", "{0}/x", "--duration", "0.01"],
        ["record", "{1}", "--export", "csv", "-o", "{0}/x"],
        ["dump", "{1}", "--html", "{0}/x"],
        ["export", "{1}", "--visualizer", "/dev/null/x"],
    ],
    ids=" ".join,
)
def test_an_output_that_cannot_be_written_is_wrong_usage(
    recording_file: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    nowhere = recording_file.with_name("nowhere")
    assert main([word.format(nowhere, recording_file) for word in words]) == 2
    said = capsys.readouterr().err
    assert "choose a file that can be written" in said
    assert "Errno" not in said


@pytest.mark.parametrize("verb", ["dump", "exporter"])
def test_another_source_that_publishes_is_named(directory: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    once = ["--once"] if verb == "exporter" else []
    with ttmem.publish(3):
        assert main([verb, "--source", "tt-metal", *once]) == 1
    assert "TT-Metal publishes no device in" in (said := capsys.readouterr().err)
    assert "ttmem does: 3; leave out --source tt-metal" in said
    assert main([verb, "--source", "tt-metal", *once]) == 1
    assert "no device is published in" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [v for v in ANSWERING if v[0] not in ("replay", "record", "diff")], ids=" ".join)
def test_a_dump_without_devices_is_not_taken_for_shared_memory(
    directory: Path, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    path = directory / "empty.json"
    path.write_text('{"schema": 1, "devices": []}')
    assert main([verb[0], str(path), *(word.format(directory) for word in verb[1:])]) == 1
    said = capsys.readouterr().err
    assert str(path) in said
    assert "is published" not in said


@pytest.mark.parametrize("verb", [v for v in ANSWERING if v[0] not in ("replay", "record", "lockstep")], ids=" ".join)
def test_a_device_that_is_missing_is_named_beside_those_that_are_there(
    dump_file: Path, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    both = [str(dump_file)] * (2 if verb[0] == "diff" else 1)
    words = [verb[0], *both, *(word.format(dump_file.parent) for word in verb[1:])]
    assert main([*words, "-d", "0,9"]) == 0
    assert "no such device: 9" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["dump", "peaks", "explain"])
def test_a_negative_device_is_wrong_usage(directory: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert main([verb, "-d", "-1"]) == 2
    assert "expected a device id" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["peaks"], ["lockstep"], ["export", "--visualizer", "report"]], ids=" ".join)
def test_a_verb_names_only_files_that_it_takes(
    directory: Path, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    assert main(verb) == 1
    assert "name a dump or a recording" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["{none}"], ["-d", "9"]], ids=" ".join)
def test_a_page_is_not_replaced_by_one_of_nothing(
    dump_file: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    page = dump_file.with_name("page.html")
    assert main(["dump", str(dump_file), "--html", str(page)]) == 0
    whole = page.read_bytes()
    source = [word.format(none=dump_file.with_name("none")) for word in words]
    for more in ([], ["--json"]):
        assert main(["dump", *source, "--html", str(page), *more]) in (1, 4)
        assert page.read_bytes() == whole
        assert "is left as it was" in capsys.readouterr().err
    assert main(["dump", str(dump_file), "--html", str(page), "--json"]) == 0


def leave_a_dead_writer() -> None:
    child = os.fork()
    if child == 0:
        try:
            ttmem.publish(0)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def test_gc_says_why_it_keeps_a_file(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave_a_dead_writer()
    assert main(["gc", "--grace", "60"]) == 0
    assert "found dead less than 60 s ago; --now removes it" in capsys.readouterr().out
    assert main(["gc", "--now"]) == 0
    assert capsys.readouterr().out.startswith("removed: ")


def test_gc_names_what_dead_processes_left_in_a_region_of_tt_metal(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    data = bytearray((CAPTURES / "n150_conv.tt_device_0_memory.bin").read_bytes())
    struct.pack_into("<i", data, 856, child)
    path = directory / "tt_device_0_memory"
    path.write_bytes(data)
    assert main(["gc", "--now"]) == 0
    assert f"rm {path}" in capsys.readouterr().out
    assert path.exists()
    assert main(["gc", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize("value", ["-1", "nan", "soon"])
def test_a_grace_time_that_is_none_is_wrong_usage(
    directory: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    assert main(["gc", "--grace", value]) == 2
    assert "expected" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["gc", "doctor"])
def test_the_help_of_every_verb_tells_its_exit_codes(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert main([verb, "--help"]) == 0
    assert "exit codes: 0" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("verb", [["dump", "-w", "0.05"], ["peaks", "--for", "60", "-i", "0.05"]], ids=" ".join)
def test_what_runs_until_it_is_stopped_ends_with_0(directory: Path, verb: list[str], number: signal.Signals) -> None:
    with ttmem.publish(0):
        process = subprocess.Popen(
            [sys.executable, "-m", "ttmem", *verb], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        # Peaks are told at the end only; by then the process has read once.
        first = process.stdout.readline() if verb[0] == "dump" else ""
        deadline = time.monotonic() + 60
        while not handles(process.pid):
            assert process.poll() is None
            assert time.monotonic() < deadline
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Device 0" in first + out


def handles(pid: int) -> bool:
    """Tell whether a process has a handler of SIGTERM of its own."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_one_device_of_three_is_not_called_most(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = directory / "dump.json"
    sizes = [1024, 2048, 4096]
    devices = [{"device_id": i, "memory": {"dram": {"used_bytes": size}}} for i, size in enumerate(sizes)]
    path.write_text(json.dumps({"schema": 1, "devices": devices}))
    assert main(["lockstep", str(path)]) == 3
    out = capsys.readouterr().out
    assert "most" not in out
    assert "1 of 3 has 1" in out
    devices[1]["memory"] = devices[0]["memory"]
    path.write_text(json.dumps({"schema": 1, "devices": devices}))
    assert main(["lockstep", str(path)]) == 3
    assert "differs in 1 figure from most of 3" in (out := capsys.readouterr().out)
    assert "most have 1" in out


def test_one_hole_is_one_segment(dump_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fragmentation", str(dump_file)]) == 0
    out = capsys.readouterr().out
    assert " 1 segments" not in out
    assert "segment" in out


def test_the_demo_takes_no_arguments() -> None:
    script = Path(__file__).parent.parent / "run"
    done = subprocess.run([sys.executable, script, "demo", "--x"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "./run demo takes no arguments\n")


@pytest.mark.parametrize("size", [3, 500])
def test_damage_at_the_end_is_told_and_a_frame_that_was_not_finished_is_none(
    recording_file: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    whole = recording_file.read_bytes()
    recording_file.write_bytes(whole[:-size] + b"\0" * size)
    assert main(["peaks", str(recording_file)]) == 0
    assert "are damaged and left out" in capsys.readouterr().err
    recording_file.write_bytes(whole + b"\0" * size)
    assert main(["peaks", str(recording_file)]) == 0
    assert f"{size} bytes" in capsys.readouterr().err
    recording_file.write_bytes(whole[:-size])
    assert main(["peaks", str(recording_file)]) == 0
    assert "damaged and" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "{}"),
        (["-d", "77"], "{} that -d 77 names"),
        (["-d", "1,2", "--source", "tt-metal"], "{} by TT-Metal that -d 1,2 names"),
        (["--replay", "run.ttmem", "-d", "7"], "run.ttmem that -d 7 names"),
    ],
)
def test_top_says_of_which_devices_there_is_none(directory: Path, words: list[str], said: str) -> None:
    assert top.asked_of(top.build_parser().parse_args(words)) == said.format(directory)


def test_a_device_without_a_number_is_not_called_none(dump_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump_file.write_text(dump_file.read_text().replace('"device_id": 0', '"device_id": null'))
    for verb in ("dump", "peaks"):
        assert main([verb, str(dump_file), "-d", "3"]) == 1
        assert "no such device: 3; there is N/A" in capsys.readouterr().err
