"""The records of the ttnn hook's events for Cython: names only, the C compiler knows the rest (_hook_events.h)."""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "_hook_events.h" nogil:
    const char *TTM_SINK_CAPSULE
    enum:
        TTM_TRACE_BEGIN
        TTM_TRACE_END
        TTM_TRACE_REPLAY
        TTM_BUFFER_ALLOCATE
        TTM_BUFFER_FREE
        TTM_PROGRAM_ADD
        TTM_PROGRAM_REMOVE
        TTM_PROGRAM_DISPATCH
        TTM_TRACE

    ctypedef struct ttm_core_range:
        uint16_t start_x
        uint16_t start_y
        uint16_t end_x
        uint16_t end_y

    ctypedef struct ttm_cb_record:
        uint64_t address
        uint64_t size
        uint32_t first_range
        uint32_t range_count
        uint8_t kind
        uint8_t globally_allocated

    ctypedef struct ttm_buffer_record:
        uint64_t id
        uint64_t address
        uint64_t size
        uint64_t size_per_bank
        uint32_t type

    ctypedef struct ttm_program_record:
        uint64_t id
        const char *name

    ctypedef struct ttm_event:
        uint32_t kind
        int32_t chip
        ttm_buffer_record buffer
        ttm_program_record program
        uint32_t action
        uint32_t first_cb
        uint32_t cb_count

    ctypedef struct ttm_array:
        char *data
        size_t count

    ctypedef struct ttm_log:
        ttm_array events
        ttm_array cbs
        ttm_array ranges
        uint64_t dropped

    ctypedef struct ttm_hook_sink:
        void *context
        void (*buffer_allocate)(void *, int32_t, const ttm_buffer_record *) noexcept nogil
        void (*buffer_free)(void *, int32_t, const ttm_buffer_record *) noexcept nogil
        void (*program_add)(void *, int32_t, const ttm_program_record *, const ttm_cb_record *, uint32_t,
                            const ttm_core_range *) noexcept nogil
        void (*program_remove)(void *, int32_t, const ttm_program_record *) noexcept nogil
        void (*program_dispatch)(void *, int32_t, const ttm_program_record *) noexcept nogil
        void (*trace)(void *, int32_t, uint32_t, int) noexcept nogil
        void (*device_close)(void *, int32_t) noexcept nogil

    void ttm_log_free(ttm_log *log)
