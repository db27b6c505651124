"""Takes the events of the ttnn hook and enters them into ledgers, without Python: the sink that the hook is given.

Every function of the sink is called under the hook's lock, on whatever thread of TT-Metal's, without the GIL. The table of
feeds is changed only while the hook keeps its events (``_ttnn_hook.hold``), so that none of these functions runs meanwhile.
"""

cimport cython
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset, strlen

from ttmem._core cimport CbRange, Footprint
from ttmem._hook_events cimport (
    TTM_SINK_CAPSULE,
    TTM_TRACE_BEGIN,
    TTM_TRACE_END,
    TTM_TRACE_REPLAY,
    ttm_buffer_record,
    ttm_cb_record,
    ttm_core_range,
    ttm_hook_sink,
    ttm_program_record,
)
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
    TTM_NOTE_REFUSED,
    ttm_lock_release,
)
from ttmem._ledger cimport Ledger, Row


cdef enum:
    FEEDS_MAX = 1024
    TYPES = 5                   # TT-Metal's buffer types
    TYPE_L1 = 1
    TYPE_L1_SMALL = 3

cdef uint64_t OWN_IDS = <uint64_t> 1 << 40     # ids that are not TT-Metal's start here
cdef uint64_t MOST_BYTES = <uint64_t> 1 << 62


cdef struct Hearer:             # what the sink needs of a feed
    int32_t chip
    void *feed

cdef Hearer[FEEDS_MAX] hearers
cdef uint32_t hearer_count = 0


@cython.final
cdef class Feed:
    """Enters the events of one chip into a publisher's ledger.

    Args:
        publisher: a :class:`ttmem.Publisher`.
        before: bytes of each buffer type that were allocated before the hook was there: they are one unnamed entry each, from
            which buffers that are freed without having been seen are taken.
    """

    cdef Ledger ledger
    cdef uint64_t[TYPES] before_size
    cdef uint64_t[TYPES] before_id          # 0: none
    cdef readonly uint64_t refused          # events that contradict what was told, and were left out
    cdef CbRange *items                     # to work in, each as long as the longest program so far
    cdef uint64_t *masks
    cdef uint32_t capacity

    def __init__(self, Ledger publisher not None, dict before=None):
        cdef uint32_t kind
        cdef uint64_t size
        self.ledger = publisher
        publisher.next_id = max(publisher.next_id, OWN_IDS)
        for kind, size in (before or {}).items():
            if kind >= TYPES:
                raise ValueError(f"there is no buffer type {kind}")
            self.set_before(kind, size)

    def __dealloc__(self):
        free(self.items)
        free(self.masks)

    cdef void refuse(self) noexcept nogil:
        self.refused += 1
        if self.refused == 1 and self.ledger.enter() == 0:
            self.ledger.block.add_note(TTM_NOTE_REFUSED)
            ttm_lock_release(&self.ledger.lock)

    cdef void set_before(self, uint32_t kind, uint64_t size) noexcept nogil:
        cdef int status = 0
        if self.before_id[kind] == 0:
            if size == 0:
                return
            if self.ledger.enter() != 0:
                return
            status = self.ledger.buffer_allocated_locked(self.ledger.next_id, kind, size, 0, 0, 0, NULL, b"", 0)
            if status == 0:
                self.before_id[kind] = self.ledger.next_id
                self.ledger.next_id += 1
            ttm_lock_release(&self.ledger.lock)
        elif size:
            status = self.ledger.buffer_resized(self.before_id[kind], size)
        else:
            status = self.ledger.buffer_freed(self.before_id[kind])
            self.before_id[kind] = 0
        if status != 0:
            self.refuse()
            return
        self.before_size[kind] = size

    cdef void buffer_allocate(self, const ttm_buffer_record *buffer) noexcept nogil:
        cdef Footprint *footprint = NULL
        cdef CbRange range_
        cdef uint64_t flags = TTM_BUFFER_ADDRESS
        cdef bint in_l1 = buffer.type == TYPE_L1 or buffer.type == TYPE_L1_SMALL
        # L1_SMALL lies in a region of its own, which l1_accounting counts whole.
        cdef bint covers = buffer.type == TYPE_L1 and buffer.size_per_bank != 0
        cdef int status = -1
        cdef uint64_t limit = self.ledger.l1.limit
        if buffer.type >= TYPES or buffer.size > MOST_BYTES or (
                in_l1 and (buffer.size_per_bank > limit or buffer.address > limit - buffer.size_per_bank)):
            self.refuse()
            return
        if self.ledger.enter() != 0:
            return
        if in_l1:
            flags |= TTM_BUFFER_BANK
        if covers:
            range_.begin = <uint32_t> buffer.address
            range_.end = <uint32_t> (buffer.address + buffer.size_per_bank)
            range_.mask = self.ledger.l1.full_mask
            footprint = self.ledger.l1.intern(&range_, 1)
        if footprint != NULL or not covers:
            status = self.ledger.buffer_allocated_locked(
                buffer.id, buffer.type, buffer.size, flags, buffer.address, buffer.size_per_bank, footprint, b"", 0
            )
            if status != 0 and footprint != NULL:
                self.ledger.l1.release(footprint)
        ttm_lock_release(&self.ledger.lock)
        if status != 0:
            self.refuse()

    cdef void buffer_free(self, const ttm_buffer_record *buffer) noexcept nogil:
        if buffer.id and self.ledger.buffer_freed(buffer.id) == 0:
            return
        if buffer.type < TYPES and self.before_size[buffer.type]:
            self.set_before(buffer.type, self.before_size[buffer.type] - min(self.before_size[buffer.type], buffer.size))

    cdef bint make_room(self, uint32_t count) noexcept nogil:
        cdef uint32_t capacity = max(2 * self.capacity, <uint32_t> 16)
        cdef void *grown
        if count <= self.capacity:
            return True
        while capacity < count:
            capacity *= 2
        grown = realloc(self.items, capacity * sizeof(CbRange))
        if grown == NULL:
            return False
        self.items = <CbRange *> grown
        grown = realloc(self.masks, <size_t> capacity * self.ledger.cb.mask_words * sizeof(uint64_t))
        if grown == NULL:
            return False
        self.masks = <uint64_t *> grown
        self.capacity = capacity
        return True

    cdef bint take_ranges(self, uint64_t *mask, const ttm_core_range *area, uint32_t count) noexcept nogil:
        """Set the bits of some rectangles of cores; False if one lies outside the grid."""
        cdef uint32_t i, x, y, core
        cdef uint32_t width = self.ledger.cb.width
        for i in range(count):
            if area[i].end_x >= width or area[i].end_y >= self.ledger.cb.height:
                return False
            for y in range(area[i].start_y, area[i].end_y + 1):
                for x in range(area[i].start_x, area[i].end_x + 1):
                    core = y * width + x
                    mask[core >> 6] |= <uint64_t> 1 << (core & 63)
        return True

    cdef void program_add(self, const ttm_program_record *program, const ttm_cb_record *cbs, uint32_t count,
                          const ttm_core_range *ranges) noexcept nogil:
        cdef uint64_t[2 * TTM_CBS_MAX] words
        cdef uint32_t words_used = 0, i, r
        cdef uint32_t mask_words = self.ledger.cb.mask_words
        cdef uint64_t *mask
        cdef const ttm_core_range *area
        cdef const char *name = program.name
        cdef size_t name_bytes = min(strlen(name), <size_t> TTM_NAME_BYTES)
        cdef bint more = False
        cdef Footprint *footprint
        cdef Row *row
        cdef int status = -1
        self.ledger.program_removed(program.id)
        if not self.make_room(count):
            self.refuse()
            return
        for i in range(count):
            mask = self.masks + <size_t> i * mask_words
            area = ranges + cbs[i].first_range
            memset(mask, 0, mask_words * sizeof(uint64_t))
            if not self.take_ranges(mask, area, cbs[i].range_count) or (
                    cbs[i].size > self.ledger.cb.limit or cbs[i].address > self.ledger.cb.limit - cbs[i].size):
                self.refuse()
                return
            self.items[i].mask = mask
            self.items[i].begin = self.items[i].end = 0
            if cbs[i].globally_allocated:
                continue
            self.items[i].begin = <uint32_t> cbs[i].address
            self.items[i].end = <uint32_t> (cbs[i].address + cbs[i].size)
            for r in range(cbs[i].range_count if cbs[i].size else 0):
                if words_used == 2 * TTM_CBS_MAX:
                    more = True
                    break
                words[words_used] = cbs[i].address | (cbs[i].address + cbs[i].size) << 32
                words[words_used + 1] = (
                    area[r].start_x | <uint64_t> area[r].start_y << TTM_CB_Y0 | <uint64_t> area[r].end_x << TTM_CB_X1
                    | <uint64_t> area[r].end_y << TTM_CB_Y1 | <uint64_t> cbs[i].kind << TTM_CB_KIND
                    | <uint64_t> (r == 0) << TTM_CB_FIRST
                )
                words_used += 2
        if self.ledger.enter() != 0:
            return
        footprint = self.ledger.cb.intern(self.items, count)
        if footprint != NULL:
            row = self.ledger.row_locked(footprint, name, name_bytes)
            if row == NULL:
                row = self.ledger.new_row_locked(footprint, name, name_bytes, words, words_used, more)
            if row != NULL:
                status = self.ledger.program_added_locked(program.id, row)
                self.ledger.forget_row_locked(row)
            self.ledger.cb.release(footprint)
        ttm_lock_release(&self.ledger.lock)
        if status != 0:
            self.refuse()

    cdef void trace(self, uint32_t trace_id, int action) noexcept nogil:
        # The ledger's ids start at 1.
        cdef uint64_t number = <uint64_t> trace_id + 1
        if action == TTM_TRACE_BEGIN:
            if self.ledger.trace_begun(number) != 0:
                self.refuse()
        elif action == TTM_TRACE_END:
            # One that began before the hook was there is not known; what it left when it is replayed is not known either.
            self.ledger.trace_ended(number)
        elif action == TTM_TRACE_REPLAY:
            self.ledger.trace_replayed(number)
        else:
            self.ledger.trace_released(number)

    cdef void device_close(self) noexcept nogil:
        cdef uint32_t kind
        for kind in range(TYPES):
            self.set_before(kind, 0)


cdef inline void *find(int32_t chip) noexcept nogil:
    cdef uint32_t i
    for i in range(hearer_count):
        if hearers[i].chip == chip:
            return hearers[i].feed
    return NULL


cdef void sink_buffer_allocate(void *context, int32_t chip, const ttm_buffer_record *buffer) noexcept nogil:
    cdef void *feed = find(chip)
    if feed != NULL:
        (<Feed> feed).buffer_allocate(buffer)


cdef void sink_buffer_free(void *context, int32_t chip, const ttm_buffer_record *buffer) noexcept nogil:
    cdef void *feed = find(chip)
    if feed != NULL:
        (<Feed> feed).buffer_free(buffer)


cdef void sink_program_add(void *context, int32_t chip, const ttm_program_record *program, const ttm_cb_record *cbs,
                           uint32_t count, const ttm_core_range *ranges) noexcept nogil:
    cdef void *feed = find(chip)
    if feed != NULL:
        (<Feed> feed).program_add(program, cbs, count, ranges)


cdef void sink_program_remove(void *context, int32_t chip, const ttm_program_record *program) noexcept nogil:
    cdef void *feed = find(chip)
    if feed != NULL:
        (<Feed> feed).ledger.program_removed(program.id)


cdef void sink_program_dispatch(void *context, int32_t chip, const ttm_program_record *program) noexcept nogil:
    cdef void *feed = find(chip)
    if feed != NULL:
        (<Feed> feed).ledger.program_dispatched(program.id)


cdef void sink_trace(void *context, int32_t chip, uint32_t trace_id, int action) noexcept nogil:
    cdef void *feed = find(chip)
    if feed != NULL:
        (<Feed> feed).trace(trace_id, action)


cdef void sink_device_close(void *context, int32_t chip) noexcept nogil:
    cdef void *feed = find(chip)
    if feed != NULL:
        (<Feed> feed).device_close()


cdef ttm_hook_sink the_sink
the_sink.context = NULL
the_sink.buffer_allocate = sink_buffer_allocate
the_sink.buffer_free = sink_buffer_free
the_sink.program_add = sink_program_add
the_sink.program_remove = sink_program_remove
the_sink.program_dispatch = sink_program_dispatch
the_sink.trace = sink_trace
the_sink.device_close = sink_device_close

sink = PyCapsule_New(&the_sink, TTM_SINK_CAPSULE, NULL)
"""What ``_ttnn_hook.release`` takes: it gives each event to the feed of its chip, and drops those of other chips."""

cdef dict feeds = {}


def hear(dict wanted):
    """Set which feeds the sink gives events to, by chip. The hook must be holding its events.

    Raises:
        ValueError: there are more chips than the sink has room for.
    """
    global hearer_count, feeds
    cdef int32_t chip
    cdef Feed feed
    if len(wanted) > FEEDS_MAX:
        raise ValueError(f"at most {FEEDS_MAX} chips can be followed, got {len(wanted)}")
    kept = feeds
    hearer_count = 0
    for chip, feed in wanted.items():
        hearers[hearer_count].chip = chip
        hearers[hearer_count].feed = <void *> feed
        hearer_count += 1
    feeds = dict(wanted)
    # Only now may those go that are no longer heard.
    kept.clear()
