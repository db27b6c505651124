"""A record is never torn: a writer stopped or killed anywhere leaves the whole old or the whole new version."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tracing import Tracee, bytes_in_use, figures_of, mark

import ttmem
from ttmem import segment

CORES = "{[0-0 - 7-7]}"
# How many instructions of an update are killed at; TTMEM_TORN=all takes every one of them, and hours.
KILLS = os.environ.get("TTMEM_TORN", "5")


def circular_buffers(size: int) -> list[ttmem.CircularBuffer]:
    return [ttmem.CircularBuffer(105664 + size * i, size, CORES) for i in range(2)]


# Made beforehand: what is stepped through is the update, not the parsing of core ranges.
LATER = circular_buffers(8192)
ALL_CORES = LATER[0].core_ranges


def a_device(device_id: int = 0) -> ttmem.Publisher:
    return ttmem.publish(device_id, arch="wormhole_b0", grid=(8, 8), l1_cb_base=105664, l1_small_size=0)


def add_one_program(publisher: ttmem.Publisher) -> None:
    publisher.add_program(LATER, name="matmul")


def allocate_a_buffer(publisher: ttmem.Publisher) -> None:
    publisher.allocate("L1", 64 * 4096, address=1_000_000, size_per_bank=4096, name="weights")


def remove_the_first_program(publisher: ttmem.Publisher) -> None:
    publisher.remove_program(1)


def many_changes_at_once(publisher: ttmem.Publisher) -> None:
    with publisher.batch():
        publisher.add_program(LATER, name="matmul")
        publisher.allocate("L1", 64 * 4096, address=1_000_000, size_per_bank=4096)
        publisher.allocate("DRAM", 12345)
        publisher.dispatch(1)
        publisher.load_kernel(1000, core_ranges=ALL_CORES)
        publisher.remove_program(1)


UPDATES = [add_one_program, allocate_a_buffer, remove_the_first_program, many_changes_at_once]


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TTMEM_SHM_DIR", str(tmp_path))
    monkeypatch.delenv("TTMEM_NAMESPACE", raising=False)
    return tmp_path


def writer_of(update: Callable[[ttmem.Publisher], None]) -> Callable[[], None]:
    def body() -> None:
        publisher = a_device()
        publisher.add_program(circular_buffers(4096), name="before")
        mark()
        update(publisher)
        mark()

    return body


@pytest.mark.parametrize("update", UPDATES, ids=lambda update: update.__name__)
def test_a_reader_sees_the_old_or_the_new_version_after_every_instruction(
    update: Callable[[ttmem.Publisher], None], directory: Path
) -> None:
    with Tracee(writer_of(update)) as writer:
        (path,) = directory.iterdir()
        fd = os.open(path, os.O_RDONLY)
        try:
            old = figures_of(directory)
            parts = bytes_in_use(path)
            before = [os.pread(fd, count, offset) for offset, count in parts]
            blocks = os.fstat(fd).st_blocks
            seen = []
            stops = 0
            while writer.step():
                stops += 1
                if os.fstat(fd).st_blocks != blocks:
                    # A table got memory: watch that too.
                    blocks = os.fstat(fd).st_blocks
                    parts = bytes_in_use(path)
                now = [os.pread(fd, count, offset) for offset, count in parts]
                if now != before:
                    before = now
                    seen.append(figures_of(directory))
        finally:
            os.close(fd)
        new = figures_of(directory)
    assert new != old
    assert stops > 1000
    # Two images of several records each: fewer changes would mean that the stepping missed them.
    assert len(seen) > 20
    switch = seen.index(new)
    assert all(figures == old for figures in seen[:switch])
    assert all(figures == new for figures in seen[switch:])


def commits(body: Callable[[], None], path_in: Path) -> tuple[int, list[int]]:
    """Return how many instructions lie between the first two marks, and after which ``seq`` had changed."""
    count = 0
    changes = []
    with Tracee(body) as writer:
        (path,) = path_in.iterdir()
        fd = os.open(path, os.O_RDONLY)
        try:
            # The block's control words; the latch's number is the third of them.
            before = os.pread(fd, 8, 4096 + 512 + 16)
            while writer.step():
                count += 1
                now = os.pread(fd, 8, 4096 + 512 + 16)
                if now != before:
                    before = now
                    changes.append(count)
        finally:
            os.close(fd)
    return count, changes


def left_by_the_dead(directory: Path) -> dict[str, object]:
    """Return the last state of the one dead writer, whose device must use nothing."""
    (device,) = figures_of(directory)
    assert device["state"] == "stale"
    assert device["memory"]["cb"]["physical_bytes"] == 0
    assert device["memory"]["l1"]["used_bytes"] == device["memory"]["dram"]["used_bytes"] == 0
    (process,) = device["processes"]
    del process["pid"]
    return dict(process)


@pytest.mark.parametrize("update", [allocate_a_buffer, many_changes_at_once], ids=lambda update: update.__name__)
def test_a_writer_killed_at_any_instruction_is_dead_at_once_and_left_the_old_or_the_new(
    update: Callable[[ttmem.Publisher], None], directory: Path
) -> None:
    def sweep() -> None:
        for path in directory.iterdir():
            path.unlink()

    body = writer_of(update)
    total, moves = commits(body, directory)
    sweep()
    ends = []
    for finished in (False, True):
        with Tracee(body) as writer:
            if finished:
                writer.run_to_mark()
            writer.kill()
        ends.append(left_by_the_dead(directory))
        sweep()
    points = list(range(total))
    if KILLS != "all":
        # Where the commit is at work: some before it, most within, some after.
        first, last = moves[0] - 20, 2 * moves[-1] - moves[0] + 20
        points = list(range(first, min(total, last), max(1, (last - first) // int(KILLS))))
    for point in points:
        with Tracee(body) as writer:
            for _ in range(point):
                if not writer.step():
                    break
            assert figures_of(directory)[0]["state"] == "live"
            writer.kill()
        assert left_by_the_dead(directory) in ends
        sweep()


def kill_at_every_system_call(body: Callable[[], None], check: Callable[[], None]) -> int:
    """Kill a fresh writer at each stop of a system call between its first two marks; return how many there were."""
    stop = 0
    while True:
        stop += 1
        with Tracee(body) as writer:
            if not all(writer.to_system_call() for _ in range(stop)):
                return stop - 1
            writer.kill()
        check()


def test_a_writer_killed_at_any_system_call_of_its_start_leaves_nothing_or_a_whole_file(directory: Path) -> None:
    def body() -> None:
        mark()
        a_device()
        mark()

    left = []

    def check() -> None:
        left.append(len(figures_of(directory)))
        # The name appears with everything in it: there is no file that a reader cannot read.
        assert len(list(directory.iterdir())) == left[-1]
        with a_device() as publisher:
            assert publisher.published
        for path in directory.iterdir():
            path.unlink()

    assert kill_at_every_system_call(body, check) > 20
    assert set(left) == {0, 1}


def test_a_writer_killed_at_any_system_call_of_a_second_device_leaves_the_first_readable(directory: Path) -> None:
    def body() -> None:
        publisher = a_device(0)
        publisher.allocate("DRAM", 7)
        mark()
        a_device(1)
        mark()

    def check() -> None:
        seen = figures_of(directory)
        assert [device["device_id"] for device in seen] in ([0], [0, 1])
        assert seen[0]["processes"][0]["dram_bytes"] == 7
        for path in directory.iterdir():
            path.unlink()

    assert kill_at_every_system_call(body, check) > 5


def test_a_writer_killed_at_any_system_call_of_its_close_leaves_a_stale_device_or_none(directory: Path) -> None:
    def body() -> None:
        publisher = a_device()
        publisher.allocate("DRAM", 7)
        mark()
        publisher.close()
        mark()

    def check() -> None:
        for device in figures_of(directory):
            assert device["state"] == "stale"
            assert device["memory"]["dram"]["used_bytes"] == 0
        for path in directory.iterdir():
            path.unlink()

    assert kill_at_every_system_call(body, check) > 3


def test_a_collector_killed_at_any_system_call_leaves_the_living_alone(directory: Path) -> None:
    def body() -> None:
        mark()
        segment.collect(directory, "", grace_ns=0)
        mark()

    with a_device(5) as living:
        living.allocate("DRAM", 99)
        dead = Tracee(lambda: (a_device(6), mark())[1])  # type: ignore[func-returns-value]
        dead.kill()

        def check() -> None:
            seen = {device["device_id"]: device["state"] for device in figures_of(directory)}
            assert seen in ({5: "live", 6: "stale"}, {5: "live"})

        assert kill_at_every_system_call(body, check) > 5


def test_a_writer_killed_while_it_publishes_anew_leaves_nothing_or_a_whole_file(directory: Path) -> None:
    def body() -> None:
        publisher = a_device()
        publisher.allocate("DRAM", 7)
        for path in directory.iterdir():
            path.unlink()
        mark()
        publisher.check_file()
        mark()

    def check() -> None:
        for device in figures_of(directory):
            assert device["state"] == "stale"
            assert device["processes"][0]["dram_bytes"] == 7
        for path in directory.iterdir():
            path.unlink()

    assert kill_at_every_system_call(body, check) > 10


def test_a_block_that_was_given_to_another_device_meanwhile_is_not_read_as_the_first(directory: Path) -> None:
    from ttmem._reading import BlockReading

    with a_device(9):
        first = a_device(1)
        first.allocate("DRAM", 11)
        path = first.path
        assert path is not None
        fd = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            offset = 4096 + (size - 4096) // 2
            reading = BlockReading(fd, offset, size)
            assert reading.device_id == 1
            first.close()
            with a_device(2) as second:
                second.allocate("DRAM", 22)
                assert os.fstat(fd).st_size == size
                reading.load(fd, offset)
                assert not reading.live
                fresh = BlockReading(fd, offset, size)
                fresh.load(fd, offset)
                assert (fresh.device_id, fresh.total(1)[0]) == (2, 22)
        finally:
            os.close(fd)
