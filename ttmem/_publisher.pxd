from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ttmem._core cimport Footprint, Intervals
from ttmem._layout cimport ttm_lock
from ttmem._segment cimport DeviceBlock


cdef class PreparedFootprint:
    cdef Footprint *footprint       # holds one reference in the owner's engine
    cdef Publisher owner
    cdef ProgramRow row             # the row of the last program that was added with it: most have one name
    cdef readonly tuple circular_buffers


cdef class ProgramRow:
    cdef Footprint *footprint       # holds one reference
    cdef str name
    cdef uint32_t count             # cached programs of this name and footprint
    cdef int slot                   # row of the published table, -1 if there was no room
    cdef object program_id          # of one of them
    cdef set others                 # ids of the other ones


cdef class BufferRow:
    cdef Footprint *footprint       # where it lies on the cores, NULL if unknown or not in L1
    cdef uint64_t size_bytes
    cdef int buffer_type
    cdef int slot


cdef class Publisher:
    cdef Intervals cb               # circular buffers of the cached programs
    cdef Intervals l1               # live L1 buffers
    cdef DeviceBlock block
    cdef ttm_lock lock              # guards everything below the ids: engines, block
    cdef uint64_t born              # value of the fork canary in the process that published
    cdef uint32_t batch_depth
    cdef uint64_t checked_ns        # when the file's name was last looked at
    cdef bint closed
    cdef Footprint *last_dispatched
    cdef readonly int device_id
    cdef readonly object geometry
    cdef object file                # WriterFile, None while nothing can be published
    cdef readonly str problem       # why nothing is published, empty if all is well
    cdef dict programs              # program_id -> ProgramRow
    cdef dict rows                  # (footprint, name) -> ProgramRow
    cdef dict buffers               # buffer_id -> BufferRow
    cdef dict kernels               # kernel_id -> (bytes, persistent)
    cdef dict traces                # trace_id -> PreparedFootprint, or a list while it is captured
    cdef dict masks                 # CoreRangeSet -> bytes
    cdef object open_trace
    cdef object next_id
    cdef int next_program_slot      # rows from here on were never used
    cdef int next_buffer_slot[2]
    cdef list free_program_slots    # rows that were used and are free again, lowest first out
    cdef list waiting_rows          # rows without a slot, largest first out
    cdef list free_buffer_slots     # [L1 half, the others]
    cdef uint32_t program_rows_omitted
    cdef uint32_t buffers_omitted
    cdef readonly str origin

    cdef int describe_block(self) except -1
    cdef bint usable(self) except -1
    cdef void sync_class(self, Intervals plane, uint32_t class_kind, uint32_t ranges_kind, uint32_t slot) noexcept nogil
    cdef int settle(self) except -1
    cdef int seat(self, ProgramRow row) except -1
    cdef int unseat(self, ProgramRow row) except -1
    cdef int wait(self, ProgramRow row) except -1
    cdef int publish_omitted(self) except -1
    cdef int apply(self, Footprint *footprint) except -1
    cdef PreparedFootprint handle_of(self, ProgramRow row)
    cdef object take_id(self)
    cdef bytes all_cores(self)
    cdef int seat_buffer(self, BufferRow row, object buffer_id, object address, object size_per_bank, str name) except -1
    cdef int count_kernel(self, object size, object persistent, int change) except -1
    cdef void sync(self) noexcept nogil
    cdef void sync_plane(self, Intervals plane, uint32_t map_kind, uint32_t class_kind, uint32_t ranges_kind) noexcept nogil
    cdef void flush(self) noexcept nogil
    cdef Footprint *intern(self, Intervals plane, list ranges) except NULL
    cdef bytes mask_of(self, object core_ranges)
    cdef PreparedFootprint prepare(self, object circular_buffers)
    cdef ProgramRow row_of(self, PreparedFootprint handle, str name)
    cdef void write_row(self, ProgramRow row) noexcept
    cdef void publish_resident(self) noexcept nogil
