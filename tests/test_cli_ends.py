"""How commands end: one line on stderr and one exit code for the same cause, whichever command meets it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ttmem

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
