"""A file that is held open: what did not change is not read again, and whatever changed is."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ttmem
from ttmem.reader import Host
from ttmem.snapshot import Part

FILE_CONTROL, BLOCK_CONTROL = 512, 4096 + 512
LAYOUT_WORD = 8 + 4


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TTMEM_SHM_DIR", str(tmp_path))
    monkeypatch.delenv("TTMEM_NAMESPACE", raising=False)
    return tmp_path


@pytest.fixture
def host(directory: Path) -> Iterator[Host]:
    made = Host(directory, "")
    yield made
    made.close()


def one(host: Host) -> Part:
    (part,) = host.parts()
    return part


def test_a_block_in_which_nothing_happened_is_not_read_again(host: Host) -> None:
    with ttmem.publish(0, grid=(2, 2)) as publisher:
        publisher.allocate("DRAM", 1)
        first = one(host)
        assert one(host) is first


def test_every_update_is_seen_at_the_next_reading(host: Host) -> None:
    with ttmem.publish(0, grid=(2, 2)) as publisher:
        for size in range(1, 50):
            publisher.allocate("DRAM", 1)
            assert one(host).reading.total(1)[0] == size  # type: ignore[index]


def test_an_older_reading_keeps_its_figures(host: Host) -> None:
    with ttmem.publish(0, grid=(2, 2)) as publisher:
        publisher.allocate("DRAM", 1)
        first = one(host)
        publisher.allocate("DRAM", 1)
        assert one(host).reading.total(1)[0] == 2  # type: ignore[index]
        assert first.reading.total(1)[0] == 1  # type: ignore[index]


def test_each_block_of_a_file_is_judged_by_itself(host: Host) -> None:
    with ttmem.publish(0, grid=(2, 2)), ttmem.publish(1, grid=(2, 2)) as second:
        before = [part.reading for part in host.parts()]
        second.allocate("DRAM", 7)
        after = [part.reading for part in host.parts()]
        assert after[0] is before[0]
        assert after[1] is not before[1]
        assert after[1].total(1)[0] == 7  # type: ignore[index]


def test_a_block_given_to_another_device_is_read_as_that_one(host: Host) -> None:
    with ttmem.publish(9, grid=(2, 2)):
        first = ttmem.publish(1, grid=(2, 2))
        first.allocate("DRAM", 11)
        assert [part.reading.device_id for part in host.parts()] == [9, 1]
        first.close()
        assert [part.reading.device_id for part in host.parts()] == [9]
        with ttmem.publish(2, grid=(2, 2)):
            seen = [part.reading for part in host.parts()]
            assert [reading.device_id for reading in seen] == [9, 2]
            assert seen[1].total(1)[0] == 0  # type: ignore[index]


def test_a_writers_death_is_seen_though_nothing_changed_in_its_file(host: Host) -> None:
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        ttmem.publish(0, grid=(2, 2)).allocate("DRAM", 5)
        os.write(send, b"r")
        signal.pause()
    assert os.read(receive, 1) == b"r"
    assert one(host).state == "live"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    after = one(host)
    assert after.state == "stale"
    assert after.reading.total(1)[0] == 5  # type: ignore[index]
    os.close(receive)
    os.close(send)


@pytest.mark.parametrize("word", range(6))
def test_a_change_of_any_control_word_is_a_change(word: int, host: Host, directory: Path) -> None:
    with ttmem.publish(0, grid=(2, 2)) as publisher:
        publisher.allocate("DRAM", 5)
        first = one(host)
        path = publisher.path
        assert path is not None
        at = BLOCK_CONTROL + 8 * word
        with path.open("r+b") as file:
            file.seek(at)
            value = int.from_bytes(file.read(8), "little")
            file.seek(at)
            # Two more: an even generation and the same image.
            file.write((value + 2).to_bytes(8, "little"))
        seen = host.parts()
        # A state that is none is a problem of the file.
        assert bool(seen) == (word != 1)
        assert all(part.reading is not first.reading for part in seen)


def test_a_header_that_was_written_over_is_noticed(host: Host) -> None:
    with ttmem.publish(0, grid=(2, 2)) as publisher:
        assert one(host).state == "live"
        assert publisher.path is not None
        with publisher.path.open("r+b") as file:
            file.seek(LAYOUT_WORD)
            file.write(b"\x09")
        assert host.parts() == []
        (text,) = host.problems.values()
        assert "layout 9" in text
        with publisher.path.open("r+b") as file:
            file.seek(LAYOUT_WORD)
            file.write(b"\x01")
        assert one(host).state == "live"
        assert host.problems == {}


def test_a_directory_that_cannot_be_listed_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    # As root may list all: another user who may only enter it.
    with ttmem.publish(0, grid=(2, 2)):
        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", refuse)
            for _ in range(2):
                assert host.parts() == []
                assert host.problems == {str(host.directory): f"{host.directory}: Permission denied"}
        os.utime(host.directory)
        assert one(host).state == "live"
        assert host.problems == {}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is missing: apt-get install strace")
def test_an_unchanged_file_costs_three_system_calls_and_one_for_the_directory(directory: Path) -> None:
    code = """
import os, sys, time
import ttmem
from ttmem import reader
reader.SETTLED_NS = -1
with ttmem.publish(0, grid=(2, 2)) as publisher, ttmem.attach(0) as one:
    one.snapshot()
    os.getppid()
    one.snapshot()
    os.getppid()
"""
    log = directory / "log"
    environment = {**os.environ, "PYTHONPATH": str(Path(ttmem.__file__).parents[1])}
    subprocess.run(["strace", "-o", log, sys.executable, "-c", code], env=environment, check=True)
    between = log.read_text().split("getppid()")[1].splitlines()[1:]
    calls = [line.partition("(")[0] for line in between]
    assert [call for call in calls if "stat" not in call] == ["pread64", "fcntl"]
    assert len(calls) == 4
