"""Who lives is known at once and for sure: the kernel drops the lock, whatever way a process takes to its end."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ttmem
from ttmem import segment

SETUP = """
import os, sys, signal, threading, time
import ttmem

def say(text):
    # Not print: a child that was forked must not repeat what its parent buffered.
    os.write(1, (str(text) + "\\n").encode())

def wait():
    os.read(0, 1)

publisher = ttmem.publish(0, grid=(2, 2))
publisher.allocate("DRAM", 1000)
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TTMEM_SHM_DIR", str(tmp_path))
    monkeypatch.delenv("TTMEM_NAMESPACE", raising=False)
    return tmp_path


class Writer:
    """A fresh interpreter that publishes device 0 with 1,000 bytes of DRAM, and then does what it is told."""

    def __init__(self, code: str, *, before: tuple[str, ...] = ()) -> None:
        root = Path(ttmem.__file__).parents[1]
        self.process = subprocess.Popen(
            [*before, sys.executable, "-c", SETUP + code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(root)},
        )

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"x")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Writer]]:
    started: list[Writer] = []

    def make(code: str, **options: object) -> Writer:
        started.append(Writer(code, **options))  # type: ignore[arg-type]
        return started[-1]

    yield make
    for writer in started:
        writer.end()


def state() -> str:
    """Return the state of the one device, after a check that only the living count."""
    found = ttmem.devices()
    if not found:
        return "withdrawn"
    (device,) = found
    assert device.memory.dram.used_bytes == (1000 if device.state == "live" else 0)
    assert all(process.dram_bytes == 1000 for process in device.processes)
    return str(device.state)


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "stale"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "stale"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "stale"),
        ("os.abort()", "stale"),
        ("os._exit(0)", "stale"),
        ("sys.exit(0)", "withdrawn"),
        ("raise SystemExit(3)", "withdrawn"),
        ("publisher.close(); say('closed'); wait()", "withdrawn"),
        ("os.execv('/bin/true', ['true'])", "stale"),
        ("threading.Thread(target=os._exit, args=(0,)).start(); wait()", "stale"),
    ],
)
def test_the_end_of_a_process_is_seen_at_the_next_read(end: str, expected: str, start: Callable[..., Writer]) -> None:
    writer = start(f"say('ready'); wait()\n{end}\n")
    assert writer.hear() == "ready"
    assert state() == "live"
    writer.go_on()
    if "closed" in end:
        # It lives on, without the device.
        assert writer.hear() == "closed"
        assert writer.process.poll() is None
    else:
        writer.process.wait()
    assert state() == expected


def test_a_process_that_became_another_program_is_no_writer(start: Callable[..., Writer]) -> None:
    writer = start("say('ready'); wait(); os.execv('/bin/cat', ['cat'])\n")
    assert writer.hear() == "ready"
    assert state() == "live"
    writer.go_on()
    # cat answers only when it is there.
    assert writer.process.stdin is not None
    writer.process.stdin.write(b"hello\n")
    writer.process.stdin.flush()
    assert writer.hear() == "hello"
    assert writer.process.poll() is None
    assert state() == "stale"


def test_a_stopped_process_lives(start: Callable[..., Writer]) -> None:
    writer = start("say('ready'); wait()\n")
    assert writer.hear() == "ready"
    writer.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, writer.process.pid, os.WSTOPPED | os.WNOWAIT)
    assert state() == "live"


@pytest.mark.parametrize("fork", ["os.fork()", "ctypes.CDLL(None).fork()"], ids=["python", "c"])
def test_a_surviving_child_does_not_keep_its_parent_alive(fork: str, start: Callable[..., Writer]) -> None:
    writer = start(
        f"""
import ctypes
if {fork} == 0:
    say("child")
    wait()
    os._exit(0)
time.sleep(1000)
"""
    )
    assert writer.hear() == "child"
    assert state() == "live"
    writer.process.kill()
    writer.process.wait()
    assert state() == "stale"
    writer.go_on()


def test_a_publisher_in_a_forked_child_is_inert_and_the_child_may_publish_anew(start: Callable[..., Writer]) -> None:
    writer = start(
        """
import ctypes
handle = publisher.footprint([ttmem.CircularBuffer(0, 32, "{[0-0 - 0-0]}")])
pid = ctypes.CDLL(None).fork()
if pid == 0:
    answers = [
        publisher.allocate("DRAM", 5), publisher.deallocate(1), publisher.add_program(handle), publisher.dispatch(99),
        publisher.load_kernel(5), publisher.close(), publisher.begin_trace(), publisher.remove_program(77),
    ]
    with publisher.batch():
        publisher.allocate("DRAM", 5)
    # It takes the lock, which another thread of the parent may have held.
    answers.append(publisher.core_peaks())
    say([answer or 0 for answer in answers] == [0] * 9 and not publisher.published)
    say(publisher.snapshot().memory.dram.used_bytes)
    del handle
    fresh = ttmem.publish(0, grid=(2, 2))
    fresh.allocate("DRAM", 1000)
    say("published")
    wait()
    fresh.close()
    os._exit(0)
os.waitpid(pid, 0)
say("alone")
wait()
"""
    )
    assert writer.hear() == "True"
    assert writer.hear() == "0"
    assert writer.hear() == "published"
    (device,) = ttmem.devices()
    assert device.memory.dram.used_bytes == 2000
    assert len({process.pid for process in device.processes}) == 2
    writer.go_on()
    assert writer.hear() == "alone"
    assert state() == "live"


def test_a_child_that_exits_cleanly_withdraws_nothing_of_its_parent(start: Callable[..., Writer]) -> None:
    writer = start(
        """
pid = os.fork()
if pid == 0:
    sys.exit(0)
os.waitpid(pid, 0)
say("ready")
wait()
"""
    )
    assert writer.hear() == "ready"
    assert state() == "live"


def test_a_fork_while_a_lock_is_held_elsewhere_leaves_a_child_that_goes_on(start: Callable[..., Writer]) -> None:
    writer = start(
        """
done = False
def work():
    while not done:
        publisher.deallocate(publisher.allocate("DRAM", 8))
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(50):
    pid = os.fork()
    if pid == 0:
        publisher.allocate("DRAM", 1)
        with publisher.batch():
            publisher.dispatch(1)
        publisher.snapshot()
        with ttmem.publish(3, grid=(1, 1)) as mine:
            mine.allocate("L1", 1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
done = True
for thread in threads:
    thread.join()
say("done")
wait()
"""
    )
    assert writer.hear() == "done"
    assert state() == "live"


def test_a_daemon_that_publishes_after_its_forks_lives(start: Callable[..., Writer]) -> None:
    writer = start(
        """
publisher.close()
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
daemon = ttmem.publish(0, grid=(2, 2))
daemon.allocate("DRAM", 1000)
say(os.getpid())
wait()
os._exit(0)
"""
    )
    pid = int(writer.hear())
    writer.process.wait()
    try:
        assert state() == "live"
        (device,) = ttmem.devices()
        assert device.processes[0].pid == pid
    finally:
        pidfd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        poll_end(pidfd)
    assert state() == "stale"


def poll_end(pidfd: int) -> None:
    """Wait until the process of a pidfd has ended."""
    import select

    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    assert waiting.poll(30_000)
    os.close(pidfd)


def test_a_device_published_before_daemonising_is_not_the_daemons(start: Callable[..., Writer]) -> None:
    writer = start(
        """
pid = os.fork()
if pid:
    os._exit(0)
os.setsid()
say(os.getpid())
wait()
os._exit(0)
"""
    )
    assert int(writer.hear()) > 0
    writer.process.wait()
    assert state() == "stale"
    writer.go_on()


def test_closing_every_descriptor_does_not_end_a_writer(start: Callable[..., Writer]) -> None:
    writer = start(
        """
os.closerange(3, 4096)
publisher.deallocate(publisher.allocate("DRAM", 5))
say("closed")
wait()
"""
    )
    assert writer.hear() == "closed"
    assert state() == "live"
    writer.process.kill()
    writer.process.wait()
    assert state() == "stale"


def test_the_end_of_the_thread_that_published_does_not_end_the_writer(start: Callable[..., Writer]) -> None:
    writer = start(
        """
publisher.close()
def publish():
    global publisher
    publisher = ttmem.publish(0, grid=(2, 2))
    publisher.allocate("DRAM", 1000)
thread = threading.Thread(target=publish)
thread.start()
thread.join()
say("joined")
wait()
"""
    )
    assert writer.hear() == "joined"
    assert state() == "live"


def _publish_and_wait(ready: object, go: object) -> None:
    publisher = ttmem.publish(0, grid=(2, 2))
    publisher.allocate("DRAM", 1000)
    ready.set()  # type: ignore[attr-defined]
    go.wait()  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_process_of_multiprocessing_publishes_and_its_end_is_seen(method: str) -> None:
    context = multiprocessing.get_context(method)
    ready, go = context.Event(), context.Event()
    with ttmem.publish(1, grid=(2, 2)) as mine:
        # The parent publishes too: a forked worker must not be mistaken for it.
        mine.allocate("DRAM", 1)
        worker = context.Process(target=_publish_and_wait, args=(ready, go))
        worker.start()
        try:
            assert ready.wait(60)
            states = {device.device_id: device.state for device in ttmem.devices()}
            assert states == {0: "live", 1: "live"}
        finally:
            worker.kill()
            worker.join()
        states = {device.device_id: device.state for device in ttmem.devices()}
        assert states == {0: "stale", 1: "live"}


UNSHARE = shutil.which("unshare")


def can_unshare() -> bool:
    return (
        UNSHARE is not None
        and subprocess.run([UNSHARE, "--pid", "--fork", "true"], capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not can_unshare(), reason="unshare --pid is not permitted here")
def test_a_writer_in_another_pid_namespace_is_judged_like_any_other(start: Callable[..., Writer]) -> None:
    assert UNSHARE is not None
    writer = start(
        "say('ready'); wait(); os._exit(0)\n", before=(UNSHARE, "--pid", "--fork", "--kill-child", "--mount-proc")
    )
    assert writer.hear() == "ready"
    (device,) = ttmem.devices()
    assert device.state == "live"
    assert device.processes[0].pid == 1
    assert device.memory.dram.used_bytes == 1000
    writer.go_on()
    writer.process.wait()
    assert state() == "stale"


@pytest.mark.skipif(not can_unshare(), reason="unshare --pid is not permitted here")
def test_a_reader_in_another_pid_namespace_sees_who_lives(start: Callable[..., Writer]) -> None:
    assert UNSHARE is not None
    writer = start("say('ready'); wait()\n")
    assert writer.hear() == "ready"
    look = "import ttmem; d, = ttmem.devices(); print(d.state, d.memory.dram.used_bytes)"
    command = [UNSHARE, "--pid", "--fork", "--mount-proc", sys.executable, "-c", look]
    environment = {**os.environ, "PYTHONPATH": str(Path(ttmem.__file__).parents[1])}
    assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout == "live 1000\n"
    writer.process.kill()
    writer.process.wait()
    assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout == "stale 0\n"


@pytest.mark.skipif(not can_unshare(), reason="unshare --pid is not permitted here")
def test_a_forked_child_with_its_parents_pid_in_a_nested_namespace_withdraws_nothing(
    start: Callable[..., Writer],
) -> None:
    assert UNSHARE is not None
    code = """
import ctypes
assert os.getpid() == 1
assert ctypes.CDLL(None, use_errno=True).unshare(0x20000000) == 0
pid = os.fork()
if pid == 0:
    assert os.getpid() == 1
    assert not publisher.published
    again = ttmem.publish(1, grid=(2, 2))
    assert again.path != publisher.path
    sys.exit(0)
say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
wait()
"""
    writer = start(code, before=(UNSHARE, "--pid", "--fork", "--kill-child", "--mount-proc"))
    assert writer.hear() == "0"
    (device,) = ttmem.devices()
    assert device.state == "live"
    assert device.memory.dram.used_bytes == 1000


def test_a_reused_pid_is_not_taken_for_the_writer(start: Callable[..., Writer], directory: Path) -> None:
    writer = start("say('ready'); wait()\n")
    assert writer.hear() == "ready"
    (path,) = directory.iterdir()
    writer.process.kill()
    writer.process.wait()
    # As if a new process had got the number: the file names a pid that lives, this one's.
    import struct

    from ttmem._segment import static_check

    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 72, os.getpid())
    struct.pack_into("<Q", data, 80, segment.start_ticks("self"))
    data[504:512] = struct.pack("<Q", static_check(bytes(data[:504])))
    with path.open("r+b") as file:
        file.write(data)
    assert state() == "stale"


def without_lock(path: Path, **fields: object) -> None:
    """Rewrite a file's header as one of a writer that could take no lock."""
    import struct

    from ttmem._segment import static_check

    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 104, segment.LOCK_NONE)
    if "start_ticks" in fields:
        struct.pack_into("<Q", data, 80, fields["start_ticks"])
    if "boot_id" in fields:
        data[56:72] = fields["boot_id"]  # type: ignore[assignment]
    if "pidns" in fields:
        struct.pack_into("<Q", data, 88, fields["pidns"])
    data[504:512] = struct.pack("<Q", static_check(bytes(data[:504])))
    with path.open("r+b") as file:
        file.write(data)


def test_without_a_lock_the_pid_and_its_start_time_tell_and_otherwise_nothing_is_counted(
    start: Callable[..., Writer], directory: Path
) -> None:
    writer = start("say('ready'); wait()\n")
    assert writer.hear() == "ready"
    (path,) = directory.iterdir()
    without_lock(path)
    assert state() == "live"
    ticks = segment.start_ticks(writer.process.pid)
    without_lock(path, start_ticks=ticks + 1)
    assert state() == "stale"
    without_lock(path, start_ticks=ticks, pidns=1)
    (device,) = ttmem.devices()
    assert device.processes[0].state == "unknown"
    assert device.memory.dram.used_bytes == 0
    assert any("cannot be told" in text for text in device.warnings)
    without_lock(path, pidns=segment.pid_namespace(), boot_id=b"another boot's.."[:16])
    assert ttmem.devices()[0].processes[0].state == "unknown"


def test_readers_that_attach_while_writers_start_and_die_never_see_half_a_file(directory: Path) -> None:
    from tracing import figures_of

    root = str(Path(ttmem.__file__).parents[1])
    code = """
import os, signal, sys
import ttmem
for _ in range(60):
    pid = os.fork()
    if pid == 0:
        publisher = ttmem.publish(0, grid=(8, 8))
        publisher.allocate("DRAM", 1000)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
"""
    churn = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root})
    try:
        while churn.poll() is None:
            for device in figures_of(directory):
                assert device["memory"]["dram"]["used_bytes"] in (0, 1000)
    finally:
        churn.kill()
        churn.wait()
    (device,) = figures_of(directory)
    assert device["state"] == "stale"
    assert len(device["processes"]) == 60
