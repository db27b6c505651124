"""The interval engine: which bytes of each core's L1 are covered by the CBs of the programs of one device.

Programs are added and removed as footprints; physical (union), logical (sum) and resident bytes of the device and of
each core are current after every call, and no call walks over the programs.

How it is built:
  - A footprint is interned. A *simple* one is one core set with sorted ranges that neither overlap nor touch and
    whose logical bytes are their sum; anything else is a *composite* of simple ones, each with its logical bytes per
    core. A *peak* is the profile of a trace and can only be dispatched.
  - Cores that are in the same live core sets form a class and share one cover tree (`_cover.h`).
  - What the last dispatches left is a list of layers, each with the cores it still holds.

Invariants, true between any two calls; debug builds verify them after each (`_invariants.pxd`):
  1. Equal lists of CBs have one Footprint: parts are in the order of their addresses, ranges ascending.
  2. `live` of a simple footprint = programs that have it + live composites made of it. Its ranges are once in the
     cover of every class inside its core set exactly while live > 0, however many programs have it.
  3. `live` of a core set = simple footprints with bytes, live > 0, on it. While that is above 0, each class lies
     inside it or outside it. `slots` lists those inside if `epoch` is the engine's.
  4. The classes partition the cores; the signature of a class is the sum of the tags of the live core sets around it.
     So classes with equal signatures have equal covers and equal logical bytes, and may be joined. They are joined
     once as many core sets were dropped as there are classes, and always when none is live.
  5. A class's physical is what its cover counts; physical of the device = sum over classes of physical x cores;
     logical likewise, and also the sum over programs of their footprint's logical.
  6. Layers hold disjoint, non-empty sets of cores; resident = the sum over layers of their bytes on the cores they
     hold.
  7. `refs` counts holders: callers, programs, layers, composites (of parts), simple footprints (of core sets). At 0
     it is freed.
  8. The highest physical bytes that a core ever had after a call are the larger of its floor in `core_peaks` and its
     class's peak, which is at least the class's physical. A split copies the peak; classes that are joined lay theirs
     down in their cores' floors, unless they are equal, and the joined one starts at its physical.
  9. A call that fails leaves every figure as it was.
"""

from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from ttmem._invariants cimport verify

from ttmem.errors import InvalidIntervalError


cdef extern from "_store.h" nogil:
    bint TTM_DEBUG_BUILD
    ctypedef struct ttm_item:
        void *cores
        uint64_t range
    void *ttm_alloc(ttm_heap *heap, size_t size)
    void *ttm_alloc_zeroed(ttm_heap *heap, size_t size)
    void ttm_free(ttm_heap *heap, void *block)
    uint64_t ttm_hash(const uint64_t *words, size_t count, uint64_t seed)
    uint64_t ttm_random(uint64_t *state)
    uint64_t ttm_entropy(const void *salt)
    uint32_t ttm_popcount(const uint64_t *mask, size_t words)
    uint32_t ttm_popcount_and(const uint64_t *a, const uint64_t *b, size_t words)
    uint32_t ttm_lowest_bit(uint64_t word)
    void ttm_sort_ranges(uint64_t *ranges, size_t count)
    size_t ttm_merge_ranges(uint64_t *ranges, size_t count, uint64_t *covered)
    void ttm_sort_pairs(uint64_t *words, size_t count)
    void ttm_sort_items(ttm_item *items, size_t count)


cdef extern from "_cover.h" nogil:
    int ttm_pool_reserve(ttm_pool *pool, uint32_t begin, uint32_t end)
    void ttm_pool_trim(ttm_pool *pool)
    int ttm_cover_init(ttm_pool *pool, ttm_cover *cover)
    int ttm_cover_copy(ttm_pool *pool, ttm_cover *copy, const ttm_cover *source)
    void ttm_cover_prefetch_page(const ttm_cover *cover, uint32_t at)
    void ttm_cover_prefetch_leaf(const ttm_cover *cover, uint32_t at)
    void ttm_cover_free(ttm_pool *pool, ttm_cover *cover)
    int64_t ttm_cover_update(ttm_pool *pool, ttm_cover *cover, uint32_t begin, uint32_t end, int step)
    uint32_t ttm_cover_ranges(const ttm_pool *pool, const ttm_cover *cover, uint64_t *out, uint32_t maximum)
    uint32_t ttm_cover_end(const ttm_pool *pool, const ttm_cover *cover)
    uint32_t ttm_cover_lowest(const ttm_pool *pool, const ttm_cover *cover)


cdef uint64_t bytes_on(const Footprint *footprint, const uint64_t *mask, uint32_t words) noexcept nogil:
    """Resident bytes of a footprint on those of its cores that are in `mask`."""
    cdef const uint64_t *atom
    cdef uint64_t total = 0, _i, atoms
    if footprint.cores != NULL:
        return <uint64_t>footprint.bytes_per_core * ttm_popcount_and(mask, set_mask(footprint.cores), words)
    atom = profile(footprint) + words
    atoms = atom[0]
    atom += 1
    for _i in range(atoms):
        total += atom[0] * ttm_popcount_and(mask, atom + 1, words)
        atom += 1 + words
    return total


cdef inline bint covers_any(const uint64_t *a, const uint64_t *b, uint32_t words) noexcept nogil:
    cdef uint32_t i
    for i in range(words):
        if a[i] & b[i]:
            return True
    return False


cdef int table_resize(ttm_heap *heap, Table *table, uint32_t size) noexcept nogil:
    """Give a table empty buckets; the caller has put its entries aside."""
    cdef void **buckets = <void **>ttm_alloc_zeroed(heap, size * sizeof(void *))
    if buckets == NULL:
        return -1
    ttm_free(heap, table.buckets)
    table.buckets = buckets
    table.size = size
    return 0


cdef uint64_t footprint_hash(const Footprint *footprint, uint64_t seed) noexcept nogil:
    cdef uint32_t words = size_of(footprint) * (2 if footprint.shape & COMPOSITE else 1)
    return ttm_hash(tail(footprint), words, seed ^ <uint64_t><uintptr_t>footprint.cores)


cdef class Intervals:
    """The intervals of one plane of one device, for callers in C; not thread-safe.

    Args:
        width: cores in x.
        height: cores in y; width x height is 1 to 1024.
        limit: bytes of L1; no range ends beyond it.
        hash_bits: fewer bits force hash collisions, for tests.

    Raises:
        InvalidIntervalError: the grid or the limit is out of bounds.
        MemoryError: there is no memory.
    """

    def __cinit__(self, width, height, *, limit=1572864, hash_bits=64):
        cdef uint32_t core
        if not 0 < width * height <= 1024 or width < 0:
            raise InvalidIntervalError(f"the grid must have 1 to 1024 cores, got {width} x {height}")
        if not 0 < limit <= UINT32_MAX:
            raise InvalidIntervalError(f"limit must be 1 to {UINT32_MAX} bytes, got {limit}")
        self.width, self.height, self.limit = width, height, limit
        self.num_cores = self.width * self.height
        self.mask_words = (self.num_cores + 63) // 64
        self.pool.heap.allowed = -1
        self.pool.pages = (<uint64_t>limit + 0xffff) >> 16
        self.seed = ttm_entropy(<void *>self)
        self.random = ttm_entropy(&self.seed) ^ self.seed
        self.hash_mask = <uint64_t>-1 if hash_bits >= 64 else (<uint64_t>1 << hash_bits) - 1
        self.join_size = 4
        while self.join_size < 2 * self.num_cores:
            self.join_size *= 2
        self.epoch = 1
        cdef ttm_heap *heap = &self.pool.heap
        cdef size_t mask_bytes = self.mask_words * sizeof(uint64_t)
        self.class_of_core = <uint16_t *>ttm_alloc_zeroed(heap, self.num_cores * sizeof(uint16_t))
        self.changed = <uint16_t *>ttm_alloc_zeroed(heap, self.num_cores * sizeof(uint16_t))
        self.change_flags = <uint8_t *>ttm_alloc_zeroed(heap, self.num_cores)
        self.core_peaks = <uint32_t *>ttm_alloc_zeroed(heap, self.num_cores * sizeof(uint32_t))
        self.classes = <CoreClass **>ttm_alloc_zeroed(heap, self.num_cores * sizeof(CoreClass *))
        self.layers = <Footprint **>ttm_alloc_zeroed(heap, (self.num_cores + 1) * sizeof(Footprint *))
        self.visible = <uint64_t *>ttm_alloc_zeroed(heap, (self.num_cores + 1) * mask_bytes)
        self.full_mask = <uint64_t *>ttm_alloc_zeroed(heap, mask_bytes)
        self.hidden = <uint64_t *>ttm_alloc_zeroed(heap, mask_bytes)
        self.join_table = <uint16_t *>ttm_alloc_zeroed(heap, self.join_size * sizeof(uint16_t))
        if (self.class_of_core == NULL or self.changed == NULL or self.change_flags == NULL or self.core_peaks == NULL
                or self.classes == NULL or self.layers == NULL or self.visible == NULL or self.full_mask == NULL
                or self.hidden == NULL or self.join_table == NULL or table_resize(heap, &self.footprints, MIN_BUCKETS) < 0
                or table_resize(heap, &self.core_sets, MIN_BUCKETS) < 0):
            raise MemoryError()
        for core in range(self.num_cores):
            self.full_mask[core >> 6] |= <uint64_t>1 << (core & 63)
        cdef CoreClass *whole = <CoreClass *>ttm_alloc_zeroed(heap, sizeof(CoreClass) + mask_bytes)
        if whole == NULL:
            raise MemoryError()
        self.classes[0] = whole
        self.class_count = self.class_high = 1
        whole.num_cores = self.num_cores
        memcpy(members(whole), self.full_mask, mask_bytes)
        if ttm_cover_init(&self.pool, &whole.cover) < 0:
            raise MemoryError()

    def __dealloc__(self):
        cdef ttm_heap *heap = &self.pool.heap
        cdef uint32_t i
        cdef void *entry
        cdef void *following
        for i in range(self.layer_count):
            # Peaks stand in no table; whoever else held one has let go of it, since holders keep this object.
            if self.layers[i].shape & PEAK:
                self.let_go(self.layers[i])
        if self.classes != NULL:
            for i in range(self.num_cores):
                if self.classes[i] != NULL:
                    ttm_cover_free(&self.pool, &self.classes[i].cover)
                    ttm_free(heap, self.classes[i])
        for i in range(self.footprints.size):
            entry = self.footprints.buckets[i]
            while entry != NULL:
                following = (<Footprint *>entry).next
                ttm_free(heap, entry)
                entry = following
        for i in range(self.core_sets.size):
            entry = self.core_sets.buckets[i]
            while entry != NULL:
                following = (<CoreSet *>entry).next
                ttm_free(heap, entry)
                entry = following
        ttm_pool_trim(&self.pool)
        ttm_free(heap, self.class_of_core)
        ttm_free(heap, self.changed)
        ttm_free(heap, self.change_flags)
        ttm_free(heap, self.core_peaks)
        ttm_free(heap, self.classes)
        ttm_free(heap, self.layers)
        ttm_free(heap, self.visible)
        ttm_free(heap, self.full_mask)
        ttm_free(heap, self.hidden)
        ttm_free(heap, self.join_table)
        ttm_free(heap, self.footprints.buckets)
        ttm_free(heap, self.core_sets.buckets)

    cdef void clear_changes(self) noexcept nogil:
        cdef uint32_t i
        for i in range(self.changed_count):
            self.change_flags[self.changed[i]] = 0
        self.changed_count = 0
        self.map_changed = False
        self.peaks_changed = False
        if TTM_DEBUG_BUILD:
            verify(self, b"clear_changes")

    cdef inline void mark(self, uint32_t slot, uint8_t flag) noexcept nogil:
        if self.change_flags[slot] == 0:
            self.changed[self.changed_count] = <uint16_t>slot
            self.changed_count += 1
        if self.change_flags[slot] < flag:
            self.change_flags[slot] = flag

    # Interning.

    cdef CoreSet *intern_cores(self, const uint64_t *mask) noexcept nogil:
        cdef uint32_t words = self.mask_words, num_cores
        cdef uint64_t hash = ttm_hash(mask, words, self.seed) & self.hash_mask
        cdef CoreSet *cores = <CoreSet *>self.core_sets.buckets[hash & (self.core_sets.size - 1)]
        while cores != NULL:
            if memcmp(set_mask(cores), mask, words * sizeof(uint64_t)) == 0:
                cores.refs += 1
                return cores
            cores = cores.next
        num_cores = ttm_popcount(mask, words)
        # No set lies around more classes than it has cores.
        cores = <CoreSet *>ttm_alloc(&self.pool.heap, sizeof(CoreSet) + words * sizeof(uint64_t)
                                     + num_cores * sizeof(uint16_t))
        if cores == NULL:
            return NULL
        memset(cores, 0, sizeof(CoreSet))
        memcpy(set_mask(cores), mask, words * sizeof(uint64_t))
        cores.num_cores = num_cores
        cores.tag0 = ttm_random(&self.random)
        cores.tag1 = ttm_random(&self.random)
        cores.refs = 1
        cores.next = <CoreSet *>self.core_sets.buckets[hash & (self.core_sets.size - 1)]
        self.core_sets.buckets[hash & (self.core_sets.size - 1)] = cores
        self.core_sets.count += 1
        if self.core_sets.count > self.core_sets.size:
            self.resize_core_sets(self.core_sets.size * 2)
        return cores

    cdef void resize_core_sets(self, uint32_t size) noexcept nogil:
        cdef void **old = self.core_sets.buckets
        cdef uint32_t old_size = self.core_sets.size, i
        cdef uint64_t bucket
        cdef CoreSet *entry
        cdef CoreSet *following
        self.core_sets.buckets = NULL
        if table_resize(&self.pool.heap, &self.core_sets, size) < 0:
            self.core_sets.buckets = old
            return
        for i in range(old_size):
            entry = <CoreSet *>old[i]
            while entry != NULL:
                following = entry.next
                bucket = ttm_hash(set_mask(entry), self.mask_words, self.seed) & self.hash_mask & (size - 1)
                entry.next = <CoreSet *>self.core_sets.buckets[bucket]
                self.core_sets.buckets[bucket] = entry
                entry = following
        ttm_free(&self.pool.heap, old)

    cdef void resize_footprints(self, uint32_t size) noexcept nogil:
        cdef void **old = self.footprints.buckets
        cdef uint32_t old_size = self.footprints.size, i
        cdef uint64_t bucket
        cdef Footprint *entry
        cdef Footprint *following
        self.footprints.buckets = NULL
        if table_resize(&self.pool.heap, &self.footprints, size) < 0:
            self.footprints.buckets = old
            return
        for i in range(old_size):
            entry = <Footprint *>old[i]
            while entry != NULL:
                following = entry.next
                bucket = footprint_hash(entry, self.seed) & self.hash_mask & (size - 1)
                entry.next = <Footprint *>self.footprints.buckets[bucket]
                self.footprints.buckets[bucket] = entry
                entry = following
        ttm_free(&self.pool.heap, old)

    cdef void release_cores(self, CoreSet *cores) noexcept nogil:
        cdef void **link
        cores.refs -= 1
        if cores.refs:
            return
        link = &self.core_sets.buckets[ttm_hash(set_mask(cores), self.mask_words, self.seed) & self.hash_mask
                                       & (self.core_sets.size - 1)]
        while link[0] != <void *>cores:
            link = <void **>&(<CoreSet *>link[0]).next
        link[0] = cores.next
        ttm_free(&self.pool.heap, cores)
        self.core_sets.count -= 1
        if self.core_sets.size > MIN_BUCKETS and self.core_sets.count * 8 < self.core_sets.size:
            self.resize_core_sets(self.core_sets.size // 2)

    cdef Footprint *enter(self, Footprint *footprint, uint64_t hash) noexcept nogil:
        """Put a new footprint, which has one reference, in the table."""
        cdef void **bucket = &self.footprints.buckets[hash & self.hash_mask & (self.footprints.size - 1)]
        footprint.refs = 1
        footprint.live = 0
        footprint.next = <Footprint *>bucket[0]
        bucket[0] = footprint
        self.footprints.count += 1
        if self.footprints.count > self.footprints.size:
            self.resize_footprints(self.footprints.size * 2)
        return footprint

    cdef Footprint *intern_simple(self, CoreSet *cores, uint64_t *ranges, size_t count) noexcept nogil:
        """`ranges` are sorted and merged; the result has its own reference to `cores`."""
        cdef uint64_t hash = ttm_hash(ranges, count, self.seed ^ <uint64_t><uintptr_t>cores)
        cdef Footprint *footprint
        cdef size_t i
        footprint = <Footprint *>self.footprints.buckets[hash & self.hash_mask & (self.footprints.size - 1)]
        while footprint != NULL:
            if (footprint.cores == cores and footprint.shape == count
                    and memcmp(tail(footprint), ranges, count * sizeof(uint64_t)) == 0):
                footprint.refs += 1
                return footprint
            footprint = footprint.next
        footprint = <Footprint *>ttm_alloc(&self.pool.heap, sizeof(Footprint) + count * sizeof(uint64_t))
        if footprint == NULL:
            return NULL
        memcpy(tail(footprint), ranges, count * sizeof(uint64_t))
        footprint.num_cores = cores.num_cores
        footprint.bytes_per_core = 0
        for i in range(count):
            footprint.bytes_per_core += <uint32_t>(ranges[i] >> 32) - <uint32_t>ranges[i]
        footprint.region_end = <uint32_t>(ranges[count - 1] >> 32) if count else 0
        footprint.logical = footprint.resident = <uint64_t>footprint.bytes_per_core * cores.num_cores
        footprint.shape = <uint32_t>count
        footprint.cores = cores
        cores.refs += 1
        return self.enter(footprint, hash)

    cdef Footprint *profiled(self, uint32_t shape, const uint64_t *parts, const uint64_t *atoms,
                             size_t atom_count) noexcept nogil:
        """A footprint with parts and atoms; its figures that follow from the atoms are set."""
        cdef uint32_t words = self.mask_words, i
        cdef size_t part_words = 2 * (shape & SIZE), atom_words = 1 + words, a
        cdef Footprint *footprint = <Footprint *>ttm_alloc(
            &self.pool.heap, sizeof(Footprint) + (part_words + words + 1 + atom_count * atom_words) * sizeof(uint64_t))
        cdef uint64_t *mask
        if footprint == NULL:
            return NULL
        memset(footprint, 0, sizeof(Footprint))
        footprint.shape = shape
        footprint.refs = 1
        if part_words:
            memcpy(tail(footprint), parts, part_words * sizeof(uint64_t))
        mask = profile(footprint)
        memset(mask, 0, words * sizeof(uint64_t))
        mask[words] = atom_count
        if atom_count:
            memcpy(mask + words + 1, atoms, atom_count * atom_words * sizeof(uint64_t))
        for a in range(atom_count):
            for i in range(words):
                mask[i] |= atoms[a * atom_words + 1 + i]
            footprint.resident += atoms[a * atom_words] * ttm_popcount(atoms + a * atom_words + 1, words)
        footprint.num_cores = ttm_popcount(mask, words)
        return footprint

    cdef Footprint *intern_composite(self, uint64_t *parts, size_t count) noexcept nogil:
        """`parts` are pairs (address of a simple footprint, logical bytes per core), ascending; takes their references.

        NULL: out of memory; the references are released then too.
        """
        cdef uint32_t words = self.mask_words, core, per_core = 0, most = 0
        cdef size_t part, a, atom_count = 0, atom_words = 1 + words, n, rooms = 0, ranges_count = 0
        cdef uint64_t hash = ttm_hash(parts, 2 * count, self.seed)
        cdef uint64_t covered
        cdef uint64_t *atoms = NULL
        cdef uint64_t *ranges = NULL
        cdef uint64_t *mask
        cdef Footprint *simple
        cdef Footprint *footprint
        footprint = <Footprint *>self.footprints.buckets[hash & self.hash_mask & (self.footprints.size - 1)]
        while footprint != NULL:
            if (footprint.shape == (COMPOSITE | <uint32_t>count)
                    and memcmp(tail(footprint), parts, 2 * count * sizeof(uint64_t)) == 0):
                footprint.refs += 1
                break
            footprint = footprint.next
        if footprint == NULL:
            for part in range(count):
                simple = <Footprint *><uintptr_t>parts[2 * part]
                rooms += simple.num_cores
                ranges_count += size_of(simple)
            # Atoms are disjoint and not empty: no more of them than cores.
            rooms = min(rooms, self.num_cores)
            atoms = <uint64_t *>malloc((rooms + 1) * atom_words * sizeof(uint64_t))
            ranges = <uint64_t *>malloc((ranges_count + 1) * sizeof(uint64_t))
            if atoms != NULL and ranges != NULL and self.pool.heap.allowed != 0:
                atom_count = self.cut_atoms(parts, count, atoms)
                for a in range(atom_count):
                    mask = atoms + a * atom_words + 1
                    core = 0
                    while mask[core >> 6] == 0:
                        core += 64
                    core += ttm_lowest_bit(mask[core >> 6])
                    n = 0
                    per_core = 0
                    for part in range(count):
                        simple = <Footprint *><uintptr_t>parts[2 * part]
                        if has_core(set_mask(simple.cores), core):
                            memcpy(ranges + n, tail(simple), size_of(simple) * sizeof(uint64_t))
                            n += size_of(simple)
                            per_core += <uint32_t>parts[2 * part + 1]
                    ttm_sort_ranges(ranges, n)
                    ttm_merge_ranges(ranges, n, &covered)
                    (mask - 1)[0] = covered
                    most = max(most, per_core)
                footprint = self.profiled(COMPOSITE | <uint32_t>count, parts, atoms, atom_count)
            free(atoms)
            free(ranges)
            if footprint != NULL:
                footprint.bytes_per_core = most
                for part in range(count):
                    simple = <Footprint *><uintptr_t>parts[2 * part]
                    simple.refs += 1
                    footprint.logical += parts[2 * part + 1] * simple.num_cores
                    footprint.region_end = max(footprint.region_end, simple.region_end)
                self.enter(footprint, hash)
        for part in range(count):
            self.let_go(<Footprint *><uintptr_t>parts[2 * part])
        return footprint

    cdef size_t cut_atoms(self, const uint64_t *parts, size_t count, uint64_t *atoms) noexcept nogil:
        """Write the largest disjoint core sets that no part cuts, each after a free word; return how many."""
        cdef uint32_t words = self.mask_words, i
        cdef size_t part, a, known, atom_words = 1 + words, atom_count = 0
        cdef const uint64_t *cut
        cdef uint64_t *mask
        cdef uint64_t *other
        cdef uint64_t rest
        cdef bint outside
        for part in range(count):
            # What of this part no atom has yet is put behind the atoms; each atom that the part cuts is halved.
            cut = set_mask((<Footprint *><uintptr_t>parts[2 * part]).cores)
            memcpy(self.hidden, cut, words * sizeof(uint64_t))
            known = atom_count
            for a in range(known):
                mask = atoms + a * atom_words + 1
                if not covers_any(mask, self.hidden, words):
                    continue
                outside = False
                for i in range(words):
                    outside |= (mask[i] & ~cut[i]) != 0
                if outside:
                    other = atoms + atom_count * atom_words + 1
                    for i in range(words):
                        other[i] = mask[i] & ~cut[i]
                    atom_count += 1
                for i in range(words):
                    self.hidden[i] &= ~mask[i]
                    mask[i] &= cut[i]
            rest = 0
            for i in range(words):
                rest |= self.hidden[i]
            if rest:
                memcpy(atoms + atom_count * atom_words + 1, self.hidden, words * sizeof(uint64_t))
                atom_count += 1
        return atom_count

    cdef Footprint *intern(self, const CbRange *ranges, size_t count) noexcept nogil:
        cdef ttm_item few[FEW]
        cdef uint64_t few_words[3 * FEW]
        cdef ttm_item *items = few
        cdef uint64_t *merged = few_words
        cdef uint64_t *parts
        cdef CoreSet *cores = NULL
        cdef Footprint *footprint = NULL
        cdef const uint64_t *mask = NULL
        cdef uint64_t logical, covered, spare
        cdef uint32_t i
        cdef size_t at, n = 0, first, kept, part_count = 0
        cdef bint good = True
        if count > <size_t>SIZE // 2:
            return NULL
        if count > FEW:
            items = <ttm_item *>malloc(count * sizeof(ttm_item))
            merged = <uint64_t *>malloc(3 * count * sizeof(uint64_t))
            good = items != NULL and merged != NULL
        parts = merged + max(count, <size_t>FEW)
        at = 0
        while good and at < count:
            if ranges[at].begin > ranges[at].end or ranges[at].end > self.limit:
                good = False
                break
            if ranges[at].mask != mask:
                mask = ranges[at].mask
                spare = 0
                for i in range(self.mask_words):
                    spare |= mask[i]
                    good = good and not mask[i] & ~self.full_mask[i]
                if not good:
                    break
                cores = NULL
                if spare:
                    cores = self.intern_cores(mask)
                    if cores == NULL:
                        good = False
                        break
            elif cores != NULL:
                cores.refs += 1
            if cores != NULL:
                items[n].cores = cores
                items[n].range = ranges[at].begin | <uint64_t>ranges[at].end << 32
                n += 1
            at += 1
        if good:
            ttm_sort_items(items, n)
            first = 0
            while first < n:
                cores = <CoreSet *>items[first].cores
                logical = 0
                kept = 0
                at = first
                while at < n and items[at].cores == <void *>cores:
                    if <uint32_t>items[at].range != <uint32_t>(items[at].range >> 32):
                        merged[kept] = items[at].range
                        logical += <uint32_t>(merged[kept] >> 32) - <uint32_t>merged[kept]
                        kept += 1
                    at += 1
                kept = ttm_merge_ranges(merged, kept, &covered)
                footprint = self.intern_simple(cores, merged, kept)
                if footprint == NULL or logical > UINT32_MAX:
                    good = False
                    if footprint != NULL:
                        self.let_go(footprint)
                    break
                if first == 0 and at == n and logical == covered:
                    break
                parts[2 * part_count] = <uint64_t><uintptr_t>footprint
                parts[2 * part_count + 1] = logical
                part_count += 1
                first = at
            if good and (part_count or n == 0):
                ttm_sort_pairs(parts, part_count)
                footprint = self.intern_composite(parts, part_count)
            elif not good:
                for at in range(part_count):
                    self.let_go(<Footprint *><uintptr_t>parts[2 * at])
        for at in range(n):
            self.release_cores(<CoreSet *>items[at].cores)
        if items != few:
            free(items)
            free(merged)
        if TTM_DEBUG_BUILD:
            verify(self, b"intern")
        return footprint if good else NULL

    cdef void retain(self, Footprint *footprint) noexcept nogil:
        footprint.refs += 1
        if TTM_DEBUG_BUILD:
            verify(self, b"retain")

    cdef void release(self, Footprint *footprint) noexcept nogil:
        self.let_go(footprint)
        if TTM_DEBUG_BUILD:
            verify(self, b"release")

    cdef void let_go(self, Footprint *footprint) noexcept nogil:
        cdef void **link
        cdef size_t part
        footprint.refs -= 1
        if footprint.refs:
            return
        if not footprint.shape & PEAK:
            link = &self.footprints.buckets[footprint_hash(footprint, self.seed) & self.hash_mask
                                            & (self.footprints.size - 1)]
            while link[0] != <void *>footprint:
                link = <void **>&(<Footprint *>link[0]).next
            link[0] = footprint.next
            self.footprints.count -= 1
        if footprint.cores != NULL:
            self.release_cores(footprint.cores)
        else:
            for part in range(size_of(footprint)):
                self.let_go(<Footprint *><uintptr_t>tail(footprint)[2 * part])
        ttm_free(&self.pool.heap, footprint)
        if self.footprints.size > MIN_BUCKETS and self.footprints.count * 8 < self.footprints.size:
            self.resize_footprints(self.footprints.size // 2)

    # Classes.

    cdef int split(self, CoreSet *cores) noexcept nogil:
        """Cut every class that `cores` cuts. Returns 0, or -1 out of memory: join() then puts the classes together."""
        cdef uint32_t words = self.mask_words, slot, free_slot, common, i, high = self.class_high
        cdef const uint64_t *cut = set_mask(cores)
        cdef CoreClass *group
        cdef CoreClass *part
        if cores.num_cores == self.num_cores:
            return 0
        for slot in range(high):
            group = self.classes[slot]
            if group == NULL:
                continue
            self.pool.work += 1
            common = ttm_popcount_and(cut, members(group), words)
            if common == 0 or common == group.num_cores:
                continue
            part = <CoreClass *>ttm_alloc_zeroed(&self.pool.heap, sizeof(CoreClass) + words * sizeof(uint64_t))
            if part == NULL:
                return -1
            part.physical, part.logical, part.peak = group.physical, group.logical, group.peak
            part.sign0, part.sign1 = group.sign0, group.sign1
            if ttm_cover_copy(&self.pool, &part.cover, &group.cover) < 0:
                ttm_free(&self.pool.heap, part)
                return -1
            free_slot = 0
            while self.classes[free_slot] != NULL:
                free_slot += 1
            self.classes[free_slot] = part
            self.class_count += 1
            self.class_high = max(self.class_high, free_slot + 1)
            for i in range(words):
                members(part)[i] = members(group)[i] & cut[i]
                members(group)[i] &= ~cut[i]
            part.num_cores = common
            group.num_cores -= common
            self.assign(part, free_slot)
            self.assign(group, slot)
            self.mark(free_slot, 2)
            self.map_changed = True
            self.epoch += 1
        return 0

    cdef void assign(self, CoreClass *group, uint32_t slot) noexcept nogil:
        """Bring first_core and class_of_core in line with the members of a class."""
        cdef uint32_t i, core
        cdef uint64_t word
        group.first_core = UINT32_MAX
        for i in range(self.mask_words):
            word = members(group)[i]
            while word:
                core = 64 * i + ttm_lowest_bit(word)
                word &= word - 1
                self.class_of_core[core] = <uint16_t>slot
                if group.first_core == UINT32_MAX:
                    group.first_core = core

    cdef void join(self) noexcept nogil:
        """Join the classes that have the same signature; the lowest slot stays."""
        cdef uint32_t slot, at, i, left, mask = self.join_size - 1
        cdef CoreClass *group
        cdef CoreClass *kept
        self.drops = 0
        memset(self.join_table, 0, self.join_size * sizeof(uint16_t))
        for slot in range(self.class_high):
            group = self.classes[slot]
            if group == NULL:
                continue
            self.pool.work += 1
            at = <uint32_t>group.sign0 & mask
            while self.join_table[at]:
                kept = self.classes[self.join_table[at] - 1]
                if kept.sign0 == group.sign0 and kept.sign1 == group.sign1:
                    break
                at = (at + 1) & mask
            if not self.join_table[at]:
                self.join_table[at] = <uint16_t>(slot + 1)
                continue
            if kept.peak != group.peak:
                # Within an addition that fails, physical may be above the peaks: then the lower of them stays.
                left = min(group.physical, kept.peak, group.peak)
                self.lay_down_peak(slot, left)
                self.lay_down_peak(self.join_table[at] - 1, left)
            for i in range(self.mask_words):
                members(kept)[i] |= members(group)[i]
            kept.num_cores += group.num_cores
            self.assign(kept, self.join_table[at] - 1)
            ttm_cover_free(&self.pool, &group.cover)
            ttm_free(&self.pool.heap, group)
            self.classes[slot] = NULL
            self.class_count -= 1
            self.map_changed = True
            self.epoch += 1
        while self.classes[self.class_high - 1] == NULL:
            self.class_high -= 1

    cdef void lay_down_peak(self, uint32_t slot, uint32_t left) noexcept nogil:
        """Keep the peak of a class in the floors of its cores and lower the class's to what is left."""
        cdef CoreClass *group = self.classes[slot]
        cdef uint32_t i
        cdef uint32_t *floor
        cdef uint64_t word
        if group.peak == left:
            return
        for i in range(self.mask_words):
            word = members(group)[i]
            while word:
                floor = self.core_peaks + 64 * i + ttm_lowest_bit(word)
                floor[0] = max(floor[0], group.peak)
                word &= word - 1
        group.peak = left
        self.mark(slot, 1)
        self.peaks_changed = True

    cdef void list_slots(self, CoreSet *cores) noexcept nogil:
        """List the classes inside a live core set."""
        cdef uint32_t slot
        cdef uint16_t *slots = set_slots(cores, self.mask_words)
        cores.num_slots = 0
        for slot in range(self.class_high):
            if self.classes[slot] != NULL and has_core(set_mask(cores), self.classes[slot].first_core):
                slots[cores.num_slots] = <uint16_t>slot
                cores.num_slots += 1
        cores.epoch = self.epoch
        self.pool.work += self.class_high

    cdef void leave(self, CoreSet *cores) noexcept nogil:
        """Count one simple footprint less on a live core set."""
        cdef uint32_t i
        cdef CoreClass *group
        cores.live -= 1
        if cores.live:
            return
        if cores.epoch != self.epoch:
            self.list_slots(cores)
        for i in range(cores.num_slots):
            group = self.classes[set_slots(cores, self.mask_words)[i]]
            group.sign0 -= cores.tag0
            group.sign1 -= cores.tag1
        self.live_sets -= 1
        self.drops += 1
        if self.class_count > 1 and (self.live_sets == 0 or self.drops >= self.class_count):
            self.join()
        if self.live_sets == 0:
            self.drops = 0
            ttm_pool_trim(&self.pool)

    # Programs.

    cdef int start(self, Footprint *footprint) noexcept nogil:
        """Put a simple footprint, live until now nowhere, into the covers. Returns 0, or -1 with nothing changed."""
        cdef CoreSet *cores = footprint.cores
        cdef CoreClass *group
        cdef uint64_t *ranges = tail(footprint)
        cdef uint32_t i, r, count = footprint.shape, begin, end
        cdef int64_t change, grown
        cdef uint16_t *slots
        if count == 0:
            return 0
        if cores.live == 0:
            if self.split(cores) < 0:
                self.join()
                return -1
            if cores.epoch != self.epoch:
                self.list_slots(cores)
            for i in range(cores.num_slots):
                group = self.classes[set_slots(cores, self.mask_words)[i]]
                group.sign0 += cores.tag0
                group.sign1 += cores.tag1
            self.live_sets += 1
        elif cores.epoch != self.epoch:
            self.list_slots(cores)
        cores.live += 1
        slots = set_slots(cores, self.mask_words)
        for i in range(cores.num_slots):
            group = self.classes[slots[i]]
            grown = 0
            for r in range(count):
                begin = <uint32_t>ranges[r]
                end = <uint32_t>(ranges[r] >> 32)
                if ttm_pool_reserve(&self.pool, begin, end) < 0:
                    self.withdraw(footprint, i, r)
                    self.leave(cores)
                    return -1
                change = ttm_cover_update(&self.pool, &group.cover, begin, end, 1)
                group.physical += <uint32_t>change
                self.physical += <uint64_t>(change * group.num_cores)
                grown += change
            self.mark(slots[i], 2 if grown else 1)
        return 0

    cdef void fetch(self, Footprint *footprint, uint32_t live) noexcept nogil:
        """Ask for the memory of the covers that a footprint will be put in or taken from; many of them are not in the cache.

        Its simple parts that are `live` so often are concerned: first all pages are asked for and then, when they are
        there, all leaves, so that the update waits for two memory accesses and not for two in each class.
        """
        cdef size_t part, parts = 1 if footprint.cores != NULL else size_of(footprint)
        cdef uint64_t *words = tail(footprint)
        cdef Footprint *simple = footprint
        cdef bint leaves
        for leaves in range(2):
            for part in range(parts):
                if footprint.cores == NULL:
                    simple = <Footprint *><uintptr_t>words[2 * part]
                if simple.live == live and simple.shape:
                    self.fetch_simple(simple, leaves)

    cdef void fetch_simple(self, const Footprint *footprint, bint leaves) noexcept nogil:
        cdef const uint64_t *ranges = tail(footprint)
        cdef const uint16_t *slots = set_slots(footprint.cores, self.mask_words)
        cdef uint32_t i, r, count = min(footprint.shape, <uint32_t>AHEAD)
        cdef const ttm_cover *cover
        if footprint.cores.epoch != self.epoch:
            self.list_slots(footprint.cores)
        if footprint.cores.num_slots < 2:
            return
        for i in range(footprint.cores.num_slots):
            cover = &self.classes[slots[i]].cover
            for r in range(count):
                if leaves:
                    ttm_cover_prefetch_leaf(cover, <uint32_t>ranges[r])
                    ttm_cover_prefetch_leaf(cover, <uint32_t>(ranges[r] >> 32))
                else:
                    ttm_cover_prefetch_page(cover, <uint32_t>ranges[r])
                    ttm_cover_prefetch_page(cover, <uint32_t>(ranges[r] >> 32))

    cdef void withdraw(self, Footprint *footprint, uint32_t slots_done, uint32_t ranges_done) noexcept nogil:
        """Take a simple footprint from its first classes, and its first ranges from the one that comes next."""
        cdef CoreSet *cores = footprint.cores
        cdef CoreClass *group
        cdef uint64_t *ranges = tail(footprint)
        cdef uint32_t i, r
        cdef int64_t change, grown
        cdef uint16_t *slots = set_slots(cores, self.mask_words)
        for i in range(slots_done + (1 if ranges_done else 0)):
            group = self.classes[slots[i]]
            grown = 0
            for r in range(footprint.shape if i < slots_done else ranges_done):
                change = ttm_cover_update(&self.pool, &group.cover, <uint32_t>ranges[r],
                                          <uint32_t>(ranges[r] >> 32), -1)
                group.physical += <uint32_t>change
                self.physical += <uint64_t>(change * group.num_cores)
                grown += change
            self.mark(slots[i], 2 if grown else 1)

    cdef void stop(self, Footprint *footprint) noexcept nogil:
        """Take a simple footprint out of the covers."""
        if footprint.shape == 0:
            return
        if footprint.cores.epoch != self.epoch:
            self.list_slots(footprint.cores)
        self.withdraw(footprint, footprint.cores.num_slots, 0)
        self.leave(footprint.cores)

    cdef void account(self, CoreSet *cores, uint64_t bytes_each) noexcept nogil:
        """Add to the logical bytes of each core of a live core set, and keep the peaks."""
        cdef uint32_t i
        cdef CoreClass *group
        cdef uint16_t *slots = set_slots(cores, self.mask_words)
        if cores.epoch != self.epoch:
            self.list_slots(cores)
        for i in range(cores.num_slots):
            group = self.classes[slots[i]]
            group.logical += bytes_each
            # Here, where an addition can no longer fail: before, it might be taken back.
            if group.peak < group.physical:
                group.peak = group.physical
            self.mark(slots[i], 1)
        self.pool.work += cores.num_slots

    cdef int add(self, Footprint *footprint) noexcept nogil:
        cdef size_t part, parts
        cdef Footprint *simple
        cdef uint64_t *words = tail(footprint)
        if footprint.shape & PEAK:
            return -1
        if footprint.live == 0:
            self.fetch(footprint, 0)
        if footprint.cores != NULL:
            if footprint.live == 0 and self.start(footprint) < 0:
                if TTM_DEBUG_BUILD:
                    verify(self, b"an addition without memory")
                return -1
            if footprint.shape:
                self.account(footprint.cores, footprint.bytes_per_core)
        else:
            parts = size_of(footprint)
            if footprint.live == 0:
                for part in range(parts):
                    simple = <Footprint *><uintptr_t>words[2 * part]
                    if simple.live == 0 and self.start(simple) < 0:
                        while part:
                            part -= 1
                            simple = <Footprint *><uintptr_t>words[2 * part]
                            simple.live -= 1
                            if simple.live == 0:
                                self.stop(simple)
                        if TTM_DEBUG_BUILD:
                            verify(self, b"an addition without memory")
                        return -1
                    simple.live += 1
            for part in range(parts):
                simple = <Footprint *><uintptr_t>words[2 * part]
                if simple.shape:
                    self.account(simple.cores, words[2 * part + 1])
        footprint.live += 1
        footprint.refs += 1
        self.logical += footprint.logical
        if TTM_DEBUG_BUILD:
            verify(self, b"add")
        return 0

    cdef void remove(self, Footprint *footprint) noexcept nogil:
        cdef size_t part, parts
        cdef Footprint *simple
        cdef uint64_t *words = tail(footprint)
        self.logical -= footprint.logical
        footprint.live -= 1
        if footprint.live == 0:
            self.fetch(footprint, 0 if footprint.cores != NULL else 1)
        if footprint.cores != NULL:
            if footprint.shape:
                self.account(footprint.cores, <uint64_t>0 - footprint.bytes_per_core)
            if footprint.live == 0:
                self.stop(footprint)
        else:
            parts = size_of(footprint)
            for part in range(parts):
                simple = <Footprint *><uintptr_t>words[2 * part]
                if simple.shape:
                    self.account(simple.cores, <uint64_t>0 - words[2 * part + 1])
            if footprint.live == 0:
                for part in range(parts):
                    simple = <Footprint *><uintptr_t>words[2 * part]
                    simple.live -= 1
                    if simple.live == 0:
                        self.stop(simple)
        self.let_go(footprint)
        if TTM_DEBUG_BUILD:
            verify(self, b"remove")

    # Residency.

    cdef void dispatch_other(self, Footprint *footprint) noexcept nogil:
        cdef uint32_t words = self.mask_words, layer = 0, i
        cdef const uint64_t *mask
        cdef uint64_t *shown
        cdef uint64_t left
        if footprint.num_cores == 0:
            return
        footprint.refs += 1
        self.last = footprint
        if footprint.num_cores == self.num_cores:
            while self.layer_count:
                self.layer_count -= 1
                self.let_go(self.layers[self.layer_count])
            self.resident = footprint.resident
            memcpy(self.visible, self.full_mask, words * sizeof(uint64_t))
        else:
            mask = mask_of(footprint)
            while layer < self.layer_count:
                self.pool.work += 1
                shown = self.visible + <size_t>layer * words
                left = 0
                for i in range(words):
                    self.hidden[i] = shown[i] & mask[i]
                    shown[i] &= ~mask[i]
                    left |= shown[i]
                self.resident -= bytes_on(self.layers[layer], self.hidden, words)
                if left:
                    layer += 1
                    continue
                self.layer_count -= 1
                self.let_go(self.layers[layer])
                self.layers[layer] = self.layers[self.layer_count]
                memcpy(shown, self.visible + <size_t>self.layer_count * words, words * sizeof(uint64_t))
            self.resident += footprint.resident
            memcpy(self.visible + <size_t>self.layer_count * words, mask, words * sizeof(uint64_t))
        self.layers[self.layer_count] = footprint
        self.layer_count += 1
        if TTM_DEBUG_BUILD:
            verify(self, b"dispatch")

    cdef void fill_resident(self, uint32_t *out) noexcept nogil:
        cdef uint32_t layer
        memset(out, 0, self.num_cores * sizeof(uint32_t))
        for layer in range(self.layer_count):
            self.paint(self.layers[layer], self.visible + <size_t>layer * self.mask_words, out)

    cdef uint64_t bytes_shown(self, uint32_t layer) noexcept nogil:
        return bytes_on(self.layers[layer], self.visible + <size_t>layer * self.mask_words, self.mask_words)

    cdef void paint(self, const Footprint *footprint, const uint64_t *where, uint32_t *out) noexcept nogil:
        """Raise each core of `where` (all cores if NULL) to the resident bytes that a footprint has there."""
        cdef uint32_t words = self.mask_words, i, value = footprint.bytes_per_core
        cdef uint64_t atoms = 1, _atom, word
        cdef const uint64_t *mask
        if footprint.cores != NULL:
            mask = set_mask(footprint.cores)
        else:
            atoms = profile(footprint)[words]
            mask = profile(footprint) + words + 2
        for _atom in range(atoms):
            if footprint.cores == NULL:
                value = <uint32_t>(mask - 1)[0]
            for i in range(words):
                word = mask[i] & (where[i] if where != NULL else <uint64_t>-1)
                while word:
                    out[64 * i + ttm_lowest_bit(word)] = max(out[64 * i + ttm_lowest_bit(word)], value)
                    word &= word - 1
            mask += words + 1

    cdef Footprint *peak_of(self, Footprint **items, size_t count) noexcept nogil:
        cdef uint32_t words = self.mask_words, core
        cdef size_t at, atoms = 0, atom_words = 1 + words
        cdef uint32_t *peaks = <uint32_t *>malloc(self.num_cores * sizeof(uint32_t))
        cdef uint64_t *scratch = <uint64_t *>malloc((self.num_cores + 1) * atom_words * sizeof(uint64_t))
        cdef uint64_t *touched
        cdef Footprint *peak = NULL
        if peaks != NULL and scratch != NULL:
            touched = self.hidden
            memset(peaks, 0, self.num_cores * sizeof(uint32_t))
            memset(touched, 0, words * sizeof(uint64_t))
            for at in range(count):
                self.paint(items[at], NULL, peaks)
                for core in range(words):
                    touched[core] |= mask_of(items[at])[core]
            # Cores with the same peak make one atom.
            for core in range(self.num_cores):
                if not has_core(touched, core):
                    continue
                at = 0
                while at < atoms and scratch[at * atom_words] != peaks[core]:
                    at += 1
                if at == atoms:
                    memset(scratch + at * atom_words, 0, atom_words * sizeof(uint64_t))
                    scratch[at * atom_words] = peaks[core]
                    atoms += 1
                scratch[at * atom_words + 1 + (core >> 6)] |= <uint64_t>1 << (core & 63)
            peak = self.profiled(PEAK, NULL, scratch, atoms)
            if peak != NULL:
                for at in range(atoms):
                    peak.bytes_per_core = max(peak.bytes_per_core, <uint32_t>scratch[at * atom_words])
                peak.logical = peak.resident
        free(peaks)
        free(scratch)
        if TTM_DEBUG_BUILD:
            verify(self, b"peak_of")
        return peak

    # Queries.

    cdef uint32_t class_region_end(self, uint32_t slot) noexcept nogil:
        return ttm_cover_end(&self.pool, &self.classes[slot].cover) if self.classes[slot] != NULL else 0

    cdef uint32_t class_lowest(self, uint32_t slot) noexcept nogil:
        return ttm_cover_lowest(&self.pool, &self.classes[slot].cover) if self.classes[slot] != NULL else UINT32_MAX

    cdef uint32_t class_ranges(self, uint32_t slot, uint64_t *out, uint32_t maximum) noexcept nogil:
        if self.classes[slot] == NULL:
            return 0
        return ttm_cover_ranges(&self.pool, &self.classes[slot].cover, out, maximum)

    cdef void fill_core_peaks(self, uint32_t *out) noexcept nogil:
        memcpy(out, self.core_peaks, self.num_cores * sizeof(uint32_t))

    cdef void reset_peaks(self) noexcept nogil:
        cdef uint32_t slot
        memset(self.core_peaks, 0, self.num_cores * sizeof(uint32_t))
        for slot in range(self.class_high):
            if self.classes[slot] != NULL:
                self.classes[slot].peak = self.classes[slot].physical
                self.mark(slot, 1)
        self.peaks_changed = True
        if TTM_DEBUG_BUILD:
            verify(self, b"reset_peaks")

    cdef uint64_t memory_bytes(self) noexcept nogil:
        return self.pool.heap.bytes
