"""The ledger of one device: its programs, buffers, kernels and traces by id, the engines, and the block that shows them.

Everything here is C: a publisher's Python calls and the hook in a ttnn process use the same functions, the latter without the
GIL. The ledger knows no names of Python's and raises nothing; it answers with a status.

Invariants
1. A call either succeeds as a whole or changes nothing: memory is obtained before the first change.
2. When a call returns outside a batch, what it changed is committed.
3. In a forked child every ledger of its parent is inert: devices do not survive a fork, and the mappings are not there.
4. Live rows (`count` > 0) have a slot or wait. While one waits no slot is free, and no row with a slot is smaller than it.
5. `owner[slot]` is the row whose name and CBs stand in the slot, or NULL. A free slot may still have an owner, a row that a
   handle remembers: if that row comes back first, nothing needs to be written but its figures.
6. `refs` and `count` of a row hold it; at 0 and 0 it is freed. A row holds a reference to its footprint.

Thread safety: the lock guards all of it; it is held for tens to hundreds of nanoseconds, and no Python runs meanwhile.
"""

cimport cython
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from ttmem._core cimport Footprint, Intervals
from ttmem._layout cimport (
    TTM_BUFFER_ADDRESS,
    TTM_BUFFER_BANK,
    TTM_BUFFER_LIVE,
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
    TTM_PEAK_BYTES,
    TTM_PEAK_COUNT,
    TTM_PEAK_ID,
    TTM_PEAK_NAME,
    TTM_PEAK_NS,
    TTM_PEAKS,
    TTM_PROGRAM_CBS,
    TTM_PROGRAM_NAMES,
    TTM_PROGRAM_ROWS,
    TTM_PROGRAMS,
    TTM_RANGES_MAX,
    TTM_RESIDENT,
    TTM_T_CB,
    TTM_T_DRAM,
    TTM_T_KERNEL,
    TTM_T_L1,
    TTM_T_L1_SMALL,
    TTM_T_TABLES,
    TTM_T_TRACE,
    TTM_TOTALS,
    ttm_lock_acquire,
    ttm_lock_release,
    ttm_realtime_coarse_ns,
)
from ttmem._segment cimport DeviceBlock

from ttmem._segment import record_grid


cdef extern from *:
    """
    #include <stdint.h>
    #include <sys/mman.h>

    /* One private page that every fork leaves zeroed, whoever forks and however (also from C, where Python's fork hooks do not
     * run): a word of it that differs from what a ledger remembers says that the process is another one. */
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

    static inline uint64_t ttm_mixed(uint64_t hash, uint64_t word) {
        hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
        return hash ^ (hash >> 32);
    }
    """
    uint64_t ttm_canary_value() nogil
    uint64_t ttm_canary_set() nogil
    uint64_t ttm_mixed(uint64_t hash, uint64_t word) nogil


cdef struct Program:
    uint64_t id
    uint32_t chain
    uint32_t before             # number + 1 of the neighbours in its row's list
    uint32_t after
    uint32_t _pad
    Row *row


cdef struct Buffer:
    uint64_t id
    uint32_t chain
    int32_t slot                # row of the published table, -1 if there was no room
    uint64_t size
    Footprint *footprint        # where it lies on the cores, NULL if unknown or not in L1; holds one reference
    uint64_t type


cdef struct Kernel:
    uint64_t id
    uint32_t chain
    uint32_t persistent
    uint64_t size


cdef struct Trace:
    uint64_t id
    uint32_t chain
    uint32_t _pad
    Footprint *peak             # holds one reference


UNKNOWN_L1_LIMIT = 4 * 1024 * 1024
"""How far addresses may reach where the size of L1 is not known, bytes; the largest known L1 has 1.5 MiB."""


def canary() -> int:
    """Return a number that is this process's own and 0 in a child forked from it; 0 before the first publisher."""
    return ttm_canary_value()


def new_canary() -> int:
    """Give this process a number of its own, at its first publisher and after a fork."""
    return ttm_canary_set()


cdef inline uint64_t *cbs_of(Row *row) noexcept nogil:
    return <uint64_t *> (row + 1)


cdef inline char *name_of(Row *row) noexcept nogil:
    return <char *> (cbs_of(row) + row.cb_words)


# Heaps of rows


cdef inline bint goes_first(const Heap *heap, const Row *a, const Row *b) noexcept nogil:
    if heap.smallest_first:
        return a.footprint.logical < b.footprint.logical
    return a.footprint.logical > b.footprint.logical


cdef int heap_reserve(Heap *heap, uint32_t count) noexcept nogil:
    cdef uint32_t capacity = 64 if heap.capacity == 0 else heap.capacity
    cdef Row **rows
    if count <= heap.capacity:
        return 0
    while capacity < count:
        capacity *= 2
    rows = <Row **> realloc(heap.rows, capacity * sizeof(Row *))
    if rows == NULL:
        return NO_MEMORY
    heap.rows = rows
    heap.capacity = capacity
    return 0


cdef void heap_settle(Heap *heap, uint32_t at) noexcept nogil:
    """Bring the row at a place to where it belongs."""
    cdef Row *row = heap.rows[at]
    cdef uint32_t other
    while at > 0 and goes_first(heap, row, heap.rows[(at - 1) // 2]):
        other = (at - 1) // 2
        heap.rows[at] = heap.rows[other]
        heap.rows[at].place = at
        at = other
    while True:
        other = 2 * at + 1
        if other >= heap.count:
            break
        if other + 1 < heap.count and goes_first(heap, heap.rows[other + 1], heap.rows[other]):
            other += 1
        if not goes_first(heap, heap.rows[other], row):
            break
        heap.rows[at] = heap.rows[other]
        heap.rows[at].place = at
        at = other
    heap.rows[at] = row
    row.place = at


cdef void heap_push(Heap *heap, Row *row) noexcept nogil:
    """Put a row in; there is room (heap_reserve)."""
    heap.rows[heap.count] = row
    heap.count += 1
    heap_settle(heap, heap.count - 1)


cdef void heap_take(Heap *heap, Row *row) noexcept nogil:
    cdef uint32_t at = row.place
    heap.count -= 1
    if at != heap.count:
        heap.rows[at] = heap.rows[heap.count]
        heap_settle(heap, at)


# Bitmaps of free slots


cdef inline int32_t first_bit(const uint64_t *bits) noexcept nogil:
    cdef uint32_t i
    for i in range(SLOT_WORDS):
        if bits[i]:
            return <int32_t> (64 * i + lowest_bit(bits[i]))
    return -1


cdef extern from *:
    """
    static inline uint32_t ttm_ctz(uint64_t word) { return (uint32_t)__builtin_ctzll(word); }
    """
    uint32_t lowest_bit "ttm_ctz"(uint64_t word) nogil


cdef inline void set_bit(uint64_t *bits, int32_t slot) noexcept nogil:
    bits[slot >> 6] |= <uint64_t> 1 << (slot & 63)


cdef inline void clear_bit(uint64_t *bits, int32_t slot) noexcept nogil:
    bits[slot >> 6] &= ~(<uint64_t> 1 << (slot & 63))


cdef inline bint has_bit(const uint64_t *bits, int32_t slot) noexcept nogil:
    return bits[slot >> 6] >> (slot & 63) & 1


@cython.no_gc_clear  # the engines must outlive what they interned
cdef class Ledger:
    """One device's ledger, for callers in C; `Publisher` is its face in Python.

    Args:
        geometry: a :class:`ttmem.model.Geometry`.
    """

    def __cinit__(self, _device_id, geometry, *_arguments, **_keywords):
        x, y = record_grid(geometry)
        limit = geometry.worker_l1_size
        self.cb = Intervals(x, y, limit=UNKNOWN_L1_LIMIT if limit is None else limit)
        self.l1 = Intervals(x, y, limit=UNKNOWN_L1_LIMIT if limit is None else limit)
        self.block = DeviceBlock(x * y)
        self.block.guard = &self.lock
        self.born = ttm_canary_value()
        self.next_id = 1
        self.programs.entry_bytes = sizeof(Program)
        self.buffers.entry_bytes = sizeof(Buffer)
        self.kernels.entry_bytes = sizeof(Kernel)
        self.traces.entry_bytes = sizeof(Trace)
        self.seated.smallest_first = True
        self.row_bucket_count = 64
        self.row_buckets = <Row **> calloc(self.row_bucket_count, sizeof(Row *))
        if self.row_buckets == NULL:
            raise MemoryError("no memory for a device's programs")
        memset(self.free_slots, 0xFF, sizeof(self.free_slots))
        memset(self.free_buffer_slots, 0xFF, sizeof(self.free_buffer_slots))
        # One class of all cores and nothing on them: a fresh block says so before anything happens.
        self.cb.map_changed = self.l1.map_changed = True
        self.sync_class(self.cb, TTM_CB_CLASS, TTM_CB_RANGES, 0)
        self.sync_class(self.l1, TTM_L1_CLASS, TTM_L1_RANGES, 0)
        self.sync_locked()
        self.sync_buffers_locked()

    def __dealloc__(self):
        # The engines free what they interned when they go, right after this.
        cdef uint32_t i
        cdef Row *row
        cdef Row *following
        if self.block is not None:
            # The file may keep the block for longer.
            self.block.guard = NULL
        if self.row_buckets != NULL:
            for i in range(self.row_bucket_count):
                row = self.row_buckets[i]
                while row != NULL:
                    following = row.next
                    free(row)
                    row = following
        free(self.row_buckets)
        free(self.seated.rows)
        free(self.waiting.rows)
        free(self.trace_items)
        ttm_table_free(&self.programs)
        ttm_table_free(&self.buffers)
        ttm_table_free(&self.kernels)
        ttm_table_free(&self.traces)

    cdef bint forked(self) noexcept nogil:
        """Whether this is a child forked from the process that publishes."""
        return ttm_canary_value() != self.born

    cdef int enter(self) noexcept nogil:
        """Take the lock, if there is still something to record for."""
        # In a forked child another thread's hold of the lock would last for ever.
        if ttm_canary_value() != self.born:
            return NOT_HERE
        ttm_lock_acquire(&self.lock)
        if self.closed:
            ttm_lock_release(&self.lock)
            return NOT_HERE
        return 0

    # From the engines to the block

    cdef void sync_class(self, Intervals plane, uint32_t class_kind, uint32_t ranges_kind, uint32_t slot) noexcept nogil:
        cdef uint64_t *record = self.block.record(class_kind, slot)
        cdef uint64_t *ranges
        cdef uint64_t[64] found
        cdef uint32_t count
        record[0] = plane.class_physical(slot)
        record[1] = plane.class_logical(slot)
        record[5] = plane.class_peak(slot)
        if plane.change_flags[slot] & 2 or self.block.high[ranges_kind] <= slot:
            record[2] = plane.class_region_end(slot)
            record[3] = plane.class_lowest(slot)
            ranges = self.block.record(ranges_kind, slot)
            count = plane.class_ranges(slot, found, TTM_RANGES_MAX + 1)
            ranges[0] = min(count, <uint32_t> TTM_RANGES_MAX) | (<uint64_t> (count > TTM_RANGES_MAX) << 32)
            memcpy(ranges + 1, found, 8 * min(count, <uint32_t> TTM_RANGES_MAX))
            # Without memory for the ranges the class says that they are not to be had.
            record[4] = self.block.mark(ranges_kind, slot)
        self.block.mark(class_kind, slot)

    cdef void sync_plane(self, Intervals plane, uint32_t map_kind, uint32_t class_kind, uint32_t ranges_kind) noexcept nogil:
        cdef uint32_t i
        for i in range(plane.changed_count):
            self.sync_class(plane, class_kind, ranges_kind, plane.changed[i])
        if plane.map_changed:
            memcpy(self.block.record(map_kind, 0), plane.class_of_core, 2 * plane.num_cores)
            self.block.mark_map(map_kind)
            self.publish_tables()
        if plane.peaks_changed and map_kind == TTM_CB_MAP:
            plane.fill_core_peaks(<uint32_t *> self.block.record(TTM_RESIDENT, 1))
            self.block.mark(TTM_RESIDENT, 1)
        plane.clear_changes()

    cdef void sync_locked(self) noexcept nogil:
        """Take over what the engine of the circular buffers changed."""
        cdef uint64_t *total = self.block.record(TTM_TOTALS, TTM_T_CB)
        if self.cb.changed_count or self.cb.map_changed or self.cb.peaks_changed:
            self.sync_plane(self.cb, TTM_CB_MAP, TTM_CB_CLASS, TTM_CB_RANGES)
        total[0] = self.cb.physical
        total[1] = self.cb.logical
        total[2] = self.cb.resident
        total[4] = self.programs.count
        total[5] = self.live_rows
        self.block.mark(TTM_TOTALS, TTM_T_CB)

    cdef void sync_buffers_locked(self) noexcept nogil:
        """Take over what the engine of the L1 buffers changed."""
        if self.l1.changed_count or self.l1.map_changed:
            self.sync_plane(self.l1, TTM_L1_MAP, TTM_L1_CLASS, TTM_L1_RANGES)

    cdef void publish_resident(self) noexcept nogil:
        self.cb.fill_resident(<uint32_t *> self.block.record(TTM_RESIDENT, 0))
        self.block.mark(TTM_RESIDENT, 0)
        self.block.record(TTM_TOTALS, TTM_T_CB)[2] = self.cb.resident
        self.block.mark(TTM_TOTALS, TTM_T_CB)

    cdef void publish_tables(self) noexcept nogil:
        """Say how much of the tables is in use; how far the rows reach is kept in the record itself."""
        cdef uint64_t *record = self.block.record(TTM_TOTALS, TTM_T_TABLES)
        record[1] = self.waiting.count
        record[4] = self.buffers_omitted
        record[5] = self.cb.class_high
        record[6] = self.l1.class_high
        self.block.mark(TTM_TOTALS, TTM_T_TABLES)

    cdef inline void flush_locked(self) noexcept nogil:
        """Commit, unless a batch is open."""
        if self.batch_depth == 0:
            self.block.commit(ttm_realtime_coarse_ns())

    cdef void note_peak(self, uint32_t total, uint64_t value, uint64_t id, uint64_t count, const char *name,
                        size_t name_bytes) noexcept nogil:
        cdef uint64_t *record = self.block.record(TTM_PEAKS, total)
        record[TTM_PEAK_BYTES] = value
        record[TTM_PEAK_NS] = ttm_realtime_coarse_ns()
        record[TTM_PEAK_ID] = id
        record[TTM_PEAK_COUNT] = count
        memset(record + TTM_PEAK_NAME, 0, TTM_NAME_BYTES)
        memcpy(record + TTM_PEAK_NAME, name, name_bytes)
        self.block.mark(TTM_PEAKS, total)

    cdef void reset_peaks_locked(self) noexcept nogil:
        """Let the high-water marks start anew at what there is now."""
        cdef uint32_t total
        cdef uint64_t *record
        for total in range(TTM_T_CB, TTM_T_TRACE + 1):
            record = self.block.record(TTM_TOTALS, total)
            record[3 if total == TTM_T_CB else 1] = record[0]
            self.block.mark(TTM_TOTALS, total)
            memset(self.block.record(TTM_PEAKS, total), 0, 8 * TTM_PEAK_NAME + TTM_NAME_BYTES)
            self.block.mark(TTM_PEAKS, total)
        self.cb.reset_peaks()
        self.l1.reset_peaks()
        self.sync_locked()
        self.flush_locked()

    # Rows: programs of one name and footprint

    cdef Row *row_locked(self, Footprint *footprint, const char *name, size_t name_bytes) noexcept nogil:
        """Return the row of a footprint and name with one more reference; NULL if there is none."""
        cdef uint64_t hash = hash_of(footprint, name, name_bytes)
        cdef Row *row = self.row_buckets[hash & (self.row_bucket_count - 1)]
        while row != NULL:
            if (row.hash == hash and row.footprint == footprint and row.name_bytes == name_bytes
                    and memcmp(name_of(row), name, name_bytes) == 0):
                row.refs += 1
                return row
            row = row.next
        return NULL

    cdef Row *new_row_locked(self, Footprint *footprint, const char *name, size_t name_bytes, const uint64_t *cbs,
                             uint32_t cb_words, bint more) noexcept nogil:
        """Make the row of a footprint and name, which has none, with one reference; NULL if there is no memory.

        Args:
            name: UTF-8, at most TTM_NAME_BYTES.
            cbs: two words a rectangle, as published; at most 2 * TTM_CBS_MAX words.
            more: whether rectangles were left out.
        """
        cdef Row *row = <Row *> malloc(sizeof(Row) + 8 * cb_words + name_bytes)
        cdef Row **bucket
        if row == NULL:
            return NULL
        if self.row_count >= self.row_bucket_count:
            grow_rows(self)
        memset(row, 0, sizeof(Row))
        row.footprint = footprint
        row.hash = hash_of(footprint, name, name_bytes)
        row.refs = 1
        row.slot = -1
        row.name_bytes = <uint16_t> name_bytes
        row.cb_words = <uint8_t> cb_words
        row.flags = 1 if more else 0
        memcpy(cbs_of(row), cbs, 8 * cb_words)
        memcpy(name_of(row), name, name_bytes)
        self.cb.retain(footprint)
        bucket = &self.row_buckets[row.hash & (self.row_bucket_count - 1)]
        row.next = bucket[0]
        bucket[0] = row
        self.row_count += 1
        return row

    cdef void forget_row_locked(self, Row *row) noexcept nogil:
        """Give back a reference."""
        row.refs -= 1
        free_row(self, row)

    cdef void write_row(self, Row *row) noexcept nogil:
        """Fill the figures of a row that has a slot."""
        cdef uint64_t *record = self.block.record(TTM_PROGRAMS, row.slot)
        record[0] = (<Program *> ttm_table_at(&self.programs, row.head - 1)).id
        record[1] = row.count | <uint64_t> row.footprint.num_cores << 32
        record[2] = row.footprint.bytes_per_core | <uint64_t> row.footprint.region_end << 32
        record[3] = row.footprint.logical
        record[4] = row.footprint.resident
        self.block.mark(TTM_PROGRAMS, row.slot)

    cdef void seat(self, Row *row) noexcept nogil:
        """Give a row that became live a slot of the published table, if it is among the largest."""
        cdef Row *smallest
        cdef uint64_t[SLOT_WORDS] unowned
        cdef int32_t slot = row.slot
        cdef uint32_t i
        cdef uint64_t *record
        if slot >= 0:
            # Its name stands there still.
            clear_bit(self.free_slots, slot)
            if self.seated_kept:
                heap_push(&self.seated, row)
            return
        # Rather one that no row may come back to.
        for i in range(SLOT_WORDS):
            unowned[i] = self.free_slots[i] & ~self.owned_slots[i]
        slot = first_bit(unowned)
        if slot < 0:
            slot = first_bit(self.free_slots)
        if slot < 0:
            if not self.seated_kept:
                self.seated.count = 0
                for i in range(TTM_PROGRAM_ROWS):
                    heap_push(&self.seated, self.owner[i])
                self.seated_kept = True
            smallest = self.seated.rows[0]
            if smallest.footprint.logical >= row.footprint.logical:
                self.wait(row)
                return
            slot = smallest.slot
            heap_take(&self.seated, smallest)
            smallest.slot = -1
            self.wait(smallest)
            # Whether or not there is memory for what comes: what goes is no longer told of.
            memset(self.block.record(TTM_PROGRAMS, slot), 0, 56)
            self.block.mark(TTM_PROGRAMS, slot)
        if self.owner[slot] != NULL:
            self.owner[slot].slot = -1
        self.owner[slot] = NULL
        clear_bit(self.owned_slots, slot)
        if not (
            self.block.mark_of_row(TTM_PROGRAM_NAMES, TTM_PROGRAMS, slot)
            and self.block.mark_of_row(TTM_PROGRAM_CBS, TTM_PROGRAMS, slot)
            and self.block.mark(TTM_PROGRAMS, slot)
        ):
            # Shared memory is full: the totals stay exact, the row is counted.
            set_bit(self.free_slots, slot)
            self.wait(row)
            return
        record = self.block.record(TTM_PROGRAM_NAMES, slot)
        memset(record, 0, TTM_NAME_BYTES)
        memcpy(record, name_of(row), row.name_bytes)
        record = self.block.record(TTM_PROGRAM_CBS, slot)
        record[0] = row.cb_words // 2 | <uint64_t> (row.flags & 1) << 32
        memcpy(record + 1, cbs_of(row), 8 * row.cb_words)
        record = self.block.record(TTM_TOTALS, TTM_T_TABLES)
        if record[0] <= <uint64_t> slot:
            record[0] = slot + 1
            self.block.mark(TTM_TOTALS, TTM_T_TABLES)
        row.slot = slot
        self.owner[slot] = row
        set_bit(self.owned_slots, slot)
        clear_bit(self.free_slots, slot)
        if self.seated_kept:
            heap_push(&self.seated, row)

    cdef void wait(self, Row *row) noexcept nogil:
        row.flags |= 2
        heap_push(&self.waiting, row)
        self.publish_tables()

    cdef void unseat(self, Row *row) noexcept nogil:
        """Take a row that is no longer live out of the table; the largest one that waits comes in."""
        cdef Row *following
        if row.flags & 2:
            row.flags &= ~<uint8_t> 2
            heap_take(&self.waiting, row)
            self.publish_tables()
            return
        memset(self.block.record(TTM_PROGRAMS, row.slot), 0, 56)
        self.block.mark(TTM_PROGRAMS, row.slot)
        set_bit(self.free_slots, row.slot)
        if self.seated_kept:
            heap_take(&self.seated, row)
            if self.seated.count < TTM_PROGRAM_ROWS // 2:
                self.seated_kept = False
        if self.waiting.count:
            following = self.waiting.rows[0]
            heap_take(&self.waiting, following)
            following.flags &= ~<uint8_t> 2
            self.seat(following)
            if following.slot >= 0:
                self.write_row(following)
            self.publish_tables()

    # Programs

    cdef int program_added_locked(self, uint64_t id, Row *row) noexcept nogil:
        """Enter a program into the cache."""
        cdef Program *program
        cdef Program *first
        cdef uint32_t number
        cdef uint64_t *total
        if ttm_table_get(&self.programs, id) != NULL:
            return ID_IN_USE
        if (ttm_table_reserve(&self.programs) < 0 or heap_reserve(&self.seated, TTM_PROGRAM_ROWS + 1) < 0
                or heap_reserve(&self.waiting, self.row_count + 1) < 0 or self.cb.add(row.footprint) != 0):
            return NO_MEMORY
        program = <Program *> ttm_table_put(&self.programs, id)
        program.row = row
        number = ttm_table_number(&self.programs, program) + 1
        if row.head == 0:
            row.head = number
        else:
            # The first one stays the first, so that the id that is shown does not change with each.
            first = <Program *> ttm_table_at(&self.programs, row.head - 1)
            program.before = row.head
            program.after = first.after
            if first.after:
                (<Program *> ttm_table_at(&self.programs, first.after - 1)).before = number
            first.after = number
        row.count += 1
        if row.count == 1:
            self.live_rows += 1
            self.seat(row)
        if row.slot >= 0:
            self.write_row(row)
        total = self.block.record(TTM_TOTALS, TTM_T_CB)
        if total[3] < self.cb.physical:
            total[3] = self.cb.physical
            self.note_peak(TTM_T_CB, self.cb.physical, id, self.programs.count, name_of(row), row.name_bytes)
        self.sync_locked()
        self.flush_locked()
        return 0

    cdef int program_removed(self, uint64_t id) noexcept nogil:
        """Take a program out of the cache; what it left configured on the cores stays until the next dispatch."""
        cdef Program *program
        cdef Row *row
        if self.enter() != 0:
            return NOT_HERE
        program = <Program *> ttm_table_get(&self.programs, id)
        if program == NULL:
            ttm_lock_release(&self.lock)
            return UNKNOWN_ID
        row = program.row
        if program.before:
            (<Program *> ttm_table_at(&self.programs, program.before - 1)).after = program.after
        else:
            row.head = program.after
        if program.after:
            (<Program *> ttm_table_at(&self.programs, program.after - 1)).before = program.before
        ttm_table_drop(&self.programs, program)
        row.count -= 1
        self.cb.remove(row.footprint)
        if row.count == 0:
            self.live_rows -= 1
            self.unseat(row)
            free_row(self, row)
        elif row.slot >= 0:
            self.write_row(row)
        self.sync_locked()
        self.flush_locked()
        ttm_lock_release(&self.lock)
        return 0

    cdef int program_dispatched(self, uint64_t id) noexcept nogil:
        """Record that a cached program was sent to the device, or noted for the trace that is being captured."""
        cdef Program *program
        cdef Footprint **items
        cdef int status = 0
        if self.enter() != 0:
            return NOT_HERE
        program = <Program *> ttm_table_get(&self.programs, id)
        if program == NULL:
            status = UNKNOWN_ID
        elif self.open_trace == 0:
            status = self.apply_locked(program.row.footprint)
        else:
            if self.trace_count == self.trace_capacity:
                items = <Footprint **> realloc(self.trace_items, (2 * self.trace_capacity + 16) * sizeof(Footprint *))
                if items == NULL:
                    status = NO_MEMORY
                else:
                    self.trace_items = items
                    self.trace_capacity = 2 * self.trace_capacity + 16
            if status == 0:
                self.cb.retain(program.row.footprint)
                self.trace_items[self.trace_count] = program.row.footprint
                self.trace_count += 1
        ttm_lock_release(&self.lock)
        return status

    cdef int apply_locked(self, Footprint *footprint) noexcept nogil:
        # The usual loop dispatches what is resident already: then no figure changes.
        if footprint == self.last_dispatched:
            return 0
        self.cb.dispatch(footprint)
        # A reference of its own: without it another footprint might come to lie at the same address.
        self.cb.retain(footprint)
        if self.last_dispatched != NULL:
            self.cb.release(self.last_dispatched)
        self.last_dispatched = footprint
        self.publish_resident()
        self.flush_locked()
        return 0

    # Traces

    cdef int trace_begun(self, uint64_t id) noexcept nogil:
        """Note the dispatches from here on for a trace; an id that is captured anew is forgotten first."""
        cdef Trace *trace
        cdef int status = 0
        if self.enter() != 0:
            return NOT_HERE
        if self.open_trace:
            status = TRACE_OPEN
        else:
            trace = <Trace *> ttm_table_get(&self.traces, id)
            if trace != NULL:
                self.cb.release(trace.peak)
                ttm_table_drop(&self.traces, trace)
            self.open_trace = id
        ttm_lock_release(&self.lock)
        return status

    cdef int trace_ended(self, uint64_t id) noexcept nogil:
        """Keep, of each core, the peak over the trace's programs."""
        cdef Footprint *peak
        cdef Trace *trace
        cdef uint32_t i
        cdef int status = 0
        if self.enter() != 0:
            return NOT_HERE
        if id != self.open_trace or id == 0:
            status = UNKNOWN_ID
        elif ttm_table_reserve(&self.traces) < 0:
            status = NO_MEMORY
        else:
            peak = self.cb.peak_of(self.trace_items, self.trace_count)
            if peak == NULL:
                status = NO_MEMORY
            else:
                trace = <Trace *> ttm_table_put(&self.traces, id)
                trace.peak = peak
                for i in range(self.trace_count):
                    self.cb.release(self.trace_items[i])
                self.trace_count = 0
                self.open_trace = 0
        ttm_lock_release(&self.lock)
        return status

    cdef int trace_replayed(self, uint64_t id) noexcept nogil:
        """Leave each core with the peak over the trace's programs (TT-Metal #53721)."""
        cdef Trace *trace
        cdef int status = UNKNOWN_ID
        if self.enter() != 0:
            return NOT_HERE
        trace = <Trace *> ttm_table_get(&self.traces, id)
        if trace != NULL:
            status = self.apply_locked(trace.peak)
        ttm_lock_release(&self.lock)
        return status

    cdef int trace_released(self, uint64_t id) noexcept nogil:
        """Forget a trace, also one that is being captured."""
        cdef Trace *trace
        cdef uint32_t i
        cdef int status = 0
        if self.enter() != 0:
            return NOT_HERE
        trace = <Trace *> ttm_table_get(&self.traces, id)
        if trace != NULL:
            self.cb.release(trace.peak)
            ttm_table_drop(&self.traces, trace)
        elif id == self.open_trace and id != 0:
            for i in range(self.trace_count):
                self.cb.release(self.trace_items[i])
            self.trace_count = 0
            self.open_trace = 0
        else:
            status = UNKNOWN_ID
        ttm_lock_release(&self.lock)
        return status

    # Buffers

    cdef int buffer_allocated_locked(self, uint64_t id, uint32_t buffer_type, uint64_t size, uint64_t flags, uint64_t address,
                                     uint64_t size_per_bank, Footprint *footprint, const char *name,
                                     size_t name_bytes) noexcept nogil:
        """Enter a live buffer.

        Args:
            buffer_type: TT-Metal's number, 0 to 4.
            flags: TTM_BUFFER_ADDRESS if the address is known, TTM_BUFFER_BANK if the size per bank is.
            footprint: where it lies on the cores, a reference of it that goes over on success; NULL if that is not known.
        """
        cdef Buffer *buffer
        cdef uint64_t *total
        cdef uint32_t half = 0 if buffer_type == TTM_T_L1 - TTM_T_DRAM or buffer_type == TTM_T_L1_SMALL - TTM_T_DRAM else 1
        if ttm_table_get(&self.buffers, id) != NULL:
            return ID_IN_USE
        if ttm_table_reserve(&self.buffers) < 0 or (footprint != NULL and self.l1.add(footprint) != 0):
            return NO_MEMORY
        buffer = <Buffer *> ttm_table_put(&self.buffers, id)
        buffer.type = buffer_type
        buffer.size = size
        buffer.footprint = footprint
        buffer.slot = seat_buffer(self, half, name, name_bytes)
        if buffer.slot < 0:
            self.buffers_omitted += 1
            self.publish_tables()
        else:
            total = self.block.record(TTM_BUFFERS, buffer.slot)
            total[0] = id
            total[1] = buffer_type | (flags | TTM_BUFFER_LIVE) << 8
            total[2] = size
            total[3] = address
            total[4] = size_per_bank
            total[5] = ttm_realtime_coarse_ns()
            total[6] = footprint.num_cores if footprint != NULL else 0
        total = self.block.record(TTM_TOTALS, TTM_T_DRAM + buffer_type)
        total[0] += size
        total[2] += 1
        if total[1] < total[0]:
            total[1] = total[0]
            self.note_peak(TTM_T_DRAM + buffer_type, total[0], id, total[2], name, name_bytes)
        if buffer_type == TTM_T_L1_SMALL - TTM_T_DRAM:
            if flags & TTM_BUFFER_ADDRESS and flags & TTM_BUFFER_BANK:
                # The end first: 0 says that there was no buffer yet.
                total[3] = address if total[4] == 0 else min(total[3], address)
                total[4] = max(total[4], address + size_per_bank)
            else:
                total[5] += 1
        self.block.mark(TTM_TOTALS, TTM_T_DRAM + buffer_type)
        if footprint != NULL:
            self.sync_buffers_locked()
        self.flush_locked()
        return 0

    cdef int buffer_resized(self, uint64_t id, uint64_t size) noexcept nogil:
        """Change the size of a buffer of which no more than the size is known."""
        cdef Buffer *buffer
        cdef uint64_t *total
        cdef int status = 0
        if self.enter() != 0:
            return NOT_HERE
        buffer = <Buffer *> ttm_table_get(&self.buffers, id)
        if buffer == NULL or buffer.footprint != NULL:
            status = UNKNOWN_ID
        else:
            total = self.block.record(TTM_TOTALS, TTM_T_DRAM + <uint32_t> buffer.type)
            total[0] = total[0] - buffer.size + size
            self.block.mark(TTM_TOTALS, TTM_T_DRAM + <uint32_t> buffer.type)
            if total[1] < total[0]:
                total[1] = total[0]
                self.note_peak(TTM_T_DRAM + <uint32_t> buffer.type, total[0], id, total[2], b"", 0)
            buffer.size = size
            if buffer.slot >= 0:
                self.block.record(TTM_BUFFERS, buffer.slot)[2] = size
                self.block.mark(TTM_BUFFERS, buffer.slot)
            self.flush_locked()
        ttm_lock_release(&self.lock)
        return status

    cdef int buffer_freed(self, uint64_t id) noexcept nogil:
        """Take a buffer out."""
        cdef Buffer *buffer
        cdef uint64_t *total
        cdef uint32_t half
        if self.enter() != 0:
            return NOT_HERE
        buffer = <Buffer *> ttm_table_get(&self.buffers, id)
        if buffer == NULL:
            ttm_lock_release(&self.lock)
            return UNKNOWN_ID
        if buffer.slot < 0:
            self.buffers_omitted -= 1
            self.publish_tables()
        else:
            half = buffer.slot // (TTM_BUFFER_ROWS // 2)
            set_bit(self.free_buffer_slots[half], buffer.slot % (TTM_BUFFER_ROWS // 2))
            memset(self.block.record(TTM_BUFFERS, buffer.slot), 0, 56)
            self.block.mark(TTM_BUFFERS, buffer.slot)
        total = self.block.record(TTM_TOTALS, TTM_T_DRAM + <uint32_t> buffer.type)
        total[0] -= buffer.size
        total[2] -= 1
        self.block.mark(TTM_TOTALS, TTM_T_DRAM + <uint32_t> buffer.type)
        if buffer.footprint != NULL:
            self.l1.remove(buffer.footprint)
            self.l1.release(buffer.footprint)
            self.sync_buffers_locked()
        ttm_table_drop(&self.buffers, buffer)
        self.flush_locked()
        ttm_lock_release(&self.lock)
        return 0

    # Kernels

    cdef int kernel_loaded_locked(self, uint64_t id, uint64_t size, bint persistent) noexcept nogil:
        cdef Kernel *kernel
        if ttm_table_get(&self.kernels, id) != NULL:
            return ID_IN_USE
        if ttm_table_reserve(&self.kernels) < 0:
            return NO_MEMORY
        kernel = <Kernel *> ttm_table_put(&self.kernels, id)
        kernel.size = size
        kernel.persistent = persistent
        count_kernel(self, kernel, 1)
        return 0

    cdef int kernel_unloaded(self, uint64_t id) noexcept nogil:
        cdef Kernel *kernel
        cdef int status = 0
        if self.enter() != 0:
            return NOT_HERE
        kernel = <Kernel *> ttm_table_get(&self.kernels, id)
        if kernel == NULL:
            status = UNKNOWN_ID
        else:
            count_kernel(self, kernel, -1)
            ttm_table_drop(&self.kernels, kernel)
        ttm_lock_release(&self.lock)
        return status


cdef uint64_t hash_of(const Footprint *footprint, const char *name, size_t name_bytes) noexcept nogil:
    cdef uint64_t hash = ttm_mixed(0, <uint64_t> <uintptr_t> footprint)
    cdef uint64_t word
    cdef size_t at = 0
    while at < name_bytes:
        word = 0
        memcpy(&word, name + at, min(<size_t> 8, name_bytes - at))
        hash = ttm_mixed(hash, word)
        at += 8
    return hash


cdef void grow_rows(Ledger ledger) noexcept nogil:
    """Spread the rows over more buckets; without memory for them the chains get longer."""
    cdef uint32_t size = 2 * ledger.row_bucket_count
    cdef uint32_t i
    cdef Row *row
    cdef Row *following
    cdef Row **buckets = <Row **> calloc(size, sizeof(Row *))
    if buckets == NULL:
        return
    for i in range(ledger.row_bucket_count):
        row = ledger.row_buckets[i]
        while row != NULL:
            following = row.next
            row.next = buckets[row.hash & (size - 1)]
            buckets[row.hash & (size - 1)] = row
            row = following
    free(ledger.row_buckets)
    ledger.row_buckets = buckets
    ledger.row_bucket_count = size


cdef void free_row(Ledger ledger, Row *row) noexcept nogil:
    """Free a row that nobody holds any more."""
    cdef Row **link
    if row.refs or row.count:
        return
    link = &ledger.row_buckets[row.hash & (ledger.row_bucket_count - 1)]
    while link[0] != row:
        link = &link[0].next
    link[0] = row.next
    ledger.row_count -= 1
    if row.slot >= 0:
        ledger.owner[row.slot] = NULL
        clear_bit(ledger.owned_slots, row.slot)
    ledger.cb.release(row.footprint)
    free(row)


cdef int32_t seat_buffer(Ledger ledger, uint32_t half, const char *name, size_t name_bytes) noexcept nogil:
    """Take a row of the published table for a buffer and name it; -1 if there is none."""
    cdef int32_t place = first_bit(ledger.free_buffer_slots[half])
    cdef int32_t slot = place + <int32_t> half * (TTM_BUFFER_ROWS // 2)
    cdef uint64_t *record
    if place < 0 or not (ledger.block.mark_of_row(TTM_BUFFER_NAMES, TTM_BUFFERS, slot) and ledger.block.mark(TTM_BUFFERS, slot)):
        return -1
    clear_bit(ledger.free_buffer_slots[half], place)
    record = ledger.block.record(TTM_BUFFER_NAMES, slot)
    memset(record, 0, TTM_NAME_BYTES)
    memcpy(record, name, name_bytes)
    record = ledger.block.record(TTM_TOTALS, TTM_T_TABLES)
    if record[2 + half] <= <uint64_t> place:
        record[2 + half] = place + 1
        ledger.block.mark(TTM_TOTALS, TTM_T_TABLES)
    return slot


cdef void count_kernel(Ledger ledger, const Kernel *kernel, int change) noexcept nogil:
    cdef uint64_t *total = ledger.block.record(TTM_TOTALS, TTM_T_KERNEL)
    total[0] += <uint64_t> change * kernel.size
    if kernel.persistent:
        total[1] += <uint64_t> change * kernel.size
    total[2] += <uint64_t> change
    ledger.block.mark(TTM_TOTALS, TTM_T_KERNEL)
    ledger.flush_locked()
