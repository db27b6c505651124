"""The Python face of the interval engine: prepared footprints, locked calls, the self-check and loops to be timed.

A class beside :class:`ttmem._core.Intervals`, because in Cython a C method and a Python method cannot have one name.
"""

cimport cython
from libc.stdint cimport UINT32_MAX, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from ttmem._core cimport (
    PEAK,
    CbRange,
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
)

from ttmem.cores import as_core_range_set
from ttmem.errors import InvalidIntervalError, UnknownIdError


cdef extern from "_atomic.h" nogil:
    ctypedef struct ttm_lock:
        pass
    void ttm_lock_acquire(ttm_lock *lock)
    void ttm_lock_release(ttm_lock *lock)


cdef extern from "_store.h" nogil:
    bint TTM_DEBUG_BUILD
    uint64_t ttm_now_ns()


DEBUG = bool(TTM_DEBUG_BUILD)
"""Whether the self-check in C runs after every operation."""


# no_gc_clear: a collector that breaks a cycle must not take the engine away before the footprint is released.
@cython.no_gc_clear
cdef class PreparedFootprint:
    """A list of CBs, prepared once; made by :meth:`IntervalEngine.footprint` and :meth:`IntervalEngine.peak`."""

    cdef IntervalEngine engine
    cdef Footprint *footprint

    def __dealloc__(self):
        if self.footprint != NULL:
            ttm_lock_acquire(&self.engine.lock)
            self.engine.core.release(self.footprint)
            ttm_lock_release(&self.engine.lock)

    @property
    def num_cores(self):
        """Cores touched by any range, zero-length ones included."""
        return self.footprint.num_cores

    @property
    def bytes_per_core(self):
        """The largest sum of range lengths on one core."""
        return self.footprint.bytes_per_core

    @property
    def region_end(self):
        """The largest end of a range that is not empty, 0 if there is none."""
        return self.footprint.region_end

    @property
    def logical_bytes(self):
        """The sum of length times cores."""
        return self.footprint.logical

    @property
    def resident_bytes(self):
        """The bytes covered, summed over cores."""
        return self.footprint.resident


@cython.no_gc_clear
cdef class IntervalEngine:
    """The Python face of :class:`Intervals`, for tests and benchmarks.

    Args:
        width: cores in x.
        height: cores in y; width x height is 1 to 1024.
        limit: bytes of L1; no range ends beyond it.
        hash_bits: fewer bits force hash collisions, for tests.

    Raises:
        InvalidIntervalError: the grid or the limit is out of bounds.

    Thread safety: any thread may call anything.
    """

    cdef readonly Intervals core
    cdef ttm_lock lock
    cdef dict added                 # address of a footprint -> times added through this face

    def __cinit__(self, width, height, *, limit=1572864, hash_bits=64):
        self.core = Intervals(width, height, limit=limit, hash_bits=hash_bits)
        self.added = {}

    cdef int write_mask(self, object cores, uint64_t *mask) except -1:
        cdef uint32_t core
        memset(mask, 0, self.core.mask_words * sizeof(uint64_t))
        if isinstance(cores, int):
            if cores < 0 or cores >> self.core.num_cores:
                raise InvalidIntervalError(
                    f"the core mask {cores:#x} has cores outside a grid of {self.core.num_cores}")
            for core in range(self.core.mask_words):
                mask[core] = (cores >> (64 * core)) & 0xFFFFFFFFFFFFFFFF
            return 0
        for item in as_core_range_set(cores):
            if item.x >= self.core.width or item.y >= self.core.height:
                raise InvalidIntervalError(
                    f"core {item} is outside the grid of {self.core.width} x {self.core.height} cores")
            core = item.y * self.core.width + item.x
            mask[core >> 6] |= <uint64_t>1 << (core & 63)
        return 0

    cdef PreparedFootprint wrap(self, Footprint *footprint):
        cdef PreparedFootprint prepared = PreparedFootprint.__new__(PreparedFootprint)
        prepared.engine = self
        prepared.footprint = footprint
        return prepared

    def footprint(self, ranges):
        """Prepare a list of ``(begin, end, cores)``; ``cores`` names core ranges or is a mask with bit y * width + x.

        Raises:
            InvalidIntervalError: begin > end, end > limit, or a core outside the grid.
        """
        cdef list items = list(ranges)
        cdef size_t count = len(items), words = self.core.mask_words, i
        cdef CbRange *array = <CbRange *>malloc((count + 1) * sizeof(CbRange))
        cdef uint64_t *masks = <uint64_t *>malloc((count + 1) * words * sizeof(uint64_t))
        cdef Footprint *footprint
        try:
            if array == NULL or masks == NULL:
                raise MemoryError()
            for i in range(count):
                begin, end, cores = items[i]
                if not 0 <= begin <= end <= self.core.limit:
                    raise InvalidIntervalError(
                        f"[{begin}, {end}) is no range of bytes in an L1 of {self.core.limit} bytes")
                array[i].begin, array[i].end, array[i].mask = begin, end, masks + i * words
                self.write_mask(cores, masks + i * words)
            ttm_lock_acquire(&self.lock)
            footprint = self.core.intern(array, count)
            ttm_lock_release(&self.lock)
            if footprint == NULL:
                raise MemoryError()
            return self.wrap(footprint)
        finally:
            free(array)
            free(masks)

    def peak(self, footprints):
        """Prepare the per-core peak of several footprints, as a trace replay puts it in; it can only be dispatched."""
        cdef list items = list(footprints)
        cdef size_t count = len(items), i
        cdef Footprint **array = <Footprint **>malloc((count + 1) * sizeof(Footprint *))
        cdef Footprint *footprint
        try:
            if array == NULL:
                raise MemoryError()
            for i in range(count):
                array[i] = self.own(items[i]).footprint
            ttm_lock_acquire(&self.lock)
            footprint = self.core.peak_of(array, count)
            ttm_lock_release(&self.lock)
            if footprint == NULL:
                raise MemoryError()
            return self.wrap(footprint)
        finally:
            free(array)

    cdef PreparedFootprint own(self, object item):
        cdef PreparedFootprint prepared = <PreparedFootprint?>item
        if prepared.engine is not self:
            raise UnknownIdError("the footprint belongs to another engine: prepare it with this one")
        return prepared

    def add(self, prepared):
        """Add a program with this footprint.

        Raises:
            MemoryError: there is no memory; nothing has changed.
            InvalidIntervalError: it is a peak.
        """
        cdef Footprint *footprint = self.own(prepared).footprint
        cdef int status
        if footprint.shape & PEAK:
            raise InvalidIntervalError("the peak of a trace can be dispatched, not added")
        key = <uintptr_t>footprint
        ttm_lock_acquire(&self.lock)
        status = self.core.add(footprint)
        if status == 0:
            self.added[key] = self.added.get(key, 0) + 1
        ttm_lock_release(&self.lock)
        if status < 0:
            raise MemoryError()

    def remove(self, prepared):
        """Remove a program with this footprint.

        Raises:
            UnknownIdError: there is none.
        """
        cdef Footprint *footprint = self.own(prepared).footprint
        key = <uintptr_t>footprint
        ttm_lock_acquire(&self.lock)
        count = self.added.get(key, 0)
        if count:
            self.core.remove(footprint)
            if count > 1:
                self.added[key] = count - 1
            else:
                del self.added[key]
        ttm_lock_release(&self.lock)
        if not count:
            raise UnknownIdError("no program with this footprint is there to be removed")

    def dispatch(self, prepared):
        """Make this footprint resident on the cores that it covers."""
        cdef Footprint *footprint = self.own(prepared).footprint
        ttm_lock_acquire(&self.lock)
        self.core.dispatch(footprint)
        ttm_lock_release(&self.lock)

    @property
    def width(self):
        """Cores in x."""
        return self.core.width

    @property
    def height(self):
        """Cores in y."""
        return self.core.height

    @property
    def limit(self):
        """Bytes of L1: no range ends beyond."""
        return self.core.limit

    @property
    def physical_bytes(self):
        """Bytes covered by at least one program, summed over cores."""
        return self.core.physical

    @property
    def logical_bytes(self):
        """Sizes of all programs' ranges times their cores."""
        return self.core.logical

    @property
    def resident_bytes(self):
        """Bytes that the last dispatches left, summed over cores."""
        return self.core.resident

    @property
    def num_classes(self):
        """Classes of cores that share one cover."""
        return self.core.class_count

    @property
    def memory_bytes(self):
        """Bytes of memory that the engine holds."""
        return self.core.memory_bytes()

    @property
    def work(self):
        """Nodes and classes touched since the beginning: a measure of work that does not depend on the machine."""
        return self.core.pool.work

    cdef inline uint32_t slot_of(self, Py_ssize_t core) except? 0xFFFFFFFF:
        if core < 0 or core >= <Py_ssize_t>self.core.num_cores:
            raise InvalidIntervalError(f"core index {core} is outside a grid of {self.core.num_cores} cores")
        return self.core.class_of_core[core]

    def core_physical(self, Py_ssize_t core):
        """Return the bytes of core ``y * width + x`` that at least one program covers."""
        return <long>self.core.class_physical(self.slot_of(core))

    def core_logical(self, Py_ssize_t core):
        """Return the sizes of all programs' ranges on a core."""
        return self.core.class_logical(self.slot_of(core))

    def core_region_end(self, Py_ssize_t core):
        """Return one past the highest covered byte of a core, 0 if none is covered."""
        return self.core.class_region_end(self.slot_of(core))

    def core_lowest(self, Py_ssize_t core):
        """Return the lowest covered byte of a core, None if none is covered."""
        lowest = self.core.class_lowest(self.slot_of(core))
        return None if lowest == UINT32_MAX else lowest

    def core_peak(self, x, y):
        """Return the most bytes of core (x, y) that were covered after any call since the beginning or the last reset.

        Raises:
            InvalidIntervalError: there is no such core.
        """
        if not (0 <= x < self.core.width and 0 <= y < self.core.height):
            raise InvalidIntervalError(
                f"core ({x}, {y}) is outside the grid of {self.core.width} x {self.core.height} cores")
        cdef uint32_t floors[1024]
        cdef uint32_t core = y * self.core.width + x
        ttm_lock_acquire(&self.lock)
        self.core.fill_core_peaks(floors)
        peak = max(floors[core], self.core.class_peak(self.core.class_of_core[core]))
        ttm_lock_release(&self.lock)
        return peak

    def reset_peaks(self):
        """Let the peaks of all cores start anew at what is covered now."""
        ttm_lock_acquire(&self.lock)
        self.core.reset_peaks()
        ttm_lock_release(&self.lock)

    def core_resident(self, Py_ssize_t core):
        """Return the bytes that the last dispatch on a core left there."""
        self.slot_of(core)
        cdef uint32_t residents[1024]
        ttm_lock_acquire(&self.lock)
        self.core.fill_resident(residents)
        ttm_lock_release(&self.lock)
        return residents[<uint32_t>core]

    def core_ranges(self, Py_ssize_t core, maximum=None):
        """Return the merged covered ranges of a core, ascending; the first ``maximum`` of them if that is given."""
        cdef uint32_t slot = self.slot_of(core), count, i
        cdef uint32_t room = self.core.limit // 2 + 1 if maximum is None else maximum
        cdef uint64_t *out = <uint64_t *>malloc(<size_t>room * sizeof(uint64_t) + 1)
        if out == NULL:
            raise MemoryError()
        ttm_lock_acquire(&self.lock)
        count = self.core.class_ranges(slot, out, room)
        ttm_lock_release(&self.lock)
        ranges = [(<uint32_t>out[i], <uint32_t>(out[i] >> 32)) for i in range(count)]
        free(out)
        return ranges

    def check(self):
        """Recompute everything from the live footprints; raise AssertionError where the engine disagrees."""
        ttm_lock_acquire(&self.lock)
        try:
            check(self.core)
        finally:
            ttm_lock_release(&self.lock)

    def fail_after(self, allocations):
        """Let the engine make so many more allocations and refuse the next ones; None: as many as it likes."""
        self.core.pool.heap.allowed = -1 if allocations is None else allocations

    def changes(self):
        """Return {class slot: flag}, whether the map of classes and whether floors of peaks changed since the last call."""
        cdef uint32_t i
        result = {self.core.changed[i]: self.core.change_flags[self.core.changed[i]]
                  for i in range(self.core.changed_count)}
        assert len(result) == self.core.changed_count
        moved, laid_down = bool(self.core.map_changed), bool(self.core.peaks_changed)
        self.core.clear_changes()
        return result, moved, laid_down

    def peak_parts(self, Py_ssize_t core):
        """Return the peak of a core's class and the core's floor: its peak is the larger one."""
        cdef uint32_t floors[1024]
        cdef uint32_t slot = self.slot_of(core)
        self.core.fill_core_peaks(floors)
        return self.core.class_peak(slot), floors[<uint32_t>core]

    def class_of(self, Py_ssize_t core):
        """Return the class slot of a core."""
        return self.slot_of(core)


cdef object cores_of(Intervals core, const uint64_t *mask):
    cdef uint32_t i
    return frozenset(i for i in range(core.num_cores) if has_core(mask, i))


def check(Intervals core):
    """Recompute everything from the live footprints of `core`; raise AssertionError where the engine disagrees."""
    cdef uint32_t i, j, slot
    cdef Footprint *entry
    cdef CoreSet *cores
    cdef CoreClass *group
    cdef uint64_t out[4096]
    uses = {}
    simples = []
    composites = []
    count = 0
    for i in range(core.footprints.size):
        entry = <Footprint *>core.footprints.buckets[i]
        while entry != NULL:
            count += 1
            assert entry.refs > 0 and entry.refs >= (entry.live if entry.cores == NULL else 0)
            (simples if entry.cores != NULL else composites).append(<uintptr_t>entry)
            entry = entry.next
    assert count == core.footprints.count

    logical = [0] * core.num_cores
    total = 0
    for address in composites:
        entry = <Footprint *><uintptr_t>address
        total += entry.live * entry.logical
        for i in range(size_of(entry)):
            part = tail(entry)[2 * i]
            if entry.live:
                uses[part] = uses.get(part, 0) + 1
                for c in cores_of(core, set_mask((<Footprint *><uintptr_t>part).cores)):
                    logical[c] += entry.live * tail(entry)[2 * i + 1]
    covered = [[] for _ in range(core.num_cores)]
    live_sets = {}
    for address in simples:
        entry = <Footprint *><uintptr_t>address
        direct = entry.live - uses.get(address, 0)
        assert direct >= 0, "a part is not live though its composite is"
        total += direct * entry.logical
        ranges = [(<uint32_t>tail(entry)[i], <uint32_t>(tail(entry)[i] >> 32)) for i in range(size_of(entry))]
        assert all(b < e for b, e in ranges) and all(a[1] < b[0] for a, b in zip(ranges, ranges[1:]))
        assert entry.bytes_per_core == sum(e - b for b, e in ranges)
        if entry.live:
            for c in cores_of(core, set_mask(entry.cores)):
                logical[c] += direct * entry.bytes_per_core
                covered[c].extend(ranges)
            if ranges:
                live_sets[<uintptr_t>entry.cores] = live_sets.get(<uintptr_t>entry.cores, 0) + 1
    assert total == core.logical == sum(logical)

    for i in range(core.core_sets.size):
        cores = <CoreSet *>core.core_sets.buckets[i]
        while cores != NULL:
            assert cores.live == live_sets.get(<uintptr_t>cores, 0)
            if cores.live and cores.epoch == core.epoch:
                listed = {set_slots(cores, core.mask_words)[j] for j in range(cores.num_slots)}
                assert listed == {core.class_of_core[c] for c in cores_of(core, set_mask(cores))}
            cores = cores.next
    assert len(live_sets) == core.live_sets

    seen = {}
    physical = 0
    assert core.class_high <= core.num_cores and core.classes[core.class_high - 1] != NULL
    for slot in range(core.num_cores):
        group = core.classes[slot]
        if group == NULL:
            continue
        inside = cores_of(core, members(group))
        assert inside and len(inside) == group.num_cores and min(inside) == group.first_core
        sign0 = sign1 = 0
        for address in live_sets:
            cores = <CoreSet *><uintptr_t>address
            around = inside & cores_of(core, set_mask(cores))
            assert not around or around == inside, "a live core set cuts a class"
            if around:
                sign0 = (sign0 + cores.tag0) % 2**64
                sign1 = (sign1 + cores.tag1) % 2**64
        assert (sign0, sign1) == (group.sign0, group.sign1)
        for c in inside:
            assert c not in seen and core.class_of_core[c] == slot
            seen[c] = slot
            assert group.logical == logical[c]
            assert sorted(covered[c]) == sorted(covered[group.first_core])
        merged = []
        end = -1
        for b, e in sorted(covered[group.first_core]):
            if b > end:
                merged.append([b, e])
                end = e
            elif e > end:
                end = merged[len(merged) - 1][1] = e
        assert group.physical == sum(e - b for b, e in merged)
        assert group.peak >= group.physical
        physical += group.physical * group.num_cores
        assert core.class_region_end(slot) == max(end, 0)
        assert core.class_lowest(slot) == (merged[0][0] if merged else UINT32_MAX)
        count = core.class_ranges(slot, out, 4096)
        assert [[<uint32_t>out[i], <uint32_t>(out[i] >> 32)] for i in range(count)] == merged[:4096]
    assert len(seen) == core.num_cores and len(set(seen.values())) == core.class_count
    assert physical == core.physical
    if not live_sets:
        assert core.class_count == 1 and core.class_high == 1

    held = set()
    resident = 0
    for i in range(core.layer_count):
        shown = cores_of(core, core.visible + <size_t>i * core.mask_words)
        assert shown and not shown & held and shown <= cores_of(core, mask_of(core.layers[i]))
        held |= shown
        resident += core.bytes_shown(i)
    assert resident == core.resident


def benchmark_add_remove(IntervalEngine engine, PreparedFootprint prepared, uint64_t rounds):
    """Add and remove a program, over and over, in C; return nanoseconds per operation."""
    cdef Intervals core = engine.core
    cdef Footprint *footprint = engine.own(prepared).footprint
    cdef uint64_t begin, end, _i
    with nogil:
        begin = ttm_now_ns()
        for _i in range(rounds):
            core.add(footprint)
            core.clear_changes()
            core.remove(footprint)
            core.clear_changes()
        end = ttm_now_ns()
    return (end - begin) / (2.0 * rounds)


def benchmark_fresh(IntervalEngine engine, list programs, uint64_t rounds):
    """Intern, add and let go of each program of `programs`, then remove all; return (ns per addition, ns per removal).

    Args:
        engine: the engine.
        programs: lists of (begin, end, mask).
        rounds: how often to do it.
    """
    cdef Intervals core = engine.core
    cdef size_t count = len(programs), total = sum(len(program) for program in programs), i, at = 0
    cdef size_t words = core.mask_words
    cdef CbRange *ranges = <CbRange *>malloc((total + 1) * sizeof(CbRange))
    cdef uint64_t *masks = <uint64_t *>malloc((total + 1) * words * sizeof(uint64_t))
    cdef size_t *first = <size_t *>malloc((count + 1) * sizeof(size_t))
    cdef Footprint **kept = <Footprint **>malloc((count + 1) * sizeof(Footprint *))
    cdef uint64_t begin, adding = 0, removing = 0, _r
    cdef dict known = {}
    for i in range(count):
        first[i] = at
        for b, e, mask in programs[i]:
            if mask not in known:
                known[mask] = len(known)
                engine.write_mask(mask, masks + <size_t>known[mask] * words)
            ranges[at].begin, ranges[at].end = b, e
            ranges[at].mask = masks + <size_t>known[mask] * words
            at += 1
    first[count] = at
    with nogil:
        for _r in range(rounds):
            begin = ttm_now_ns()
            for i in range(count):
                kept[i] = core.intern(ranges + first[i], first[i + 1] - first[i])
                core.add(kept[i])
                core.release(kept[i])
                core.clear_changes()
            adding += ttm_now_ns() - begin
            begin = ttm_now_ns()
            for i in range(count):
                core.remove(kept[i])
                core.clear_changes()
            removing += ttm_now_ns() - begin
    free(ranges)
    free(masks)
    free(first)
    free(kept)
    return adding / (1.0 * rounds * count), removing / (1.0 * rounds * count)


def benchmark_dispatch(IntervalEngine engine, PreparedFootprint one, PreparedFootprint other, uint64_t rounds):
    """Dispatch two footprints in turn, in C; return nanoseconds per dispatch."""
    cdef Intervals core = engine.core
    cdef Footprint *first = engine.own(one).footprint
    cdef Footprint *second = engine.own(other).footprint
    cdef uint64_t begin, end, _i
    with nogil:
        begin = ttm_now_ns()
        for _i in range(rounds):
            core.dispatch(first)
            core.dispatch(second)
        end = ttm_now_ns()
    return (end - begin) / (2.0 * rounds)
