from libc.stdint cimport uint64_t

from ttmem._core cimport CbRange, Footprint, Intervals
from ttmem._ledger cimport Ledger, Row


cdef class PreparedFootprint:
    cdef Footprint *footprint       # holds one reference in the owner's engine
    cdef Publisher owner
    cdef Row *row                   # of the last program that was added with it: most have one name; holds one reference
    cdef str row_name
    cdef readonly tuple circular_buffers


cdef class Publisher(Ledger):
    cdef uint64_t checked_ns        # when the file's name was last looked at
    cdef readonly int device_id
    cdef readonly object geometry
    cdef readonly str origin
    cdef object file                # WriterFile, None while nothing can be published
    cdef readonly str problem       # why nothing is published, empty if all is well
    cdef dict masks                 # CoreRangeSet -> bytes, a bit a core
    cdef dict corners               # CoreRangeSet -> bytes, a word a rectangle

    cdef int describe_block(self) except -1
    cdef bint usable(self) except -1
    cdef int settle(self) except -1
    cdef bytes all_cores(self)
    cdef Footprint *intern(self, Intervals plane, const CbRange *items, size_t count) except NULL
    cdef bytes mask_of(self, object core_ranges)
    cdef bytes corners_of(self, object core_ranges)
    cdef PreparedFootprint prepare(self, object circular_buffers)
    cdef Row *row_of(self, PreparedFootprint handle, str name) except NULL
    cdef uint64_t take_id(self) noexcept nogil
    cdef Row *make_row(self, PreparedFootprint handle, const char *name, size_t name_bytes) except NULL
