"""A segment's file, held open between readings: what its blocks' control words say did not change is not read again.

A reading belongs to the control words that it was taken under: generation, state, seq and the rest. While a block still has the
same ones, its writer has committed nothing since, and the reading is what a new one would be. So a file in which nothing
happened costs one fstat, one pread and the question whether its writer lives. Nothing is ever mapped: see `_reading.pyx`.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memcpy

from ttmem._layout cimport (
    TTM_CONTROL,
    TTM_HEADER_BYTES,
    TTM_LOCK_OFD,
    TTM_STATE_CLOSED,
    ttm_block_control,
    ttm_file_control,
    ttm_file_header,
)
from ttmem._reading cimport BlockReading, read_exactly

from ttmem._reading import block_offsets, read_header
from ttmem.errors import CorruptSegmentError


cdef extern from "<sys/stat.h>" nogil:
    struct stat:
        long st_size
    int fstat(int fd, stat *status)

cdef extern from "<fcntl.h>" nogil:
    struct flock:
        short l_type
        short l_whence
        long l_start
        long l_len
        int l_pid
    int fcntl(int fd, int command, flock *lock)
    enum:
        F_OFD_GETLK
        F_RDLCK
        F_UNLCK

cdef extern from "<unistd.h>" nogil:
    enum:
        SEEK_SET

cdef extern from "<errno.h>" nogil:
    int errno

cdef enum:
    STATIC_BYTES = 512
    CONTROL_BYTES = 64


cdef class OpenFile:
    """The figures in one segment's file.

    Args:
        fd: readable; only read, and asked about its lock. It stays the caller's.

    Attributes:
        facts: :class:`ttmem._reading.FileFacts` of its header.
        locked: whether some writer held the file before the figures were taken; None for a writer that could take no lock.

    Thread safety: none.

    Raises:
        CorruptSegmentError: the header is none.
        LayoutMismatchError: it is one of another layout.
    """

    cdef readonly int fd
    cdef readonly object facts
    cdef readonly object locked
    cdef char static_bytes[512]         # of the header that `facts` was made of
    cdef uint64_t size                  # of the file when the chain of blocks was followed
    cdef uint64_t committed
    cdef list offsets                   # of the blocks, None while they are not known
    cdef dict readings                  # offset -> BlockReading; one of which only the header was read has no tries

    def __init__(self, int fd):
        self.fd = fd
        self.readings = {}
        self.size = self.measure()
        self.follow(self.size)

    cdef uint64_t measure(self) except? 0:
        cdef stat status
        if fstat(self.fd, &status):
            raise OSError(errno, "cannot measure a segment")
        return <uint64_t> status.st_size

    cdef int follow(self, uint64_t size) except -1:
        """Take the header anew, and forget all else."""
        self.offsets = None
        self.readings.clear()
        # Until the end of this, so that nothing matches a header that was refused.
        self.static_bytes[0] = 0
        self.facts = read_header(self.fd, size)
        if not read_exactly(self.fd, self.static_bytes, STATIC_BYTES, 0):
            raise CorruptSegmentError("the segment was cut short while it was read")
        return 0

    cdef int ask(self) except -1:
        """Ask whether a writer holds the file."""
        cdef flock lock
        if (<ttm_file_header *> self.static_bytes).lock_mode != TTM_LOCK_OFD:
            self.locked = None
            return 0
        # Asked as a reader's lock, which only a writer's contradicts: whoever may read a file can put such a lock on it.
        lock.l_type = F_RDLCK
        lock.l_whence = SEEK_SET
        lock.l_start = 0
        lock.l_len = 1
        lock.l_pid = 0
        if fcntl(self.fd, F_OFD_GETLK, &lock):
            raise OSError(errno, "cannot ask for a segment's lock")
        self.locked = lock.l_type != F_UNLCK
        return 0

    def read(self, wanted=None):
        """Return the :class:`BlockReading` of each block that is published.

        Args:
            wanted: an object whose ``fits(reading)`` says of which blocks the figures are wanted; None for all.

        Raises:
            CorruptSegmentError: the file, a header or the totals of a block match no checksum or contradict themselves.
        """
        cdef char[4096 + 512 + 64] head
        cdef ttm_file_control *control = <ttm_file_control *> (head + TTM_CONTROL)
        cdef ttm_block_control block
        cdef uint64_t size = self.measure()
        cdef uint64_t offset
        cdef bint asked = False
        cdef uint64_t count = sizeof(head)
        cdef BlockReading known, fresh
        if size < count:
            count = TTM_CONTROL + CONTROL_BYTES
        if size < TTM_HEADER_BYTES or not read_exactly(self.fd, head, count, 0):
            raise CorruptSegmentError(f"the segment is cut short: {size} bytes, at least {TTM_HEADER_BYTES} expected")
        if memcmp(head, self.static_bytes, STATIC_BYTES) or size != self.size:
            self.size = size
            self.follow(size)
            if memcmp(head, self.static_bytes, STATIC_BYTES):
                raise CorruptSegmentError("the segment's header changed while it was read")
        if control.state == TTM_STATE_CLOSED:
            return []
        if self.offsets is None or control.committed_bytes != self.committed:
            self.offsets = block_offsets(self.fd, size, self.facts.header_bytes)
            self.committed = control.committed_bytes
        found = []
        for offset in self.offsets:
            if offset == TTM_HEADER_BYTES and count == sizeof(head):
                memcpy(&block, head + TTM_HEADER_BYTES + TTM_CONTROL, CONTROL_BYTES)
            elif not read_exactly(self.fd, &block, CONTROL_BYTES, offset + TTM_CONTROL):
                raise CorruptSegmentError("the segment was cut short while it was read")
            known = self.readings.get(offset)
            if known is None or known.control.generation != block.generation or known.control.state != block.state:
                known = BlockReading(self.fd, offset, size)
                self.readings[offset] = known
            if not known.live or (wanted is not None and not wanted.fits(known)):
                continue
            if not asked:
                # Before the figures are taken: a writer that dies meanwhile was alive when they were true.
                self.ask()
                asked = True
            if known.tries and memcmp(&known.control, &block, CONTROL_BYTES) == 0:
                found.append(known)
                continue
            fresh = known.successor() if known.tries else known
            try:
                fresh.read_images(self.fd, offset)
            except BaseException:
                self.readings.pop(offset, None)
                raise
            if fresh.live:
                found.append(fresh)
            if fresh.live and fresh.consistent and fresh.damaged == 0:
                self.readings[offset] = fresh
            else:
                self.readings.pop(offset, None)
        return found
