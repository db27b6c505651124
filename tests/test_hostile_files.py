"""A reader cannot be hurt: whatever lies under a segment's name costs only itself, and never yields a wrong figure."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ttmem
from ttmem._reading import BlockReading, block_offsets, read_header
from ttmem._segment import record_tag, static_check
from ttmem.errors import TtmemError
from ttmem.reader import Host
from ttmem.snapshot import Part, Snapshot

NAME = "ttmem1..0.1.1.0123456789abcdef"
PAGE = 4096
HEADER_BYTES, BLOCK = 4096, 4096
CONTROL = 512
GRID = (2, 2)


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TTMEM_SHM_DIR", str(tmp_path))
    monkeypatch.delenv("TTMEM_NAMESPACE", raising=False)
    return tmp_path


def publish_figures(device_id: int = 0) -> ttmem.Publisher:
    publisher = ttmem.publish(device_id, arch="wormhole_b0", grid=GRID, l1_cb_base=1024, l1_small_size=4096, asic_id=7)
    publisher.add_program([ttmem.CircularBuffer(2048, 512, "{[0-0 - 1-0]}")], name="first")
    publisher.add_program([ttmem.CircularBuffer(4096, 1024, "{[0-0 - 0-1]}")], name="second")
    publisher.allocate("L1", 4096, address=500_000, size_per_bank=1024, name="weights")
    publisher.allocate("DRAM", 1 << 20, name="activations")
    publisher.dispatch(1)
    return publisher


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole file of a living writer, as bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTMEM_SHM_DIR", str(tmp_path_factory.mktemp("valid")))
        with publish_figures(7) as publisher:
            assert publisher.path is not None
            return publisher.path.read_bytes()


def picture(data: bytes | None, fd: int | None = None) -> list[dict[str, Any]]:
    """Return what a file's blocks say, as if its writer lived."""
    own = os.memfd_create("hostile") if fd is None else fd
    try:
        if data is not None:
            os.write(own, data)
        size = os.fstat(own).st_size
        facts = read_header(own, size)
        found = []
        for offset in block_offsets(own, size, facts.header_bytes):
            reading = BlockReading(own, offset, size)
            if not reading.live:
                continue
            reading.load(own, offset)
            assert reading.tries <= 32
            assert reading.bytes_read <= 34 * size
            if not reading.live:
                continue
            device = Snapshot([Part(reading, 1, "p", "u", "live")], taken_ns=0).to_dict()
            device["damaged"] = reading.damaged
            device["dropped"] = reading.dropped
            found.append(device)
        return found
    finally:
        if fd is None:
            os.close(own)


FREE = ("updated_ns", "consistent", "warnings", "damaged", "dropped")
"""Not figures: a time, and what is said of the reading itself."""


def assert_no_wrong_figure(seen: Any, true: Any, path: str = "") -> None:
    """What was read is what is true, or said to be unknown."""
    if seen is None:
        return
    if isinstance(true, dict):
        for name, value in true.items():
            if name not in FREE:
                assert_no_wrong_figure(seen[name], value, f"{path}.{name}")
    elif isinstance(true, list) and path in (".programs", ".cores", ".processes"):
        for row in seen:
            # A row with a damaged name keeps its figures.
            wanted = [t for t in true if all(row[k] in (t[k], None, "") for k in t)]
            assert wanted, (path, row)
    else:
        assert seen == true, path


def assert_safe(data: bytes, valid: bytes) -> str:
    """Read mutated bytes; every outcome but a typed problem and true figures is a failure."""
    (true,) = picture(valid)
    try:
        seen = picture(data)
    except TtmemError:
        return "problem"
    if not seen:
        return "gone"
    (device,) = seen
    if not device["damaged"]:
        assert len(device["programs"]) == len(true["programs"])
    else:
        assert any("checksum" in warning for warning in device["warnings"])
    assert_no_wrong_figure(device, true)
    return "same" if device["memory"] == true["memory"] else "unknown"


@pytest.fixture
def good(directory: Path) -> Iterator[ttmem.Publisher]:
    """A device of a good file, which must be read whatever lies beside it."""
    with publish_figures(1) as publisher:
        yield publisher


def read_beside(directory: Path, problems: int = 1) -> list[str]:
    host = Host(directory, "")
    try:
        seen = [Snapshot(parts) for _, parts in host.devices()]
        assert seen[0].device_id == 1
        assert seen[0].memory.dram.used_bytes == 1 << 20
        texts = list(host.problems.values())
        assert len(texts) == problems
        return texts
    finally:
        host.close()


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_directory(path: Path) -> None:
    path.mkdir()


def make_link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def make_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def make_socket(path: Path) -> None:
    here = os.getcwd()
    # A socket's path is short; a temporary directory's is not.
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    finally:
        os.chdir(here)


def make_empty(path: Path) -> None:
    path.touch()


def make_zeros(path: Path) -> None:
    path.write_bytes(bytes(1 << 16))


def make_noise(path: Path) -> None:
    path.write_bytes(os.urandom(1 << 16))


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        try:
            file.truncate(2**63 - 1)
        except OSError:
            # The largest that ext4 takes with 4 KiB blocks; tmpfs takes the former.
            file.truncate(2**44 - PAGE)


@pytest.mark.parametrize(
    "make",
    [
        make_fifo,
        make_directory,
        make_link,
        make_dangling_link,
        make_socket,
        make_empty,
        make_zeros,
        make_noise,
        make_sparse,
    ],
)
def test_what_is_no_segment_is_named_and_costs_only_itself(
    make: Callable[[Path], None], directory: Path, good: ttmem.Publisher
) -> None:
    make(directory / NAME)
    (text,) = read_beside(directory)
    assert NAME in text


def test_a_sparse_file_of_the_largest_size_is_read_in_bounded_work(directory: Path, valid: bytes) -> None:
    place = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else directory
    fd = os.open(place, os.O_TMPFILE | os.O_RDWR)
    try:
        os.write(fd, valid)
        try:
            os.ftruncate(fd, 2**63 - 1)
        except OSError:
            os.ftruncate(fd, 2**44 - PAGE)
        assert picture(None, fd)[0]["memory"] == picture(valid)[0]["memory"]
        os.pwrite(fd, struct.pack("<Q", 2**62), CONTROL + 8)
        with pytest.raises(TtmemError, match="claims"):
            picture(None, fd)
    finally:
        os.close(fd)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a file of another user, and read it")
def test_a_file_of_another_user_is_read_and_said_to_be_theirs(
    directory: Path, good: ttmem.Publisher, valid: bytes
) -> None:
    (directory / NAME).write_bytes(valid)
    os.chown(directory / NAME, 12345, 12345)
    read_beside(directory, problems=0)
    (snapshot,) = ttmem.devices()
    assert {process.user for process in snapshot.processes} == {"root", "12345"}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_file_that_may_not_be_read_is_named_with_its_owner_and_the_cure(directory: Path, valid: bytes) -> None:
    (directory / NAME).write_bytes(valid)
    (directory / NAME).chmod(0o600)
    # The way to the directory is closed to others: hold it open and read through its descriptor.
    fd = os.open(directory, os.O_PATH)
    directory.chmod(0o755)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setresuid(12345, 12345, 12345)
            host = Host(Path(f"/proc/self/fd/{fd}"), "")
            assert host.parts() == []
            (text,) = host.problems.values()
            assert "0600" in text
            assert "uid 0" in text
            assert "run as that user" in text
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(fd)


def test_a_file_cut_at_any_page_yields_a_problem_or_the_same_figures(valid: bytes) -> None:
    outcomes = {size: assert_safe(valid[:size], valid) for size in range(0, len(valid), PAGE)}
    assert set(outcomes.values()) == {"problem"}


@pytest.mark.parametrize("size", [1, 511, 575, 4095, 4097, 4096 + 575])
def test_a_file_cut_within_a_page_yields_a_problem(size: int, valid: bytes) -> None:
    assert assert_safe(valid[:size], valid) == "problem"


def test_a_file_that_grew_is_read_as_before(valid: bytes) -> None:
    assert assert_safe(valid + bytes(10 * PAGE), valid) == "same"
    assert assert_safe(valid + os.urandom(PAGE + 1), valid) == "same"


def test_a_hole_punched_anywhere_yields_a_problem_or_the_same_figures(valid: bytes) -> None:
    outcomes = set()
    for offset in range(0, len(valid), PAGE):
        if any(valid[offset : offset + PAGE]):
            outcomes.add(assert_safe(valid[:offset] + bytes(PAGE) + valid[offset + PAGE :], valid))
    # One image is enough to repair the other.
    assert outcomes == {"problem", "same"}


def test_both_images_punched_at_one_place_are_no_figures(valid: bytes) -> None:
    _, image_bytes = images_of(valid)
    for offset in range(BLOCK + PAGE, BLOCK + PAGE + image_bytes, PAGE):
        if any(valid[offset : offset + PAGE]):
            data = bytearray(valid)
            data[offset : offset + PAGE] = bytes(PAGE)
            data[offset + image_bytes : offset + image_bytes + PAGE] = bytes(PAGE)
            try:
                (device,) = picture(bytes(data))
            except TtmemError:
                continue
            assert device["damaged"]
            assert not device["consistent"]
            assert_safe(bytes(data), valid)


def test_a_flip_of_any_bit_of_a_headers_fixed_part_is_noticed(valid: bytes) -> None:
    for start in (0, BLOCK):
        for at in range(start, start + 512):
            data = bytearray(valid)
            data[at] ^= 1 << at % 8
            assert assert_safe(bytes(data[: BLOCK + PAGE]) + valid[BLOCK + PAGE :], valid) in ("problem", "gone"), at


def test_a_flip_of_any_bit_of_a_headers_changing_part_yields_no_wrong_figure(valid: bytes) -> None:
    for start in (CONTROL, BLOCK + CONTROL):
        for at in range(start, start + 64):
            for bit in range(8):
                data = bytearray(valid)
                data[at] ^= 1 << bit
                outcome = assert_safe(bytes(data), valid)
                # Only an odd generation says, and means, that there is nothing to be seen just now.
                assert outcome != "gone" or at == BLOCK + CONTROL, (at, bit)


@pytest.fixture(scope="module")
def written(valid: bytes) -> list[int]:
    """The bytes of the images' words that are not zero: where a mutation meets something."""
    return [at for at in range(BLOCK + PAGE, len(valid), 8) if any(valid[at : at + 8])]


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_random_damage_yields_no_wrong_figure(data: st.DataObject, valid: bytes, written: list[int]) -> None:
    mutated = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.one_of(st.sampled_from(written), st.integers(0, len(valid) - 8)))
        kind = data.draw(st.sampled_from(("flip", "word", "copy", "zeros")))
        if kind == "flip":
            mutated[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "word":
            mutated[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
        else:
            size = data.draw(st.integers(1, 256))
            source = data.draw(st.sampled_from(written)) if kind == "copy" else None
            piece = bytes(size) if source is None else bytes(mutated[source : source + size])
            mutated[at : at + len(piece)] = piece
    assert_safe(bytes(mutated[: len(valid)]), valid)


def sealed(data: bytearray, start: int) -> bytes:
    """Return data with a right checksum over the header at ``start``."""
    data[start + 504 : start + 512] = struct.pack("<Q", static_check(bytes(data[start : start + 504])))
    return bytes(data)


@settings(max_examples=150, deadline=None)
@example(start=BLOCK, word=7, value=2**63 + 4096, halves=False)  # worker_l1_size
@given(
    start=st.sampled_from((0, BLOCK)),
    word=st.integers(0, 62),
    value=st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1])),
    halves=st.booleans(),
)
def test_a_forged_header_with_a_right_checksum_yields_a_typed_problem_or_figures(
    start: int, word: int, value: int, halves: bool, valid: bytes
) -> None:
    data = bytearray(valid)
    at = start + 8 * word
    data[at : at + 8] = struct.pack("<Q", value)
    if halves:
        data[at : at + 4] = valid[at : at + 4]
    with contextlib.suppress(TtmemError):
        # Forged, but within the file: what is shown is made of its own bytes.
        assert len(picture(sealed(data, start))) <= 1


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_forged_records_with_right_tags_do_no_harm(data: st.DataObject, valid: bytes) -> None:
    mutated = bytearray(valid)
    (image_offset, image_bytes) = images_of(valid)
    sections = [struct.unpack_from("<IIIIQ", valid, BLOCK + 128 + 24 * i) for i in range(12)]
    for _ in range(data.draw(st.integers(1, 4))):
        kind, stride, count, words, offset = data.draw(st.sampled_from(sections))
        index = data.draw(st.integers(0, min(count, 4) - 1))
        content = [
            data.draw(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 64), st.just(2**64 - 1)))
            for _ in range(min(words - 1, 7))
        ]
        packed = struct.pack(f"<{len(content)}Q", *content).ljust(8 * (words - 1), b"\xff")
        used = packed
        if kind in (6, 7):
            used = packed[: 8 * (min(content[0] & 0xFFFFFFFF, words - 2) + 1)]
        tag = record_tag(used, kind << 32 | index, 1000)
        for image in range(2):
            at = BLOCK + image_offset + image * image_bytes + offset + index * stride
            mutated[at : at + 8 * words] = packed + struct.pack("<Q", tag)
    with contextlib.suppress(TtmemError):
        picture(bytes(mutated))


def images_of(valid: bytes) -> tuple[int, int]:
    """Return where a block's images lie: (offset of the first, bytes of one)."""
    return PAGE, (len(valid) - BLOCK - PAGE) // 2


def test_sections_that_share_bytes_are_refused(valid: bytes) -> None:
    data = bytearray(valid)
    for index in range(12):
        kind, _, _, words, _ = struct.unpack_from("<IIIIQ", valid, BLOCK + 128 + 24 * index)
        if kind >= 8:
            struct.pack_into("<IIIIQ", data, BLOCK + 128 + 24 * index, kind, 8 * 4096, 16, words, 0)
    with pytest.raises(TtmemError, match="too large"):
        picture(sealed(data, BLOCK))


def test_a_chain_of_blocks_that_does_not_end_is_refused(valid: bytes) -> None:
    data = bytearray(valid[:BLOCK]) + bytearray(valid[BLOCK : BLOCK + PAGE]) * 5000
    for offset in range(BLOCK, len(data), PAGE):
        struct.pack_into("<Q", data, offset + 8, PAGE)
    struct.pack_into("<Q", data, CONTROL + 8, len(data))
    with pytest.raises(TtmemError, match="does not end"):
        picture(bytes(data))


def test_a_file_replaced_under_its_name_is_read_anew(directory: Path, good: ttmem.Publisher, valid: bytes) -> None:
    path = directory / NAME
    path.write_bytes(valid)
    host = Host(directory, "")
    try:
        assert len(host.parts()) == 2
        # The first file lives on under a name that is none of ours.
        os.link(path, directory / "elsewhere")
        (directory / "new").write_bytes(b"rubbish" * 1000)
        os.rename(directory / "new", path)
        assert len(host.parts()) == 1
        assert "not a segment" in host.problems[NAME]
    finally:
        host.close()


def test_a_file_cut_under_an_open_reader_costs_only_itself(
    directory: Path, good: ttmem.Publisher, valid: bytes
) -> None:
    path = directory / NAME
    path.write_bytes(valid)
    host = Host(directory, "")
    try:
        assert len(host.parts()) == 2
        for size in (len(valid) - 1, BLOCK + PAGE, BLOCK + 100, 100, 0):
            os.truncate(path, size)
            assert [part.reading.device_id for part in host.parts()] == [1]
            assert NAME in host.problems
    finally:
        host.close()


def test_two_grids_that_contradict_each_other_list_only_cores_that_some_writer_has() -> None:
    with ttmem.publish(0, grid=(255, 4)) as first:
        tall = bytearray(first.frozen())
        grid_at = 48
        assert struct.unpack_from("<II", tall, grid_at) == (255, 4)
        struct.pack_into("<II", tall, grid_at, 4, 255)
        fd = os.memfd_create("tall")
        try:
            os.write(fd, sealed(tall, 0))
            reading = BlockReading(fd, 0, len(tall))
            reading.load(fd, 0)
        finally:
            os.close(fd)
        snapshot = Snapshot([*first.snapshot()._parts, Part(reading, 2, "other", "u", "live")])
        assert len(snapshot.cores) == 2 * 255 * 4 - 16
        assert any("grid" in warning for warning in snapshot.warnings)


def test_a_foreign_readers_lock_does_not_make_a_dead_writer_look_alive(directory: Path, valid: bytes) -> None:
    import fcntl

    path = directory / NAME
    path.write_bytes(valid)
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
        (device,) = ttmem.devices()
        assert device.state == "stale"
        assert device.memory.dram.used_bytes == 0
    finally:
        os.close(fd)
