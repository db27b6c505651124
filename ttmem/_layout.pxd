"""The segment's layout for Cython: names only, the C compiler knows the offsets (_layout.h)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "_layout.h" nogil:
    enum:
        TTM_MAJOR
        TTM_MINOR
        TTM_PAGE
        TTM_HEADER_BYTES
        TTM_BLOCK_HEADER_BYTES
        TTM_STATIC_WORDS
        TTM_CONTROL
        TTM_SCHEMA
        TTM_SECTIONS
        TTM_BLOCK_DEVICE
        TTM_LOCK_OFD
        TTM_STATE_LIVE
        TTM_STATE_CLOSED
        TTM_TOTALS
        TTM_CB_MAP
        TTM_L1_MAP
        TTM_RESIDENT
        TTM_CB_CLASS
        TTM_L1_CLASS
        TTM_CB_RANGES
        TTM_L1_RANGES
        TTM_PROGRAMS
        TTM_PROGRAM_NAMES
        TTM_BUFFERS
        TTM_BUFFER_NAMES
        TTM_PROGRAM_CBS
        TTM_PEAKS
        TTM_SECTION_COUNT
        TTM_T_CB
        TTM_T_DRAM
        TTM_T_L1
        TTM_T_SYSTEM
        TTM_T_L1_SMALL
        TTM_T_TRACE
        TTM_T_KERNEL
        TTM_T_TABLES
        TTM_LINE_WORDS
        TTM_RANGE_WORDS
        TTM_RANGES_MAX
        TTM_NAME_WORDS
        TTM_NAME_BYTES
        TTM_PROGRAM_ROWS
        TTM_BUFFER_ROWS
        TTM_CBS_WORDS
        TTM_CBS_MAX
        TTM_PEAK_WORDS
        TTM_PEAK_ROWS
        TTM_PEAK_BYTES
        TTM_PEAK_NS
        TTM_PEAK_ID
        TTM_PEAK_COUNT
        TTM_PEAK_NAME
        TTM_CB_Y0
        TTM_CB_X1
        TTM_CB_Y1
        TTM_CB_KIND
        TTM_CB_FIRST
        TTM_BUFFER_LIVE
        TTM_BUFFER_ADDRESS
        TTM_BUFFER_BANK
        TTM_NOTE_PROGRAMS_BEFORE
        TTM_NOTE_BUFFERS_BEFORE
        TTM_NOTE_WINDOWED
        TTM_NOTE_REFUSED
        TTM_KNOWN_ASIC
        TTM_KNOWN_GRID
        TTM_KNOWN_L1
        TTM_KNOWN_BASE
        TTM_KNOWN_L1_SMALL
        TTM_KNOWN_DRAM
        TTM_KNOWN_TRACE
        TTM_KEYS
    uint32_t TTM_ENDIAN
    uint64_t TTM_MAX_FILE
    const uint8_t *TTM_MAGIC

    ctypedef struct ttm_file_header:
        uint8_t magic[8]
        uint32_t endian
        uint16_t major
        uint16_t minor
        uint64_t feature_compat
        uint64_t feature_incompat
        uint64_t header_bytes
        uint64_t instance[2]
        uint8_t boot_id[16]
        uint32_t pid
        uint32_t uid
        uint64_t start_ticks
        uint64_t pidns_inode
        uint64_t created_ns
        uint32_t lock_mode
        uint32_t schema_bytes
        char process_name[64]
        char producer[32]
        uint64_t check

    ctypedef struct ttm_file_control:
        uint64_t state
        uint64_t committed_bytes
        uint64_t buried_ns

    ctypedef struct ttm_section:
        uint32_t kind
        uint32_t stride
        uint32_t count
        uint32_t words
        uint64_t offset

    ctypedef struct ttm_block_header:
        uint32_t type
        uint32_t version
        uint64_t block_bytes
        uint32_t device_id
        uint32_t known
        uint64_t asic_id
        char arch[16]
        uint32_t grid_x
        uint32_t grid_y
        uint64_t worker_l1_size
        uint64_t l1_cb_base
        uint64_t l1_small_size
        uint64_t dram_size
        uint64_t trace_region_size
        uint64_t published_ns
        uint64_t image_offset
        uint64_t image_bytes
        uint32_t section_count
        uint32_t origin
        ttm_section sections[14]
        uint64_t check

    ctypedef struct ttm_block_control:
        uint64_t generation
        uint64_t state
        uint64_t seq
        uint64_t updated_ns
        uint64_t dropped
        uint64_t notes

    uint64_t ttm_key(uint64_t index)
    uint64_t ttm_check(const uint64_t *words, size_t count)
    uint64_t ttm_tag(const uint64_t *keys, const uint64_t *words, size_t count, uint64_t place, uint32_t version)


cdef extern from "_atomic.h" nogil:
    ctypedef struct ttm_lock:
        uint32_t held
    uint64_t ttm_load(const uint64_t *word)
    uint64_t ttm_load_acquire(const uint64_t *word)
    void ttm_store(uint64_t *word, uint64_t value)
    void ttm_store_release(uint64_t *word, uint64_t value)
    void ttm_fence_release()
    void ttm_fence_acquire()
    void ttm_lock_acquire(ttm_lock *lock)
    void ttm_lock_release(ttm_lock *lock)
    uint64_t ttm_realtime_coarse_ns()


cdef extern from "_latch.h" nogil:
    void ttm_latch_turn(uint64_t *seq, uint64_t value)
    void ttm_latch_commit_line(uint64_t *seq, uint64_t *updated_ns, uint64_t now_ns, uint64_t *image0, uint64_t *image1,
                               const uint64_t *record)
