"""The writer: what a process tells of its device goes into the engine and from there into its segment.

Invariants
1. A call either succeeds as a whole or raises and changes nothing: everything that may fail is done before the first change.
2. When a call returns outside a batch, what it changed is committed.
3. In a forked child every publisher of its parent is inert: devices do not survive a fork, and the mappings are not there.
4. No failure to publish reaches the caller: the figures are then kept in private memory, and said so once in the log.

Thread safety: calls may come from any thread. The GIL, or a critical section where there is none, guards ids and rows; the
lock guards engine and block, so that compiled callers need neither. No Python code runs while the lock is held.
"""

import heapq
import logging
import time

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from ttmem._core cimport CbRange, Footprint, Intervals
from ttmem._layout cimport (
    TTM_BUFFER_NAMES,
    TTM_BUFFER_ROWS,
    TTM_BUFFERS,
    TTM_CB_CLASS,
    TTM_CB_MAP,
    TTM_CB_RANGES,
    TTM_L1_CLASS,
    TTM_L1_MAP,
    TTM_L1_RANGES,
    TTM_NAME_BYTES,
    TTM_PROGRAM_CBS,
    TTM_PROGRAM_NAMES,
    TTM_PROGRAM_ROWS,
    TTM_PROGRAMS,
    TTM_RANGES_MAX,
    TTM_RESIDENT,
    TTM_T_CB,
    TTM_T_DRAM,
    TTM_T_KERNEL,
    TTM_T_TABLES,
    TTM_TOTALS,
    ttm_load,
    ttm_lock_acquire,
    ttm_lock_release,
    ttm_realtime_coarse_ns,
)
from ttmem._segment cimport DeviceBlock

from ttmem import segment
from ttmem._segment import record_grid
from ttmem.cores import as_core_range_set
from ttmem.errors import ClosedError, InvalidIntervalError, UnknownIdError
from ttmem.model import DRAM_ALIGNMENT, MAX_ADDRESS, BufferType, CircularBuffer, check_bytes
from ttmem.placement import place

log = logging.getLogger("ttmem")


cdef extern from *:
    """
    #include <stdint.h>
    #include <sys/mman.h>

    /* One private page that every fork leaves zeroed, whoever forks and however (also from C, where Python's fork hooks do not
     * run): a word of it that differs from what a publisher remembers says that the process is another one. */
    static volatile uint64_t *ttm_canary;
    static uint64_t ttm_canary_last;

    static inline uint64_t ttm_canary_value(void) { return ttm_canary ? *ttm_canary : 0; }

    static uint64_t ttm_canary_set(void) {
        if (!ttm_canary) {
            void *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (page == MAP_FAILED) return 0;
            madvise(page, 4096, MADV_WIPEONFORK);
            ttm_canary = (volatile uint64_t *)page;
        }
        return *ttm_canary = ++ttm_canary_last;
    }
    """
    uint64_t ttm_canary_value() nogil
    uint64_t ttm_canary_set() nogil


def canary() -> int:
    """Return a number that is this process's own and 0 in a child forked from it; 0 before the first publisher."""
    return ttm_canary_value()


def new_canary() -> int:
    """Give this process a number of its own, at its first publisher and after a fork."""
    return ttm_canary_set()


cdef inline uint32_t least(uint32_t a, uint32_t b) noexcept nogil:
    return a if a < b else b


UNKNOWN_L1_LIMIT = 4 * 1024 * 1024
"""How far addresses may reach where the size of L1 is not known, bytes; the largest known L1 has 1.5 MiB."""


@cython.no_gc_clear  # the engine must outlive what it interned
cdef class PreparedFootprint:
    """A program's circular buffers, prepared once; take it in place of the list."""

    def __init__(self):
        raise TypeError("made by Publisher.footprint()")

    def __dealloc__(self):
        # In a forked child another thread's hold of the lock would last for ever, and there is nothing to give back.
        if self.footprint != NULL and self.owner is not None and ttm_canary_value() == self.owner.born:
            ttm_lock_acquire(&self.owner.lock)
            self.owner.cb.release(self.footprint)
            ttm_lock_release(&self.owner.lock)

    @property
    def num_cores(self):
        """The number of cores that the circular buffers cover."""
        return self.footprint.num_cores

    @property
    def cb_bytes_per_core(self):
        """The largest sum of circular buffer sizes on one core, in bytes."""
        return self.footprint.bytes_per_core

    @property
    def cb_region_end(self):
        """The end of the highest circular buffer; 0 if there is none."""
        return self.footprint.region_end


cdef class ProgramRow:
    """Cached programs of one name and footprint."""

    def waits(self):
        """Tell whether the row is alive and has no place in the published table."""
        return self.count > 0 and self.slot < 0


cdef class BufferRow:
    """A live buffer."""


class _Batch:
    """Holds the publication of many changes back until its end; nests."""

    __slots__ = ("_publisher",)

    def __init__(self, publisher):
        self._publisher = publisher

    def __enter__(self):
        self._publisher._begin_batch()
        return self._publisher

    def __exit__(self, *exc_info):
        self._publisher._end_batch()


@cython.no_gc_clear
cdef class Publisher:
    """Publishes one device's memory; made by :func:`ttmem.publish`.

    A context manager; :meth:`close` withdraws the device. Calls on a closed publisher raise
    :class:`ttmem.ClosedError`; in a forked child they do nothing and return 0.
    """

    def __cinit__(self, int device_id, geometry, str origin="live"):
        x, y = record_grid(geometry)
        limit = geometry.worker_l1_size
        self.device_id = device_id
        self.geometry = geometry
        self.origin = origin
        self.cb = Intervals(x, y, limit=UNKNOWN_L1_LIMIT if limit is None else limit)
        self.l1 = Intervals(x, y, limit=UNKNOWN_L1_LIMIT if limit is None else limit)
        self.block = DeviceBlock(x * y)
        self.born = ttm_canary_value()
        self.programs = {}
        self.rows = {}
        self.buffers = {}
        self.kernels = {}
        self.traces = {}
        self.masks = {}
        self.next_id = 1
        self.free_program_slots = []
        self.waiting_rows = []
        self.free_buffer_slots = [[], []]
        self.next_buffer_slot[1] = TTM_BUFFER_ROWS // 2
        self.problem = ""
        # One class of all cores and nothing on them: a fresh block says so before anything happens.
        self.cb.map_changed = self.l1.map_changed = True
        self.sync_class(self.cb, TTM_CB_CLASS, TTM_CB_RANGES, 0)
        self.sync_class(self.l1, TTM_L1_CLASS, TTM_L1_RANGES, 0)
        self.sync()

    def __dealloc__(self):
        cdef ProgramRow row
        cdef BufferRow buffer
        # The engines free what they interned; rows and buffers must not outlive them with dangling pointers.
        if self.rows is not None:
            for row in self.rows.values():
                row.footprint = NULL
        if self.buffers is not None:
            for buffer in self.buffers.values():
                buffer.footprint = NULL

    # Life

    cdef int describe_block(self) except -1:
        """Write all there is into the block where it lies now."""
        self.block.describe(self.device_id, self.geometry, 1 if self.origin == "replay" else 0, time.time_ns())
        return 0

    def attach_file(self, file):
        """Publish in a segment's file; on failure the figures stay private, and :attr:`problem` says why."""
        try:
            file.add(self.block, self.device_id, self.geometry, 1 if self.origin == "replay" else 0)
            self.file = file
            self.problem = ""
        except OSError as error:
            self.file = None
            # The attempt may have left an empty block; the figures go on in private memory.
            self.describe_block()
            self.problem = f"{error.strerror or error} ({file.directory})"
            log.warning("ttmem does not publish device %d: %s; the program goes on", self.device_id, self.problem)

    @property
    def published(self):
        """Whether other processes can read the figures."""
        return self.file is not None and not self.closed and ttm_canary_value() == self.born

    @property
    def path(self):
        """The segment's file; None while nothing is published."""
        return None if self.file is None else self.file.path

    @property
    def updates_dropped(self):
        """How many records found no memory in shared memory, and so were not published."""
        return self.block.dropped

    def close(self):
        """Withdraw the device. Closing twice does nothing."""
        if self.closed or ttm_canary_value() != self.born:
            return
        self.closed = True
        if self.file is not None:
            with segment._registry_lock:
                self.file.withdraw(self.block)
            self.file = None
        _published.pop(self.device_id, None)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __repr__(self):
        state = "closed" if self.closed else "published" if self.file is not None else "private"
        return f"<ttmem.Publisher of device {self.device_id}, {state}>"

    cdef bint usable(self) except -1:
        if ttm_canary_value() != self.born:
            return False
        if self.closed:
            raise ClosedError(f"the publisher of device {self.device_id} was closed")
        return True

    def check_file(self):
        """Publish anew if the segment's file was deleted under this process; done about once a second by itself."""
        if self.file is None or not self.file.lost():
            return
        with segment._registry_lock:
            lost = self.file
            segment.forget(lost)
            fresh = segment.writer_file(lost.directory, lost.space)
        log.warning("%s was deleted while in use: ttmem publishes device %d again", lost.path, self.device_id)
        with segment._registry_lock:
            ttm_lock_acquire(&self.lock)
            try:
                self.block.unmap()
            finally:
                ttm_lock_release(&self.lock)
            self.attach_file(fresh)

    # From the engine to the block

    cdef void sync_class(self, Intervals plane, uint32_t class_kind, uint32_t ranges_kind, uint32_t slot) noexcept nogil:
        cdef uint64_t *record = self.block.record(class_kind, slot)
        cdef uint64_t *ranges
        cdef uint64_t[64] found
        cdef uint32_t count
        record[0] = plane.class_physical(slot)
        record[1] = plane.class_logical(slot)
        if plane.change_flags[slot] & 2 or ranges_kind == 0 or self.block.high[ranges_kind] <= slot:
            record[2] = plane.class_region_end(slot)
            record[3] = plane.class_lowest(slot)
            ranges = self.block.record(ranges_kind, slot)
            count = plane.class_ranges(slot, found, TTM_RANGES_MAX + 1)
            ranges[0] = least(count, TTM_RANGES_MAX) | (<uint64_t> (count > TTM_RANGES_MAX) << 32)
            memcpy(ranges + 1, found, 8 * least(count, TTM_RANGES_MAX))
            # Without memory for the ranges the class says that they are not to be had.
            record[4] = self.block.mark(ranges_kind, slot)
        self.block.mark(class_kind, slot)

    cdef void sync_plane(self, Intervals plane, uint32_t map_kind, uint32_t class_kind, uint32_t ranges_kind) noexcept nogil:
        cdef uint32_t i
        for i in range(plane.changed_count):
            self.sync_class(plane, class_kind, ranges_kind, plane.changed[i])
        if plane.map_changed:
            memcpy(self.block.record(map_kind, 0), plane.class_of_core, 2 * plane.num_cores)
            self.block.mark(map_kind, 0)
            i = 5 if map_kind == TTM_CB_MAP else 6
            self.block.record(TTM_TOTALS, TTM_T_TABLES)[i] = plane.class_high
            self.block.mark(TTM_TOTALS, TTM_T_TABLES)
        plane.clear_changes()

    cdef void sync(self) noexcept nogil:
        """Take over what the engines changed."""
        cdef uint64_t *total
        if self.cb.changed_count or self.cb.map_changed:
            self.sync_plane(self.cb, TTM_CB_MAP, TTM_CB_CLASS, TTM_CB_RANGES)
        if self.l1.changed_count or self.l1.map_changed:
            self.sync_plane(self.l1, TTM_L1_MAP, TTM_L1_CLASS, TTM_L1_RANGES)
        total = self.block.record(TTM_TOTALS, TTM_T_CB)
        total[0] = self.cb.physical
        total[1] = self.cb.logical
        total[2] = self.cb.resident
        if total[3] < total[0]:
            total[3] = total[0]
        self.block.mark(TTM_TOTALS, TTM_T_CB)

    cdef void publish_resident(self) noexcept nogil:
        self.cb.fill_resident(<uint32_t *> self.block.record(TTM_RESIDENT, 0))
        self.block.mark(TTM_RESIDENT, 0)
        self.block.record(TTM_TOTALS, TTM_T_CB)[2] = self.cb.resident
        self.block.mark(TTM_TOTALS, TTM_T_CB)

    cdef void flush(self) noexcept nogil:
        """Commit, unless a batch is open."""
        if self.batch_depth == 0:
            self.block.commit(ttm_realtime_coarse_ns())

    cdef inline int settle(self) except -1:
        # Once a second, on a clock that costs next to nothing, see whether somebody deleted the file.
        cdef uint64_t now
        if self.file is not None:
            now = self.block.control.updated_ns
            if now > self.checked_ns + 1000000000:
                self.checked_ns = now
                self.check_file()
        return 0

    # Circular buffers

    cdef bytes mask_of(self, object core_ranges):
        mask = self.masks.get(core_ranges)
        if mask is not None:
            return mask
        width, height = self.cb.width, self.cb.height
        bits = 0
        for rectangle in core_ranges.ranges:
            if rectangle.end.x >= width or rectangle.end.y >= height:
                what = "the largest grid that is assumed while it is unknown" if self.geometry.grid is None else "the grid"
                raise InvalidIntervalError(f"core range {rectangle} lies outside {what}, {width} x {height}")
            row = ((1 << (rectangle.end.x - rectangle.start.x + 1)) - 1) << rectangle.start.x
            for y in range(rectangle.start.y, rectangle.end.y + 1):
                bits |= row << (y * width)
        mask = bits.to_bytes(8 * self.cb.mask_words, "little")
        if len(self.masks) >= 4096:
            self.masks.clear()
        self.masks[core_ranges] = mask
        return mask

    cdef Footprint *intern(self, Intervals plane, list ranges) except NULL:
        """Return the footprint of [(begin, end, mask bytes), ...] with one reference taken."""
        cdef size_t count = len(ranges)
        cdef size_t i
        cdef bytes mask
        cdef Footprint *footprint
        cdef CbRange *items = <CbRange *> PyMem_Malloc((count + 1) * sizeof(CbRange))
        if items == NULL:
            raise MemoryError("no memory for a program's circular buffers")
        try:
            for i in range(count):
                begin, end, mask = ranges[i]
                items[i].begin = begin
                items[i].end = end
                items[i].mask = <const uint64_t *> <const char *> mask
            ttm_lock_acquire(&self.lock)
            footprint = plane.intern(items, count)
            ttm_lock_release(&self.lock)
        finally:
            PyMem_Free(items)
        if footprint == NULL:
            raise MemoryError("no memory for a program's circular buffers")
        return footprint

    cdef PreparedFootprint prepare(self, object circular_buffers):
        cdef PreparedFootprint handle
        if type(circular_buffers) is PreparedFootprint:
            handle = circular_buffers
            if handle.owner is self:
                return handle
            circular_buffers = handle.circular_buffers
        buffers = tuple(circular_buffers)
        ranges = []
        limit = self.cb.limit
        unplaced = False
        for buffer in buffers:
            if type(buffer) is not CircularBuffer:
                raise TypeError(f"a program consists of CircularBuffer objects, got {buffer!r}")
            if buffer.address is None and not buffer.globally_allocated:
                unplaced = True
        if unplaced:
            buffers = tuple(self.placed(buffers))
        for buffer in buffers:
            mask = self.mask_of(buffer.core_ranges)
            if buffer.globally_allocated:
                ranges.append((0, 0, mask))
                continue
            begin = buffer.address
            end = begin + buffer.size
            if end > limit:
                known = "L1" if self.geometry.worker_l1_size is not None else "what is assumed while the size of L1 is unknown"
                raise InvalidIntervalError(
                    f"a circular buffer of {buffer.size} bytes at {begin} ends at {end}, beyond {known}, {limit} bytes"
                )
            ranges.append((begin, end, mask))
        handle = PreparedFootprint.__new__(PreparedFootprint)
        handle.footprint = self.intern(self.cb, ranges)
        handle.owner = self
        handle.circular_buffers = buffers
        return handle

    def placed(self, circular_buffers):
        """Return the circular buffers with addresses, those without one placed as TT-Metal places them.

        Raises:
            InvalidIntervalError: ``l1_cb_base`` or ``arch`` of the device is unknown.
        """
        base, arch = self.geometry.l1_cb_base, self.geometry.arch
        if base is None or arch is None:
            raise InvalidIntervalError(
                "a circular buffer without an address can only be placed where l1_cb_base and arch of the device are known"
            )
        return place(circular_buffers, base=base, alignment=DRAM_ALIGNMENT[arch])

    @cython.critical_section
    def footprint(self, circular_buffers):
        """Prepare a program's circular buffers, to be added many times.

        Args:
            circular_buffers: an iterable of :class:`ttmem.CircularBuffer`.

        Returns:
            What :meth:`add_program` takes in place of the list.

        Raises:
            InvalidIntervalError: one lies outside the grid or beyond L1, or cannot be placed.
        """
        if not self.usable():
            return 0
        return self.prepare(circular_buffers)

    cdef ProgramRow row_of(self, PreparedFootprint handle, str name):
        cdef ProgramRow row = handle.row
        if row is not None and row.count and row.name is name:
            return row
        key = (<uintptr_t> handle.footprint, name)
        row = self.rows.get(key)
        if row is None:
            row = ProgramRow.__new__(ProgramRow)
            row.footprint = handle.footprint
            row.name = name
            row.slot = -1
            self.rows[key] = row
        handle.row = row
        return row

    cdef void write_row(self, ProgramRow row) noexcept:
        """Fill a row that has a slot: the figures, not the name."""
        cdef uint64_t *record = self.block.record(TTM_PROGRAMS, row.slot)
        record[0] = <uint64_t> <long long> row.program_id
        record[1] = row.count | <uint64_t> row.footprint.num_cores << 32
        record[2] = row.footprint.bytes_per_core | <uint64_t> row.footprint.region_end << 32
        record[3] = row.footprint.logical
        record[4] = row.footprint.resident

    cdef int seat(self, ProgramRow row) except -1:
        """Give a new row a slot of the published table, if it is among the largest."""
        cdef ProgramRow smallest
        cdef uint64_t *record
        if self.free_program_slots:
            row.slot = heapq.heappop(self.free_program_slots)
        elif self.next_program_slot < TTM_PROGRAM_ROWS:
            row.slot = self.next_program_slot
            self.next_program_slot += 1
        else:
            smallest = min((r for r in self.rows.values() if (<ProgramRow> r).slot >= 0), key=_row_bytes)
            if smallest.footprint.logical >= row.footprint.logical:
                self.wait(row)
                return 0
            row.slot = smallest.slot
            smallest.slot = -1
            self.wait(smallest)
        name = utf8_prefix(row.name, TTM_NAME_BYTES)
        ttm_lock_acquire(&self.lock)
        record = self.block.record(TTM_PROGRAM_NAMES, row.slot)
        memset(record, 0, TTM_NAME_BYTES)
        memcpy(record, <const char *> name, len(name))
        cdef bint room = self.block.mark(TTM_PROGRAM_NAMES, row.slot)
        self.block.mark(TTM_PROGRAM_CBS, row.slot)
        record = self.block.record(TTM_TOTALS, TTM_T_TABLES)
        if record[0] <= <uint64_t> row.slot:
            record[0] = row.slot + 1
            self.block.mark(TTM_TOTALS, TTM_T_TABLES)
        ttm_lock_release(&self.lock)
        if not room:
            # Shared memory is full: the totals stay exact, the row is counted.
            heapq.heappush(self.free_program_slots, row.slot)
            row.slot = -1
            self.wait(row)
        return 0

    cdef int wait(self, ProgramRow row) except -1:
        if len(self.waiting_rows) > 2 * self.program_rows_omitted + 64:
            # Rows that ended while they waited would pile up.
            self.waiting_rows = [entry for entry in self.waiting_rows if entry[2].waits()]
            heapq.heapify(self.waiting_rows)
        heapq.heappush(self.waiting_rows, (-<object> row.footprint.logical, id(row), row))
        self.program_rows_omitted += 1
        self.publish_omitted()
        return 0

    cdef int unseat(self, ProgramRow row) except -1:
        """Take a row out of the table; the largest one that waits comes in."""
        cdef uint64_t *record
        cdef ProgramRow next_row
        if row.slot < 0:
            self.program_rows_omitted -= 1
            self.publish_omitted()
            return 0
        ttm_lock_acquire(&self.lock)
        record = self.block.record(TTM_PROGRAMS, row.slot)
        memset(record, 0, 56)
        self.block.mark(TTM_PROGRAMS, row.slot)
        ttm_lock_release(&self.lock)
        heapq.heappush(self.free_program_slots, row.slot)
        row.slot = -1
        while self.waiting_rows:
            next_row = heapq.heappop(self.waiting_rows)[2]
            # Rows that ended while they waited are passed over here, once each.
            if next_row.count and next_row.slot < 0:
                self.program_rows_omitted -= 1
                self.seat(next_row)
                if next_row.slot >= 0:
                    self.write_row(next_row)
                    self.block.mark(TTM_PROGRAMS, next_row.slot)
                self.publish_omitted()
                break
        return 0

    cdef int publish_omitted(self) except -1:
        cdef uint64_t *record = self.block.record(TTM_TOTALS, TTM_T_TABLES)
        record[1] = self.program_rows_omitted
        record[4] = self.buffers_omitted
        self.block.mark(TTM_TOTALS, TTM_T_TABLES)
        return 0

    @cython.critical_section
    def add_program(self, circular_buffers, *, str name="", program_id=None):
        """Record that a program with these circular buffers is in the cache.

        Args:
            circular_buffers: an iterable of :class:`ttmem.CircularBuffer`, or what :meth:`footprint` returned.
            name: what to call the program, such as the operation's name.
            program_id: an integer of the caller's, at least 0; chosen here when None.

        Returns:
            The program's id.

        Raises:
            InvalidIntervalError: a circular buffer lies outside the grid or beyond L1, or cannot be placed.
            ValueError: the id is in use.
        """
        cdef PreparedFootprint handle
        cdef ProgramRow row
        cdef uint64_t *total
        if not self.usable():
            return 0
        if program_id is None:
            program_id = self.next_id
        else:
            if isinstance(program_id, bool) or not isinstance(program_id, int):
                raise TypeError(f"program_id must be an integer, got {program_id!r}")
            if not 0 <= program_id < 2**62:
                raise InvalidIntervalError(f"program_id must be between 0 and 2^62 - 1, got {program_id}")
            if program_id in self.programs:
                raise ValueError(f"program {program_id} is in the cache of device {self.device_id} already: remove it first")
        handle = self.prepare(circular_buffers)
        row = self.row_of(handle, name)
        ttm_lock_acquire(&self.lock)
        cdef int status = self.cb.add(row.footprint)
        ttm_lock_release(&self.lock)
        if status != 0:
            if not row.count:
                del self.rows[(<uintptr_t> row.footprint, name)]
            raise MemoryError("no memory for a program's circular buffers")
        if row.count == 0:
            self.cb.retain(row.footprint)
            row.program_id = program_id
            self.seat(row)
        else:
            if row.others is None:
                row.others = set()
            row.others.add(program_id)
        row.count += 1
        self.programs[program_id] = row
        if program_id >= self.next_id:
            self.next_id = program_id + 1
        ttm_lock_acquire(&self.lock)
        if row.slot >= 0:
            self.write_row(row)
            if not self.block.mark(TTM_PROGRAMS, row.slot):
                row.slot = -1
        total = self.block.record(TTM_TOTALS, TTM_T_CB)
        total[4] += 1
        total[5] = len(self.rows)
        self.sync()
        self.flush()
        ttm_lock_release(&self.lock)
        self.settle()
        return program_id

    @cython.critical_section
    def remove_program(self, program_id):
        """Record that a program left the cache; what it left configured on the cores stays until the next dispatch.

        Raises:
            UnknownIdError: no such program is in the cache.
        """
        cdef ProgramRow row
        cdef uint64_t *total
        if not self.usable():
            return 0
        row = self.programs.pop(program_id, None)
        if row is None:
            raise UnknownIdError(f"program {program_id!r} is not in the cache of device {self.device_id}")
        row.count -= 1
        if row.count:
            if row.program_id == program_id:
                row.program_id = row.others.pop()
            else:
                row.others.discard(program_id)
        else:
            del self.rows[(<uintptr_t> row.footprint, row.name)]
            self.unseat(row)
        ttm_lock_acquire(&self.lock)
        self.cb.remove(row.footprint)
        if row.count == 0:
            self.cb.release(row.footprint)
            row.footprint = NULL
        elif row.slot >= 0:
            self.write_row(row)
            self.block.mark(TTM_PROGRAMS, row.slot)
        total = self.block.record(TTM_TOTALS, TTM_T_CB)
        total[4] -= 1
        total[5] = len(self.rows)
        self.sync()
        self.flush()
        ttm_lock_release(&self.lock)
        self.settle()
        return 0

    @cython.critical_section
    def dispatch(self, program_id):
        """Record that a cached program was sent to the device: its bytes replace those of the cores that it covers.

        Between :meth:`begin_trace` and :meth:`end_trace` the dispatch is noted for the trace and changes nothing.

        Raises:
            UnknownIdError: no such program is in the cache.
        """
        cdef ProgramRow row
        if not self.usable():
            return 0
        row = self.programs.get(program_id)
        if row is None:
            raise UnknownIdError(f"program {program_id!r} is not in the cache of device {self.device_id}")
        if self.open_trace is not None:
            self.traces[self.open_trace].append(self.handle_of(row))
            return 0
        self.apply(row.footprint)
        return 0

    cdef int apply(self, Footprint *footprint) except -1:
        # The usual loop dispatches what is resident already: then no figure changes.
        if footprint == self.last_dispatched:
            return 0
        ttm_lock_acquire(&self.lock)
        self.cb.dispatch(footprint)
        # A reference of its own: without it another footprint might come to lie at the same address.
        self.cb.retain(footprint)
        if self.last_dispatched != NULL:
            self.cb.release(self.last_dispatched)
        self.last_dispatched = footprint
        self.publish_resident()
        self.flush()
        ttm_lock_release(&self.lock)
        self.settle()
        return 0

    # Traces

    cdef PreparedFootprint handle_of(self, ProgramRow row):
        cdef PreparedFootprint handle = PreparedFootprint.__new__(PreparedFootprint)
        ttm_lock_acquire(&self.lock)
        self.cb.retain(row.footprint)
        ttm_lock_release(&self.lock)
        handle.footprint = row.footprint
        handle.owner = self
        handle.circular_buffers = ()
        return handle

    @cython.critical_section
    def begin_trace(self):
        """Start capturing a trace.

        Returns:
            The trace's id.

        Raises:
            ValueError: another trace is being captured.
        """
        if not self.usable():
            return 0
        if self.open_trace is not None:
            raise ValueError(f"trace {self.open_trace} is being captured already: end it first")
        self.open_trace = trace_id = self.take_id()
        self.traces[trace_id] = []
        return trace_id

    cdef object take_id(self):
        number = self.next_id
        self.next_id = number + 1
        return number

    @cython.critical_section
    def end_trace(self, trace_id):
        """End the capture of a trace.

        Raises:
            UnknownIdError: that trace is not being captured.
        """
        cdef PreparedFootprint handle, part
        cdef Footprint **parts
        cdef size_t i
        if not self.usable():
            return 0
        if trace_id != self.open_trace or trace_id is None:
            raise UnknownIdError(f"trace {trace_id!r} is not being captured on device {self.device_id}")
        programs = self.traces[trace_id]
        parts = <Footprint **> PyMem_Malloc((len(programs) + 1) * sizeof(Footprint *))
        if parts == NULL:
            raise MemoryError("no memory for a trace")
        try:
            for i in range(len(programs)):
                part = programs[i]
                parts[i] = part.footprint
            handle = PreparedFootprint.__new__(PreparedFootprint)
            ttm_lock_acquire(&self.lock)
            handle.footprint = self.cb.peak_of(parts, len(programs))
            ttm_lock_release(&self.lock)
        finally:
            PyMem_Free(parts)
        if handle.footprint == NULL:
            raise MemoryError("no memory for a trace")
        handle.owner = self
        handle.circular_buffers = ()
        self.traces[trace_id] = handle
        self.open_trace = None
        return 0

    @cython.critical_section
    def replay_trace(self, trace_id):
        """Record that a trace was replayed: each core then holds the peak over the trace's programs (TT-Metal #53721).

        Raises:
            UnknownIdError: no such trace was captured.
        """
        if not self.usable():
            return 0
        handle = self.traces.get(trace_id)
        if not isinstance(handle, PreparedFootprint):
            raise UnknownIdError(f"trace {trace_id!r} was not captured on device {self.device_id}")
        self.apply((<PreparedFootprint> handle).footprint)
        return 0

    @cython.critical_section
    def release_trace(self, trace_id):
        """Forget a trace.

        Raises:
            UnknownIdError: there is no such trace.
        """
        if not self.usable():
            return 0
        if trace_id not in self.traces:
            raise UnknownIdError(f"trace {trace_id!r} was not captured on device {self.device_id}")
        if trace_id == self.open_trace:
            self.open_trace = None
        del self.traces[trace_id]
        return 0

    # Buffers

    @cython.critical_section
    def allocate(self, buffer_type, size, *, address=None, size_per_bank=None, core_ranges=None, str name=""):
        """Record that a buffer was allocated.

        Args:
            buffer_type: a :class:`ttmem.BufferType`.
            size: bytes of the whole buffer over all banks (TT-Metal's ``Buffer::size()``).
            address: its first byte in each bank.
            size_per_bank: bytes in each bank; with the address it tells where an L1 buffer lies on the cores.
            core_ranges: the cores that it lies on; all cores of the grid when None, because TT-Metal allocates in lockstep.
            name: what to call it.

        Returns:
            The buffer's id.

        Raises:
            InvalidIntervalError: a size or address is negative, no integer, or beyond L1.
        """
        cdef BufferRow row
        cdef uint64_t *total
        cdef int status = 0
        if not self.usable():
            return 0
        kind = BufferType.parse(buffer_type)
        size = check_bytes(size, "the size of a buffer")
        in_l1 = kind in (BufferType.L1, BufferType.L1_SMALL)
        maximum = MAX_ADDRESS if in_l1 else 2**62
        if address is not None:
            address = check_bytes(address, "the address of a buffer", maximum=maximum)
        if size_per_bank is not None:
            size_per_bank = check_bytes(size_per_bank, "size_per_bank of a buffer", maximum=maximum)
        mask = None if core_ranges is None else self.mask_of(as_core_range_set(core_ranges))
        row = BufferRow.__new__(BufferRow)
        row.buffer_type = kind
        row.size_bytes = size
        row.slot = -1
        if in_l1 and address is not None and size_per_bank is not None:
            if address + size_per_bank > self.l1.limit:
                raise InvalidIntervalError(
                    f"a buffer of {size_per_bank} bytes a bank at {address} ends beyond L1, {self.l1.limit} bytes"
                )
            # L1_SMALL lies in a region of its own, which l1_accounting counts whole.
            if kind == BufferType.L1 and size_per_bank:
                if mask is None:
                    mask = self.all_cores()
                row.footprint = self.intern(self.l1, [(address, address + size_per_bank, mask)])
        buffer_id = self.take_id()
        ttm_lock_acquire(&self.lock)
        if row.footprint != NULL:
            status = self.l1.add(row.footprint)
            if status != 0:
                self.l1.release(row.footprint)
                row.footprint = NULL
        ttm_lock_release(&self.lock)
        if status != 0:
            raise MemoryError("no memory for a buffer")
        self.buffers[buffer_id] = row
        self.seat_buffer(row, buffer_id, address, size_per_bank, name)
        ttm_lock_acquire(&self.lock)
        total = self.block.record(TTM_TOTALS, TTM_T_DRAM + row.buffer_type)
        total[0] += row.size_bytes
        total[2] += 1
        if total[1] < total[0]:
            total[1] = total[0]
        self.block.mark(TTM_TOTALS, TTM_T_DRAM + row.buffer_type)
        if row.footprint != NULL:
            self.sync()
        self.flush()
        ttm_lock_release(&self.lock)
        self.settle()
        return buffer_id

    cdef bytes all_cores(self):
        mask = self.masks.get(None)
        if mask is None:
            cores = <object> self.cb.num_cores
            mask = self.masks[None] = ((<object> 1 << cores) - 1).to_bytes(8 * self.cb.mask_words, "little")
        return mask

    cdef int seat_buffer(self, BufferRow row, object buffer_id, object address, object size_per_bank, str name) except -1:
        """Give a new buffer a row of the published table."""
        cdef uint64_t *record
        cdef uint64_t number = buffer_id
        cdef uint64_t first = address or 0
        cdef uint64_t per_bank = size_per_bank or 0
        cdef uint64_t flags = 1 | (address is not None) << 1 | (size_per_bank is not None) << 2
        cdef uint64_t now = time.time_ns()
        half = 0 if row.buffer_type in (BufferType.L1, BufferType.L1_SMALL) else 1
        slots = self.free_buffer_slots[half]
        cdef int side = half
        cdef int slot
        if slots:
            slot = heapq.heappop(slots)
        elif self.next_buffer_slot[side] < TTM_BUFFER_ROWS // 2 * (side + 1):
            slot = self.next_buffer_slot[side]
            self.next_buffer_slot[side] += 1
        else:
            self.buffers_omitted += 1
            return self.publish_omitted()
        text = utf8_prefix(name, TTM_NAME_BYTES)
        cdef uint64_t high = slot + 1 - (TTM_BUFFER_ROWS // 2 if half else 0)
        cdef bint room
        ttm_lock_acquire(&self.lock)
        room = self.block.mark(TTM_BUFFERS, slot) and self.block.mark(TTM_BUFFER_NAMES, slot)
        if room:
            record = self.block.record(TTM_BUFFERS, slot)
            record[0] = number
            record[1] = row.buffer_type | flags << 8
            record[2] = row.size_bytes
            record[3] = first
            record[4] = per_bank
            record[5] = now
            record[6] = row.footprint.num_cores if row.footprint != NULL else 0
            record = self.block.record(TTM_BUFFER_NAMES, slot)
            memset(record, 0, TTM_NAME_BYTES)
            memcpy(record, <const char *> text, len(text))
            record = self.block.record(TTM_TOTALS, TTM_T_TABLES)
            if record[2 + (slot >= TTM_BUFFER_ROWS // 2)] < high:
                record[2 + (slot >= TTM_BUFFER_ROWS // 2)] = high
                self.block.mark(TTM_TOTALS, TTM_T_TABLES)
        ttm_lock_release(&self.lock)
        if room:
            row.slot = slot
            return 0
        heapq.heappush(slots, slot)
        self.buffers_omitted += 1
        return self.publish_omitted()

    @cython.critical_section
    def deallocate(self, buffer_id):
        """Record that a buffer was freed.

        Raises:
            UnknownIdError: there is no such buffer.
        """
        cdef BufferRow row
        cdef uint64_t *total
        if not self.usable():
            return 0
        row = self.buffers.pop(buffer_id, None)
        if row is None:
            raise UnknownIdError(f"buffer {buffer_id!r} is not allocated on device {self.device_id}")
        if row.slot < 0:
            self.buffers_omitted -= 1
            self.publish_omitted()
        else:
            heapq.heappush(self.free_buffer_slots[row.slot >= TTM_BUFFER_ROWS // 2], row.slot)
        ttm_lock_acquire(&self.lock)
        if row.slot >= 0:
            memset(self.block.record(TTM_BUFFERS, row.slot), 0, 56)
            self.block.mark(TTM_BUFFERS, row.slot)
        total = self.block.record(TTM_TOTALS, TTM_T_DRAM + row.buffer_type)
        total[0] -= row.size_bytes
        total[2] -= 1
        self.block.mark(TTM_TOTALS, TTM_T_DRAM + row.buffer_type)
        if row.footprint != NULL:
            self.l1.remove(row.footprint)
            self.l1.release(row.footprint)
            row.footprint = NULL
            self.sync()
        self.flush()
        ttm_lock_release(&self.lock)
        self.settle()
        return 0

    # Kernels

    @cython.critical_section
    def load_kernel(self, size, *, core_ranges=None, bint persistent=False, str name=""):
        """Record that a kernel's code was loaded.

        Args:
            size: bytes on each core of ``core_ranges``; in all when that is None.
            core_ranges: the cores it was loaded to.
            persistent: True for code that stays, such as dispatch kernels and firmware; shown apart.
            name: what to call it.

        Returns:
            The kernel's id.
        """
        if not self.usable():
            return 0
        size = check_bytes(size, "the size of a kernel")
        if core_ranges is not None:
            ranges = as_core_range_set(core_ranges)
            self.mask_of(ranges)
            size *= ranges.num_cores
        kernel_id = self.take_id()
        self.kernels[kernel_id] = (size, persistent)
        self.count_kernel(size, size if persistent else 0, 1)
        return kernel_id

    cdef int count_kernel(self, object size, object persistent, int change) except -1:
        cdef uint64_t *total = self.block.record(TTM_TOTALS, TTM_T_KERNEL)
        cdef long long used = size
        cdef long long staying = persistent
        ttm_lock_acquire(&self.lock)
        total[0] += used
        total[1] += staying
        total[2] += change
        self.block.mark(TTM_TOTALS, TTM_T_KERNEL)
        self.flush()
        ttm_lock_release(&self.lock)
        return self.settle()

    @cython.critical_section
    def unload_kernel(self, kernel_id):
        """Record that a kernel's code was unloaded.

        Raises:
            UnknownIdError: there is no such kernel.
        """
        if not self.usable():
            return 0
        if kernel_id not in self.kernels:
            raise UnknownIdError(f"kernel {kernel_id!r} is not loaded on device {self.device_id}")
        size, persistent = self.kernels.pop(kernel_id)
        self.count_kernel(-size, -size if persistent else 0, -1)
        return 0

    # Many changes at once, and a look at oneself

    def batch(self):
        """Return a context manager that publishes all changes made within it at once, when it ends."""
        if ttm_canary_value() == self.born and self.closed:
            self.usable()
        return _Batch(self)

    def _begin_batch(self):
        # In a forked child another thread's hold of the lock would last for ever.
        if ttm_canary_value() != self.born:
            return
        ttm_lock_acquire(&self.lock)
        self.batch_depth += 1
        ttm_lock_release(&self.lock)

    def _end_batch(self):
        if ttm_canary_value() != self.born:
            return
        ttm_lock_acquire(&self.lock)
        self.batch_depth -= 1
        self.flush()
        ttm_lock_release(&self.lock)

    def snapshot(self):
        """Return the :class:`ttmem.Snapshot` that a reader of this device gets.

        While nothing can be published it is made of this process's own figures.
        """
        from ttmem import reader

        if not self.usable():
            # The block is not there in a forked child, where nothing is recorded.
            return Publisher(self.device_id, self.geometry).snapshot()
        if self.file is not None:
            return reader.snapshot_of_publisher(self.file.path, self.device_id)
        return reader.snapshot_of_bytes(self.frozen(), self.device_id)

    def frozen(self):
        """Return a copy of the block as bytes, taken under the lock."""
        if ttm_load(&self.block.control.generation) == 0:
            self.describe_block()
        ttm_lock_acquire(&self.lock)
        try:
            return (<char *> self.block.block)[: self.block.block_bytes]
        finally:
            ttm_lock_release(&self.lock)


def _row_bytes(ProgramRow row):
    return row.footprint.logical


def utf8_prefix(str text, Py_ssize_t limit):
    """Return text as UTF-8 of at most ``limit`` bytes, cut between characters."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit:
        return encoded
    return encoded[:limit].decode("utf-8", "ignore").encode()


_published = {}


def publish_device(int device_id, geometry, str origin, file):
    """Make the publisher of a device, in a file or, where that cannot be, in private memory."""
    publisher = Publisher(device_id, geometry, origin)
    with segment._registry_lock:
        publisher.attach_file(file)
    _published[device_id] = publisher
    return publisher
