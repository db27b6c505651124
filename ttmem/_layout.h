/* The byte layout of a ttmem segment, version 1.1, and the checksum that every part of it carries.
 *
 * docs/segment.md is the prose; this header is what the compiler holds both sides to. All numbers are little endian, all
 * words are 8 bytes and naturally aligned. Offsets never move within a major version; new fields take reserved space.
 */
#ifndef TTM_LAYOUT_H
#define TTM_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "ttmem segments are little endian; this machine is not"
#endif

enum {
    TTM_MAJOR = 1,
    TTM_MINOR = 1,
    TTM_PAGE = 4096,
    TTM_HEADER_BYTES = 4096,       /* file header; the first block follows */
    TTM_BLOCK_HEADER_BYTES = 4096, /* of a device block; the two images follow */
    TTM_STATIC_WORDS = 64,         /* immutable words at the start of a header, the last one is their checksum */
    TTM_CONTROL = 512,             /* offset of the mutable words of either header */
    TTM_SCHEMA = 1024,             /* offset of the schema text in the file header */
    TTM_SECTIONS = 14,             /* section descriptors in a block header */
    TTM_BLOCK_DEVICE = 1,
    TTM_LOCK_OFD = 1,              /* lock_mode: an open file description's write lock on byte 0 */
};
#define TTM_ENDIAN 0x01020304u
#define TTM_MAX_FILE ((uint64_t)1 << 36) /* 4,096 blocks of 16 MiB; files are sparse */

enum { TTM_STATE_LIVE = 1, TTM_STATE_CLOSED = 2 };

enum ttm_section_kind {
    TTM_TOTALS = 0,    /* 8 records, see enum ttm_total */
    TTM_CB_MAP,        /* 1 record: u16 class slot of each core */
    TTM_L1_MAP,        /* the same for L1 buffers */
    TTM_RESIDENT,      /* u32 of each core; record 0: resident bytes; since 1.1 record 1: floor of its CB peak */
    TTM_CB_CLASS,      /* a record a class: physical, logical, region end, lowest, merged ranges, since 1.1 peak */
    TTM_L1_CLASS,      /* the same for L1 buffers */
    TTM_CB_RANGES,     /* a record a class: count | more << 32, then begin | end << 32 */
    TTM_L1_RANGES,
    TTM_PROGRAMS,      /* a record a row: see ttm_program_word */
    TTM_PROGRAM_NAMES, /* a record a row: 120 bytes of UTF-8, zero padded */
    TTM_BUFFERS,       /* a record a row: L1 and L1_SMALL first half, the others second */
    TTM_BUFFER_NAMES,
    TTM_PROGRAM_CBS,   /* since 1.1; a record a row of programs: count | more << 32, then two words a rectangle of a CB */
    TTM_PEAKS,         /* since 1.1; a record a total up to TTM_T_TRACE: see enum ttm_peak_word */
    TTM_SECTION_COUNT
};

/* Of the types of buffers: used, peak, number. Of L1_SMALL besides (1.1): the lowest address and the highest end since publish,
 * and the number of buffers of which they are not known. */
enum ttm_total { TTM_T_CB = 0, TTM_T_DRAM, TTM_T_L1, TTM_T_SYSTEM, TTM_T_L1_SMALL, TTM_T_TRACE, TTM_T_KERNEL, TTM_T_TABLES };

enum {
    TTM_LINE_WORDS = 8,    /* of a 64-byte record, the last word is its tag */
    TTM_RANGE_WORDS = 64,
    TTM_RANGES_MAX = 62,
    TTM_NAME_WORDS = 16,
    TTM_NAME_BYTES = 120,
    TTM_PROGRAM_ROWS = 1024,
    TTM_BUFFER_ROWS = 2048,
    TTM_CBS_WORDS = 48,
    TTM_CBS_MAX = 23,     /* rectangles */
    TTM_PEAK_WORDS = 24,
    TTM_PEAK_ROWS = 6,
};

/* Of a rectangle of a CB: begin | end << 32, then x0 | y0 << 10 | x1 << 20 | y1 << 30 | kind << 40 | first << 44, where `first`
 * says that it is the first rectangle of a CB and kind counts in the order of the contract's kinds. */
enum { TTM_CB_Y0 = 10, TTM_CB_X1 = 20, TTM_CB_Y1 = 30, TTM_CB_KIND = 40, TTM_CB_FIRST = 44 };

/* The highest value of a total since publish, when it was reached (CLOCK_REALTIME_COARSE), by what, and how many programs
 * (CB) or buffers of the type there were then. */
enum ttm_peak_word { TTM_PEAK_BYTES = 0, TTM_PEAK_NS, TTM_PEAK_ID, TTM_PEAK_COUNT, TTM_PEAK_NAME };

/* Of a buffer's row, in its second word above the type's 8 bits: it is there, and which of its figures are known. */
enum ttm_buffer_flag { TTM_BUFFER_LIVE = 1, TTM_BUFFER_ADDRESS = 2, TTM_BUFFER_BANK = 4 };

/* What a reader should know of the figures as a whole. */
enum ttm_note {
    TTM_NOTE_PROGRAMS_BEFORE = 1, /* programs that were laid out before the writer began to follow are not known */
    TTM_NOTE_BUFFERS_BEFORE = 2,  /* what was allocated before is not known */
    TTM_NOTE_WINDOWED = 4,        /* the figures are taken in windows and may lag */
    TTM_NOTE_REFUSED = 8,         /* events that contradict each other were left out */
};

typedef struct {
    uint8_t magic[8];
    uint32_t endian;
    uint16_t major, minor;
    uint64_t feature_compat;   /* unknown bits: ignore */
    uint64_t feature_incompat; /* unknown bits: refuse */
    uint64_t header_bytes;     /* offset of the first block */
    uint64_t instance[2];      /* random, never reused */
    uint8_t boot_id[16];
    uint32_t pid, uid;
    uint64_t start_ticks;      /* field 22 of /proc/<pid>/stat */
    uint64_t pidns_inode;
    uint64_t created_ns;       /* CLOCK_REALTIME */
    uint32_t lock_mode, schema_bytes;
    char process_name[64];
    char producer[32];
    uint64_t reserved[37];
    uint64_t check;
} ttm_file_header;

typedef struct {
    uint64_t state;           /* TTM_STATE_* */
    uint64_t committed_bytes; /* blocks fill [header_bytes, committed_bytes) */
    uint64_t buried_ns;       /* CLOCK_REALTIME when a collector first found the writer dead, else 0 */
    uint64_t reserved[5];
} ttm_file_control;

typedef struct {
    uint32_t kind, stride; /* stride: bytes from one record to the next */
    uint32_t count, words; /* words: of a record, its tag included */
    uint64_t offset;       /* from the start of an image */
} ttm_section;

typedef struct {
    uint32_t type, version;
    uint64_t block_bytes;
    uint32_t device_id, known;  /* known: bits of enum ttm_known */
    uint64_t asic_id;
    char arch[16];
    uint32_t grid_x, grid_y;    /* the cores of the records, row by row; what a user told only if TTM_KNOWN_GRID */
    uint64_t worker_l1_size, l1_cb_base, l1_small_size, dram_size, trace_region_size;
    uint64_t published_ns;
    uint64_t image_offset, image_bytes; /* image i starts at image_offset + i * image_bytes of the block */
    uint32_t section_count, origin;     /* origin: 0 live, 1 replay, 2 recording */
    ttm_section sections[TTM_SECTIONS];
    uint64_t reserved[5];
    uint64_t check;
} ttm_block_header;

enum ttm_known {
    TTM_KNOWN_ASIC = 1,
    TTM_KNOWN_GRID = 2,
    TTM_KNOWN_L1 = 4,
    TTM_KNOWN_BASE = 8,
    TTM_KNOWN_L1_SMALL = 16,
    TTM_KNOWN_DRAM = 32,
    TTM_KNOWN_TRACE = 64,
};

typedef struct {
    uint64_t generation; /* odd while the block is being rewritten for another device */
    uint64_t state;      /* TTM_STATE_*; CLOSED: the device was withdrawn, the block may be used again */
    uint64_t seq;        /* readers take image (seq & 1); it counts twice a commit */
    uint64_t updated_ns; /* CLOCK_REALTIME_COARSE of the last change of a figure, 0 if none */
    uint64_t dropped;    /* changes that could not be published */
    uint64_t notes;      /* since 1.1: enum ttm_note */
    uint64_t reserved[2];
} ttm_block_control;

_Static_assert(sizeof(ttm_file_header) == 8 * TTM_STATIC_WORDS, "the file header's static part is 512 bytes");
_Static_assert(offsetof(ttm_file_header, header_bytes) == 32, "layout v1");
_Static_assert(offsetof(ttm_file_header, pid) == 72, "layout v1");
_Static_assert(offsetof(ttm_file_header, process_name) == 112, "layout v1");
_Static_assert(offsetof(ttm_file_header, check) == 504, "layout v1");
_Static_assert(sizeof(ttm_block_header) == 8 * TTM_STATIC_WORDS, "the block header's static part is 512 bytes");
_Static_assert(offsetof(ttm_block_header, sections) == 128, "layout v1");
_Static_assert(offsetof(ttm_block_header, check) == 504, "layout v1");
_Static_assert(sizeof(ttm_section) == 24 && sizeof(ttm_block_control) == 64 && sizeof(ttm_file_control) == 64, "layout v1");

static const uint8_t TTM_MAGIC[8] = {0x89, 'T', 'T', 'M', 'E', 'M', 0x0D, 0x0A};

/* Key of word i: splitmix64 of its index. A multilinear sum with odd 64-bit keys: independent multiplications, so that it costs
 * about a cycle a word; its high half changes for any change of a word with probability 1 - 2^-32. */
static inline uint64_t ttm_key(uint64_t index) {
    uint64_t z = (index + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (z ^ (z >> 31)) | 1u;
}

static inline uint64_t ttm_fold(uint64_t sum) {
    sum ^= sum >> 32;
    sum *= 0xD6E8FEB86659FD93u;
    return sum ^ (sum >> 32);
}

/* Checksum of a header: 64 bits over `count` words. */
static inline uint64_t ttm_check(const uint64_t *words, size_t count) {
    uint64_t sum = count;
    for (size_t i = 0; i < count; i++) sum += (words[i] + i) * ttm_key(i);
    return ttm_fold(sum);
}

/* Keys of a record's words, filled once; records are at most this long. */
enum { TTM_KEYS = 544 };

/* Tag of a record: its version in the high half, 32 bits of checksum over its words, its place and the version below. */
static inline uint64_t ttm_tag(const uint64_t *keys, const uint64_t *words, size_t count, uint64_t place, uint32_t version) {
    uint64_t sum = (place + 1) * 0x9E3779B97F4A7C15u + version * 0xC2B2AE3D27D4EB4Fu;
    /* The products do not wait for each other once the loop's own counting is out of the way. */
#pragma GCC unroll 8
    for (size_t i = 0; i < count; i++) sum += (words[i] + i) * keys[i];
    return (uint64_t)version << 32 | (uint32_t)ttm_fold(sum);
}

#endif
