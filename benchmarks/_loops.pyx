"""Loops in C around the engine and the publisher: what a compiled caller pays, without Python in the figures.

Built by :mod:`benchmarks.build` into build/benchmarks, never part of the package.
"""

from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc

from ttmem._core cimport CbRange, Footprint, Intervals
from ttmem._layout cimport (
    TTM_T_CB,
    TTM_TOTALS,
    ttm_lock,
    ttm_lock_acquire,
    ttm_lock_release,
    ttm_realtime_coarse_ns,
)
from ttmem._publisher cimport PreparedFootprint, Publisher


cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>

    static inline uint64_t bench_now_ns(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    }
    /* The compiler must not move a measured read out of its loop. */
    static inline void bench_fence(void) { __asm__ volatile("" ::: "memory"); }
    static inline void bench_use(uint64_t value) { __asm__ volatile("" :: "r"(value)); }
    static void bench_evict(volatile char *memory, size_t size) {
        for (size_t i = 0; i < size; i += 64) memory[i]++;
    }
    """
    uint64_t bench_now_ns() nogil
    void bench_fence() nogil
    void bench_use(uint64_t value) nogil
    void bench_evict(char *memory, size_t size) nogil


cdef class Engine:
    """The interval engine, fed with a packed workload."""

    cdef readonly Intervals core
    cdef object workload            # keeps the arrays alive
    cdef CbRange *ranges
    cdef const uint64_t *first
    cdef Footprint **kept
    cdef uint64_t prepared_low, prepared_high

    def __cinit__(self, workload):
        cdef uint64_t i, count = len(workload.begin)
        cdef const uint32_t *begin = <const uint32_t *> <uintptr_t> workload.begin.ctypes.data
        cdef const uint32_t *end = <const uint32_t *> <uintptr_t> workload.end.ctypes.data
        cdef const uint32_t *mask_of = <const uint32_t *> <uintptr_t> workload.mask_of.ctypes.data
        cdef const uint64_t *masks = <const uint64_t *> <uintptr_t> workload.masks.ctypes.data
        cdef uint64_t words = workload.grid.mask_words
        self.workload = workload
        self.core = Intervals(workload.grid.width, workload.grid.height, limit=workload.grid.limit)
        self.first = <const uint64_t *> <uintptr_t> workload.first.ctypes.data
        self.ranges = <CbRange *> malloc((count + 1) * sizeof(CbRange))
        self.kept = <Footprint **> calloc(workload.num_programs + 1, sizeof(Footprint *))
        if self.ranges == NULL or self.kept == NULL:
            raise MemoryError()
        for i in range(count):
            self.ranges[i].begin = begin[i]
            self.ranges[i].end = end[i]
            self.ranges[i].mask = masks + mask_of[i] * words

    def __dealloc__(self):
        # The engine frees what it interned when it goes.
        free(self.ranges)
        free(self.kept)

    cdef inline Footprint *intern(self, uint64_t program) noexcept nogil:
        return self.core.intern(self.ranges + self.first[program], self.first[program + 1] - self.first[program])

    def add_new(self, uint64_t low, uint64_t high):
        """Intern and add programs, letting go of their handles; return nanoseconds for all."""
        cdef uint64_t i, begin
        with nogil:
            begin = bench_now_ns()
            for i in range(low, high):
                self.kept[i] = self.intern(i)
                self.core.add(self.kept[i])
                self.core.release(self.kept[i])
                self.core.clear_changes()
            begin = bench_now_ns() - begin
        return begin

    def remove(self, uint64_t low, uint64_t high):
        """Remove programs that were added; return nanoseconds for all."""
        cdef uint64_t i, begin
        with nogil:
            begin = bench_now_ns()
            for i in range(low, high):
                self.core.remove(self.kept[i])
                self.core.clear_changes()
            begin = bench_now_ns() - begin
        return begin

    def prepare(self, uint64_t low, uint64_t high):
        """Intern programs and keep their handles."""
        cdef uint64_t i
        for i in range(low, high):
            self.kept[i] = self.intern(i)

    def forget(self, uint64_t low, uint64_t high):
        """Let go of the handles of programs that were prepared."""
        cdef uint64_t i
        for i in range(low, high):
            self.core.release(self.kept[i])

    def add_known(self, uint64_t low, uint64_t high):
        """Add prepared programs; return nanoseconds for all."""
        cdef uint64_t i, begin
        with nogil:
            begin = bench_now_ns()
            for i in range(low, high):
                self.core.add(self.kept[i])
                self.core.clear_changes()
            begin = bench_now_ns() - begin
        return begin

    def add_cold(self, uint64_t low, uint64_t high, size_t evicted_bytes):
        """Add and remove each prepared program after memory of this size was touched; return nanoseconds of each add."""
        cdef uint64_t i, begin, end, clock = <uint64_t> -1
        cdef char *memory = <char *> calloc(evicted_bytes, 1)
        cdef list result = []
        if memory == NULL:
            raise MemoryError()
        for i in range(1000):
            begin = bench_now_ns()
            clock = min(clock, bench_now_ns() - begin)
        for i in range(low, high):
            with nogil:
                bench_evict(memory, evicted_bytes)
                begin = bench_now_ns()
                self.core.add(self.kept[i])
                end = bench_now_ns()
                self.core.remove(self.kept[i])
                self.core.clear_changes()
            result.append(max(0, <long long> (end - begin) - <long long> clock))
        free(memory)
        return result

    def churn(self, uint64_t cached, uint64_t count, uint64_t start):
        """Let the oldest program go and add the one after the newest, over all programs of the workload, which must hold
        ``cached`` of them from ``start`` on; return nanoseconds for all."""
        cdef uint64_t i, begin, old, new, programs = self.workload.num_programs
        with nogil:
            begin = bench_now_ns()
            for i in range(count):
                old = (start + i) % programs
                new = (start + cached + i) % programs
                self.core.remove(self.kept[old])
                self.kept[new] = self.intern(new)
                self.core.add(self.kept[new])
                self.core.release(self.kept[new])
                self.core.clear_changes()
            begin = bench_now_ns() - begin
        return begin

    def dispatch_pair(self, uint64_t one, uint64_t other, uint64_t count):
        """Dispatch two prepared programs in turn; return nanoseconds for all."""
        cdef uint64_t i, begin
        cdef Footprint *a = self.kept[one]
        cdef Footprint *b = self.kept[other]
        with nogil:
            begin = bench_now_ns()
            for i in range(count // 2):
                bench_fence()
                self.core.dispatch(a)
                bench_fence()
                self.core.dispatch(b)
            begin = bench_now_ns() - begin
        return begin

    def read_total(self, uint64_t count):
        """Read the physical bytes of the device; return nanoseconds for all."""
        cdef uint64_t i, begin
        with nogil:
            begin = bench_now_ns()
            for i in range(count):
                bench_fence()
                bench_use(self.core.physical)
            begin = bench_now_ns() - begin
        return begin

    def read_core(self, uint64_t count):
        """Read the physical bytes of each core in turn; return nanoseconds for all."""
        cdef uint64_t i, begin
        cdef uint32_t core = 0
        with nogil:
            begin = bench_now_ns()
            for i in range(count):
                bench_fence()
                bench_use(self.core.class_physical(self.core.class_of_core[core]))
                core += 1
                if core == self.core.num_cores:
                    core = 0
            begin = bench_now_ns() - begin
        return begin

    @property
    def physical_bytes(self):
        """Physical bytes of the device."""
        return self.core.physical

    @property
    def memory_bytes(self):
        """Bytes that the engine holds."""
        return self.core.memory_bytes()

    @property
    def work(self):
        """Nodes and classes touched since the beginning."""
        return self.core.pool.work

    @property
    def num_classes(self):
        """Classes of cores that share one cover."""
        return self.core.class_count


def published_round(Publisher publisher, list handles):
    """Add, then remove the engine's part of programs, each with its publication; return (ns adding, ns removing).

    The rows of programs are Python's and have no part in this.
    """
    cdef uint64_t count = len(handles), i, begin, adding, removing
    cdef Footprint **items = <Footprint **> malloc((count + 1) * sizeof(Footprint *))
    if items == NULL:
        raise MemoryError()
    for i in range(count):
        items[i] = (<PreparedFootprint?> handles[i]).footprint
    with nogil:
        begin = bench_now_ns()
        for i in range(count):
            ttm_lock_acquire(&publisher.lock)
            publisher.cb.add(items[i])
            publisher.sync_locked()
            publisher.flush_locked()
            ttm_lock_release(&publisher.lock)
        adding = bench_now_ns() - begin
        begin = bench_now_ns()
        for i in range(count):
            ttm_lock_acquire(&publisher.lock)
            publisher.cb.remove(items[i])
            publisher.sync_locked()
            publisher.flush_locked()
            ttm_lock_release(&publisher.lock)
        removing = bench_now_ns() - begin
    free(items)
    return adding, removing


def commit_record(Publisher publisher, uint64_t count):
    """Change one figure of the device's totals and commit it, as often, under a lock that is taken once and with a time stamp
    that is read once; return nanoseconds for all."""
    cdef uint64_t i, begin, now = ttm_realtime_coarse_ns()
    cdef uint64_t *record = publisher.block.record(TTM_TOTALS, TTM_T_CB)
    cdef uint64_t before = record[1]
    with nogil:
        ttm_lock_acquire(&publisher.lock)
        begin = bench_now_ns()
        for i in range(count):
            record[1] = i
            publisher.block.mark(TTM_TOTALS, TTM_T_CB)
            publisher.block.commit(now)
        begin = bench_now_ns() - begin
        record[1] = before
        publisher.block.mark(TTM_TOTALS, TTM_T_CB)
        publisher.block.commit(now)
        ttm_lock_release(&publisher.lock)
    return begin


def update_record(Publisher publisher, uint64_t count, bint with_clock=True):
    """Change one figure of the device's totals and commit it, as often; return nanoseconds for all.

    Without the clock the time stamp is read once, as a caller may that has the time at hand.
    """
    cdef uint64_t i, begin, now = ttm_realtime_coarse_ns()
    cdef uint64_t *record = publisher.block.record(TTM_TOTALS, TTM_T_CB)
    cdef uint64_t before = record[1]
    with nogil:
        begin = bench_now_ns()
        for i in range(count):
            ttm_lock_acquire(&publisher.lock)
            record[1] = i
            publisher.block.mark(TTM_TOTALS, TTM_T_CB)
            publisher.block.commit(ttm_realtime_coarse_ns() if with_clock else now)
            ttm_lock_release(&publisher.lock)
        begin = bench_now_ns() - begin
        record[1] = before
        publisher.block.mark(TTM_TOTALS, TTM_T_CB)
        publisher.block.commit(now)
    return begin


def cold_line(size_t evicted_bytes, uint64_t count):
    """Read one cache line after memory of this size was touched; return nanoseconds of each, net of the clock."""
    cdef uint64_t i, begin, end, clock = <uint64_t> -1
    cdef char *memory = <char *> calloc(evicted_bytes, 1)
    cdef uint64_t *line = <uint64_t *> calloc(count + 1, 4096)
    cdef list result = []
    if memory == NULL or line == NULL:
        raise MemoryError()
    for i in range(1000):
        begin = bench_now_ns()
        clock = min(clock, bench_now_ns() - begin)
    for i in range(count):
        line[i * 512] = i
        with nogil:
            bench_evict(memory, evicted_bytes)
            # The compiler must not remember what it wrote.
            bench_use(<uint64_t> <uintptr_t> line)
            bench_fence()
            begin = bench_now_ns()
            bench_use(line[i * 512])
            end = bench_now_ns()
        result.append(max(0, <long long> (end - begin) - <long long> clock))
    free(memory)
    free(line)
    return result


def lock_pair(uint64_t count):
    """Take and release the publisher's lock; return nanoseconds for all."""
    cdef uint64_t i, begin
    cdef ttm_lock lock
    lock.held = 0
    with nogil:
        begin = bench_now_ns()
        for i in range(count):
            ttm_lock_acquire(&lock)
            ttm_lock_release(&lock)
        begin = bench_now_ns() - begin
    return begin


def coarse_clock(uint64_t count):
    """Read the clock of the time stamps; return nanoseconds for all."""
    cdef uint64_t i, begin
    with nogil:
        begin = bench_now_ns()
        for i in range(count):
            bench_use(ttm_realtime_coarse_ns())
        begin = bench_now_ns() - begin
    return begin
