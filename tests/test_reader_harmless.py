"""A reader cannot hurt: it opens and maps for reading alone, takes no lock, and unlinks nothing."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ttmem
from ttmem.reader import Host

STRACE = shutil.which("strace")
ROOT = str(Path(ttmem.__file__).parents[1])
READ = """
import ttmem
for _ in range(3):
    with ttmem.attach(0) as reader:
        for _ in range(3):
            assert reader.snapshot().memory.dram.used_bytes == 1000
    ttmem.devices()
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TTMEM_SHM_DIR", str(tmp_path))
    monkeypatch.delenv("TTMEM_NAMESPACE", raising=False)
    return tmp_path


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
def test_a_readers_system_calls_change_nothing(directory: Path) -> None:
    assert STRACE is not None
    log = directory.parent / "trace"
    calls = "trace=open,openat,openat2,creat,unlink,unlinkat,rename,renameat,renameat2,link,linkat,fcntl,flock,mmap"
    calls += ",write,pwrite64,writev,ftruncate,truncate,fallocate,fchmod,chmod,fchown,utimensat,setxattr,shm_open"
    with ttmem.publish(0, grid=(4, 4)) as publisher:
        publisher.allocate("DRAM", 1000)
        subprocess.run(
            [STRACE, "-f", "-y", "-o", str(log), "-e", calls.removesuffix(",shm_open"), sys.executable, "-c", READ],
            env={**os.environ, "PYTHONPATH": ROOT},
            check=True,
        )
    ours = [line for line in log.read_text().splitlines() if str(directory) in line]
    # The descriptor of a file there is printed with its path, so that every call on it is among these.
    assert any("openat" in line and "O_RDONLY" in line for line in ours)
    for line in ours:
        assert not re.search(r"O_RDWR|O_WRONLY|O_CREAT|O_TRUNC|O_TMPFILE", line), line
        assert not re.search(r"F_(OFD_)?SETLKW?\b|PROT_WRITE", line), line
        name = re.sub(r"^\d+\s+", "", line).split("(")[0]
        assert name in ("open", "openat", "openat2", "fcntl", "mmap"), line
        if name == "fcntl":
            assert re.search(r"F_OFD_GETLK|F_GETFD|F_SETFD|F_GETFL|F_DUPFD", line), line


def test_a_readers_descriptors_cannot_write_or_truncate(directory: Path) -> None:
    with ttmem.publish(0, grid=(4, 4)):
        host = Host()
        try:
            assert len(host.parts()) == 1
            (file,) = host._files.values()
            for attempt in (
                lambda: os.pwrite(file.fd, b"x", 0),
                lambda: os.ftruncate(file.fd, 0),
            ):
                with pytest.raises(OSError, match=r"Bad file descriptor|Invalid argument") as caught:
                    attempt()
                assert caught.value.errno in (errno.EBADF, errno.EINVAL)
        finally:
            host.close()


def test_reading_changes_no_byte_and_no_time_of_a_file(directory: Path) -> None:
    with ttmem.publish(0, grid=(4, 4)) as publisher:
        publisher.allocate("DRAM", 1000)
        path = publisher.path
        assert path is not None
        before = (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ctime_ns)
        for _ in range(5):
            ttmem.devices()
        assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ctime_ns) == before


def test_reading_a_dead_writers_file_leaves_it_there(directory: Path) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            ttmem.publish(0, grid=(1, 1)).allocate("DRAM", 1)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    (path,) = directory.iterdir()
    before = path.read_bytes()
    (device,) = ttmem.devices()
    assert device.state == "stale"
    assert path.read_bytes() == before


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_reads_and_can_change_nothing(directory: Path) -> None:
    with ttmem.publish(0, grid=(4, 4)) as publisher:
        publisher.allocate("DRAM", 1000)
        path = publisher.path
        assert path is not None
        held = os.open(directory, os.O_PATH)
        directory.chmod(0o755)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.setresuid(12345, 12345, 12345)
                there = Path(f"/proc/self/fd/{held}")
                host = Host(there, "")
                (part,) = host.parts()
                assert part.state == "live"
                assert part.reading.total(1)[0] == 1000
                assert part.user == "root"
                for flags in (os.O_RDWR, os.O_WRONLY):
                    try:
                        os.open(there / path.name, flags)
                    except PermissionError:
                        continue
                    raise AssertionError("another user could open the file for writing")
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        os.close(held)
        assert ttmem.devices()[0].memory.dram.used_bytes == 1000
