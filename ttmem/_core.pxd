"""C interface of the interval engine; `_core.pyx` says what holds at all times.

None of the C functions takes a lock: whoever calls them serialises the calls on one Intervals.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "_cover.h" nogil:
    ctypedef struct ttm_heap:
        uint64_t bytes              # handed out by malloc and not yet returned
        int64_t allowed             # allocations until one fails; below 0: no limit
    ctypedef struct ttm_pool:
        ttm_heap heap
        uint32_t pages              # entries at the top of each cover
        uint64_t work               # nodes and classes touched
    ctypedef struct ttm_cover:
        pass


cdef struct CbRange:                # one local or global CB on a set of cores
    uint32_t begin                  # first byte, inclusive
    uint32_t end                    # one past the last byte; begin == end covers the cores for dispatch only
    const uint64_t *mask            # cores: bit y * width + x, `mask_words` words


cdef struct CoreSet:                # an interned set of cores; its mask and its slots follow the struct
    CoreSet *next                   # in its hash bucket
    uint64_t tag0                   # random, summed up in the signature of the classes inside
    uint64_t tag1
    uint64_t epoch                  # Intervals.epoch at which slots was listed; 0: never
    uint32_t refs                   # footprints that hold it
    uint32_t live                   # simple footprints with bytes that are in the covers
    uint32_t num_cores
    uint32_t num_slots              # classes inside, while live


cdef struct Footprint:              # an interned list of CBs; its tail follows the struct
    uint32_t num_cores              # cores touched by any of its ranges, zero-length ones included
    uint32_t bytes_per_core         # largest sum of range lengths on one core
    uint32_t region_end             # largest end of a non-empty range, 0 if none
    uint32_t live                   # programs that have it, and live composites that are made of it
    uint64_t logical                # sum of length x cores, bytes
    uint64_t resident               # sum over cores of the bytes covered
    Footprint *next                 # in its hash bucket
    CoreSet *cores                  # simple: its cores; else NULL
    uint32_t refs                   # holders
    uint32_t shape                  # simple: number of ranges; composite: number of parts; upper 2 bits: kind


cdef struct CoreClass:              # cores with the same history; its members' mask follows the struct
    uint64_t logical                # bytes on each member
    uint32_t physical               # bytes covered on each member
    uint32_t peak                   # the highest physical since the class was formed, or since reset_peaks()
    uint64_t sign0                  # sum of tag0 of the live core sets that hold the members
    uint64_t sign1
    uint32_t num_cores
    uint32_t first_core
    ttm_cover cover


cdef struct Table:                  # buckets of an intrusive hash table
    void **buckets
    uint32_t size                   # a power of two
    uint32_t count


cdef enum:
    COMPOSITE = 0x40000000      # kind of a footprint, in its shape; a simple one has no bit
    PEAK = 0x80000000
    SIZE = 0x3FFFFFFF           # number of ranges or parts, in the same word
    FEW = 64            # ranges that are interned without touching the allocator
    AHEAD = 8           # ranges whose cover lines are asked for before they are needed
    MIN_BUCKETS = 64    # of an empty hash table


cdef inline uint64_t *tail(const Footprint *footprint) noexcept nogil:
    """Simple: ranges, begin | end << 32. Else: parts of two words, the mask, the number of atoms, the atoms."""
    return <uint64_t *>(footprint + 1)


cdef inline uint64_t *set_mask(const CoreSet *cores) noexcept nogil:
    return <uint64_t *>(cores + 1)


cdef inline uint16_t *set_slots(const CoreSet *cores, uint32_t words) noexcept nogil:
    return <uint16_t *>(set_mask(cores) + words)


cdef inline uint64_t *members(const CoreClass *group) noexcept nogil:
    return <uint64_t *>(group + 1)


cdef inline uint32_t size_of(const Footprint *footprint) noexcept nogil:
    return footprint.shape & SIZE


cdef inline bint has_core(const uint64_t *mask, uint32_t core) noexcept nogil:
    return (mask[core >> 6] >> (core & 63)) & 1


cdef inline uint64_t *profile(const Footprint *footprint) noexcept nogil:
    """The mask, the number of atoms and the atoms of a composite or peak."""
    return tail(footprint) + 2 * size_of(footprint)


cdef inline const uint64_t *mask_of(const Footprint *footprint) noexcept nogil:
    return set_mask(footprint.cores) if footprint.cores != NULL else profile(footprint)


@cython.final
cdef class Intervals:               # one plane of one device
    cdef readonly uint32_t width, height, num_cores, mask_words
    cdef readonly uint32_t limit    # no range ends beyond it, bytes
    cdef uint64_t physical, logical, resident   # device totals, bytes
    cdef uint16_t *class_of_core    # [num_cores]
    cdef uint16_t *changed          # class slots whose figures changed since clear_changes(), no duplicates
    cdef uint32_t changed_count
    cdef uint8_t *change_flags      # per class slot: 0 same, 1 figures, 2 merged ranges (and figures)
    cdef bint map_changed           # class_of_core changed
    cdef bint peaks_changed         # the floors of fill_core_peaks() changed
    cdef uint32_t class_high        # all slots in use are below
    # the rest is the engine's own
    cdef uint32_t *core_peaks       # [num_cores]; what a core reached in classes that are no more
    cdef CoreClass **classes        # [num_cores]; NULL: free slot
    cdef uint32_t class_count
    cdef uint64_t epoch             # counts splits and joins
    cdef uint32_t live_sets         # core sets with live > 0
    cdef uint32_t drops             # core sets that ceased to be live since the last join
    cdef ttm_pool pool
    cdef Table footprints, core_sets
    cdef uint64_t seed, random, hash_mask
    cdef Footprint **layers         # [num_cores + 1]; what the last dispatches left, in no order
    cdef uint64_t *visible          # a mask per layer: the cores it still holds
    cdef uint32_t layer_count
    cdef Footprint *last            # dispatched last, so that it holds all its cores; NULL: none
    cdef uint64_t *full_mask
    cdef uint64_t *hidden           # a mask to work in
    cdef uint16_t *join_table       # [join_size]
    cdef uint32_t join_size
    cdef uint32_t unverified        # operations since footprints were last verified; debug builds only

    cdef void clear_changes(self) noexcept nogil
    cdef Footprint *intern(self, const CbRange *ranges, size_t count) noexcept nogil
    cdef void retain(self, Footprint *footprint) noexcept nogil
    cdef void release(self, Footprint *footprint) noexcept nogil
    cdef int add(self, Footprint *footprint) noexcept nogil
    cdef void remove(self, Footprint *footprint) noexcept nogil
    cdef inline void dispatch(self, Footprint *footprint) noexcept nogil:
        # Here, so that the same program again is a comparison in the caller and not a call.
        if footprint != self.last:
            self.dispatch_other(footprint)

    cdef void dispatch_other(self, Footprint *footprint) noexcept nogil
    cdef Footprint *peak_of(self, Footprint **items, size_t count) noexcept nogil
    cdef void fill_resident(self, uint32_t *out) noexcept nogil
    cdef inline uint64_t class_physical(self, uint32_t slot) noexcept nogil:
        return self.classes[slot].physical if self.classes[slot] != NULL else 0

    cdef inline uint64_t class_logical(self, uint32_t slot) noexcept nogil:
        return self.classes[slot].logical if self.classes[slot] != NULL else 0

    cdef uint32_t class_region_end(self, uint32_t slot) noexcept nogil
    cdef uint32_t class_lowest(self, uint32_t slot) noexcept nogil
    cdef uint32_t class_ranges(self, uint32_t slot, uint64_t *out, uint32_t maximum) noexcept nogil
    cdef uint64_t memory_bytes(self) noexcept nogil
    # The highest physical bytes of a core since the beginning are the larger of its floor and the peak of its class.
    cdef inline uint64_t class_peak(self, uint32_t slot) noexcept nogil:
        return self.classes[slot].peak if self.classes[slot] != NULL else 0

    cdef void fill_core_peaks(self, uint32_t *out) noexcept nogil
    cdef void reset_peaks(self) noexcept nogil

    cdef CoreSet *intern_cores(self, const uint64_t *mask) noexcept nogil
    cdef void let_go(self, Footprint *footprint) noexcept nogil
    cdef void release_cores(self, CoreSet *cores) noexcept nogil
    cdef Footprint *intern_simple(self, CoreSet *cores, uint64_t *ranges, size_t count) noexcept nogil
    cdef Footprint *intern_composite(self, uint64_t *parts, size_t count) noexcept nogil
    cdef size_t cut_atoms(self, const uint64_t *parts, size_t count, uint64_t *atoms) noexcept nogil
    cdef Footprint *enter(self, Footprint *footprint, uint64_t hash) noexcept nogil
    cdef void resize_core_sets(self, uint32_t size) noexcept nogil
    cdef void resize_footprints(self, uint32_t size) noexcept nogil
    cdef Footprint *profiled(self, uint32_t shape, const uint64_t *parts, const uint64_t *atoms,
                             size_t atom_count) noexcept nogil
    cdef void mark(self, uint32_t slot, uint8_t flag) noexcept nogil
    cdef int split(self, CoreSet *cores) noexcept nogil
    cdef void join(self) noexcept nogil
    cdef void lay_down_peak(self, uint32_t slot, uint32_t left) noexcept nogil
    cdef void list_slots(self, CoreSet *cores) noexcept nogil
    cdef int start(self, Footprint *footprint) noexcept nogil
    cdef void stop(self, Footprint *footprint) noexcept nogil
    cdef void leave(self, CoreSet *cores) noexcept nogil
    cdef void account(self, CoreSet *cores, uint64_t bytes_each) noexcept nogil
    cdef void assign(self, CoreClass *group, uint32_t slot) noexcept nogil
    cdef void fetch(self, Footprint *footprint, uint32_t live) noexcept nogil
    cdef void fetch_simple(self, const Footprint *footprint, bint leaves) noexcept nogil
    cdef void withdraw(self, Footprint *footprint, uint32_t slots_done, uint32_t ranges_done) noexcept nogil
    cdef uint64_t bytes_shown(self, uint32_t layer) noexcept nogil
    cdef void paint(self, const Footprint *footprint, const uint64_t *where, uint32_t *out) noexcept nogil
