"""What ttmem counts: buffer types, circular buffers, and the geometry of a device.

Sizes are bytes. An unknown value is None and never 0.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

from ttmem.cores import CoreCoord, CoreRangeSet, CoreRangesLike, as_core, as_core_range_set
from ttmem.errors import InvalidArgumentError, InvalidIntervalError

MAX_ADDRESS = 2**31 - 1
"""The largest L1 address or size in bytes that is accepted; L1 itself is about 1.5 MB."""
MAX_BYTES = 2**62
"""The largest buffer in bytes that is accepted."""
MAX_CORES = 1024
"""The most cores that a grid may have; the largest known has 140."""


class BufferType(IntEnum):
    """TT-Metal's buffer types, with TT-Metal's numbers."""

    DRAM = 0
    L1 = 1
    SYSTEM_MEMORY = 2
    L1_SMALL = 3
    TRACE = 4

    @classmethod
    def parse(cls, value: "BufferType | int | str") -> "BufferType":
        """Return the type for a BufferType, TT-Metal's number, or a name such as ``"L1"``.

        Raises:
            InvalidArgumentError: there is no such type.
        """
        if isinstance(value, str):
            name = value.rpartition(".")[2].upper()
            if name in cls.__members__:
                return cls[name]
        elif not isinstance(value, bool):
            try:
                return cls(value)
            except ValueError:
                pass
        raise InvalidArgumentError(f"unknown buffer type {value!r}: expected one of {', '.join(cls.__members__)}")


CB_KINDS = ("circular_buffer", "dataflow_buffer", "scratchpad")
"""What lies in the CB region of L1; dataflow buffers and scratchpads came with TT-Metal 2.0."""


def check_bytes(value: object, what: str, *, maximum: int = MAX_BYTES) -> int:
    """Return ``value`` as a number of bytes or an address.

    Raises:
        InvalidIntervalError: it is no integer, negative, or above ``maximum``.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InvalidIntervalError(f"{what} must be an integer number of bytes, got {value!r}")
    number: int = value.__index__()
    if number < 0:
        raise InvalidIntervalError(f"{what} must not be negative, got {number}")
    if number > maximum:
        raise InvalidIntervalError(f"{what} must be at most {maximum}, got {number}")
    return number


@dataclass(frozen=True, slots=True)
class CircularBuffer:
    """A circular buffer of a program: ``[address, address + size)`` on every core of ``core_ranges``.

    Args:
        address: the first byte in L1, or None to have it placed as TT-Metal does.
        size: bytes on each core.
        core_ranges: a CoreRangeSet or anything that names one.
        index: the slot number that kernels use, if known.
        globally_allocated: True if it aliases an L1 buffer; it then counts under L1 and never under CB.
        kind: ``circular_buffer``, ``dataflow_buffer`` or ``scratchpad``.

    Raises:
        InvalidIntervalError: the address or size is negative, too large or no integer.
    """

    address: int | None
    size: int
    core_ranges: CoreRangeSet
    index: int | None
    globally_allocated: bool
    kind: str

    def __init__(
        self,
        address: int | None,
        size: int,
        core_ranges: CoreRangesLike,
        *,
        index: int | None = None,
        globally_allocated: bool = False,
        kind: str = "circular_buffer",
    ) -> None:
        if address is not None:
            address = check_bytes(address, "the address of a circular buffer", maximum=MAX_ADDRESS)
        if kind not in CB_KINDS:
            raise InvalidArgumentError(f"kind must be one of {', '.join(CB_KINDS)}, got {kind!r}")
        object.__setattr__(self, "address", address)
        object.__setattr__(self, "size", check_bytes(size, "the size of a circular buffer", maximum=MAX_ADDRESS))
        object.__setattr__(self, "core_ranges", as_core_range_set(core_ranges))
        object.__setattr__(self, "index", index)
        object.__setattr__(self, "globally_allocated", bool(globally_allocated))
        object.__setattr__(self, "kind", kind)


WORKER_L1_SIZE = {"grayskull": 1048576, "wormhole_b0": 1499136, "blackhole": 1572864}
"""L1 of one Tensix core in bytes, by architecture (TT-Metal's SoC descriptions)."""
DRAM_ALIGNMENT = {"grayskull": 32, "wormhole_b0": 32, "blackhole": 64}
"""The alignment in bytes to which TT-Metal places circular buffers: DRAM's, not L1's."""


def parse_arch(value: object) -> str | None:
    """Return the architecture's plain name (``wormhole_b0``) for any spelling, ``Arch.WORMHOLE_B0`` among them.

    Raises:
        InvalidArgumentError: it is no architecture that ttmem knows.
    """
    if value is None:
        return None
    name = str(value).rpartition(".")[2].lower()
    if name not in WORKER_L1_SIZE:
        raise InvalidArgumentError(f"unknown arch {value!r}: expected one of {', '.join(WORKER_L1_SIZE)}")
    return name


@dataclass(frozen=True, slots=True)
class Geometry:
    """What is known of a device besides its usage; every field may be None, which is unknown.

    Attributes:
        arch: ``grayskull``, ``wormhole_b0`` or ``blackhole``; alone it tells ``worker_l1_size`` and nothing else.
        asic_id: the chip's unique id.
        grid: the number of cores in x and in y.
        worker_l1_size: bytes of L1 of one core.
        l1_cb_base: the first L1 address that CBs and L1 buffers may take.
        l1_small_size: bytes set aside for L1_SMALL at the top of each core's L1.
        dram_size: bytes of DRAM of the device.
        trace_region_size: bytes of DRAM set aside for traces.
    """

    arch: str | None = None
    asic_id: int | None = None
    grid: CoreCoord | None = None
    worker_l1_size: int | None = None
    l1_cb_base: int | None = None
    l1_small_size: int | None = None
    dram_size: int | None = None
    trace_region_size: int | None = None

    @classmethod
    def of(
        cls,
        *,
        arch: object = None,
        asic_id: int | None = None,
        grid: object = None,
        worker_l1_size: int | None = None,
        l1_cb_base: int | None = None,
        l1_small_size: int | None = None,
        dram_size: int | None = None,
        trace_region_size: int | None = None,
    ) -> "Geometry":
        """Check what a user gave and return it as a Geometry.

        Raises:
            InvalidIntervalError: a size is negative or contradicts another, or the grid has no or too many cores.
            InvalidArgumentError: the architecture is unknown.
        """
        name = parse_arch(arch)
        if asic_id is not None:
            asic_id = check_bytes(asic_id, "asic_id", maximum=2**64 - 1)
        core = None
        if grid is not None:
            core = as_core(grid)  # type: ignore[arg-type]
            if not 0 < core.x * core.y <= MAX_CORES:
                raise InvalidIntervalError(f"the grid must have 1 to {MAX_CORES} cores, got {core.x} x {core.y}")
        if worker_l1_size is not None:
            worker_l1_size = check_bytes(worker_l1_size, "worker_l1_size", maximum=MAX_ADDRESS)
        elif name is not None:
            worker_l1_size = WORKER_L1_SIZE[name]
        if l1_cb_base is not None:
            l1_cb_base = check_bytes(l1_cb_base, "l1_cb_base", maximum=MAX_ADDRESS)
        if l1_small_size is not None:
            l1_small_size = check_bytes(l1_small_size, "l1_small_size", maximum=MAX_ADDRESS)
        if dram_size is not None:
            dram_size = check_bytes(dram_size, "dram_size")
        if trace_region_size is not None:
            trace_region_size = check_bytes(trace_region_size, "trace_region_size")
        if worker_l1_size is not None and (l1_cb_base or 0) + (l1_small_size or 0) > worker_l1_size:
            raise InvalidIntervalError(
                f"l1_cb_base {l1_cb_base} and l1_small_size {l1_small_size} "
                f"do not fit in worker_l1_size {worker_l1_size}"
            )
        return cls(name, asic_id, core, worker_l1_size, l1_cb_base, l1_small_size, dram_size, trace_region_size)

    def known(self) -> dict[str, object]:
        """Return the fields that are known, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
