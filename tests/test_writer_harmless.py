"""A writer cannot be hurt: where nothing can be published the program goes on, told once, with figures of its own."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ttmem
from ttmem import segment
from ttmem._segment import forget_populate

ROOT = str(Path(ttmem.__file__).parents[1])
UNSHARE = shutil.which("unshare")


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TTMEM_SHM_DIR", str(tmp_path))
    monkeypatch.delenv("TTMEM_NAMESPACE", raising=False)
    return tmp_path


def use(publisher: ttmem.Publisher) -> None:
    """Do one of everything, and check that the figures are right."""
    program = publisher.add_program([ttmem.CircularBuffer(2048, 512, "{[0-0 - 1-1]}")], name="first")
    publisher.dispatch(program)
    buffer = publisher.allocate("DRAM", 1000, name="kept")
    publisher.deallocate(publisher.allocate("L1", 4096, address=500_000, size_per_bank=1024))
    publisher.unload_kernel(publisher.load_kernel(100))
    with publisher.batch():
        publisher.allocate("DRAM", 234)
    memory = publisher.snapshot().memory
    assert memory.dram.used_bytes == 1234
    assert memory.cb.physical_bytes == memory.cb.resident_bytes == 4 * 512
    assert [p.name for p in publisher.snapshot().programs] == ["first"]
    assert buffer


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def make_missing(directory: Path) -> Path:
    return directory / "missing"


def make_a_file(directory: Path) -> Path:
    (directory / "file").write_text("")
    return directory / "file"


@pytest.mark.parametrize("make", [make_missing, make_a_file])
def test_without_a_directory_the_program_goes_on_and_is_told_once(
    make: Any, directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TTMEM_SHM_DIR", str(make(directory)))
    with ttmem.publish(0, arch="wormhole_b0", grid=(2, 2)) as publisher:
        assert not publisher.published
        assert publisher.path is None
        use(publisher)
    assert len(warnings_of(caplog)) == 1
    assert "the program goes on" in warnings_of(caplog)[0]


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EACCES, errno.EROFS, errno.ENOMEM, errno.EINTR]
)
@pytest.mark.parametrize("call", ["open", "ftruncate", "fchmod", "link"])
def test_a_failing_system_call_of_the_start_switches_publishing_off(
    call: str, code: int, directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(segment.os, call, fail)
        publisher = ttmem.publish(0, arch="wormhole_b0", grid=(2, 2))
    with publisher:
        assert not publisher.published
        use(publisher)
    assert len(warnings_of(caplog)) == 1
    assert os.strerror(code) in warnings_of(caplog)[0]
    assert list(directory.iterdir()) == []


def test_without_nameless_files_a_hidden_name_serves_and_is_gone_after(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_open = os.open

    def open_without(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return true_open(path, flags, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(segment.os, "open", open_without)
        publisher = ttmem.publish(0, arch="wormhole_b0", grid=(2, 2))
    with publisher:
        assert publisher.published
        use(publisher)
        assert list(directory.iterdir()) == [publisher.path]


@pytest.fixture
def old_kernel() -> Iterator[None]:
    """A kernel before 5.14, which cannot be asked for memory through a mapping."""
    forget_populate()
    yield
    forget_populate(False)


@pytest.mark.usefixtures("old_kernel")
def test_on_an_old_kernel_a_device_gets_all_its_memory_at_once(directory: Path) -> None:
    with ttmem.publish(0, arch="wormhole_b0", grid=(2, 2)) as publisher:
        assert publisher.published
        assert publisher.path is not None
        status = publisher.path.stat()
        assert status.st_blocks * 512 >= status.st_size
        use(publisher)
        for number in range(1500):
            publisher.allocate("DRAM", 1, name=str(number))
        assert ttmem.devices()[0].memory.dram.used_bytes == 1234 + 1500
        # Nothing is left to be obtained later, where it would take a file that is no longer open.
        assert publisher.path.stat().st_blocks == status.st_blocks
    assert list(directory.iterdir()) == []


def test_without_locks_a_writer_is_judged_by_its_pid(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "lock", lambda fd, byte=0: False)
    with ttmem.publish(0, arch="wormhole_b0", grid=(2, 2)) as publisher:
        use(publisher)
        assert ttmem.devices()[0].state == "live"
        assert segment.collect(directory, "", grace_ns=0) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_without_permission_the_program_goes_on(directory: Path) -> None:
    shared = directory / "closed"
    shared.mkdir(mode=0o755)
    code = f"""
import logging, os, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
import ttmem.publisher, ttmem.reader  # while the files of the package can be read
held = os.open({str(shared)!r}, os.O_PATH)
os.setresuid(12345, 12345, 12345)
os.environ["TTMEM_SHM_DIR"] = f"/proc/self/fd/{{held}}"
with ttmem.publish(0, grid=(2, 2)) as publisher:
    publisher.allocate("DRAM", 1000)
    print(publisher.published, publisher.snapshot().memory.dram.used_bytes)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        check=True,
    )
    warning, answer = ran.stdout.splitlines()
    assert "Permission denied" in warning
    assert answer == "False 1000"
    assert list(shared.iterdir()) == []


def in_a_small_tmpfs(directory: Path, kib: int, code: str, options: str = "") -> str:
    """Run Python with a tmpfs of that size as its directory; return what it printed."""
    place = directory / "small"
    place.mkdir()
    script = f'mount -t tmpfs -o size={kib}k tmpfs "$0" && {options or ":"} && exec "$1" -c "$2"'
    ran = subprocess.run(
        [str(UNSHARE), "-m", "sh", "-c", script, str(place), sys.executable, code],
        env={**os.environ, "PYTHONPATH": ROOT, "TTMEM_SHM_DIR": str(place)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def can_mount() -> bool:
    if UNSHARE is None:
        return False
    script = "mount -t tmpfs -o size=64k tmpfs /mnt"
    return subprocess.run([UNSHARE, "-m", "sh", "-c", script], capture_output=True).returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="no mount namespace may be made here")

MANY = """
import logging, os, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
import ttmem
options = dict(arch="blackhole", grid=(14, 10), l1_cb_base=0, l1_small_size=0)
publisher = ttmem.publish(0, **options)
cores = [ttmem.CoreRange(ttmem.CoreCoord(i % 14, i // 14), ttmem.CoreCoord(i % 14, i // 14)) for i in range(140)]
for i in range(1500):
    publisher.add_program([ttmem.CircularBuffer(4096 + 64 * i, 64, cores[i % 140])], name=f"program {i}")
    publisher.allocate("DRAM", 3, name=f"buffer {i}")
memory = publisher.snapshot().memory
assert memory.dram.used_bytes == 4500, memory
assert memory.cb.logical_bytes == memory.cb.physical_bytes == 1500 * 64, memory
if publisher.published:
    device, = ttmem.devices()
    assert device.memory.dram.used_bytes == 4500
    assert device.memory.cb.physical_bytes == 1500 * 64
    assert device.consistent
    assert not any("checksum" in text for text in device.warnings), device.warnings
print("published" if publisher.published else "private", publisher.updates_dropped > 0)
publisher.close()
"""


@needs_mount
def test_a_full_tmpfs_switches_publishing_off_and_says_so_once(directory: Path) -> None:
    lines = in_a_small_tmpfs(directory, 32, MANY).splitlines()
    assert lines[-1] == "private False"
    assert len(lines) == 2
    assert "the program goes on" in lines[0]


@needs_mount
@pytest.mark.parametrize("kib", [64, 72, 96, 128, 256])
def test_a_tmpfs_that_fills_up_costs_rows_and_never_a_total(kib: int, directory: Path) -> None:
    lines = in_a_small_tmpfs(directory, kib, MANY).splitlines()
    assert lines[-1] == "published True"


@needs_mount
@pytest.mark.parametrize(("kib", "end"), [(8, "private"), (512, "private"), (8192, "published")])
def test_a_full_tmpfs_is_no_harm_on_an_old_kernel(kib: int, end: str, directory: Path) -> None:
    code = f"from ttmem._segment import forget_populate; forget_populate(){MANY}"
    assert in_a_small_tmpfs(directory, kib, code).splitlines()[-1] == f"{end} False"


@needs_mount
def test_a_read_only_directory_switches_publishing_off(directory: Path) -> None:
    lines = in_a_small_tmpfs(directory, 64, MANY, 'mount -o remount,ro "$0"').splitlines()
    assert lines[-1] == "private False"
    assert "Read-only file system" in lines[0]


@needs_mount
def test_a_second_device_that_finds_no_room_leaves_the_first_published(directory: Path) -> None:
    code = """
import os
import ttmem
first = ttmem.publish(0, grid=(4, 4))
first.allocate("L1", 11)
others = [ttmem.publish(i, grid=(4, 4)) for i in range(1, 12)]
# What those that found no room had obtained was given back.
assert os.statvfs(os.environ["TTMEM_SHM_DIR"]).f_bavail > 0
for publisher in others:
    publisher.allocate("L1", 22)
    assert publisher.snapshot().memory.l1.used_bytes == 22
published = [p.device_id for p in (first, *others) if p.published]
assert [d.device_id for d in ttmem.devices()] == published
assert 1 < len(published) < 12
others[0].close()
again = ttmem.publish(1, grid=(4, 4))
again.allocate("L1", 33)
assert again.published
assert [d.memory.l1.used_bytes for d in ttmem.devices()][:2] == [11, 33]
print("done")
"""
    assert in_a_small_tmpfs(directory, 108, code).splitlines()[-1] == "done"


def test_a_file_deleted_under_a_writer_is_published_again(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ttmem.publish(0, grid=(2, 2)) as first, ttmem.publish(1, grid=(2, 2)) as second:
        first.allocate("DRAM", 11)
        second.allocate("DRAM", 22)
        updated_ns = ttmem.devices()[0].updated_ns
        old = first.path
        assert old is not None
        old.unlink()
        assert ttmem.devices() == []
        first.check_file()
        second.check_file()
        assert first.path == second.path != old
        seen = ttmem.devices()
        assert [device.memory.dram.used_bytes for device in seen] == [11, 22]
        # No figure changed: neither does the time of its last change.
        assert seen[0].updated_ns == updated_ns
        first.allocate("DRAM", 100)
        assert ttmem.devices()[0].memory.dram.used_bytes == 111
    assert list(directory.iterdir()) == []
    assert len(warnings_of(caplog)) == 2


def test_a_writer_notices_a_deleted_file_by_itself(directory: Path) -> None:
    import time

    with ttmem.publish(0, grid=(2, 2)) as publisher:
        publisher.allocate("DRAM", 1)
        path = publisher.path
        assert path is not None
        path.unlink()
        end = time.monotonic() + 60
        while publisher.path == path and time.monotonic() < end:
            publisher.deallocate(publisher.allocate("DRAM", 1))
        assert publisher.path != path
        assert ttmem.devices()[0].memory.dram.used_bytes == 1


def test_a_device_published_after_the_file_was_deleted_has_a_file(directory: Path) -> None:
    with ttmem.publish(0, grid=(2, 2)) as first:
        old = first.path
        assert old is not None
        old.unlink()
        with ttmem.publish(1, grid=(2, 2)) as second:
            assert second.published
            first.check_file()
            assert first.path == second.path != old
            assert [device.device_id for device in ttmem.devices()] == [0, 1]
    assert list(directory.iterdir()) == []


def test_a_device_closed_while_its_file_is_looked_for_stays_closed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = segment.WriterFile.lost

    def close_meanwhile(file: segment.WriterFile) -> bool:
        monkeypatch.setattr(segment.WriterFile, "lost", lost)
        publisher.close()
        return lost(file)

    with ttmem.publish(1, grid=(2, 2)) as other, ttmem.publish(0, grid=(2, 2)) as publisher:
        assert other.path is not None
        other.path.unlink()
        monkeypatch.setattr(segment.WriterFile, "lost", close_meanwhile)
        publisher.check_file()
        assert not publisher.published
        assert list(directory.iterdir()) == []


def test_a_file_replaced_under_a_writer_is_not_unlinked_by_it(directory: Path) -> None:
    with ttmem.publish(0, grid=(2, 2)) as publisher:
        path = publisher.path
        assert path is not None
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"


def test_a_file_that_cannot_be_published_again_leaves_private_figures(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = directory / "gone"
    place.mkdir()
    monkeypatch.setenv("TTMEM_SHM_DIR", str(place))
    with ttmem.publish(0, arch="wormhole_b0", grid=(2, 2)) as publisher:
        publisher.allocate("DRAM", 1000)
        shutil.rmtree(place)
        publisher.check_file()
        assert not publisher.published
        publisher.allocate("DRAM", 234)
        assert publisher.snapshot().memory.dram.used_bytes == 1234


def test_a_thousand_devices_are_published_and_read(directory: Path) -> None:
    publishers = [ttmem.publish(i) for i in range(1000)]
    try:
        for publisher in publishers:
            publisher.allocate("DRAM", 1 + publisher.device_id)
        assert all(publisher.published for publisher in publishers)
        seen = ttmem.devices()
        assert [(d.device_id, d.memory.dram.used_bytes) for d in seen] == [(i, i + 1) for i in range(1000)]
    finally:
        for publisher in publishers:
            publisher.close()
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize(
    ("given_mode", "expected"),
    [("0600", 0o600), ("0644", 0o644), ("666", 0o666), ("0o640", 0o640), ("0044", 0o644), ("nonsense", 0o644)],
)
def test_the_mode_of_the_file_is_what_the_user_asked_for(
    given_mode: str, expected: int, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    monkeypatch.setenv("TTMEM_SHM_MODE", given_mode)
    before = os.umask(0o077)
    try:
        with ttmem.publish(0, grid=(1, 1)) as publisher:
            assert publisher.path is not None
            assert stat.S_IMODE(publisher.path.stat().st_mode) == expected
    finally:
        os.umask(before)


def test_a_damaged_neighbour_does_not_keep_a_writer_from_starting(directory: Path) -> None:
    for index, content in enumerate((b"", b"\x89TTMEM", bytes(8192), os.urandom(8192), b"\x89TTMEM" + bytes(9000))):
        (directory / f"ttmem1..{os.getuid()}.1.1.{index}").write_bytes(content)
    os.mkfifo(directory / "ttmem1..fifo")
    (directory / "ttmem1..directory").mkdir()
    with ttmem.publish(0, grid=(1, 1)) as publisher:
        assert publisher.published


def test_a_device_takes_memory_for_what_it_uses_and_a_reader_reads_no_more(directory: Path) -> None:
    from ttmem._reading import BlockReading

    with ttmem.publish(0, grid=(8, 8)) as publisher:
        publisher.allocate("DRAM", 1)
        publisher.allocate("L1", 1)
        assert publisher.path is not None
        # The tables of buffers have two halves: the second one does not cost the first one's memory.
        assert publisher.path.stat().st_blocks * 512 < 100_000
        fd = os.open(publisher.path, os.O_RDONLY)
        try:
            reading = BlockReading(fd, 4096, os.fstat(fd).st_size)
            reading.load(fd, 4096)
        finally:
            os.close(fd)
        assert len(reading.buffers()) == 2
        assert reading.bytes_read < 10_000
        publisher.path.unlink()
        publisher.check_file()
        assert [row["buffer_type"] for row in publisher.snapshot().buffers()] == [1, 0]


POUNDED = """
import ctypes, logging, sys, threading, ttmem
from ttmem import _ttnn_feed
pounding = ctypes.CDLL(sys.argv[1])
pounding.pounding_start.restype = ctypes.c_uint64
capsule = ctypes.pythonapi.PyCapsule_GetPointer
capsule.restype, capsule.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
sink = ctypes.c_void_p(capsule(_ttnn_feed.sink, b"ttmem.ttnn_hook_sink"))
logging.disable()
publisher = ttmem.publish(0, arch="wormhole_b0", grid=(8, 8))
feed = _ttnn_feed.Feed(publisher, {})
_ttnn_feed.hear({0: feed})
done = []
thread = threading.Thread(target=lambda: done.append(pounding.pounding_start(sink, 0)))
thread.start()
for _ in range(1000):
    publisher.path.unlink()
    publisher.check_file()
    assert publisher.published
pounding.pounding_end()
thread.join()
memory = publisher.snapshot().memory
assert done[0] > 1000 and feed.refused == 0
print(memory.dram.used_bytes, memory.l1.used_bytes, len(publisher.snapshot().buffers()))
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing: apt-get install gcc")
def test_a_file_deleted_under_threads_that_need_no_gil_is_published_again(tmp_path: Path) -> None:
    library = tmp_path / "library"
    shared = tmp_path / "shm"
    library.mkdir(), shared.mkdir()
    source = Path(__file__).parent / "native" / "pounding.c"
    headers = f"-I{Path(ttmem.__file__).parent}"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", headers, str(source), "-o", library / "pounding.so"], check=True)
    done = subprocess.run(
        [sys.executable, "-c", POUNDED, str(library / "pounding.so")],
        env={**os.environ, "TTMEM_SHM_DIR": str(shared), "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=120,
    )
    # Before, such a thread wrote into what had just been unmapped.
    assert (done.returncode, done.stdout) == (0, "0 0 0\n"), done.stderr
