"""A record is never torn: a writer stopped or killed anywhere leaves the whole old or the whole new version."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tracing import PathTaken, Tracee, bytes_in_use, figures_of, mark, needs_x86, path_taken

import ttmem
from ttmem import segment

CORES = "{[0-0 - 7-7]}"
STRIDE = os.environ.get("TTMEM_TORN", "10")
"""A writer is killed at each so-manieth instruction of its commit: 1 in CI. ``all`` kills at those outside of it, too."""
OUTSIDE = 25
"""How many kills there are outside of the commit, where no instruction touches the file."""
TODAY = int(time.time() // 86400)
"""Other instructions every day, unless all are taken."""


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


def left_by_the_dead(directory: Path) -> dict[str, object]:
    """Return the last state of the one dead writer, whose device must use nothing."""
    (device,) = figures_of(directory)
    assert device["state"] == "stale"
    assert device["memory"]["cb"]["physical_bytes"] == 0
    assert device["memory"]["l1"]["used_bytes"] == device["memory"]["dram"]["used_bytes"] == 0
    (process,) = device["processes"]
    del process["pid"]
    return dict(process)


def sweep(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()


def kill_at(body: Callable[[], None], address: int, count: int, live: bool, directory: Path) -> None:
    """Kill a fresh writer where it is about to execute an instruction for the ``count``-th time."""
    with Tracee(body) as writer:
        writer.run_to(address, count)
        if live:
            assert figures_of(directory)[0]["state"] == "live"
        writer.kill()


def chosen(taken: PathTaken, around: int) -> list[tuple[int, int]]:
    """Return the points to kill at: those from the first change of the file to the last, and some of the others."""
    points = taken.points()
    if STRIDE == "all":
        return points
    begin, end = max(0, taken.changes[0] - around), min(len(points), taken.changes[-1] + around)
    stride = int(STRIDE)
    within = range(begin + TODAY % stride, end, stride)
    apart = max(1, (len(points) - (end - begin)) // OUTSIDE)
    outside = [n for n in range(TODAY % apart, len(points), apart) if not begin <= n < end]
    return [points[n] for n in (*within, *outside)]


@pytest.mark.timeout(0)
@pytest.mark.parametrize("update", UPDATES, ids=lambda update: update.__name__)
def test_a_writer_killed_at_any_instruction_is_dead_at_once_and_left_the_old_or_the_new(
    update: Callable[[ttmem.Publisher], None], directory: Path
) -> None:
    needs_x86()
    body = writer_of(update)
    with Tracee(body) as writer:
        (path,) = directory.iterdir()
        fd = os.open(path, os.O_RDONLY)
        try:
            parts = bytes_in_use(path)
            taken = path_taken(writer, lambda: [os.pread(fd, count, offset) for offset, count in parts])
        finally:
            os.close(fd)
    sweep(directory)
    assert len(taken.changes) > 20
    ends = []
    for finished in (False, True):
        with Tracee(body) as writer:
            if finished:
                writer.run_to_mark()
            writer.kill()
        ends.append(left_by_the_dead(directory))
        sweep(directory)
    assert ends[0] != ends[1]
    left = []
    for address, count in chosen(taken, around=20):
        kill_at(body, address, count, True, directory)
        left.append(left_by_the_dead(directory))
        assert left[-1] in ends
        sweep(directory)
    # Both were met: the commit does not lie beside what was chosen.
    assert all(end in left for end in ends)


def visible(directory: Path) -> list[tuple[object, ...]]:
    """Return the names of the files, and of each the bytes that say what the others mean."""
    found: list[tuple[object, ...]] = []
    for name in sorted(os.listdir(directory)):
        fd = os.open(directory / name, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            places = (0, 4096, 4096 + (size - 4096) // 2)
            found.append((name, size, *(os.pread(fd, 640, place) for place in places)))
        finally:
            os.close(fd)
    return found


def kill_around_every_store(body: Callable[[], None], check: Callable[[], None], directory: Path) -> int:
    """Kill a fresh writer before and after each instruction that changes what others see; return how many there were."""
    needs_x86()
    with Tracee(body) as writer:
        taken = path_taken(writer, lambda: visible(directory))
    check()
    points = taken.points()
    stride = 1 if STRIDE == "all" else int(STRIDE)
    many = len(taken.changes) > 40
    for change in taken.changes[TODAY % stride :: stride] if many else taken.changes:
        for address, count in points[max(0, change - 1) : change + 1]:
            kill_at(body, address, count, False, directory)
            check()
    return len(taken.changes)


def test_a_writer_killed_at_any_store_of_its_close_leaves_a_stale_device_or_none(directory: Path) -> None:
    def body() -> None:
        publisher = a_device()
        publisher.allocate("DRAM", 7)
        mark()
        publisher.close()
        mark()

    def check() -> None:
        for device in figures_of(directory):
            assert device["state"] == "stale"
            assert device["processes"][0]["dram_bytes"] == 7
        sweep(directory)

    # The block is withdrawn, the file is closed, the name goes.
    assert kill_around_every_store(body, check, directory) >= 3


def test_a_writer_killed_at_any_store_of_a_block_given_to_another_device_leaves_the_first_readable(
    directory: Path,
) -> None:
    def body() -> None:
        first, second = a_device(0), a_device(1)
        first.allocate("DRAM", 7)
        second.allocate("DRAM", 8)
        second.close()
        mark()
        a_device(2).allocate("DRAM", 9)
        mark()

    def check() -> None:
        seen = figures_of(directory)
        # The second may be gone and the third not there yet, and neither has figures of the other.
        assert [device["device_id"] for device in seen] in ([0], [0, 2])
        assert [device["processes"][0]["dram_bytes"] for device in seen] in ([7], [7, 0], [7, 9])
        sweep(directory)

    assert kill_around_every_store(body, check, directory) >= 10


def test_a_collector_killed_at_any_store_leaves_the_living_alone(directory: Path) -> None:
    def body() -> None:
        a_dead_writer()
        mark()
        segment.collect(directory, "", grace_ns=1)
        segment.collect(directory, "", grace_ns=1)
        mark()

    def a_dead_writer() -> None:
        pid = os.fork()
        if pid == 0:
            a_device(6).allocate("DRAM", 5)
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)

    with a_device(5) as living:
        living.allocate("DRAM", 99)
        (kept,) = directory.iterdir()

        def check() -> None:
            seen = {device["device_id"]: device["state"] for device in figures_of(directory)}
            assert seen in ({5: "live", 6: "stale"}, {5: "live"})
            for path in directory.iterdir():
                if path != kept:
                    path.unlink()

        # The burial is noted, and the name goes.
        assert kill_around_every_store(body, check, directory) == 2


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
