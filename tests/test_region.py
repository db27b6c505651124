"""TT-Metal's regions, real and built from the documented offsets, and what makes them hard to read."""

import contextlib
import json
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ttmem
from ttmem.errors import DeviceNotFoundError
from ttmem.pids import ProcessTable
from ttmem.reader import read_host
from ttmem.region import Region, find_regions, read_region, to_device
from ttmem.segment import shm_directory

CAPTURES = Path(__file__).parent / "captures"
REAL = sorted(CAPTURES.glob("*.tt_device_*_memory.bin"))
ASIC_ID = 4476187513037
READY = 0x52454459
UNUSED = 0xFFFFFFFF
SIZE = {1: 9280}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")


def own_name() -> str:
    return Path("/proc/self/comm").read_text().rstrip("\n")


def slot(pid, *, name=None, values=(0, 0, 0, 0, 0), kernel=0, updated=None):
    raw = (own_name() if name is None else name) if not isinstance(name, bytes) else name
    return (
        pid,
        values,
        kernel,
        time.time_ns() if updated is None else updated,
        raw if isinstance(raw, bytes) else raw.encode(),
    )


def boot_ns() -> int:
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def build(
    version=3,
    *,
    totals=(100, 200, 30, 40, 500),
    kernel=60,
    references=1,
    slots=None,
    chips=((0, 0, (1, 2, 3, 4, 5)),),
    unused=UNUSED,
    asic_id=ASIC_ID,
    device_id=0,
    board_serial=0,
    updated=1_700_000_000_000_000_000,
    init_state=READY,
    size=None,
):
    """The bytes of a region, written field by field at the offsets that TT-Metal's sources have."""
    slots = {0: slot(os.getpid())} if slots is None else slots
    data = bytearray(SIZE.get(version, 8576))
    struct.pack_into("<II", data, 0, version, len(slots))
    struct.pack_into("<QI", data, 8, updated, references)
    struct.pack_into("<QQ", data, 24, board_serial, asic_id)
    struct.pack_into("<I", data, 40, device_id & 0xFFFFFFFF)
    struct.pack_into("<5Q", data, 48, *totals)
    first, stride = (96, 56) if version == 1 else (88, 48)
    if version == 1:
        struct.pack_into("<Q", data, 88, kernel)
    for index in range(16):
        chip_id, is_remote, values = chips[index] if index < len(chips) else (unused, 0, (0,) * 5)
        struct.pack_into("<II5Q", data, first + index * stride, chip_id, is_remote, *values)
    for index, (pid, values, kernel_bytes, stamp, name) in slots.items():
        offset = 992 + index * 128 if version == 1 else 856 + index * 120
        struct.pack_into("<i", data, offset, pid)
        struct.pack_into("<5Q", data, offset + 8, *values)
        if version == 1:
            struct.pack_into("<QQ64s", data, offset + 48, kernel_bytes, stamp, name)
        else:
            struct.pack_into("<Q64s", data, offset + 48, stamp, name)
    if version >= 4:
        struct.pack_into("<I", data, 8536, init_state)
    return bytes(data) if size is None else bytes(data[:size]).ljust(size, b"\0")


def place(directory: Path, data: bytes, number: int = ASIC_ID) -> Path:
    path = directory / f"tt_device_{number}_memory"
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def read(directory: Path, **options) -> Region:
    return read_region(place(directory, build(**options)))


def figures(region: Region):
    return region.dram_bytes, region.l1_bytes, region.l1_small_bytes, region.trace_bytes, region.cb_bytes


@pytest.fixture(scope="module")
def dead_pid():
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    return child


# Real regions


@pytest.mark.parametrize("source", REAL, ids=lambda path: path.name)
def test_a_real_region_of_a_living_process_has_the_figures_that_ttnn_reported(source, tmp_path):
    capture, name, _ = source.name.rsplit(".", 2)
    expected = json.loads((CAPTURES / f"{capture}.meta.json").read_text())["regions"][name]
    data = bytearray(source.read_bytes())
    struct.pack_into("<i", data, 856, os.getpid())
    path = tmp_path / name
    path.write_bytes(data)

    region = read_region(path)

    assert (region.version, region.state, region.consistent) == (3, "live", True)
    assert (region.asic_id, region.device_id) == (expected["asic_id"], expected["device_id"])
    assert figures(region) == tuple(expected[f"{kind}_bytes"] for kind in ("dram", "l1", "l1_small", "trace", "cb"))
    assert [process.name for process in region.processes] == ["python"]
    assert [chip.chip_id for chip in region.chips] == [expected["device_id"]]
    assert region.cb_meaning == "cached union"
    assert not region.warnings


def test_a_real_region_of_a_dead_process_is_stale_and_uses_nothing(tmp_path, dead_pid):
    data = bytearray((CAPTURES / "n150_conv.tt_device_0_memory.bin").read_bytes())
    struct.pack_into("<i", data, 856, dead_pid)

    region = read_region(place(tmp_path, bytes(data), 0))

    assert region.state == "stale"
    assert figures(region) == (0, 0, 0, 0, 0)
    assert region.updated_ns is None
    assert [(p.state, p.dram_bytes, p.l1_small_bytes) for p in region.processes] == [("stale", 798720, 31760)]


# Layouts


@pytest.mark.parametrize(
    ("version", "meaning", "kernel"),
    [(1, None, 60), (2, "cached union", None), (3, "cached union", None), (4, "resident", None)],
)
def test_every_layout_is_read_at_its_offsets(version, meaning, kernel, tmp_path):
    last = slot(os.getpid(), values=(11, 12, 13, 14, 15), kernel=16, updated=1_750_000_000_000_000_000)
    region = read(tmp_path, version=version, slots={63: last}, chips=((7, 0, (1, 2, 3, 4, 5)), (8, 1, (9, 8, 7, 6, 5))))

    assert region.state == "live"
    assert figures(region) == (100, 200, 30, 40, 500)
    assert (region.cb_meaning, region.kernel_bytes) == (meaning, kernel)
    assert [(c.chip_id, c.is_remote, c.dram_bytes, c.cb_bytes) for c in region.chips] == [
        (7, False, 1, 5),
        (8, True, 9, 5),
    ]
    (process,) = region.processes
    assert (process.pid, process.name, process.state) == (os.getpid(), own_name(), "live")
    assert (process.dram_bytes, process.l1_bytes, process.cb_bytes) == (11, 12, 15)
    assert process.kernel_bytes == (16 if version == 1 else None)
    assert region.updated_ns == 1_750_000_000_000_000_000


def test_a_newer_layout_whose_known_part_fits_is_shown_with_a_warning(tmp_path):
    region = read_region(place(tmp_path, build(5, size=9000)))
    assert (region.state, region.version) == ("foreign-version", 5)
    assert figures(region) == (100, 200, 30, 40, 500)
    assert "layout version 5" in region.warnings[0]


@pytest.mark.parametrize(
    "change",
    [{"asic_id": 1}, {"totals": (2**60, 0, 0, 0, 0)}, {"slots": {3: slot(-7)}}, {"size": 8000}],
    ids=lambda change: next(iter(change)),
)
def test_a_newer_layout_whose_known_part_does_not_fit_has_no_figures(change, tmp_path):
    region = read(tmp_path, version=6, **change)
    assert (region.state, region.version) == ("foreign-version", 6)
    assert figures(region) == (None,) * 5
    assert "upgrade ttmem" in region.problem


# Sizes and initialisation


@pytest.mark.parametrize(
    ("data", "state", "text"),
    [
        (b"", "initializing", "is empty"),
        (b"\3\0", "unreadable", "too few"),
        (b"\0" * 8576, "initializing", "not written yet"),
        (b"\0" * 9280, "initializing", "not written yet"),
        (b"\0" * 100, "unreadable", "no layout version"),
        (build(3, size=8000), "unreadable", "8576"),
        (build(3, size=9280), "unreadable", "8576"),
        (build(1, size=8576), "unreadable", "9280"),
        (build(4, init_state=0), "initializing", "not ready"),
        (build(4, init_state=1), "initializing", "not ready"),
    ],
)
def test_a_file_that_is_not_ready_or_not_whole_is_said_to_be_so(data, state, text, tmp_path):
    region = read_region(place(tmp_path, data))
    assert region.state == state
    assert text in region.problem
    assert figures(region) == (None,) * 5


def test_a_huge_sparse_file_costs_no_memory(tmp_path):
    path = place(tmp_path, build(3))
    for size in (2**63 - 1, 2**43):
        with contextlib.suppress(OSError):
            os.truncate(path, size)
            break
    assert read_region(path).state == "unreadable"


# States and totals


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_a_region_without_references_is_idle_and_uses_nothing(version, tmp_path):
    region = read(tmp_path, version=version, references=0, slots={})
    assert region.state == "idle"
    assert figures(region) == (0, 0, 0, 0, 0)
    assert region.updated_ns is None


@pytest.mark.parametrize(("version", "cb"), [(1, 450), (2, 500), (3, 500), (4, 450)])
def test_the_bytes_of_the_dead_are_taken_off_but_not_off_the_stored_cb_figure(version, cb, tmp_path, dead_pid):
    slots = {5: slot(dead_pid, values=(10, 20, 3, 4, 50), kernel=6), 40: slot(os.getpid())}
    region = read(tmp_path, version=version, slots=slots, references=2)
    assert region.state == "live"
    assert figures(region) == (90, 180, 27, 36, cb)
    assert region.kernel_bytes == (54 if version == 1 else None)
    assert [process.state for process in region.processes] == ["stale", "live"]


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_only_dead_processes_make_it_stale_whatever_drift_they_left(version, tmp_path, dead_pid):
    region = read(tmp_path, version=version, slots={1: slot(dead_pid, values=(10, 300, 3, 4, 50))})
    assert region.state == "stale"
    assert figures(region) == (0, 0, 0, 0, 0)


def test_totals_never_fall_below_zero(tmp_path, dead_pid):
    slots = {0: slot(dead_pid, values=(1000, 0, 0, 0, 0)), 1: slot(os.getpid())}
    assert read(tmp_path, slots=slots).dram_bytes == 0


def test_a_counter_that_wrapped_is_unknown_and_warned_of(tmp_path):
    region = read(tmp_path, totals=(2**64 - 4096, 2, 3, 4, 5))
    assert figures(region) == (None, 2, 3, 4, 5)
    assert "below zero" in region.warnings[0]


def test_a_wrapped_slot_of_a_dead_process_makes_the_total_unknown(tmp_path, dead_pid):
    slots = {0: slot(dead_pid, values=(2**64 - 1, 0, 0, 0, 0)), 1: slot(os.getpid())}
    region = read(tmp_path, slots=slots)
    assert figures(region) == (None, 200, 30, 40, 500)


def test_a_used_region_without_slots_is_shown_and_warned_of(tmp_path):
    region = read(tmp_path, version=3, slots={})
    assert (region.state, figures(region)) == ("live", (100, 200, 30, 40, 500))
    assert "names no process" in region.warnings[0]


def test_a_living_slot_without_references_keeps_its_bytes_and_is_warned_of(tmp_path):
    region = read(tmp_path, version=3, references=0)
    assert (region.state, figures(region)) == ("idle", (100, 200, 30, 40, 500))
    assert "living process" in region.warnings[0]


# Sentinels


def test_a_region_with_only_releasing_slots_is_idle(tmp_path):
    region = read(tmp_path, version=4, slots={0: slot(-1, values=(100, 200, 30, 40, 500))})
    assert (region.state, region.processes, figures(region)) == ("idle", (), (0, 0, 0, 0, 0))


def test_a_slot_that_is_being_released_is_skipped(tmp_path):
    region = read(tmp_path, version=4, slots={0: slot(-1, values=(9, 9, 9, 9, 9)), 2: slot(os.getpid())})
    assert [process.pid for process in region.processes] == [os.getpid()]


@pytest.mark.parametrize("pid", [-2, -(2**31), 2**22, 2**31 - 1])
def test_a_pid_that_cannot_be_is_left_out_and_never_signalled(pid, tmp_path, monkeypatch):
    path = place(tmp_path, build(4, slots={0: slot(pid), 1: slot(os.getpid())}))
    asked = []
    real_kill = os.kill
    monkeypatch.setattr(os, "kill", lambda number, signal: (asked.append((number, signal)), real_kill(number, signal)))
    region = read_region(path)
    assert asked == [(os.getpid(), 0)]
    assert [process.pid for process in region.processes] == [os.getpid()]
    assert "slot 0" in region.warnings[0]


@pytest.mark.parametrize(
    ("version", "unused", "chips", "expected"),
    [
        (1, 0, ((0, 0, (1, 0, 0, 0, 0)), (3, 1, (0,) * 5)), [0, 3]),
        (2, 0, ((0, 0, (0,) * 5), (4, 1, (0,) * 5)), [0, 4]),
        (2, UNUSED, ((0, 0, (0,) * 5), (4, 1, (0,) * 5)), [0, 4]),
        (3, UNUSED, ((1, 0, (0,) * 5), (0, 1, (0,) * 5)), [1, 0]),
        (4, UNUSED, ((UNUSED, 0, (0,) * 5), (2, 1, (0,) * 5)), [2]),
    ],
)
def test_unused_chips_are_told_by_the_sentinel_of_the_version(version, unused, chips, expected, tmp_path):
    region = read(tmp_path, version=version, unused=unused, chips=chips)
    assert [chip.chip_id for chip in region.chips] == expected


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"\xff\xfepy", "\ufffd\ufffdpy"),
        (b"x" * 64, "x" * 64),
        (b"a\x1b[2Jb", "a\ufffd[2Jb"),
        (b"", None),
        (b"unknown", "unknown"),
        ("m\u00f6del".encode(), "m\u00f6del"),
    ],
)
def test_any_name_is_made_printable(raw, name, tmp_path):
    region = read(tmp_path, slots={0: slot(os.getpid(), name=raw)})
    assert [(process.name, process.state) for process in region.processes] == [(name, "live")]


def test_the_id_in_the_header_is_held_against_the_name(tmp_path):
    assert "holds the id 77" in read(tmp_path, asic_id=77).warnings[0]
    split = build(1, board_serial=ASIC_ID >> 8, asic_id=ASIC_ID & 0xFF)
    assert not read_region(place(tmp_path, split)).warnings
    fallback = build(3, asic_id=0, device_id=9)
    assert not read_region(place(tmp_path, fallback, 9)).warnings


def test_a_clock_that_is_no_date_is_unknown_in_version_1(tmp_path):
    region = read(tmp_path, version=1, updated=5 * 10**12, slots={0: slot(os.getpid(), updated=5 * 10**12)})
    assert region.updated_ns is None
    assert read(tmp_path, version=3, updated=0, slots={0: slot(os.getpid(), updated=0)}).updated_ns is None


# Processes


def as_nobody(path: Path, code: str) -> list[str]:
    """What ``code`` prints as another user, with ``path`` as ``sys.argv[1]`` and this pid as ``sys.argv[2]``."""
    # Imports come first: the other user need not be able to read the interpreter.
    start = "import os, sys; from ttmem.region import read_region\n"
    become = "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    command = [sys.executable, "-c", start + become + code, str(path), str(os.getpid())]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture
def open_path():
    """Make a directory that every user may enter; pytest's own are closed, and other runs of pytest close them again."""
    with tempfile.TemporaryDirectory(prefix="ttmem-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@needs_root
def test_a_process_that_may_not_be_signalled_is_alive(open_path):
    path = place(open_path, build(3))
    path.chmod(0o644)
    lines = as_nobody(
        path,
        "try: os.kill(int(sys.argv[2]), 0)\n"
        "except PermissionError: print('EPERM')\n"
        "region = read_region(sys.argv[1]); print(region.state, region.processes[0].state, region.l1_bytes)",
    )
    assert lines == ["EPERM", "live live 200"]


def test_a_zombie_is_dead(tmp_path):
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), 9)
    try:
        # WNOWAIT leaves the corpse where it is, and returns only when it is one.
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        region = read(tmp_path, slots={0: slot(child)})
        assert (region.state, region.dram_bytes) == ("stale", 0)
    finally:
        os.waitpid(child, 0)


def test_a_pid_that_was_given_out_again_is_stale(tmp_path):
    # The slot changed after this host started, and before the process that has the pid now did.
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as later:
        fields = Path(f"/proc/{later.pid}/stat").read_text().rpartition(")")[2].split()
        started = boot_ns() + int(fields[19]) * 10**9 // os.sysconf("SC_CLK_TCK")
        before = (boot_ns() + started) // 2
        old = read(tmp_path, slots={0: slot(later.pid, name="python", updated=before)})
        renamed = read(tmp_path, slots={0: slot(later.pid, name="python", updated=started)})
        later.stdin.close()
    assert old.state == "stale"
    assert renamed.state == "live"


def test_a_process_that_maps_the_region_is_alive_whatever_its_slot_says(tmp_path):
    path = place(tmp_path, build(3, slots={0: slot(os.getpid(), name="other", updated=boot_ns() + 10**9)}))
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
        mapped = f" {path.stat().st_ino} " in Path("/proc/self/maps").read_text()
        assert read_region(path).state == ("live" if mapped else "stale")


class Table(ProcessTable):
    """A process table in a namespace that is not the host's."""

    def _in_initial(self, kind):
        return False


class SharedTable(ProcessTable):
    """The same where /dev/shm is the host's (docker --ipc=host)."""

    def _in_initial(self, kind):
        return kind == "ipc"


@pytest.mark.parametrize("table", [Table, SharedTable])
def test_a_pid_that_is_not_in_the_containers_namespace_cannot_be_judged(table, tmp_path, dead_pid):
    slots = {0: slot(dead_pid, name="python", values=(10, 20, 3, 4, 50)), 1: slot(os.getpid())}
    region = read_region(place(tmp_path, build(3, slots=slots)), processes=table())
    assert [process.state for process in region.processes] == ["unknown", "live"]
    assert figures(region) == (90, 180, 27, 36, 500)
    assert "namespace" in region.warnings[0]


def test_nothing_is_counted_if_no_pid_can_be_judged(tmp_path, dead_pid):
    slots = {0: slot(dead_pid, name="python", values=(100, 200, 30, 40, 500))}
    region = read_region(place(tmp_path, build(3, slots=slots)), processes=Table())
    assert figures(region) == (0, 0, 0, 0, 0)
    assert region.updated_ns is None


def test_a_process_of_an_inner_namespace_is_not_called_dead(tmp_path, dead_pid):
    proc = tmp_path / "proc"
    (proc / "7001").mkdir(parents=True)
    (proc / "7001" / "status").write_text(f"Name:\tpython\nState:\tS (sleeping)\nNSpid:\t7001\t{dead_pid}\n")
    (proc / "self" / "ns").mkdir(parents=True)
    (proc / "self" / "ns" / "pid").symlink_to("pid:[4026531836]")
    path = place(tmp_path, build(3, slots={0: slot(dead_pid, name="python")}))
    assert read_region(path, processes=ProcessTable(proc)).processes[0].state == "unknown"
    other = place(tmp_path, build(3, slots={0: slot(dead_pid, name="java")}))
    assert read_region(other, processes=ProcessTable(proc)).processes[0].state == "stale"
    file = path.stat()
    device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
    (proc / "7001" / "maps").write_text(f"7f00-7f01 rw-s 00000000 {device} {file.st_ino} {path}\n")
    path = place(tmp_path, build(3, slots={0: slot(dead_pid, name="python")}))
    assert read_region(path, processes=ProcessTable(proc)).processes[0].state == "live"


@needs_root
def test_a_process_in_an_inner_namespace_is_judged_by_its_mapping(tmp_path):
    path = place(tmp_path, build(3, slots={0: slot(1, name="inner")}))
    code = (
        "import mmap, sys\nopen('/proc/self/comm', 'w').write('inner')\nfile = open(sys.argv[1], 'rb')\n"
        "region = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if sys.argv[2] == 'map' else None\n"
        "print(flush=True)\nsys.stdin.readline()"
    )
    states = {}
    for how in ("map", "none"):
        command = ["unshare", "--pid", "--fork", sys.executable, "-c", code, str(path), how]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as inner:
            assert inner.stdout.readline() == "\n", "needs unshare --pid, which is not permitted here"
            states[how] = read_region(path).processes[0].state
            inner.stdin.close()
    assert states == {"map": "live", "none": "unknown"}


def test_the_drivers_list_proves_a_process_alive(tmp_path):
    (tmp_path / "driver" / "0").mkdir(parents=True)
    (tmp_path / "driver" / "0" / "pids").write_text(f"{os.getpid()}\n")
    path = place(tmp_path, build(3, slots={0: slot(os.getpid(), name="renamed")}))
    assert read_region(path, processes=Table()).processes[0].state == "unknown"
    assert read_region(path, processes=Table(driver=tmp_path / "driver")).processes[0].state == "live"


# Files


def test_regions_are_found_by_their_exact_name(tmp_path):
    for name in (
        "tt_device_10_memory", "tt_device_9_memory", "tt_device_18446744073709551615_memory",
        "tt_device_18446744073709551616_memory", "tt_device_007_memory", "tt_device_x_memory", "tt_device_1_util",
        "a_tt_device_1_memory", "tt_device_1_memory~", "tt_device_\u0661_memory",
    ):  # fmt: skip
        (tmp_path / name).touch()
    assert [path.name for path in find_regions(tmp_path)] == [
        "tt_device_9_memory",
        "tt_device_10_memory",
        "tt_device_18446744073709551615_memory",
    ]
    assert find_regions(tmp_path / "absent") == []


def test_the_directory_comes_from_the_environment_when_asked(monkeypatch, tmp_path):
    monkeypatch.delenv("TTMEM_SHM_DIR", raising=False)
    assert shm_directory() == Path("/dev/shm")
    monkeypatch.setenv("TTMEM_SHM_DIR", str(tmp_path))
    assert shm_directory() == tmp_path


def test_what_is_no_regular_file_is_unreadable(tmp_path):
    target = place(tmp_path, build(3), 5)
    (tmp_path / "tt_device_1_memory").symlink_to(target)
    (tmp_path / "tt_device_2_memory").mkdir()
    os.mkfifo(tmp_path / "tt_device_3_memory")
    (tmp_path / "tt_device_4_memory").symlink_to(tmp_path / "nowhere")
    problems = [read_region(path).problem for path in find_regions(tmp_path)]
    for problem, text in zip(problems, ("symbolic link", "directory", "FIFO", "symbolic link"), strict=False):
        assert text in problem
    assert problems[4] is None


def test_a_file_that_is_gone_raises_and_a_foreign_name_too(tmp_path):
    with pytest.raises(DeviceNotFoundError):
        read_region(tmp_path / "tt_device_1_memory")
    with pytest.raises(ValueError, match="not named like"):
        read_region(tmp_path / "memory")


@needs_root
def test_a_region_of_another_user_says_who_owns_it_and_what_to_do(open_path):
    path = place(open_path, build(3))
    state, problem = as_nobody(path, "r = read_region(sys.argv[1]); print(r.state); print(r.problem)")
    assert state == "unreadable"
    assert problem == f"{path} has mode 0600 and is owned by uid 0 (root): run as that user or as root"


def test_reading_changes_nothing(tmp_path):
    path = place(tmp_path, build(3))
    path.chmod(0o400)
    before = path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_size, os.listdir(tmp_path)
    read_region(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_size, os.listdir(tmp_path)) == before


def test_no_descriptor_is_left_open(tmp_path):
    path = place(tmp_path, build(3))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        read_region(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_reading_that_changes_is_repeated_until_two_agree(tmp_path):
    path = place(tmp_path, build(3))

    def change(attempt):
        if attempt < 4:
            place(tmp_path, build(3, totals=(attempt, attempt, 0, 0, 0)))

    region = read_region(path, before_read=change)
    assert region.consistent
    assert region.dram_bytes == region.l1_bytes == 3


def test_a_region_that_never_holds_still_is_marked(tmp_path):
    path = place(tmp_path, build(3))
    region = read_region(path, before_read=lambda attempt: place(tmp_path, build(3, totals=(attempt, 0, 0, 0, 0))))
    assert not region.consistent
    assert region.state == "live"
    assert "changed between all" in region.warnings[-1]
    assert to_device(region)["consistent"] is False


def test_a_file_that_is_replaced_during_the_read_is_read_anew(tmp_path):
    path = place(tmp_path, build(3))
    kept = []

    def replace(attempt):
        if attempt == 1:
            kept.append(os.open(path, os.O_RDONLY))  # holds the old inode, so that its number is not used again
            path.unlink()
            place(tmp_path, build(3, totals=(7, 7, 7, 7, 7)))

    region = read_region(path, before_read=replace)
    os.close(kept[0])
    assert region.consistent
    assert figures(region) == (7, 7, 7, 7, 7)


def test_a_file_that_is_removed_during_the_read_is_not_found(tmp_path):
    path = place(tmp_path, build(3))
    with pytest.raises(DeviceNotFoundError):
        read_region(path, before_read=lambda attempt: path.unlink() if attempt == 1 else None)


def test_a_region_that_another_process_rewrites_is_whole_or_marked(tmp_path):
    path = place(tmp_path, build(3, totals=(1, 1, 1, 1, 1)))
    child = os.fork()
    if child == 0:
        descriptor = os.open(path, os.O_RDWR)
        number = 0
        while True:
            number += 1
            # Field by field, as TT-Metal does: a single reading tears.
            for field in range(5):
                os.pwrite(descriptor, struct.pack("<Q", number), 48 + 8 * field)
    try:
        regions = [read_region(path) for _ in range(200)]
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    for region in regions:
        assert region.state == "live"
        assert region.consistent == (not region.warnings)


# Damage


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), size=st.sampled_from([0, 3, 100, 8576, 9280, 20000]))
def test_random_bytes_never_raise(data, size, tmp_path):
    to_device(read_region(place(tmp_path, data.ljust(size, data[-1:] or b"\0"))))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    source=st.sampled_from(REAL),
    version=st.integers(0, 7),
    size=st.sampled_from([0, 90, 8575, 8576, 8577, 9280]),
    damage=st.lists(st.tuples(st.integers(0, 9279), st.binary(min_size=1, max_size=16)), max_size=8),
)
def test_damaged_real_regions_never_raise_and_make_valid_json(source, version, size, damage, tmp_path):
    data = bytearray(source.read_bytes().ljust(9280, b"\0"))
    data[:4] = struct.pack("<I", version)
    for offset, replacement in damage:
        data[offset : offset + len(replacement)] = replacement
    region = read_region(place(tmp_path, bytes(data[:size])))
    assert region.state in ("live", "idle", "stale", "initializing", "foreign-version", "unreadable")
    assert all(value is None or 0 <= value < 2**63 for value in figures(region))
    if region.problem:
        assert figures(region) == (None,) * 5
    json.dumps(to_device(region), allow_nan=False)


# The device object


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5])
def test_the_device_object_claims_what_the_region_knows_and_nothing_else(version, tmp_path):
    device = to_device(read(tmp_path, version=version, slots={0: slot(os.getpid(), values=(1, 2, 3, 4, 5))}))
    assert (device["source"], device["device_id"], device["asic_id"]) == ("tt-metal", 0, f"{ASIC_ID:#x}")
    memory = device["memory"]
    for kind, used in (("dram", 100), ("l1", 200), ("l1_small", 30), ("trace", 40)):
        assert memory[kind].pop("used_bytes") == used
        assert memory[kind].keys() >= {"total_bytes", "free_bytes", "peak_bytes"}
        assert set(memory[kind].values()) == {None}
    resident, physical = (500, None) if version >= 4 else (None, 500)
    assert (memory["cb"].pop("physical_bytes"), memory["cb"].pop("resident_bytes")) == (physical, resident)
    assert memory["cb"].keys() >= {"logical_bytes", "peak_bytes"}
    assert set(memory["cb"].values()) == {None}
    assert memory["kernel"] == {"used_bytes": 60 if version == 1 else None, "persistent_bytes": None}
    assert set(device["l1_accounting"].values()) == {None}
    assert (device["cores"], device["programs"], device["grid"], device["arch"]) == (None,) * 4
    (process,) = device["processes"]
    assert (process["pid"], process["name"], process["state"]) == (os.getpid(), own_name(), "live")
    assert (process["dram_bytes"], process["trace_bytes"]) == (1, 4)
    assert (process["cb_physical_bytes"], process["cb_resident_bytes"]) == ((None, 5) if version >= 4 else (5, None))


def test_an_unreadable_region_is_a_device_without_figures(tmp_path):
    device = to_device(read_region(place(tmp_path, b"xx")))
    assert (device["state"], device["processes"], device["memory"]["dram"]["used_bytes"]) == ("unreadable", None, None)
    assert "too few" in device["warnings"][0]


def test_a_reader_of_a_region_turns_to_a_ttmem_publisher_that_comes_and_back_when_it_leaves(tmp_path, monkeypatch):
    monkeypatch.setenv("TTMEM_SHM_DIR", str(tmp_path))
    place(tmp_path, build(totals=(100, 64, 0, 0, 0)))
    with ttmem.attach(0) as reader:
        seen = [reader.snapshot()]
        with ttmem.publish(0, origin="replay"):
            seen.append(reader.snapshot())
        with ttmem.publish(0) as pub:
            pub.allocate("DRAM", 7)
            seen.append(reader.snapshot())
        seen.append(reader.snapshot())
    told = [(snapshot.source, snapshot.memory.dram.used_bytes) for snapshot in seen]
    assert told == [("tt-metal", 100), ("tt-metal", 100), ("ttmem", 7), ("tt-metal", 100)]


def test_where_tt_metal_and_ttmem_disagree_about_a_chip_a_reader_is_told(tmp_path, monkeypatch, dead_pid):
    monkeypatch.setenv("TTMEM_SHM_DIR", str(tmp_path))
    place(tmp_path, build(totals=(100, 64, 0, 0, 0)))
    with ttmem.publish(0, asic_id=ASIC_ID) as pub:
        pub.allocate("DRAM", 100)
        pub.allocate("L1", 48)
        (device,) = read_host().devices
        assert device.source == "ttmem"
        (said,) = device.to_dict()["warnings"]
        assert said.startswith("TT-Metal's own region says L1 64 bytes, ttmem counts 48")
        assert device.warnings == [said]
        # The same, of a process that is gone.
        place(tmp_path, build(totals=(100, 64, 0, 0, 0), slots={1: slot(dead_pid, values=(100, 64, 0, 0, 0))}))
        (device,) = read_host().devices
        assert device.warnings == []
