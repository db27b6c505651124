"""A replay drives one publisher per chip, through nothing but the publisher's own interface."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ttmem.errors import CaptureError, InvalidIntervalError
from ttmem.model import BufferType
from ttmem.replay import Replay, replay

CAPTURES = Path(__file__).parent / "captures"


class FakePublisher:
    """Keeps what a publisher was told, as plain tables."""

    def __init__(self, device_id, **geometry):
        self.device_id, self.geometry = device_id, geometry
        self.programs, self.buffers, self.dispatched, self.closed, self.next_id = {}, {}, [], False, 0

    def add_program(self, circular_buffers, *, name="", program_id=None):
        assert not self.closed
        self.next_id += 1
        self.programs[self.next_id] = (name, circular_buffers)
        return self.next_id

    def remove_program(self, program_id):
        del self.programs[program_id]

    def dispatch(self, program_id):
        self.dispatched.append(self.programs[program_id][0])

    def allocate(self, buffer_type, size, *, address=None, size_per_bank=None, core_ranges=None, name=""):
        if address is not None and address > 2**40:
            raise InvalidIntervalError("beyond L1")
        self.next_id += 1
        self.buffers[self.next_id] = (buffer_type, size, address, size_per_bank, name)
        return self.next_id

    def deallocate(self, buffer_id):
        del self.buffers[buffer_id]

    def close(self):
        self.closed = True

    def used(self, buffer_type):
        return sum(size for kind, size, *_ in self.buffers.values() if kind is buffer_type)


def cut(tmp_path, name, length):
    path = tmp_path / name
    path.write_bytes((CAPTURES / name).read_bytes()[:length])
    return path


def test_a_mesh_capture_publishes_eight_devices_from_the_given_id_on():
    run, summary = replay(
        CAPTURES / "t3k_mesh_transformer.json.gz", publish=FakePublisher, device_id=10, arch="wormhole_b0", grid=(8, 8)
    )
    assert sorted(summary.device_ids) == list(range(10, 18))
    for chip, publisher in run.publishers.items():
        assert publisher.device_id == 10 + chip
        assert publisher.geometry["arch"] == "wormhole_b0"
        assert publisher.geometry["worker_l1_size"] == 1499136
        assert "l1_cb_base" not in publisher.geometry
        assert publisher.used(BufferType.DRAM) == 2048
        assert len(publisher.programs) == 26
        assert len(publisher.dispatched) == 109
    publishers = list(run.publishers.values())
    run.close()
    assert all(publisher.closed for publisher in publishers)


def test_a_program_has_the_name_of_its_device_operation_and_a_buffer_that_of_the_call():
    run, _ = replay(CAPTURES / "n150_mlp.json", publish=FakePublisher)
    publisher = run.publishers[0]
    assert "MatmulDeviceOperation" in {name for name, _ in publisher.programs.values()}
    assert "ttnn.matmul" in {name for *_, name in publisher.buffers.values()}
    assert publisher.geometry == {}


def test_an_assumed_base_is_said_once_and_not_published():
    notices = []
    run, summary = replay(CAPTURES / "n150_mlp_nodispatch.json", publish=FakePublisher, on_notice=notices.append)
    assert notices == [summary.assumed]
    assert "105664" in summary.assumed
    assert run.publishers[0].geometry == {}
    first = next(iter(run.publishers[0].programs.values()))[1]
    assert [buffer.address for buffer in first] == [105664, 109760, 113856]


def test_a_core_beyond_wormholes_grid_has_blackhole_assumed_from_the_first_program_on():
    run, summary = replay(CAPTURES / "p100_conv_dfb_nodispatch.json.gz", publish=FakePublisher)
    assert "blackhole from 111488" in summary.assumed
    local = [
        [buffer.address for buffer in buffers if not buffer.globally_allocated]
        for _, buffers in run.publishers[0].programs.values()
    ]
    assert {min(addresses) for addresses in local if addresses} == {111488}


def test_a_told_base_and_arch_need_no_assumption():
    run, summary = replay(
        CAPTURES / "n150_mlp_nodispatch.json", publish=FakePublisher, arch="wormhole_b0", l1_cb_base=110000
    )
    assert summary.assumed is None
    assert next(iter(run.publishers[0].programs.values()))[1][0].address == 110016


def test_a_report_tells_the_geometry_and_options_stand_above_it(tmp_path):
    nodes = json.loads((CAPTURES / "n150_mlp.json").read_text())
    devices = [{"device_id": 0, "worker_l1_size": 1499136, "address_at_first_l1_cb_buffer": 105664}]
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"graph": nodes, "devices": devices}))
    run, _ = replay(path, publish=FakePublisher, l1_cb_base=105728)
    assert run.publishers[0].geometry == {"worker_l1_size": 1499136, "l1_cb_base": 105728}


def test_a_file_that_breaks_off_is_published_up_to_there(tmp_path):
    run, summary = replay(cut(tmp_path, "n150_mlp.json", 30000), publish=FakePublisher)
    assert isinstance(summary.error, CaptureError)
    assert "n150_mlp.json" in str(summary.error)
    assert len(run.publishers[0].programs) > 1


def test_a_refused_event_is_a_warning_and_the_replay_goes_on(tmp_path):
    nodes = json.loads((CAPTURES / "n150_mlp.json").read_text())
    nodes[4]["params"]["address"] = 2**50
    path = tmp_path / "capture.json"
    path.write_text(json.dumps(nodes))
    run, summary = replay(path, publish=FakePublisher)
    assert "allocate: beyond L1" in summary.warnings
    assert len(run.publishers[0].programs) == 7


def test_the_recorded_time_passes_at_the_speed_asked_for():
    slept, now = [], [0]

    def sleep(seconds):
        slept.append(seconds)
        now[0] += round(seconds * 1e9)

    run = Replay(CAPTURES / "n150_mlp.json", FakePublisher, speed=2.0, sleep=sleep, clock_ns=lambda: now[0])
    summary = run.run()
    assert summary.duration_ns == 225604899
    assert sum(slept) == pytest.approx(summary.duration_ns / 2e9)


def test_a_second_run_replaces_what_the_first_published():
    run = Replay(CAPTURES / "n150_mlp.json", FakePublisher)
    run.run()
    publisher = run.publishers[0]
    buffers, programs = len(publisher.buffers), len(publisher.programs)
    run.run()
    assert run.publishers[0] is publisher
    assert (len(publisher.buffers), len(publisher.programs)) == (buffers, programs)


def test_progress_ends_at_the_end_of_the_file():
    seen = []
    replay(CAPTURES / "p150_transformer.json.gz", publish=FakePublisher, on_progress=seen.append)
    assert seen[-1].position_bytes == seen[-1].size_bytes > 0
    assert [progress.nodes for progress in seen] == [*range(512, 3660, 512), 3660]


def test_wrong_options_are_refused():
    path = CAPTURES / "n150_mlp.json"
    with pytest.raises(ValueError, match="device_id"):
        replay(path, publish=FakePublisher, device_id=-1)
    with pytest.raises(ValueError, match="speed"):
        replay(path, publish=FakePublisher, speed=0)
    with pytest.raises(TypeError, match="colour"):
        replay(path, publish=FakePublisher, colour="red")


def test_a_publisher_that_cannot_be_made_ends_the_replay_and_closes_the_others():
    made = []

    def publish(device_id, **geometry):
        if len(made) == 2:
            raise RuntimeError("no room")
        made.append(FakePublisher(device_id, **geometry))
        return made[-1]

    with pytest.raises(RuntimeError, match="no room"):
        replay(CAPTURES / "t3k_mesh_transformer.json.gz", publish=publish)
    assert [publisher.closed for publisher in made] == [True, True]
