"""A block's reading, for what keeps readings and what makes tables of them; `_reading.pyx` says how it is taken."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ttmem._layout cimport ttm_block_control, ttm_block_header, ttm_section


cdef bint read_exactly(int fd, void *target, uint64_t count, uint64_t offset) noexcept nogil


cdef class BlockReading:
    cdef ttm_block_header header
    cdef ttm_block_control control      # as it was when the figures were taken, before that when the header was
    cdef uint64_t *data[14]             # a section's records, packed with its own stride
    cdef uint8_t *valid[14]
    cdef uint32_t rows[14]              # records that were read
    cdef ttm_section section[14]
    cdef readonly bint live
    cdef readonly bint consistent
    cdef readonly uint32_t damaged
    cdef readonly uint64_t bytes_read
    cdef readonly uint32_t tries        # 0: the figures were not read yet

    cdef int read_header(self, int fd, uint64_t offset, uint64_t file_bytes) except -1
    cdef BlockReading successor(self)
    cdef int read_images(self, int fd, uint64_t offset) except -1
    cdef int read_cut(self, int fd, uint64_t offset, int tries) except -1
    cdef int read_one(self, int fd, uint64_t image, bint merge) except -1
    cdef uint32_t lower_rows(self, uint32_t kind, uint32_t rows) noexcept nogil
    cdef int read_section(self, int fd, uint64_t image, uint32_t kind, uint32_t rows, uint32_t lower, bint merge) except -1
    cdef bint right(self, uint32_t kind, uint32_t index, const uint64_t *record) noexcept nogil
    cdef void judge(self) noexcept nogil
    cdef int read_belongings(self, int fd, uint64_t image) except -1
    cdef uint32_t unmix(self, uint32_t row_kind, uint32_t kind) noexcept nogil
    cdef uint64_t map_tag(self, int fd, uint64_t image, uint32_t map_kind) except? 0
    cdef uint32_t unmix_classes(self, uint32_t map_kind, uint64_t tag_before, uint64_t tag_after) noexcept nogil
    cdef bint since(self, uint32_t later, uint32_t earlier, uint32_t index) noexcept nogil
    cdef bint buffer_in_use(self, uint32_t index) noexcept nogil
    cdef uint64_t *line(self, uint32_t kind, uint32_t index) noexcept nogil
    cdef object program_cbs(self, uint32_t index)
    cdef str name(self, uint32_t kind, uint32_t index)
    cdef int class_at(self, uint32_t map_kind, uint32_t class_kind, uint32_t x, uint32_t y) noexcept nogil
    cdef int ranges_at(self, uint32_t class_kind, uint32_t ranges_kind, int slot, const uint64_t **out) noexcept nogil
