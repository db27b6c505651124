"""The writer's side of the contract, seen through a reader."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ttmem
from ttmem import BufferType, CircularBuffer, CoreCoord, CoreRange, CoreRangeSet

N150 = {"arch": "wormhole_b0", "grid": (8, 8), "l1_cb_base": 105664, "l1_small_size": 24576}
ALL = CoreRange((0, 0), (7, 7))


@pytest.fixture
def pub():
    with ttmem.publish(0, **N150) as publisher:
        yield publisher


def read(device_id=0):
    with ttmem.attach(device_id) as reader:
        return reader.snapshot()


def test_a_program_is_seen_by_a_read_that_starts_after_the_call(pub):
    pub.add_program([CircularBuffer(105664, 4096, ALL), CircularBuffer(109760, 2048, CoreCoord(1, 2))], name="Add")
    snapshot = read()
    assert snapshot.memory.cb.physical_bytes == 64 * 4096 + 2048
    assert snapshot.memory.cb.logical_bytes == 64 * 4096 + 2048
    core = snapshot.cores[2 * 8 + 1]
    assert (core["x"], core["y"], core["cb_physical_bytes"], core["cb_region_end"]) == (1, 2, 6144, 111808)
    assert snapshot.core_map(1, 2)["cb_ranges"] == [[105664, 111808]]
    (row,) = snapshot.programs
    assert (row.name, row.num_cores, row.cb_bytes_per_core, row.cb_region_end, row.count) == (
        "Add",
        64,
        6144,
        111808,
        1,
    )


def test_programs_at_the_same_addresses_count_once_physically(pub):
    for _ in range(30):
        pub.add_program([CircularBuffer(105664, 10 * 2**20 // 64, ALL)], name="same")
    cb = read().memory.cb
    assert cb.physical_bytes == 10 * 2**20
    assert cb.logical_bytes == 300 * 2**20
    assert [row.count for row in read().programs] == [30]


def test_a_prepared_footprint_is_the_list(pub):
    buffers = [CircularBuffer(105664, 4096, "{[0-0 - 3-3]}"), CircularBuffer(200000, 100, "[(x=0,y=0) - (x=0,y=0)]")]
    first = pub.add_program(buffers, name="x")
    before = read().memory.cb
    second = pub.add_program(pub.footprint(buffers), name="x")
    after = read()
    assert after.memory.cb.physical_bytes == before.physical_bytes
    assert after.memory.cb.logical_bytes == 2 * before.logical_bytes
    assert [row.count for row in after.programs] == [2]
    pub.remove_program(first)
    pub.remove_program(second)
    assert read().memory.cb.physical_bytes == 0
    assert read().programs == []


def test_a_footprint_of_another_device_is_prepared_anew(pub):
    with ttmem.publish(1, **N150) as other:
        handle = other.footprint([CircularBuffer(105664, 64, ALL)])
        pub.add_program(handle)
    assert read().memory.cb.physical_bytes == 64 * 64


def test_globally_allocated_buffers_never_count_under_cb(pub):
    pub.add_program(
        [CircularBuffer(1000000, 4096, ALL, globally_allocated=True), CircularBuffer(None, 32, CoreCoord(0, 0))]
    )
    assert read().memory.cb.physical_bytes == 32


def test_a_dispatch_replaces_the_bytes_of_the_cores_it_covers_and_no_others(pub):
    wide = pub.add_program([CircularBuffer(105664, 1000, ALL)])
    narrow = pub.add_program([CircularBuffer(105664, 50, CoreRange((0, 0), (0, 7)))])
    pub.dispatch(wide)
    assert read().memory.cb.resident_bytes == 64000
    pub.dispatch(narrow)
    assert read().memory.cb.resident_bytes == 56 * 1000 + 8 * 50
    assert read().cores[0]["cb_resident_bytes"] == 50
    pub.remove_program(narrow)
    assert read().memory.cb.resident_bytes == 56 * 1000 + 8 * 50, "what is left configured stays until replaced"


def test_a_trace_replay_leaves_the_peak_of_its_programs_on_each_core(pub):
    wide = pub.add_program([CircularBuffer(105664, 1000, ALL)])
    tall = pub.add_program([CircularBuffer(105664, 5000, CoreRange((0, 0), (0, 7)))])
    trace = pub.begin_trace()
    pub.dispatch(tall)
    pub.dispatch(wide)
    assert read().memory.cb.resident_bytes == 0, "capturing a trace changes nothing"
    pub.end_trace(trace)
    pub.replay_trace(trace)
    assert read().memory.cb.resident_bytes == 56 * 1000 + 8 * 5000
    pub.release_trace(trace)
    with pytest.raises(ttmem.UnknownIdError):
        pub.replay_trace(trace)


def test_other_memory_is_counted_by_type_with_its_peak(pub):
    ids = [
        pub.allocate(kind, size)
        for kind, size in (
            ("DRAM", 10),
            (BufferType.L1, 20),
            (3, 30),
            (BufferType.TRACE, 40),
            (BufferType.SYSTEM_MEMORY, 50),
        )
    ]
    memory = read().memory
    assert [memory[k]["used_bytes"] for k in ("dram", "l1", "l1_small", "trace")] == [10, 20, 30, 40]
    for buffer_id in ids:
        pub.deallocate(buffer_id)
    memory = read().memory
    assert [memory[k]["used_bytes"] for k in ("dram", "l1", "l1_small", "trace")] == [0, 0, 0, 0]
    assert [memory[k]["peak_bytes"] for k in ("dram", "l1", "l1_small", "trace")] == [10, 20, 30, 40]


def test_kernels_are_counted_persistent_ones_apart(pub):
    first = pub.load_kernel(1000)
    pub.load_kernel(50 * 1024, core_ranges=CoreRange((0, 0), (1, 0)), persistent=True)
    assert dict(read().memory.kernel) == {"used_bytes": 1000 + 2 * 50 * 1024, "persistent_bytes": 2 * 50 * 1024}
    pub.unload_kernel(first)
    assert read().memory.kernel.used_bytes == 2 * 50 * 1024


def test_an_l1_buffer_lies_on_every_core_unless_told_otherwise(pub):
    pub.allocate("L1", 4096 * 64, address=1_400_000, size_per_bank=4096)
    pub.allocate("L1", 100, address=1_300_000, size_per_bank=100, core_ranges=CoreCoord(3, 3))
    pub.allocate("L1", 2**20)
    snapshot = read()
    here, there = snapshot.cores[3 * 8 + 3], snapshot.cores[0]
    assert (here["l1_used_bytes"], here["l1_lowest_address"]) == (4196, 1_300_000)
    assert (there["l1_used_bytes"], there["l1_lowest_address"], there["headroom_bytes"]) == (4096, 1_400_000, 1294336)
    assert snapshot.l1_accounting.buffer_bytes == 64 * 4096 + 100
    assert snapshot.memory.l1.used_bytes == 4096 * 64 + 100 + 2**20


def test_headroom_is_negative_where_a_cached_program_would_clash(pub):
    pub.allocate("L1", 1, address=200_000, size_per_bank=1000)
    pub.add_program([CircularBuffer(105664, 100_000, CoreCoord(0, 0))])
    snapshot = read()
    assert snapshot.cores[0]["headroom_bytes"] == 200_000 - 205_664
    assert snapshot.cores[1]["headroom_bytes"] == 200_000 - 105_664
    assert snapshot.l1_accounting.overlap_bytes == 1000


def test_without_geometry_what_needs_it_is_unknown_and_the_rest_exact():
    with ttmem.publish(7) as pub:
        pub.add_program([CircularBuffer(0, 64, CoreRange((0, 0), (1, 0)))])
        device = read(7).to_dict()
    assert device["memory"]["cb"]["physical_bytes"] == 128
    assert set(device["l1_accounting"].values()) == {None}
    assert (device["grid"], device["arch"], device["asic_id"]) == (None, None, None)
    assert [(core["x"], core["y"], core["headroom_bytes"]) for core in device["cores"]] == [(0, 0, None), (1, 0, None)]


def test_the_architecture_alone_tells_the_size_of_l1_and_nothing_else():
    with ttmem.publish(7, arch="Arch.BLACKHOLE") as pub:
        with pytest.raises(ttmem.InvalidIntervalError, match="beyond L1, 1572864"):
            pub.add_program([CircularBuffer(1572864, 1, CoreCoord(0, 0))])
        assert pub.snapshot().grid is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CircularBuffer(-1, 4, ALL), "must not be negative, got -1"),
        (lambda: CircularBuffer(0, -4, ALL), "must not be negative, got -4"),
        (lambda: CircularBuffer(0, 1.5, ALL), "must be an integer number of bytes, got 1.5"),
        (lambda: CircularBuffer(True, 4, ALL), "must be an integer"),
        (lambda: CircularBuffer(2**40, 4, ALL), "must be at most"),
        (lambda: CoreRange((3, 3), (1, 1)), "must not lie beyond its end"),
        (lambda: CoreRangeSet(ALL, CoreCoord(1, 1)), "overlap"),
        (lambda: CoreRangeSet("{[0-0 - 7]}"), "cannot read core ranges"),
        (lambda: CoreCoord(-1, 0), "between 0 and 255"),
    ],
)
def test_bad_words_are_refused_by_name(make, said):
    with pytest.raises(ttmem.InvalidIntervalError, match=said):
        make()


def test_a_call_that_raises_changes_nothing(pub):
    program = pub.add_program([CircularBuffer(105664, 4096, ALL)], name="kept", program_id=5)
    buffer = pub.allocate("L1", 64, address=1_400_000, size_per_bank=1)
    kernel = pub.load_kernel(10)
    before = read().to_dict()
    good = CircularBuffer(0, 1, CoreCoord(0, 0))
    for call, error in [
        (lambda: pub.add_program([good, CircularBuffer(1499136, 1, ALL)]), ttmem.InvalidIntervalError),
        (lambda: pub.add_program([good, CircularBuffer(0, 1, CoreCoord(8, 0))]), ttmem.InvalidIntervalError),
        (lambda: pub.add_program([good, "CB"]), TypeError),
        (lambda: pub.add_program([good], program_id=5), ValueError),
        (lambda: pub.add_program([good], program_id=-1), ttmem.InvalidIntervalError),
        (lambda: pub.add_program([good], program_id="x"), TypeError),
        (lambda: pub.remove_program(99), ttmem.UnknownIdError),
        (lambda: pub.remove_program(None), KeyError),
        (lambda: pub.dispatch(99), ttmem.UnknownIdError),
        (lambda: pub.end_trace(1), ttmem.UnknownIdError),
        (lambda: pub.allocate("L2", 1), ValueError),
        (lambda: pub.allocate("L1", -1), ttmem.InvalidIntervalError),
        (lambda: pub.allocate("L1", 1, address=1499136, size_per_bank=1), ttmem.InvalidIntervalError),
        (lambda: pub.allocate("DRAM", "1"), ttmem.InvalidIntervalError),
        (lambda: pub.allocate("L1", 1, core_ranges="{[0-0 - 8-8]}"), ttmem.InvalidIntervalError),
        (lambda: pub.deallocate(99), ttmem.UnknownIdError),
        (lambda: pub.load_kernel(-1), ttmem.InvalidIntervalError),
        (lambda: pub.unload_kernel(99), ttmem.UnknownIdError),
    ]:
        with pytest.raises(error):
            call()
        assert read().to_dict() == before
    pub.remove_program(program)
    pub.deallocate(buffer)
    pub.unload_kernel(kernel)
    with pytest.raises(ttmem.UnknownIdError, match=f"program {program} is not in the cache of device 0"):
        pub.remove_program(program)


def test_a_batch_is_published_at_its_end_as_one(pub):
    with pub.batch():
        pub.add_program([CircularBuffer(105664, 4096, ALL)])
        pub.allocate("DRAM", 100)
        with pub.batch():
            pub.load_kernel(7)
        during = read().memory
    after = read().memory
    assert (during.cb.physical_bytes, during.dram.used_bytes, during.kernel.used_bytes) == (0, 0, 0)
    assert (after.cb.physical_bytes, after.dram.used_bytes, after.kernel.used_bytes) == (64 * 4096, 100, 7)


def test_a_device_is_published_once_a_process(pub):
    with pytest.raises(ttmem.AlreadyPublishedError, match="device 0 already"):
        ttmem.publish(0)
    pub.close()
    pub.close()
    with pytest.raises(ttmem.DeviceNotFoundError, match="nothing publishes device 0"):
        ttmem.attach(0)
    with pytest.raises(ttmem.ClosedError):
        pub.dispatch(1)
    with ttmem.publish(0):
        assert read().memory.cb.physical_bytes == 0


@pytest.mark.parametrize("device_id", [-1, 2**31, 1.0, True, "0", None])
def test_a_device_id_out_of_range_is_refused(device_id):
    with pytest.raises(ttmem.InvalidIntervalError, match="device_id"):
        ttmem.publish(device_id)


def test_disabled_every_call_is_a_no_op_that_returns_0(monkeypatch):
    monkeypatch.setenv("TTMEM_DISABLE", "1")
    with ttmem.publish(0, **N150) as pub, pub.batch():
        assert pub.add_program([CircularBuffer(0, 1, ALL)]) == 0
        assert pub.allocate("L1", 5) == pub.load_kernel(1) == pub.dispatch(4) == pub.begin_trace() == 0
        assert pub.snapshot().memory.cb.physical_bytes == 0
        assert ttmem.devices() == []


def test_all_devices_of_a_process_share_one_file(pub, namespace):
    with ttmem.publish(1), ttmem.publish(2):
        assert len(list(Path("/dev/shm").glob(f"ttmem1.{namespace}.*"))) == 1
        assert [device.device_id for device in ttmem.devices()] == [0, 1, 2]
        assert "cores" not in ttmem.devices()[0]
    assert [device.device_id for device in ttmem.devices()] == [0]


def test_a_withdrawn_device_gives_its_place_to_the_next(pub, namespace):
    sizes = set()
    for device_id in range(1, 20):
        with ttmem.publish(device_id, **N150):
            (path,) = Path("/dev/shm").glob(f"ttmem1.{namespace}.*")
            sizes.add(path.stat().st_size)
    assert len(sizes) == 1


def test_a_reader_sees_writers_that_come_and_go_and_never_raises(pub):
    with ttmem.attach(0) as reader:
        assert reader.snapshot().state == "live"
        pub.add_program([CircularBuffer(105664, 4096, ALL)])
        assert reader.snapshot().memory.cb.physical_bytes == 64 * 4096
        pub.close()
        gone = reader.snapshot()
        assert (gone.state, gone.memory.cb.physical_bytes, gone.grid) == ("stale", 0, CoreCoord(8, 8))
        with ttmem.publish(0, **N150) as again:
            again.allocate("DRAM", 3)
            assert reader.snapshot().memory.dram.used_bytes == 3


def test_the_publisher_sees_what_a_reader_sees(pub):
    pub.add_program([CircularBuffer(105664, 4096, ALL)], name="x")
    mine, theirs = pub.snapshot(), read()
    assert mine.to_dict() == theirs.to_dict()
    assert mine.cores.dtype["headroom_bytes"] == np.int64


def test_rows_come_largest_first_and_what_does_not_fit_is_counted(pub):
    ids = [pub.add_program([CircularBuffer(105664, 16 + i, CoreCoord(0, 0))], name=f"p{i}") for i in range(1100)]
    snapshot = read()
    sizes = [row.cb_bytes_per_core for row in snapshot.programs]
    assert (len(sizes), snapshot.programs_omitted) == (1024, 76)
    assert sizes == sorted(range(16 + 76, 16 + 1100), reverse=True)
    assert snapshot.memory.cb.logical_bytes == sum(range(16, 1116)), "totals stay exact"
    for program_id in ids[100:]:
        pub.remove_program(program_id)
    assert sorted(row.cb_bytes_per_core for row in read().programs) == list(range(16, 116))
    assert read().programs_omitted == 0


def test_names_are_cut_between_characters_and_kept_apart(pub):
    pub.add_program([CircularBuffer(0, 1, ALL)], name="ä" * 100)
    pub.add_program([CircularBuffer(0, 1, ALL)], name="b")
    assert sorted(row.name for row in read().programs) == ["b", "ä" * 60]


def test_threads_may_share_a_publisher(pub):
    def work(number):
        footprint = pub.footprint([CircularBuffer(105664 + 64 * number, 64, ALL)])
        for _ in range(300):
            program = pub.add_program(footprint, name=str(number))
            pub.dispatch(program)
            buffer = pub.allocate("L1", 10, address=1_400_000, size_per_bank=10)
            pub.deallocate(buffer)
            pub.remove_program(program)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    memory = read().memory
    assert (memory.cb.physical_bytes, memory.cb.logical_bytes, memory.l1.used_bytes) == (0, 0, 0)
    assert memory.cb.peak_bytes >= 64 * 64


def test_two_processes_on_one_device_unite_by_address(pub):
    pub.add_program([CircularBuffer(105664, 4096, ALL)])
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        try:
            assert pub.add_program([CircularBuffer(0, 1, ALL)]) == 0, "a device does not survive a fork"
            with ttmem.publish(0, **N150) as mine:
                mine.add_program([CircularBuffer(105664 + 2048, 4096, ALL)])
                os.write(ready[1], b"x")
                os.read(done[0], 1)
        finally:
            os._exit(0)
    os.read(ready[0], 1)
    snapshot = read()
    os.write(done[1], b"x")
    os.waitpid(child, 0)
    assert snapshot.memory.cb.physical_bytes == 64 * 6144
    assert snapshot.memory.cb.logical_bytes == 64 * 8192
    assert [process.cb_physical_bytes for process in snapshot.processes] == [64 * 4096, 64 * 4096]
    assert snapshot.core_map(0, 0)["cb_ranges"] == [[105664, 111808]]
    assert read().memory.cb.physical_bytes == 64 * 4096


def test_writers_that_contradict_each_other_are_named_and_all_their_bytes_count(pub):
    pub.add_program([CircularBuffer(105664, 4096, ALL)])
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        try:
            with ttmem.publish(0, arch="wormhole_b0", grid=(8, 9), l1_cb_base=107616, dram_size=100) as mine:
                mine.add_program([CircularBuffer(107616, 10, CoreCoord(0, 8))])
                os.write(ready[1], b"x")
                os.read(done[0], 1)
        finally:
            os._exit(0)
    os.read(ready[0], 1)
    snapshot = read()
    os.write(done[1], b"x")
    os.waitpid(child, 0)
    assert (snapshot.grid, snapshot.memory.dram.total_bytes) == (CoreCoord(8, 8), 100)
    assert snapshot.memory.cb.physical_bytes == 64 * 4096 + 10
    assert f"process {child} says grid is (8, 9), the older process {os.getpid()} says (8, 8)" in snapshot.warnings
    assert any("l1_cb_base is 107616" in warning for warning in snapshot.warnings)


def test_importing_touches_neither_shared_memory_nor_the_environment(tmp_path):
    import subprocess
    import sys

    # A segment's name holds its writer's pid; others come and go meanwhile.
    code = "import os, ttmem; print([name for name in os.listdir('/dev/shm') if f'.{os.getpid()}.' in name])"
    environment = {**os.environ, "TTMEM_SHM_DIR": str(tmp_path / "absent"), "TTMEM_SHM_MODE": "nonsense"}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert not (tmp_path / "absent").exists()


def test_the_tracker_counts_by_hand_what_the_dump_prints(capsys):
    with ttmem.L1Tracker(3) as tracker:
        tracker.track_cb(8, 2048, num_cores=64)
        tracker.track_cb(2, 4096)
        tracker.track_kernel(num_cores=2)
        memory = tracker.summary()
    assert memory.cb.physical_bytes == 8 * 2048 * 64 + 8192
    assert memory.kernel.used_bytes == 2 * 50 * 1024
    printed = capsys.readouterr().out
    assert printed.startswith("Device 3:")
    assert "CB:" in printed
    assert "1.0 MiB" in printed


def test_the_tracker_publishes_no_grid_that_nobody_told(capsys):
    with ttmem.L1Tracker(3) as tracker:
        tracker.track_cb(1, 1024, num_cores=64)
        with pytest.raises(ttmem.InvalidIntervalError, match="64"):
            tracker.track_cb(1, 1024, num_cores=65)
        device = ttmem.attach(3).snapshot().to_dict()
    assert (device["grid"], len(device["cores"])) == (None, 64)
    assert device["memory"]["cb"]["physical_bytes"] == 64 * 1024


@pytest.mark.parametrize(
    ("builtin", "call"),
    [
        (ValueError, lambda pub: pub.allocate("FOO", 5)),
        (ValueError, lambda pub: pub.add_program([], program_id=pub.add_program([]))),
        (ValueError, lambda pub: [pub.begin_trace(), pub.begin_trace()]),
        (ValueError, lambda pub: ttmem.CircularBuffer(0, 1, "{[0-0 - 0-0]}", kind="drum")),
        (ValueError, lambda pub: ttmem.publish(41, arch="foo")),
        (ValueError, lambda pub: ttmem.publish(41, origin="foo")),
        (TypeError, lambda pub: pub.add_program(["text"])),
        (TypeError, lambda pub: pub.add_program([], program_id="one")),
        (TypeError, lambda pub: ttmem.attach()),
    ],
)
def test_every_error_on_purpose_is_ttmems_and_the_nearest_builtin(builtin, call):
    with ttmem.publish(0) as pub:
        with pytest.raises(builtin) as caught:
            call(pub)
        assert isinstance(caught.value, ttmem.TtmemError)


MODEL_CORES = [(x, y) for y in range(2) for x in range(3)]
operation = st.one_of(
    st.tuples(
        st.just("program"),
        st.integers(0, 200),
        st.integers(0, 90),
        st.integers(0, 5),
    ),
    st.tuples(st.just("remove"), st.integers(0, 20), st.just(0), st.just(0)),
    st.tuples(st.just("buffer"), st.integers(0, 200), st.integers(0, 60), st.just(0)),
    st.tuples(st.just("free"), st.integers(0, 20), st.just(0), st.just(0)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(operation, max_size=30))
def test_the_published_figures_equal_the_dumbest_model(operations):
    """A set of bytes per core, rebuilt from the live programs and buffers after every step."""
    programs, buffers = [], []
    peaks = [0] * len(MODEL_CORES)
    peak = 0
    with (
        ttmem.publish(9, grid=(3, 2), worker_l1_size=400, l1_cb_base=0, l1_small_size=0) as pub,
        ttmem.attach(9) as reader,
    ):
        for kind, first, second, third in operations:
            if kind == "program":
                cores = MODEL_CORES[third:] if third % 2 else [MODEL_CORES[third]]
                where = CoreRangeSet([CoreCoord(*core) for core in cores])
                programs.append(
                    (pub.add_program([CircularBuffer(first, second, where)]), range(first, first + second), cores)
                )
            elif kind == "remove" and first < len(programs):
                pub.remove_program(programs.pop(first)[0])
            elif kind == "buffer":
                buffers.append(
                    (pub.allocate("L1", 6 * second, address=first, size_per_bank=second), range(first, first + second))
                )
            elif kind == "free" and first < len(buffers):
                pub.deallocate(buffers.pop(first)[0])
            snapshot = reader.snapshot()
            taken = {byte for _, span in buffers for byte in span}
            total = 0
            for index, core in enumerate(MODEL_CORES):
                covered = {byte for _, span, cores in programs if core in cores for byte in span}
                total += len(covered)
                peaks[index] = max(peaks[index], len(covered))
                row = snapshot.cores[index]
                assert row["cb_peak_bytes"] == peaks[index]
                assert row["cb_physical_bytes"] == len(covered)
                assert row["cb_logical_bytes"] == sum(len(span) for _, span, cores in programs if core in cores)
                assert row["cb_region_end"] == max(covered, default=-1) + 1
                assert row["l1_used_bytes"] == len(taken)
                assert row["l1_lowest_address"] == min(taken, default=-1)
                assert row["overlap_bytes"] == len(taken & covered)
            peak = max(peak, total)
            assert (snapshot.memory.cb.physical_bytes, snapshot.memory.cb.peak_bytes) == (total, peak)
            accounting = snapshot.l1_accounting
            assert accounting.free_bytes == 6 * 400 - total - 6 * len(taken) + accounting.overlap_bytes


def test_a_peak_keeps_its_moment_what_reached_it_and_how_many_there_were(pub):
    before = time.time_ns() - 20_000_000  # the clock of the stamps is coarse
    weights = pub.allocate("DRAM", 5000, name="weights")
    pub.allocate("DRAM", 100)
    pub.deallocate(weights)
    pub.add_program([CircularBuffer(105664, 4096, ALL)], name="small")
    big = pub.add_program([CircularBuffer(105664, 8192, ALL)], name="big")
    pub.remove_program(big)
    pub.add_program([CircularBuffer(105664, 2048, ALL)], name="later")
    memory = read().memory
    assert (memory.dram.peak_bytes, memory.dram.peak_by, memory.dram.peak_buffers) == (5100, "buffer 2", 2)
    assert (memory.cb.peak_bytes, memory.cb.peak_by, memory.cb.peak_programs) == (8192 * 64, "big", 2)
    assert before < memory.dram.peak_at_ns <= memory.cb.peak_at_ns < time.time_ns() + 1
    assert (memory.l1.peak_bytes, memory.l1.peak_at_ns, memory.l1.peak_by) == (0, None, None)


def test_peaks_of_a_batch_are_those_of_each_of_its_changes(pub):
    with pub.batch():
        program = pub.add_program([CircularBuffer(105664, 8192, CoreCoord(1, 0))], name="in between")
        pub.remove_program(program)
        pub.deallocate(pub.allocate("L1", 77))
    snapshot = read()
    assert (snapshot.memory.cb.peak_bytes, snapshot.memory.cb.peak_by) == (8192, "in between")
    assert snapshot.memory.l1.peak_bytes == 77
    assert snapshot.cores["cb_peak_bytes"].tolist() == [0, 8192] + [0] * 62


def test_peaks_start_anew_at_what_there_is(pub):
    program = pub.add_program([CircularBuffer(105664, 8192, ALL)], name="big")
    pub.allocate("L1", 50)
    pub.deallocate(pub.allocate("L1", 100))
    pub.add_program([CircularBuffer(105664, 4096, CoreCoord(0, 0))])
    pub.remove_program(program)
    pub.reset_peaks()
    memory, cores = read().memory, read().cores
    assert (memory.cb.peak_bytes, memory.cb.peak_by, memory.l1.peak_bytes, memory.dram.peak_bytes) == (
        4096,
        None,
        50,
        0,
    )
    assert cores["cb_peak_bytes"].tolist() == [4096] + [0] * 63
    pub.add_program([CircularBuffer(0, 4096, CoreCoord(1, 0))], name="next")
    memory = read().memory
    assert (memory.cb.peak_bytes, memory.cb.peak_by) == (8192, "next")


def test_a_program_row_lists_its_circular_buffers(pub):
    pub.add_program(
        [
            CircularBuffer(105664, 4096, "{[0-0 - 7-0], [2-3 - 4-7]}"),
            CircularBuffer(109760, 64, CoreCoord(7, 7), kind="dataflow_buffer"),
            CircularBuffer(1_200_000, 512, ALL, globally_allocated=True),
            CircularBuffer(105664, 4096, CoreCoord(1, 1)),
        ]
    )
    (program,) = read().programs
    assert program["circular_buffers"] == [
        {"address": 105664, "size": 4096, "core_ranges": "{[0-0 - 7-0], [2-3 - 4-7]}", "kind": "circular_buffer"},
        {"address": 109760, "size": 64, "core_ranges": "{[7-7 - 7-7]}", "kind": "dataflow_buffer"},
        {"address": 105664, "size": 4096, "core_ranges": "{[1-1 - 1-1]}", "kind": "circular_buffer"},
    ]


@pytest.mark.parametrize(("count", "known"), [(23, True), (24, False)])
def test_more_circular_buffers_than_a_row_has_room_for_are_unknown_and_counted_all_the_same(pub, count, known):
    pub.add_program([CircularBuffer(105664 + 64 * i, 32, ALL) for i in range(count)])
    (program,) = read().programs
    assert (program.circular_buffers is not None) is known
    assert program.cb_bytes_per_core == 32 * count


def test_notes_of_a_writer_are_warnings_of_the_device(pub):
    assert read().warnings == []
    pub.note(1)
    pub.note(4)
    assert [text.partition(": ")[2] for text in read().warnings] == [
        "programs that were laid out before it began to follow are not known",
        "its figures are taken in windows and may lag",
    ]


def rows_of(snapshot):
    """{(name, bytes per core): count} of the rows, and how many are left out."""
    return {(row.name, row.cb_bytes_per_core): row["count"] for row in snapshot.programs}, snapshot.programs_omitted


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3), st.booleans(), st.booleans()), max_size=60))
def test_rows_are_the_live_programs_by_name_and_footprint(steps):
    """Handles that are kept and handles that are dropped, names that come back: rows keep or reuse their places."""
    with ttmem.publish(9, grid=(2, 1)) as pub, ttmem.attach(9) as reader:
        handles = [pub.footprint([CircularBuffer(0, 16 + size, CoreCoord(0, 0))]) for size in range(4)]
        names = [f"p{number}" for number in range(7)]
        live = []
        for name, size, prepared, remove in steps:
            if remove and live:
                program, _ = live.pop((name * 4 + size) % len(live))
                pub.remove_program(program)
            else:
                what = handles[size] if prepared else [CircularBuffer(0, 16 + size, CoreCoord(0, 0))]
                live.append((pub.add_program(what, name=names[name]), (names[name], 16 + size)))
            wanted = Counter(key for _, key in live)
            snapshot = reader.snapshot()
            assert rows_of(snapshot) == (wanted, 0)
            ids = dict(live)
            assert all(ids[row.program_id] == (row.name, row.cb_bytes_per_core) for row in snapshot.programs)


def test_of_more_rows_than_the_table_holds_the_largest_are_listed_whatever_comes_and_goes(pub):
    random = Random(7)
    live = {}
    for step in range(6000):
        if live and (random.random() < 0.45 or len(live) > 1400):
            size = random.choice(sorted(live)) if step % 2 else max(live)
            pub.remove_program(live.pop(size))
        else:
            size = random.randrange(1, 100_000)
            if size not in live:
                live[size] = pub.add_program([CircularBuffer(105664, size, CoreCoord(0, 0))], name=str(size))
        if step % 500 == 499:
            snapshot = read()
            wanted = sorted(live, reverse=True)[:1024]
            assert [row.cb_bytes_per_core for row in snapshot.programs] == wanted
            assert [row.name for row in snapshot.programs] == [str(size) for size in wanted]
            assert snapshot.programs_omitted == max(0, len(live) - 1024)
        if step == 3000:
            for _ in range(1500):
                size = random.randrange(1, 100_000)
                if size not in live:
                    live[size] = pub.add_program([CircularBuffer(105664, size, CoreCoord(0, 0))], name=str(size))


@pytest.mark.parametrize("number", [-1, 2**64, "1", None, 1.5, 99])
def test_an_id_that_is_none_is_unknown(pub, number):
    for call in (pub.remove_program, pub.dispatch, pub.deallocate, pub.unload_kernel, pub.replay_trace, pub.end_trace):
        with pytest.raises(ttmem.UnknownIdError):
            call(number)


def test_a_trace_that_is_released_while_it_is_captured_is_forgotten(pub):
    program = pub.add_program([CircularBuffer(105664, 4096, ALL)])
    trace = pub.begin_trace()
    pub.dispatch(program)
    pub.release_trace(trace)
    pub.dispatch(program)
    assert read().memory.cb.resident_bytes == 4096 * 64
    with pytest.raises(ttmem.UnknownIdError):
        pub.replay_trace(trace)


def test_devices_are_published_again_after_the_last_one_was_closed():
    for _ in range(2):
        publishers = [ttmem.publish(number, **N150) for number in range(3)]
        assert [publisher.problem for publisher in publishers] == [""] * 3
        assert [device.device_id for device in ttmem.devices()] == [0, 1, 2]
        for publisher in publishers:
            publisher.close()


def test_of_threads_that_publish_one_device_at_once_one_does():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(30):
            start, outcomes = threading.Barrier(4), []

            def publish(start=start, outcomes=outcomes):
                start.wait()
                try:
                    outcomes.append(ttmem.publish(5))
                except ttmem.AlreadyPublishedError:
                    outcomes.append(None)

            threads = [threading.Thread(target=publish) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            (publisher,) = [found for found in outcomes if found is not None]
            publisher.close()
            assert len(outcomes) == 4
    finally:
        sys.setswitchinterval(interval)
