"""The writer: what a process tells of its device goes into the ledger, and from there into its segment.

Invariants
1. A call either succeeds as a whole or raises and changes nothing.
2. No failure to publish reaches the caller: the figures are then kept in private memory, and said so once in the log.
3. In a forked child a publisher takes every call and does nothing.

Thread safety: calls may come from any thread. The GIL, or a critical section where there is none, guards what is Python's; the
ledger's lock guards the rest. No Python code runs while it is held.
"""

import logging
import time

cimport cython
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint32_t, uint64_t

from ttmem._core cimport CbRange, Footprint, Intervals
from ttmem._layout cimport (
    TTM_BUFFER_ADDRESS,
    TTM_BUFFER_BANK,
    TTM_CB_FIRST,
    TTM_CB_KIND,
    TTM_CB_X1,
    TTM_CB_Y0,
    TTM_CB_Y1,
    TTM_CBS_MAX,
    TTM_NAME_BYTES,
    ttm_load,
    ttm_lock_acquire,
    ttm_lock_release,
)
from ttmem._ledger cimport ID_IN_USE, NO_MEMORY, NOT_HERE, TRACE_OPEN, UNKNOWN_ID, Ledger, Row

from ttmem import segment
from ttmem.cores import as_core_range_set
from ttmem.errors import ArgumentTypeError, ClosedError, InvalidArgumentError, InvalidIntervalError, UnknownIdError
from ttmem.model import CB_KINDS, DRAM_ALIGNMENT, MAX_ADDRESS, BufferType, CircularBuffer, check_bytes
from ttmem.placement import place

log = logging.getLogger("ttmem")


cdef enum:
    L1_TYPE = 1            # TT-Metal's numbers of BufferType
    L1_SMALL_TYPE = 3

cdef object CIRCULAR_BUFFER = CB_KINDS[0]
cdef uint64_t MOST_BYTES = <uint64_t> 1 << 62


@cython.no_gc_clear  # the engine must outlive what it interned
cdef class PreparedFootprint:
    """A program's circular buffers, prepared once; take it in place of the list."""

    def __init__(self):
        raise TypeError("made by Publisher.footprint()")

    def __dealloc__(self):
        # In a forked child another thread's hold of the lock would last for ever, and there is nothing to give back.
        if self.footprint == NULL or self.owner is None or self.owner.forked():
            return
        ttm_lock_acquire(&self.owner.lock)
        if self.row != NULL:
            self.owner.forget_row_locked(self.row)
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


cdef inline bint number_of(object value, uint64_t *number) except -1:
    """Take an id from Python; False if no id can be that."""
    try:
        number[0] = value
    except (OverflowError, TypeError):
        return False
    return True


cdef inline uint64_t bytes_of(object value, str what, uint64_t maximum) except? <uint64_t> -1:
    """Take a number of bytes from Python; a plain int at next to no cost, anything else as check_bytes does."""
    cdef int overflow = 0
    cdef long long number
    if type(value) is int:
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow == 0 and 0 <= number <= <long long> maximum:
            return <uint64_t> number
    return check_bytes(value, what, maximum=maximum)


cdef inline uint32_t most(uint64_t a, uint64_t b) noexcept nogil:
    return <uint32_t> (a if a > b else b)


@cython.no_gc_clear
cdef class Publisher(Ledger):
    """Publishes one device's memory; made by :func:`ttmem.publish`.

    A context manager; :meth:`close` withdraws the device. Calls on a closed publisher raise
    :class:`ttmem.ClosedError`; in a forked child they do nothing and return 0.
    """

    def __cinit__(self, int device_id, geometry, str origin="live"):
        self.device_id = device_id
        self.geometry = geometry
        self.origin = origin
        self.masks = {}
        self.corners = {}
        self.problem = ""

    # Life

    cdef int describe_block(self) except -1:
        """Write all there is into the block where it lies now."""
        self.block.describe(self.device_id, self.geometry, _ORIGINS[self.origin], time.time_ns())
        return 0

    def attach_file(self, file):
        """Publish in a segment's file; on failure the figures stay private, and :attr:`problem` says why."""
        try:
            file.add(self.block, self.device_id, self.geometry, _ORIGINS[self.origin])
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
        return self.file is not None and not self.closed and not self.forked()

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
        if self.closed or self.forked():
            return
        for watch in tuple(_closing):
            watch(self)
        # Under the lock: a compiled caller that waits for it finds the publisher closed.
        ttm_lock_acquire(&self.lock)
        self.closed = True
        ttm_lock_release(&self.lock)
        with segment.registry_lock():
            file, self.file = self.file, None
            if file is not None:
                file.withdraw(self.block)
        _published.pop(self.device_id, None)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __repr__(self):
        state = "closed" if self.closed else "published" if self.file is not None else "private"
        return f"<ttmem.Publisher of device {self.device_id}, {state}>"

    cdef bint usable(self) except -1:
        if self.forked():
            return False
        if self.closed:
            raise ClosedError(f"the publisher of device {self.device_id} was closed")
        return True

    def check_file(self):
        """Publish anew if the segment's file was deleted under this process; done about once a second by itself."""
        file = self.file
        if file is None or not file.lost():
            return
        with segment.registry_lock():
            if self.file is not file:
                # Another thread closed the device meanwhile, or did this already.
                return
            log.warning("%s was deleted while in use: ttmem publishes device %d again", file.path, self.device_id)
            self.block.unmap()
            self.attach_file(segment.writer_file(file.directory, file.space))

    # Circular buffers

    cdef inline int settle(self) except -1:
        # Once a second, on a clock that costs next to nothing, see whether somebody deleted the file.
        cdef uint64_t now
        if self.file is not None:
            now = ttm_load(&self.block.updated_ns)  # not under the lock: any of its values will do
            if now > self.checked_ns + 1000000000:
                self.checked_ns = now
                self.check_file()
        return 0

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

    cdef bytes corners_of(self, object core_ranges):
        """Return the rectangles of a set of cores as they are published, a word each; kept, since names come and go with them."""
        corners = self.corners.get(core_ranges)
        if corners is None:
            corners = b"".join([
                (r.start.x | r.start.y << TTM_CB_Y0 | r.end.x << TTM_CB_X1 | r.end.y << TTM_CB_Y1).to_bytes(8, "little")
                for r in core_ranges.ranges
            ])
            if len(self.corners) >= 4096:
                self.corners.clear()
            self.corners[core_ranges] = corners
        return corners

    cdef Footprint *intern(self, Intervals plane, const CbRange *items, size_t count) except NULL:
        """Return the footprint of some ranges with one reference taken."""
        cdef Footprint *footprint
        ttm_lock_acquire(&self.lock)
        footprint = plane.intern(items, count)
        ttm_lock_release(&self.lock)
        if footprint == NULL:
            raise MemoryError("no memory for a program's circular buffers")
        return footprint

    cdef PreparedFootprint prepare(self, object circular_buffers):
        cdef PreparedFootprint handle
        cdef CbRange *items
        cdef size_t count = 0
        cdef uint64_t begin, size
        cdef bint unplaced = False
        cdef bytes mask
        cdef list masks = []        # keeps them while the items point into them
        if type(circular_buffers) is PreparedFootprint:
            handle = circular_buffers
            if handle.owner is self:
                return handle
            circular_buffers = handle.circular_buffers
        buffers = tuple(circular_buffers)
        for buffer in buffers:
            if type(buffer) is not CircularBuffer:
                raise ArgumentTypeError(f"a program consists of CircularBuffer objects, got {buffer!r}")
            if buffer.address is None and not buffer.globally_allocated:
                unplaced = True
        if unplaced:
            buffers = tuple(self.placed(buffers))
        items = <CbRange *> PyMem_Malloc((<size_t> len(buffers) + 1) * sizeof(CbRange))
        if items == NULL:
            raise MemoryError("no memory for a program's circular buffers")
        try:
            for buffer in buffers:
                mask = self.mask_of(buffer.core_ranges)
                masks.append(mask)
                items[count].mask = <const uint64_t *> <const char *> mask
                items[count].begin = items[count].end = 0
                if not buffer.globally_allocated:
                    begin, size = buffer.address, buffer.size
                    if begin + size > self.cb.limit:
                        known = "L1" if self.geometry.worker_l1_size is not None else (
                            "what is assumed while the size of L1 is unknown"
                        )
                        raise InvalidIntervalError(
                            f"a circular buffer of {size} bytes at {begin} ends at {begin + size}, beyond {known}, "
                            f"{self.cb.limit} bytes"
                        )
                    items[count].begin = <uint32_t> begin
                    items[count].end = <uint32_t> (begin + size)
                count += 1
            handle = PreparedFootprint.__new__(PreparedFootprint)
            handle.footprint = self.intern(self.cb, items, count)
        finally:
            PyMem_Free(items)
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

    cdef Row *row_of(self, PreparedFootprint handle, str name) except NULL:
        """Return the row of a handle's programs of this name; the handle holds it."""
        cdef bytes text
        cdef Row *row
        if handle.row != NULL and handle.row_name is name:
            return handle.row
        text = utf8_prefix(name, TTM_NAME_BYTES)
        ttm_lock_acquire(&self.lock)
        row = self.row_locked(handle.footprint, text, len(text))
        ttm_lock_release(&self.lock)
        if row == NULL:
            row = self.make_row(handle, text, len(text))
        if handle.row != NULL:
            ttm_lock_acquire(&self.lock)
            self.forget_row_locked(handle.row)
            ttm_lock_release(&self.lock)
        handle.row = row
        handle.row_name = name
        return row

    cdef Row *make_row(self, PreparedFootprint handle, const char *name, size_t name_bytes) except NULL:
        cdef uint64_t[2 * TTM_CBS_MAX] words
        cdef uint32_t used = 0
        cdef size_t i
        cdef uint64_t begin, size, kind, first
        cdef bytes corners
        cdef bint more = False
        cdef Row *row
        for buffer in handle.circular_buffers:
            if buffer.globally_allocated or not buffer.size:
                continue
            begin = buffer.address
            size = buffer.size
            kind = 0 if buffer.kind is CIRCULAR_BUFFER else CB_KINDS.index(buffer.kind)
            first = 1
            corners = self.corners_of(buffer.core_ranges)
            for i in range(len(corners) // sizeof(uint64_t)):
                if used == 2 * TTM_CBS_MAX:
                    more = True
                    break
                words[used] = begin | (begin + size) << 32
                words[used + 1] = (
                    (<const uint64_t *> <const char *> corners)[i] | kind << TTM_CB_KIND | first << TTM_CB_FIRST
                )
                used += 2
                first = 0
        ttm_lock_acquire(&self.lock)
        row = self.new_row_locked(handle.footprint, name, name_bytes, words, used, more)
        ttm_lock_release(&self.lock)
        if row == NULL:
            raise MemoryError("no memory for a program's circular buffers")
        return row

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
            InvalidArgumentError: the id is in use.
        """
        cdef PreparedFootprint handle
        cdef Row *row
        cdef uint64_t number = 0
        cdef bint given = program_id is not None
        cdef int status
        if not self.usable():
            return 0
        if given:
            if isinstance(program_id, bool) or not isinstance(program_id, int):
                raise ArgumentTypeError(f"program_id must be an integer, got {program_id!r}")
            if not 0 <= program_id < 2**62:
                raise InvalidIntervalError(f"program_id must be between 0 and 2^62 - 1, got {program_id}")
            number = program_id
        handle = self.prepare(circular_buffers)
        row = self.row_of(handle, name)
        ttm_lock_acquire(&self.lock)
        if not given:
            number = self.next_id
        status = self.program_added_locked(number, row)
        if status == 0 and number >= self.next_id:
            self.next_id = number + 1
        ttm_lock_release(&self.lock)
        if status == ID_IN_USE:
            raise InvalidArgumentError(f"program {number} is in the cache of device {self.device_id} already: remove it first")
        if status != 0:
            raise MemoryError("no memory for a program's circular buffers")
        self.settle()
        return number

    def remove_program(self, program_id):
        """Record that a program left the cache; what it left configured on the cores stays until the next dispatch.

        Raises:
            UnknownIdError: no such program is in the cache.
        """
        cdef uint64_t number = 0
        cdef int status = UNKNOWN_ID if not number_of(program_id, &number) else self.program_removed(number)
        if status != 0:
            return self.refuse(status, "program", program_id, "in the cache of")
        return self.settle()

    def dispatch(self, program_id):
        """Record that a cached program was sent to the device: its bytes replace those of the cores that it covers.

        Between :meth:`begin_trace` and :meth:`end_trace` the dispatch is noted for the trace and changes nothing.

        Raises:
            UnknownIdError: no such program is in the cache.
        """
        cdef uint64_t number = 0
        cdef int status = UNKNOWN_ID if not number_of(program_id, &number) else self.program_dispatched(number)
        if status != 0:
            return self.refuse(status, "program", program_id, "in the cache of")
        return self.settle()

    def refuse(self, int status, str what, number, str where):
        """Raise what a status of the ledger stands for; return 0 in a forked child."""
        if not self.usable():
            return 0
        if status == NO_MEMORY:
            raise MemoryError(f"no memory for a {what}")
        raise UnknownIdError(f"{what} {number!r} is not {where} device {self.device_id}")

    # Traces

    def begin_trace(self):
        """Start capturing a trace.

        Returns:
            The trace's id.

        Raises:
            InvalidArgumentError: another trace is being captured.
        """
        cdef uint64_t number
        cdef int status
        if not self.usable():
            return 0
        number = self.take_id()
        status = self.trace_begun(number)
        if status == TRACE_OPEN:
            raise InvalidArgumentError(f"trace {self.open_trace} is being captured already: end it first")
        return 0 if status == NOT_HERE else number

    cdef uint64_t take_id(self) noexcept nogil:
        cdef uint64_t number
        ttm_lock_acquire(&self.lock)
        number = self.next_id
        self.next_id = number + 1
        ttm_lock_release(&self.lock)
        return number

    def end_trace(self, trace_id):
        """End the capture of a trace.

        Raises:
            UnknownIdError: that trace is not being captured.
        """
        cdef uint64_t number = 0
        cdef int status = UNKNOWN_ID if not number_of(trace_id, &number) else self.trace_ended(number)
        return 0 if status == 0 else self.refuse(status, "trace", trace_id, "being captured on")

    def replay_trace(self, trace_id):
        """Record that a trace was replayed: each core then holds the peak over the trace's programs (TT-Metal #53721).

        Raises:
            UnknownIdError: no such trace was captured.
        """
        cdef uint64_t number = 0
        cdef int status = UNKNOWN_ID if not number_of(trace_id, &number) else self.trace_replayed(number)
        if status != 0:
            return self.refuse(status, "trace", trace_id, "captured on")
        return self.settle()

    def release_trace(self, trace_id):
        """Forget a trace.

        Raises:
            UnknownIdError: there is no such trace.
        """
        cdef uint64_t number = 0
        cdef int status = UNKNOWN_ID if not number_of(trace_id, &number) else self.trace_released(number)
        return 0 if status == 0 else self.refuse(status, "trace", trace_id, "captured on")

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
        cdef Footprint *footprint = NULL
        cdef uint64_t flags, number, bytes_in_all, maximum
        cdef uint64_t first = 0, per_bank = 0
        cdef uint32_t type_number
        cdef bint in_l1
        cdef CbRange lies
        cdef bytes text, mask
        cdef int status
        if not self.usable():
            return 0
        type_number = buffer_type if type(buffer_type) is BufferType else BufferType.parse(buffer_type)
        bytes_in_all = bytes_of(size, "the size of a buffer", MOST_BYTES)
        in_l1 = type_number == L1_TYPE or type_number == L1_SMALL_TYPE
        maximum = MAX_ADDRESS if in_l1 else MOST_BYTES
        if address is not None:
            first = bytes_of(address, "the address of a buffer", maximum)
        if size_per_bank is not None:
            per_bank = bytes_of(size_per_bank, "size_per_bank of a buffer", maximum)
        mask = None if core_ranges is None else self.mask_of(as_core_range_set(core_ranges))
        if in_l1 and address is not None and size_per_bank is not None:
            if first + per_bank > self.l1.limit:
                raise InvalidIntervalError(
                    f"a buffer of {size_per_bank} bytes a bank at {address} ends beyond L1, {self.l1.limit} bytes"
                )
            # L1_SMALL lies in a region of its own, which l1_accounting counts whole.
            if type_number == L1_TYPE and per_bank:
                if mask is None:
                    mask = self.all_cores()
                lies.begin = <uint32_t> first
                lies.end = <uint32_t> (first + per_bank)
                lies.mask = <const uint64_t *> <const char *> mask
                footprint = self.intern(self.l1, &lies, 1)
        flags = (TTM_BUFFER_ADDRESS if address is not None else 0) | (TTM_BUFFER_BANK if size_per_bank is not None else 0)
        text = utf8_prefix(name, TTM_NAME_BYTES)
        ttm_lock_acquire(&self.lock)
        number = self.next_id
        status = self.buffer_allocated_locked(
            number, type_number, bytes_in_all, flags, first, per_bank, footprint, text, len(text)
        )
        if status == 0:
            self.next_id = number + 1
        elif footprint != NULL:
            self.l1.release(footprint)
        ttm_lock_release(&self.lock)
        if status != 0:
            raise MemoryError("no memory for a buffer")
        self.settle()
        return number

    cdef bytes all_cores(self):
        mask = self.masks.get(None)
        if mask is None:
            cores = <object> self.cb.num_cores
            mask = self.masks[None] = ((<object> 1 << cores) - 1).to_bytes(8 * self.cb.mask_words, "little")
        return mask

    def deallocate(self, buffer_id):
        """Record that a buffer was freed.

        Raises:
            UnknownIdError: there is no such buffer.
        """
        cdef uint64_t number = 0
        cdef int status = UNKNOWN_ID if not number_of(buffer_id, &number) else self.buffer_freed(number)
        if status != 0:
            return self.refuse(status, "buffer", buffer_id, "allocated on")
        return self.settle()

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
        cdef uint64_t number, total
        cdef int status
        if not self.usable():
            return 0
        total = bytes_of(size, "the size of a kernel", MOST_BYTES)
        if core_ranges is not None:
            ranges = as_core_range_set(core_ranges)
            self.mask_of(ranges)
            total = check_bytes(size * ranges.num_cores, "the size of a kernel on all its cores")
        ttm_lock_acquire(&self.lock)
        number = self.next_id
        status = self.kernel_loaded_locked(number, total, persistent)
        if status == 0:
            self.next_id = number + 1
        ttm_lock_release(&self.lock)
        if status != 0:
            raise MemoryError("no memory for a kernel")
        self.settle()
        return number

    def unload_kernel(self, kernel_id):
        """Record that a kernel's code was unloaded.

        Raises:
            UnknownIdError: there is no such kernel.
        """
        cdef uint64_t number = 0
        cdef int status = UNKNOWN_ID if not number_of(kernel_id, &number) else self.kernel_unloaded(number)
        if status != 0:
            return self.refuse(status, "kernel", kernel_id, "loaded on")
        return self.settle()

    # The figures as a whole

    def reset_peaks(self):
        """Let the high-water marks of this process start anew at what there is now."""
        if not self.usable():
            return 0
        ttm_lock_acquire(&self.lock)
        self.reset_peaks_locked()
        ttm_lock_release(&self.lock)
        return self.settle()

    def core_peaks(self):
        """Return [(x, y, most CB bytes, most bytes of L1 buffers), ...] of all cores since publish or :meth:`reset_peaks`.

        These are of this process alone; the two need not have been reached at one moment.
        """
        cdef uint32_t[1024] circular, buffers
        cdef uint32_t core, width = self.cb.width
        # In a forked child another thread's hold of the lock would last for ever.
        if self.forked():
            return []
        ttm_lock_acquire(&self.lock)
        self.cb.fill_core_peaks(circular)
        self.l1.fill_core_peaks(buffers)
        for core in range(self.cb.num_cores):
            # A floor is of classes that are no more; the class that a core is in now has a peak of its own.
            circular[core] = most(circular[core], self.cb.class_peak(self.cb.class_of_core[core]))
            buffers[core] = most(buffers[core], self.l1.class_peak(self.l1.class_of_core[core]))
        ttm_lock_release(&self.lock)
        return [(core % width, core // width, circular[core], buffers[core]) for core in range(self.cb.num_cores)]

    def note(self, uint64_t notes):
        """Tell readers what to know of the figures as a whole (``enum ttm_note`` in ``_layout.h``); nothing is taken back."""
        if not self.usable():
            return 0
        ttm_lock_acquire(&self.lock)
        self.block.note(notes)
        ttm_lock_release(&self.lock)
        return 0

    # Many changes at once, and a look at oneself

    def batch(self):
        """Return a context manager that publishes all changes made within it at once, when it ends."""
        if not self.forked() and self.closed:
            self.usable()
        return _Batch(self)

    def _begin_batch(self):
        # In a forked child another thread's hold of the lock would last for ever.
        if self.forked():
            return
        ttm_lock_acquire(&self.lock)
        self.batch_depth += 1
        ttm_lock_release(&self.lock)

    def _end_batch(self):
        if self.forked():
            return
        ttm_lock_acquire(&self.lock)
        self.batch_depth -= 1
        self.flush_locked()
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


def utf8_prefix(str text, Py_ssize_t limit):
    """Return text as UTF-8 of at most ``limit`` bytes, cut between characters."""
    if not text:
        return b""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit:
        return encoded
    return encoded[:limit].decode("utf-8", "ignore").encode()


_ORIGINS = {"live": 0, "replay": 1, "recording": 2}
_published = {}
_closing = []
"""What is called with each publisher that is about to close, while its figures can still be read."""


def publish_device(int device_id, geometry, str origin, file):
    """Make the publisher of a device, in a file or, where that cannot be, in private memory."""
    publisher = Publisher(device_id, geometry, origin)
    with segment.registry_lock():
        publisher.attach_file(file)
    _published[device_id] = publisher
    return publisher
