"""The self-check of the interval engine: `_core.pyx` states the invariants, debug builds verify them after every operation.

It shares no arithmetic with the operations: the figures of each class are made anew from the footprints that are live.
All of it is inline here, in a .pxd, because it reads the engine's own fields and must cost other builds nothing.
"""

from libc.stdint cimport UINT32_MAX, uint32_t, uint64_t, uintptr_t
from libc.stdio cimport fprintf, stderr
from libc.stdlib cimport abort, free, malloc

from ttmem._core cimport (
    PEAK,
    CoreClass,
    CoreSet,
    Footprint,
    Intervals,
    has_core,
    mask_of,
    members,
    set_mask,
    set_slots,
    size_of,
    tail,
    ttm_cover,
    ttm_pool,
)


cdef extern from "_store.h" nogil:
    uint32_t ttm_popcount(const uint64_t *mask, size_t words)
    uint32_t ttm_popcount_and(const uint64_t *a, const uint64_t *b, size_t words)
    uint32_t ttm_lowest_bit(uint64_t word)
    void ttm_sort_ranges(uint64_t *ranges, size_t count)
    size_t ttm_merge_ranges(uint64_t *ranges, size_t count, uint64_t *covered)


cdef extern from "_cover_check.h" nogil:
    const char *ttm_cover_fault(const ttm_pool *pool, const ttm_cover *cover, const uint64_t *ranges, size_t count)


cdef extern from "_cover.h" nogil:
    uint32_t ttm_cover_ranges(const ttm_pool *pool, const ttm_cover *cover, uint64_t *out, uint32_t maximum)
    uint32_t ttm_cover_end(const ttm_pool *pool, const ttm_cover *cover)
    uint32_t ttm_cover_lowest(const ttm_pool *pool, const ttm_cover *cover)


cdef enum:
    ALWAYS = 64         # footprints, or pages of memory, up to which everything is verified every time


cdef inline void verify(Intervals self, const char *operation) noexcept nogil:
    """Abort the process with a line on stderr if an invariant is broken.

    What takes long is verified after every operation while the engine is small, with up to some 64 footprints in 256 KiB;
    then the more seldom the larger it is, so that long runs stay linear.
    """
    cdef const char *fault = fault_of_classes(self)
    if fault == NULL:
        fault = fault_of_layers(self)
    self.unverified += 1
    if fault == NULL and self.unverified * ALWAYS >= self.footprints.count + self.pool.heap.bytes // 4096:
        self.unverified = 0
        fault = fault_of_footprints(self)
    if fault != NULL:
        fprintf(stderr, "ttmem: the interval engine is broken after %s: %s; see the invariants in ttmem/_core.pyx\n",
                operation, fault)
        abort()


cdef inline const char *fault_of_classes(Intervals self) noexcept nogil:
    """What costs no more than the classes and cores: partition, sums over the device, peaks, changes."""
    cdef uint32_t slot, core, i, words = self.mask_words, count = 0, inside = 0
    cdef uint64_t physical = 0, logical = 0
    cdef CoreClass *group
    if self.class_high == 0 or self.class_high > self.num_cores or self.classes[self.class_high - 1] == NULL:
        return "class_high is not one past the last class (4)"
    for slot in range(self.num_cores):
        group = self.classes[slot]
        if group == NULL:
            continue
        count += 1
        if slot >= self.class_high:
            return "a class lies above class_high (4)"
        if group.num_cores == 0 or group.num_cores != ttm_popcount(members(group), words):
            return "a class does not have the cores that it counts (4)"
        i = 0
        while members(group)[i] == 0:
            i += 1
        if 64 * i + ttm_lowest_bit(members(group)[i]) != group.first_core:
            return "first_core is not the first core of its class (4)"
        inside += group.num_cores
        physical += <uint64_t>group.physical * group.num_cores
        logical += group.logical * group.num_cores
        if group.physical > self.limit:
            return "a class covers more than there is (5)"
        if group.peak < group.physical:
            return "the peak of a class is below its physical bytes (8)"
    if count != self.class_count or inside != self.num_cores:
        return "the classes do not partition the cores (4)"
    if physical != self.physical:
        return "the physical bytes of the device are not the sum over its classes (5)"
    if logical != self.logical:
        return "the logical bytes of the device are not the sum over its classes (5)"
    if self.live_sets == 0 and (count != 1 or self.classes[0] == NULL):
        return "nothing is live and the cores are not one class (4)"
    for core in range(self.num_cores):
        group = self.classes[self.class_of_core[core]]
        if group == NULL or not has_core(members(group), core):
            return "class_of_core names a class that does not have the core (4)"
        if self.core_peaks[core] > self.limit:
            return "the floor of a core's peak is beyond its memory (8)"
    for i in range(self.changed_count):
        if self.change_flags[self.changed[i]] == 0:
            return "a changed class has no flag"
    return NULL


cdef inline const char *fault_of_layers(Intervals self) noexcept nogil:
    """Residency."""
    cdef uint32_t i, other, words = self.mask_words
    cdef uint64_t resident = 0
    cdef uint64_t *shown
    if self.layer_count > self.num_cores:
        return "there are more layers than cores (6)"
    for i in range(self.layer_count):
        shown = self.visible + <size_t>i * words
        if ttm_popcount(shown, words) == 0:
            return "a layer holds no core (6)"
        if ttm_popcount_and(shown, mask_of(self.layers[i]), words) != ttm_popcount(shown, words):
            return "a layer holds a core that its footprint does not cover (6)"
        if self.layers[i].refs == 0:
            return "a layer has a footprint that nobody holds (7)"
        for other in range(i):
            if ttm_popcount_and(shown, self.visible + <size_t>other * words, words):
                return "two layers hold one core (6)"
        resident += self.bytes_shown(i)
    if resident != self.resident:
        return "the resident bytes are not the sum over the layers (6)"
    if self.last != NULL and (self.layer_count == 0 or self.last != self.layers[self.layer_count - 1]):
        return "the footprint dispatched last is not the last layer (6)"
    return NULL


cdef inline const char *fault_of_footprints(Intervals self) noexcept nogil:
    """Each footprint alone, the core sets, and each class against the footprints that are live on it."""
    cdef uint32_t i, r, count = 0, ranges = 0, live = 0, simples = 0, holders = 0
    cdef uint64_t bytes, total = 0
    cdef uint64_t *words
    cdef uint64_t *found
    cdef Footprint *entry
    cdef Footprint *part
    cdef CoreSet *cores
    cdef const char *fault
    for i in range(self.footprints.size):
        entry = <Footprint *>self.footprints.buckets[i]
        while entry != NULL:
            count += 1
            words = tail(entry)
            if entry.refs == 0:
                return "the table has a footprint that nobody holds (7)"
            if entry.shape & PEAK:
                return "the table has a peak"
            if entry.cores != NULL:
                simples += 1
                bytes = 0
                for r in range(entry.shape):
                    if <uint32_t>words[r] >= <uint32_t>(words[r] >> 32) or <uint32_t>(words[r] >> 32) > self.limit:
                        return "a footprint has a range that is empty or outside of L1 (1)"
                    if r and <uint32_t>words[r] <= <uint32_t>(words[r - 1] >> 32):
                        return "a footprint has ranges out of order or touching (1)"
                    bytes += <uint32_t>(words[r] >> 32) - <uint32_t>words[r]
                if bytes != entry.bytes_per_core or bytes * entry.num_cores != entry.logical:
                    return "a footprint counts other bytes than its ranges have (1)"
                if entry.region_end != (<uint32_t>(words[entry.shape - 1] >> 32) if entry.shape else 0):
                    return "a footprint ends elsewhere than its ranges (1)"
                if entry.live:
                    ranges += entry.shape
                    live += entry.shape != 0
                total += entry.live * entry.logical
            else:
                if entry.refs < entry.live:
                    return "a footprint has more programs than holders (7)"
                total += entry.live * entry.logical
                for r in range(size_of(entry)):
                    part = <Footprint *><uintptr_t>words[2 * r]
                    if r and words[2 * r] <= words[2 * r - 2]:
                        return "a footprint has parts out of order (1)"
                    if entry.live:
                        if part.live == 0:
                            return "a part is not live though its footprint is (2)"
                        total -= part.logical
            entry = entry.next
    if count != self.footprints.count:
        return "the table counts other footprints than it has (1)"
    if total != self.logical:
        return "the logical bytes of the device are not the sum over its programs (5)"
    for i in range(self.core_sets.size):
        cores = <CoreSet *>self.core_sets.buckets[i]
        while cores != NULL:
            live -= cores.live
            holders += cores.refs
            fault = fault_of_core_set(self, cores)
            if fault != NULL:
                return fault
            cores = cores.next
    if live != 0:
        return "core sets count other live footprints than there are (3)"
    if holders != simples:
        return "core sets count other footprints than there are (7)"
    found = <uint64_t *>malloc((<size_t>ranges + 1) * 2 * sizeof(uint64_t))
    if found == NULL:
        return NULL
    fault = NULL
    for i in range(self.class_high):
        if fault == NULL and self.classes[i] != NULL:
            fault = fault_of_cover(self, self.classes[i], found, ranges)
    free(found)
    return fault


cdef inline const char *fault_of_core_set(Intervals self, CoreSet *cores) noexcept nogil:
    cdef uint32_t slot, common, inside = 0, words = self.mask_words
    cdef CoreClass *group
    if cores.num_cores == 0 or cores.num_cores != ttm_popcount(set_mask(cores), words):
        return "a core set does not have the cores that it counts"
    if cores.refs == 0:
        return "the table has a core set that nobody holds (7)"
    if cores.live == 0:
        return NULL
    for slot in range(self.class_high):
        group = self.classes[slot]
        if group == NULL:
            continue
        common = ttm_popcount_and(set_mask(cores), members(group), words)
        if common != 0 and common != group.num_cores:
            return "a live core set cuts a class (3)"
        if common and cores.epoch == self.epoch:
            if inside >= cores.num_slots or set_slots(cores, words)[inside] != slot:
                return "a core set lists other classes than lie inside (3)"
            inside += 1
    if cores.epoch == self.epoch and inside != cores.num_slots:
        return "a core set lists more classes than lie inside (3)"
    return NULL


cdef inline const char *fault_of_cover(Intervals self, CoreClass *group, uint64_t *found, uint32_t room) noexcept nogil:
    """A class against the live footprints around it; `found` has room for twice as many ranges."""
    cdef uint64_t *walked = found + room + 1
    cdef uint64_t *words
    cdef uint64_t sign0 = 0, sign1 = 0, logical = 0, covered = 0
    cdef uint32_t i, r, count = 0, core = group.first_core
    cdef Footprint *entry
    cdef Footprint *part
    cdef CoreSet *cores
    cdef const char *fault
    for i in range(self.core_sets.size):
        cores = <CoreSet *>self.core_sets.buckets[i]
        while cores != NULL:
            if cores.live and has_core(set_mask(cores), core):
                sign0 += cores.tag0
                sign1 += cores.tag1
            cores = cores.next
    if sign0 != group.sign0 or sign1 != group.sign1:
        return "the signature of a class is not that of the core sets around it (4)"
    for i in range(self.footprints.size):
        entry = <Footprint *>self.footprints.buckets[i]
        while entry != NULL:
            words = tail(entry)
            if entry.cores != NULL:
                if entry.live and has_core(set_mask(entry.cores), core):
                    logical += <uint64_t>entry.live * entry.bytes_per_core
                    for r in range(entry.shape):
                        found[count] = words[r]
                        count += 1
            elif entry.live:
                for r in range(size_of(entry)):
                    part = <Footprint *><uintptr_t>words[2 * r]
                    if has_core(set_mask(part.cores), core):
                        logical += entry.live * words[2 * r + 1] - part.bytes_per_core
            entry = entry.next
    if logical != group.logical:
        return "the logical bytes of a class are not those of its programs (5)"
    fault = ttm_cover_fault(&self.pool, &group.cover, found, count)
    if fault != NULL:
        return fault
    ttm_sort_ranges(found, count)
    count = <uint32_t>ttm_merge_ranges(found, count, &covered)
    if covered != group.physical:
        return "the physical bytes of a class are not the union of its programs (5)"
    if ttm_cover_ranges(&self.pool, &group.cover, walked, room + 1) != count:
        return "the cover of a class has other ranges than the union of its programs (2)"
    for i in range(count):
        if walked[i] != found[i]:
            return "the cover of a class has other ranges than the union of its programs (2)"
    if ttm_cover_end(&self.pool, &group.cover) != (<uint32_t>(found[count - 1] >> 32) if count else 0):
        return "the cover of a class ends elsewhere than its programs (2)"
    if ttm_cover_lowest(&self.pool, &group.cover) != (<uint32_t>found[0] if count else UINT32_MAX):
        return "the cover of a class begins elsewhere than its programs (2)"
    return NULL
