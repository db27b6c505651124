"""C interface of the ledger; `_ledger.pyx` says what holds at all times.

Functions that end in `_locked` want the lock held; the others take it. None needs the GIL.
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from ttmem._core cimport Footprint, Intervals
from ttmem._layout cimport ttm_lock
from ttmem._segment cimport DeviceBlock


cdef extern from "_table.h" nogil:
    ctypedef struct ttm_table:
        uint32_t entry_bytes
        uint32_t count
        uint32_t high
    void *ttm_table_at(const ttm_table *table, uint32_t number)
    uint32_t ttm_table_number(const ttm_table *table, const void *entry)
    void *ttm_table_get(const ttm_table *table, uint64_t id)
    int ttm_table_reserve(ttm_table *table)
    void *ttm_table_put(ttm_table *table, uint64_t id)
    void ttm_table_drop(ttm_table *table, void *entry)
    void ttm_table_free(ttm_table *table)


cdef enum:                              # what a call may answer; 0 is success
    NO_MEMORY = -1
    UNKNOWN_ID = -2
    ID_IN_USE = -3
    TRACE_OPEN = -4
    NOT_HERE = -5                       # closed, or in a forked child
    SLOT_WORDS = 16                     # of a bitmap over the rows of programs, or over half the rows of buffers


cdef struct Row:                        # programs of one name and footprint; its CBs, then its name follow the struct
    Footprint *footprint                # holds one reference
    Row *next                           # in its hash bucket
    uint64_t hash
    uint32_t head                       # number + 1 of one of its programs; 0: none is cached
    uint32_t count                      # cached programs
    uint32_t refs                       # handles that remember it
    int32_t slot                        # row of the published table, also a free one that still has its name; -1: none
    uint32_t place                      # index in the heap that it is in
    uint16_t name_bytes
    uint8_t cb_words                    # words of its CBs; see TTM_PROGRAM_CBS
    uint8_t flags                       # 1: there are more CBs, 2: it waits for a slot


cdef struct Heap:                       # rows by logical bytes, the largest or the smallest first
    Row **rows
    uint32_t count
    uint32_t capacity
    bint smallest_first


cdef class Ledger:
    cdef Intervals cb                   # circular buffers of the cached programs
    cdef Intervals l1                   # live L1 buffers
    cdef DeviceBlock block
    cdef ttm_lock lock                  # guards all that follows, the engines and the block
    cdef uint64_t born                  # value of the fork canary in the process that published
    cdef bint closed
    cdef uint32_t batch_depth
    cdef uint64_t next_id               # for programs, buffers, kernels and traces that come without one
    cdef Footprint *last_dispatched     # holds one reference
    cdef ttm_table programs, buffers, kernels, traces
    cdef Row **row_buckets
    cdef uint32_t row_bucket_count      # a power of two
    cdef uint32_t row_count             # rows in the buckets
    cdef uint32_t live_rows             # of them, with cached programs
    cdef Row *owner[1024]               # by slot: the row whose name stands there
    cdef uint64_t free_slots[16]        # a bit a slot that no live row has
    cdef uint64_t owned_slots[16]       # a bit a slot that has an owner
    cdef Heap seated                    # kept only while the table was full lately
    cdef bint seated_kept
    cdef Heap waiting                   # live rows without a slot
    cdef uint64_t free_buffer_slots[2][16]
    cdef uint32_t buffers_omitted
    cdef uint64_t open_trace            # id of the trace that is being captured; 0: none
    cdef Footprint **trace_items        # its programs, a reference each
    cdef uint32_t trace_count, trace_capacity

    cdef bint forked(self) noexcept nogil
    cdef int enter(self) noexcept nogil
    cdef void sync_class(self, Intervals plane, uint32_t class_kind, uint32_t ranges_kind, uint32_t slot) noexcept nogil
    cdef void sync_plane(self, Intervals plane, uint32_t map_kind, uint32_t class_kind, uint32_t ranges_kind) noexcept nogil
    cdef void sync_locked(self) noexcept nogil
    cdef void sync_buffers_locked(self) noexcept nogil
    cdef void flush_locked(self) noexcept nogil
    cdef void publish_resident(self) noexcept nogil
    cdef void publish_tables(self) noexcept nogil
    cdef void note_peak(self, uint32_t total, uint64_t value, uint64_t id, uint64_t count, const char *name,
                        size_t name_bytes) noexcept nogil

    cdef Row *row_locked(self, Footprint *footprint, const char *name, size_t name_bytes) noexcept nogil
    cdef Row *new_row_locked(self, Footprint *footprint, const char *name, size_t name_bytes, const uint64_t *cbs,
                             uint32_t cb_words, bint more) noexcept nogil
    cdef void forget_row_locked(self, Row *row) noexcept nogil
    cdef void write_row(self, Row *row) noexcept nogil
    cdef void seat(self, Row *row) noexcept nogil
    cdef void unseat(self, Row *row) noexcept nogil
    cdef void wait(self, Row *row) noexcept nogil

    cdef int program_added_locked(self, uint64_t id, Row *row) noexcept nogil
    cdef int program_removed(self, uint64_t id) noexcept nogil
    cdef int program_dispatched(self, uint64_t id) noexcept nogil
    cdef int apply_locked(self, Footprint *footprint) noexcept nogil
    cdef int trace_begun(self, uint64_t id) noexcept nogil
    cdef int trace_ended(self, uint64_t id) noexcept nogil
    cdef int trace_replayed(self, uint64_t id) noexcept nogil
    cdef int trace_released(self, uint64_t id) noexcept nogil
    cdef int buffer_allocated_locked(self, uint64_t id, uint32_t buffer_type, uint64_t size, uint64_t flags, uint64_t address,
                                     uint64_t size_per_bank, Footprint *footprint, const char *name,
                                     size_t name_bytes) noexcept nogil
    cdef int buffer_resized(self, uint64_t id, uint64_t size) noexcept nogil
    cdef int buffer_freed(self, uint64_t id) noexcept nogil
    cdef int kernel_loaded_locked(self, uint64_t id, uint64_t size, bint persistent) noexcept nogil
    cdef int kernel_unloaded(self, uint64_t id) noexcept nogil
    cdef void reset_peaks_locked(self) noexcept nogil
