"""A device's block and ledger driven by threads without the GIL, for the thread sanitizer: compiled callers hold none."""

from libc.stdint cimport uint64_t

from ttmem._layout cimport (
    TTM_LINE_WORDS,
    TTM_TOTALS,
    ttm_fence_acquire,
    ttm_load,
    ttm_load_acquire,
    ttm_lock,
    ttm_lock_acquire,
    ttm_lock_release,
)
from ttmem._ledger cimport Ledger
from ttmem._segment cimport DeviceBlock


cdef class SharedBlock:
    """A block and the lock that guards it, as a publisher has them."""

    cdef DeviceBlock block
    cdef ttm_lock lock

    def __cinit__(self, block):
        self.block = block

    def write(self, uint64_t count, bint locked):
        """Commit ``count`` versions of the first record of the totals, all of whose words are equal."""
        cdef uint64_t *record
        cdef uint64_t i
        cdef int word
        with nogil:
            for i in range(count):
                if locked:
                    ttm_lock_acquire(&self.lock)
                record = self.block.record(TTM_TOTALS, 0)
                for word in range(TTM_LINE_WORDS - 1):
                    record[word] += 1
                self.block.mark(TTM_TOTALS, 0)
                self.block.commit(i + 1)
                if locked:
                    ttm_lock_release(&self.lock)

    def read(self, uint64_t until):
        """Read until the record's figures are ``until``; return how many readings were torn."""
        cdef uint64_t *image
        cdef uint64_t[8] copy
        cdef uint64_t entered, torn = 0, offset = self.block.section[TTM_TOTALS].offset
        cdef int word
        copy[0] = 0
        with nogil:
            while copy[0] < until:
                entered = ttm_load_acquire(&self.block.control.seq)
                image = <uint64_t *> (self.block.image[entered & 1] + offset)
                for word in range(TTM_LINE_WORDS - 1):
                    copy[word] = ttm_load(image + word)
                ttm_fence_acquire()
                if ttm_load(&self.block.control.seq) != entered:
                    copy[0] = 0
                    continue
                for word in range(1, TTM_LINE_WORDS - 1):
                    torn += copy[word] != copy[0]
        return torn


def drive(Ledger ledger, uint64_t first_id, uint64_t count, uint64_t program):
    """Enter and leave buffers and kernels, and dispatch a program, as the hook in a ttnn process does; return failures."""
    cdef uint64_t i, failures = 0
    with nogil:
        for i in range(first_id, first_id + count):
            if ledger.enter():
                failures += 1
                continue
            failures += ledger.buffer_allocated_locked(i, 0, 100, 0, 0, 0, NULL, b"buffer", 6) != 0
            failures += ledger.kernel_loaded_locked(i, 10, False) != 0
            ttm_lock_release(&ledger.lock)
            failures += ledger.program_dispatched(program) != 0
            failures += ledger.buffer_freed(i) != 0
            failures += ledger.kernel_unloaded(i) != 0
    return failures
