from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ttmem._layout cimport ttm_block_control, ttm_lock, ttm_section


cdef class DeviceBlock:
    cdef ttm_lock *guard                # of the ledger that changes the block, NULL if there is none
    cdef char *block                    # the mapping, or private memory while nothing can be published
    cdef ttm_block_control *control
    cdef char *image[2]                 # what readers see: image[seq & 1] is whole
    cdef char *shadow                   # private copy of an image; the next commit publishes what changed in it
    cdef readonly uint64_t block_bytes
    cdef readonly uint64_t image_bytes
    cdef uint64_t owner                 # who mapped the block: a forked child must not unmap what it does not have
    cdef readonly bint shared           # False: in private memory, nobody else reads it
    cdef ttm_section section[14]        # by kind
    cdef uint32_t first[14]             # number of a section's first record, over all sections
    cdef uint32_t ready[14]             # records of a section that have memory behind them
    cdef uint32_t high[14]              # records of a section that were ever marked are below
    cdef uint32_t upper_ready[2]        # the same of the upper half of the two tables of buffers
    cdef uint32_t upper_high[2]
    cdef uint64_t *dirty                # kind << 32 | index of the records that the next commit publishes
    cdef uint32_t dirty_count
    cdef uint8_t *is_dirty              # by record number
    cdef uint32_t record_count
    cdef bint rows_first                # something was marked before what goes first
    cdef uint32_t version               # of the last commit
    cdef readonly uint64_t dropped      # records that found no memory
    cdef uint64_t notes                 # enum ttm_note; survives a move too
    cdef uint64_t updated_ns            # of the last change of a figure; survives a move to another file

    cdef uint64_t *record(self, uint32_t kind, uint32_t index) noexcept nogil
    cdef void add_note(self, uint64_t notes) noexcept nogil
    cdef bint mark(self, uint32_t kind, uint32_t index) noexcept nogil
    cdef bint mark_of_row(self, uint32_t kind, uint32_t row_kind, uint32_t index) noexcept nogil
    cdef void mark_map(self, uint32_t kind) noexcept nogil
    cdef void _put_rows_last(self) noexcept nogil
    cdef bint _populate(self, uint32_t kind, uint32_t index, uint32_t *ready) noexcept nogil
    cdef bint _touch(self, uint64_t offset, uint64_t count) noexcept nogil
    cdef void commit(self, uint64_t now_ns) noexcept nogil
    cdef uint32_t words_in_use(self, uint32_t kind, const uint64_t *record) noexcept nogil
    cdef void _publish_everything(self) noexcept nogil
    cdef void _hold(self) noexcept nogil
    cdef void _let_go(self) noexcept nogil
    cdef void _move(self, char *block, bint shared, bint all_ready) noexcept
    cdef void _unmap(self, char *block, bint shared) noexcept
    cdef void _lay_out(self, uint32_t cores) noexcept
