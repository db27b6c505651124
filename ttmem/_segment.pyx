"""The writing side of a segment: one device's block, its two images and the latch between them.

Invariants
1. The shadow is the writer's truth. An image differs from it only in records that are marked and not yet committed, and,
   during a commit, in records that this commit publishes.
2. ``seq`` is even between commits and both images are equal then. It is odd only while image 0 is being written.
3. Readers take image ``seq & 1``. It is whole: a commit first moves them to image 1 (old), writes image 0, moves them to
   image 0 (new), then brings image 1 up. A writer that is killed anywhere leaves one whole image, the old or the new one.
4. A record is written only where ``ready`` says that memory was obtained: a full /dev/shm costs a record, never a SIGBUS.

Thread safety: the ledger holds its lock around every call but those that move or describe the block. These take the lock
themselves, around what is C alone: the files between them are Python's, and threads without the GIL record meanwhile.
"""

from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset, strncpy

from ttmem._layout cimport (
    TTM_BLOCK_DEVICE,
    TTM_BLOCK_HEADER_BYTES,
    TTM_BUFFER_ROWS,
    TTM_BUFFERS,
    TTM_BUFFER_NAMES,
    TTM_CB_CLASS,
    TTM_CB_MAP,
    TTM_CB_RANGES,
    TTM_CBS_MAX,
    TTM_CBS_WORDS,
    TTM_CONTROL,
    TTM_ENDIAN,
    TTM_HEADER_BYTES,
    TTM_KEYS,
    TTM_KNOWN_ASIC,
    TTM_KNOWN_BASE,
    TTM_KNOWN_DRAM,
    TTM_KNOWN_GRID,
    TTM_KNOWN_L1,
    TTM_KNOWN_L1_SMALL,
    TTM_KNOWN_TRACE,
    TTM_L1_CLASS,
    TTM_L1_MAP,
    TTM_L1_RANGES,
    TTM_LINE_WORDS,
    TTM_MAGIC,
    TTM_MAJOR,
    TTM_MINOR,
    TTM_NAME_WORDS,
    TTM_PAGE,
    TTM_PEAK_ROWS,
    TTM_PEAK_WORDS,
    TTM_PEAKS,
    TTM_PROGRAM_CBS,
    TTM_PROGRAM_NAMES,
    TTM_PROGRAM_ROWS,
    TTM_PROGRAMS,
    TTM_RANGE_WORDS,
    TTM_RANGES_MAX,
    TTM_RESIDENT,
    TTM_SCHEMA,
    TTM_SECTION_COUNT,
    TTM_STATE_CLOSED,
    TTM_STATE_LIVE,
    TTM_STATIC_WORDS,
    TTM_TOTALS,
    ttm_block_control,
    ttm_block_header,
    ttm_check,
    ttm_fence_release,
    ttm_file_control,
    ttm_file_header,
    ttm_key,
    ttm_latch_commit_line,
    ttm_latch_turn,
    ttm_load,
    ttm_lock_acquire,
    ttm_lock_release,
    ttm_section,
    ttm_store,
    ttm_store_release,
    ttm_tag,
)


cdef extern from "_fork.h" nogil:
    uint64_t ttm_process_token()

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int fd, int mode, long offset, long length)

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)
    int madvise(void *address, size_t length, int advice)
    enum:
        PROT_READ
        PROT_WRITE
        MAP_SHARED
        MAP_PRIVATE
        MAP_ANONYMOUS
        MADV_DONTFORK
        MADV_REMOVE
    void *MAP_FAILED

cdef extern from *:
    """
    #ifndef MADV_POPULATE_WRITE
    #define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
    #endif
    #include <errno.h>
    """
    enum:
        MADV_POPULATE_WRITE
    int errno
    enum:
        EINVAL

cdef bint can_populate = True   # False once the kernel did not know how (before Linux 5.14)

cdef uint64_t[TTM_KEYS] keys


def _fill_keys():
    cdef uint64_t index
    for index in range(TTM_KEYS):
        keys[index] = ttm_key(index)


_fill_keys()


cdef uint64_t round_up(uint64_t value, uint64_t step) noexcept nogil:
    return (value + step - 1) // step * step


def forget_populate(bint forget=True):
    """Go on as on a kernel without MADV_POPULATE_WRITE, for tests; ``False`` takes that back."""
    global can_populate
    can_populate = not forget


cdef bint obtain(void *memory, uint64_t count) noexcept nogil:
    """Get memory for a part of a mapped file, without touching what it holds; False if there is none."""
    global can_populate, errno
    if not can_populate:
        errno = EINVAL
        return False
    if madvise(memory, count, MADV_POPULATE_WRITE) == 0:
        return True
    # The ranges are right: only a kernel that does not know the advice finds something invalid.
    can_populate = errno != EINVAL
    return False


cdef inline bint eager(uint32_t kind) noexcept nogil:
    """Whether a section gets memory at once, not when it is first used."""
    return kind < TTM_CB_RANGES or kind == TTM_PEAKS


cdef inline bint goes_first(uint32_t kind) noexcept nogil:
    """Whether a commit writes records of a section before those that they belong to."""
    return (
        kind == TTM_CB_MAP or kind == TTM_L1_MAP
        or kind == TTM_PROGRAM_NAMES or kind == TTM_PROGRAM_CBS or kind == TTM_BUFFER_NAMES
    )


cdef inline void copy_words(uint64_t *target, const uint64_t *source, uint32_t count) noexcept nogil:
    cdef uint32_t i
    for i in range(count):
        ttm_store(target + i, source[i])


cdef inline void copy_line(uint64_t *target, const uint64_t *source) noexcept nogil:
    # Written out: this is most of what an update of one figure costs.
    ttm_store(target, source[0])
    ttm_store(target + 1, source[1])
    ttm_store(target + 2, source[2])
    ttm_store(target + 3, source[3])
    ttm_store(target + 4, source[4])
    ttm_store(target + 5, source[5])
    ttm_store(target + 6, source[6])
    ttm_store(target + 7, source[7])


cdef class DeviceBlock:
    """One device's block of a segment, written by this process.

    Args:
        cores: how many cores the records have, 1 to 1,024.

    Until :meth:`map` succeeds the block lies in private memory, and works all the same.
    """

    def __cinit__(self, uint32_t cores):
        self._lay_out(cores)
        self.dirty = <uint64_t *> calloc(self.record_count, sizeof(uint64_t))
        self.is_dirty = <uint8_t *> calloc(self.record_count, 1)
        self.shadow = <char *> mmap(
            NULL, self.image_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0
        )
        if <void *> self.shadow == MAP_FAILED:
            self.shadow = NULL
        if self.dirty == NULL or self.is_dirty == NULL or self.shadow == NULL:
            raise MemoryError("no memory for the private copy of a device's figures")
        self.map_private()

    def __dealloc__(self):
        self._unmap(self.block, self.shared)
        if self.shadow != NULL:
            munmap(self.shadow, self.image_bytes)
        free(self.dirty)
        free(self.is_dirty)

    cdef void _lay_out(self, uint32_t cores) noexcept:
        cdef uint32_t kind, number = 0
        cdef uint64_t offset = 0
        cdef ttm_section *section
        cdef uint32_t map_words = (cores + 3) // 4 + 1
        cdef uint32_t resident_words = (cores + 1) // 2 + 1
        cdef uint32_t place
        for place in range(TTM_SECTION_COUNT):
            # In the order of their kinds, but for the peaks, which stand before the tables that are seldom full.
            kind = place
            if place == TTM_CB_RANGES:
                kind = TTM_PEAKS
            elif place > TTM_CB_RANGES:
                kind = place - 1
            section = &self.section[kind]
            section.kind = kind
            section.count = 1
            section.words = TTM_LINE_WORDS
            if kind == TTM_TOTALS:
                section.count = 8
            elif kind == TTM_CB_MAP or kind == TTM_L1_MAP:
                section.words = map_words
            elif kind == TTM_RESIDENT:
                section.count = 2
                section.words = resident_words
            elif kind == TTM_PEAKS:
                section.count = TTM_PEAK_ROWS
                section.words = TTM_PEAK_WORDS
            elif kind == TTM_PROGRAM_CBS:
                section.count = TTM_PROGRAM_ROWS
                section.words = TTM_CBS_WORDS
            elif kind == TTM_CB_CLASS or kind == TTM_L1_CLASS:
                section.count = cores
            elif kind == TTM_CB_RANGES or kind == TTM_L1_RANGES:
                section.count = cores
                section.words = TTM_RANGE_WORDS
            elif kind == TTM_PROGRAMS:
                section.count = TTM_PROGRAM_ROWS
            elif kind == TTM_BUFFERS:
                section.count = TTM_BUFFER_ROWS
            else:
                section.count = TTM_PROGRAM_ROWS if kind == TTM_PROGRAM_NAMES else TTM_BUFFER_ROWS
                section.words = TTM_NAME_WORDS
            section.stride = <uint32_t> round_up(section.words * 8, 64)
            # Tables that are seldom full start on a page of their own, so that they take no memory until they are used.
            if not eager(kind):
                offset = round_up(offset, TTM_PAGE)
            section.offset = offset
            offset += <uint64_t> section.stride * section.count
            self.first[kind] = number
            number += section.count
        self.record_count = number
        self.image_bytes = round_up(offset, TTM_PAGE)
        self.block_bytes = TTM_BLOCK_HEADER_BYTES + 2 * self.image_bytes

    cdef void _hold(self) noexcept nogil:
        if self.guard != NULL:
            ttm_lock_acquire(self.guard)

    cdef void _let_go(self) noexcept nogil:
        if self.guard != NULL:
            ttm_lock_release(self.guard)

    cdef void _move(self, char *block, bint shared, bint all_ready) noexcept:
        """Have the block lie elsewhere from here on, where nobody reads it until it is described."""
        cdef char *before = self.block
        cdef bint was_shared = self.shared
        cdef uint32_t kind
        self._hold()
        self.block = block
        self.control = <ttm_block_control *> (block + TTM_CONTROL)
        self.image[0] = block + TTM_BLOCK_HEADER_BYTES
        self.image[1] = self.image[0] + self.image_bytes
        for kind in range(TTM_SECTION_COUNT):
            self.ready[kind] = self.section[kind].count if all_ready or eager(kind) else 0
        # The two halves of the tables of buffers fill up each from its own start.
        self.upper_ready[0] = self.upper_ready[1] = TTM_BUFFER_ROWS if all_ready else TTM_BUFFER_ROWS // 2
        # What was marked where the block lay before may have no memory here.
        self.dirty_count = 0
        self.rows_first = False
        memset(self.is_dirty, 0, self.record_count)
        self.shared = shared
        self._let_go()
        self._unmap(before, was_shared)
        if shared:
            self.owner = ttm_process_token()

    cdef void _unmap(self, char *block, bint shared) noexcept:
        if block != NULL and (not shared or ttm_process_token() == self.owner):
            munmap(block, self.block_bytes)

    def map_private(self):
        """Move the block to private memory: nothing is published, everything goes on.

        Raises:
            MemoryError: there is no memory for it.
        """
        cdef void *memory = mmap(NULL, self.block_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if memory == MAP_FAILED:
            raise MemoryError("no memory for a device's figures")
        self._move(<char *> memory, False, True)

    def map(self, int fd, uint64_t offset):
        """Move the block into a segment's file, which is at least ``offset + block_bytes`` long.

        The mapping is not inherited by forked children: they would write figures under their parent's name, and keep the
        parent's lock alive.

        Raises:
            OSError: the file cannot be mapped, or /dev/shm is full; the block stays where it was.
        """
        cdef void *memory = mmap(NULL, self.block_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, <long> offset)
        cdef uint64_t eager_end = TTM_BLOCK_HEADER_BYTES + self.section[TTM_CB_RANGES].offset
        cdef bint obtained, whole = False
        if memory == MAP_FAILED:
            raise OSError(errno, "cannot map a segment")
        madvise(memory, self.block_bytes, MADV_DONTFORK)
        obtained = (
            obtain(memory, eager_end)
            and obtain(<char *> memory + TTM_BLOCK_HEADER_BYTES + self.image_bytes, eager_end - TTM_BLOCK_HEADER_BYTES)
        )
        if not obtained and not can_populate:
            # Only while the file is open: all of the block at once, used or not.
            obtained = whole = fallocate(fd, 0, <long> offset, <long> self.block_bytes) == 0
        if not obtained:
            code = errno
            # What was obtained before it was full is given back.
            madvise(memory, self.block_bytes, MADV_REMOVE)
            munmap(memory, self.block_bytes)
            raise OSError(code, "no memory for a segment: /dev/shm is full")
        self._move(<char *> memory, True, whole)

    def unmap(self):
        """Let go of the segment and go on in private memory."""
        self.map_private()

    @property
    def address(self):
        """Where the block is mapped, for tests that attack it."""
        return <uintptr_t> self.block

    def describe(self, uint32_t device_id, geometry, uint32_t origin, uint64_t now_ns):
        """Write the block's static part, everything that does not change while the device is published.

        Args:
            device_id: the logical id.
            geometry: a :class:`ttmem.model.Geometry`.
            origin: 0 for a live process, 1 for a replay of a capture, 2 for that of a recording.
            now_ns: CLOCK_REALTIME.
        """
        cdef ttm_block_header header
        cdef uint32_t kind
        memset(&header, 0, sizeof(header))
        header.type = TTM_BLOCK_DEVICE
        header.version = 1
        header.block_bytes = self.block_bytes
        header.device_id = device_id
        header.known = (
            (geometry.asic_id is not None) * TTM_KNOWN_ASIC
            | (geometry.grid is not None) * TTM_KNOWN_GRID
            | (geometry.worker_l1_size is not None) * TTM_KNOWN_L1
            | (geometry.l1_cb_base is not None) * TTM_KNOWN_BASE
            | (geometry.l1_small_size is not None) * TTM_KNOWN_L1_SMALL
            | (geometry.dram_size is not None) * TTM_KNOWN_DRAM
            | (geometry.trace_region_size is not None) * TTM_KNOWN_TRACE
        )
        header.asic_id = geometry.asic_id or 0
        arch = (geometry.arch or "").encode()
        strncpy(header.arch, arch, 15)
        grid = record_grid(geometry)
        header.grid_x, header.grid_y = grid
        header.worker_l1_size = geometry.worker_l1_size or 0
        header.l1_cb_base = geometry.l1_cb_base or 0
        header.l1_small_size = geometry.l1_small_size or 0
        header.dram_size = geometry.dram_size or 0
        header.trace_region_size = geometry.trace_region_size or 0
        header.published_ns = now_ns
        header.image_offset = TTM_BLOCK_HEADER_BYTES
        header.image_bytes = self.image_bytes
        header.section_count = TTM_SECTION_COUNT
        header.origin = origin
        for kind in range(TTM_SECTION_COUNT):
            header.sections[kind] = self.section[kind]
        header.check = ttm_check(<uint64_t *> &header, TTM_STATIC_WORDS - 1)
        self._hold()
        # A reader that meets the block meanwhile sees an odd generation and looks away.
        cdef uint64_t *target = <uint64_t *> self.block
        cdef uint64_t generation = ttm_load(&self.control.generation)
        ttm_store(&self.control.generation, generation | 1)
        ttm_fence_release()
        copy_words(target, <uint64_t *> &header, TTM_STATIC_WORDS)
        ttm_store(&self.control.seq, 0)
        ttm_store(&self.control.updated_ns, self.updated_ns)
        ttm_store(&self.control.dropped, self.dropped)
        ttm_store(&self.control.notes, self.notes)
        ttm_store(&self.control.state, TTM_STATE_LIVE)
        self._publish_everything()
        ttm_store_release(&self.control.generation, (generation | 1) + 1)
        self._let_go()

    def note(self, uint64_t notes):
        """Add to what readers are told of the figures as a whole (``enum ttm_note``)."""
        self.add_note(notes)

    cdef void add_note(self, uint64_t notes) noexcept nogil:
        self.notes |= notes
        if self.control != NULL:
            ttm_store(&self.control.notes, self.notes)

    def withdraw(self):
        """Tell readers that the device is no longer published here."""
        ttm_store_release(&self.control.state, TTM_STATE_CLOSED)

    cdef void _publish_everything(self) noexcept nogil:
        # After a move every record has to be written once, the tables only as far as they were ever in use.
        cdef uint32_t kind, index
        for kind in range(TTM_SECTION_COUNT):
            for index in range(self.high[kind] if kind >= TTM_CB_CLASS and kind != TTM_PEAKS else self.section[kind].count):
                self.mark(kind, index)
            if kind == TTM_BUFFERS or kind == TTM_BUFFER_NAMES:
                for index in range(TTM_BUFFER_ROWS // 2, self.upper_high[kind - TTM_BUFFERS]):
                    self.mark(kind, index)
        self.commit(0)

    cdef inline uint64_t *record(self, uint32_t kind, uint32_t index) noexcept nogil:
        return <uint64_t *> (
            self.shadow + self.section[kind].offset + <uint64_t> index * self.section[kind].stride
        )

    cdef inline bint mark(self, uint32_t kind, uint32_t index) noexcept nogil:
        """Have the next commit publish a record; False if there is no memory for it."""
        cdef uint32_t number = self.first[kind] + index
        cdef uint32_t *ready = &self.ready[kind]
        cdef uint32_t *high = &self.high[kind]
        if (kind == TTM_BUFFERS or kind == TTM_BUFFER_NAMES) and index >= TTM_BUFFER_ROWS // 2:
            ready = &self.upper_ready[kind - TTM_BUFFERS]
            high = &self.upper_high[kind - TTM_BUFFERS]
        if index >= ready[0] and not self._populate(kind, index, ready):
            return False
        if index >= high[0]:
            high[0] = index + 1
        if not self.is_dirty[number]:
            self.is_dirty[number] = 1
            self.dirty[self.dirty_count] = <uint64_t> kind << 32 | index
            self.dirty_count += 1
        return True

    cdef bint mark_of_row(self, uint32_t kind, uint32_t row_kind, uint32_t index) noexcept nogil:
        """Mark what belongs to a row: the next commit writes it before the row, even if that is marked already.

        A reader that cannot get one cut, and reads rows first, then never gives a row the name of an earlier one.
        """
        self.rows_first |= self.is_dirty[self.first[row_kind] + index]
        return self.mark(kind, index)

    cdef void mark_map(self, uint32_t kind) noexcept nogil:
        """Mark a map of classes: the next commit writes it before the classes, even if they are marked already.

        A reader that cannot get one cut then sees by the map whether the classes that it read before are of that map.
        """
        self.rows_first |= self.dirty_count > 0
        self.mark(kind, 0)

    cdef void _put_rows_last(self) noexcept nogil:
        cdef uint32_t i, front = 0
        for i in range(self.dirty_count):
            if goes_first(<uint32_t> (self.dirty[i] >> 32)):
                self.dirty[i], self.dirty[front] = self.dirty[front], self.dirty[i]
                front += 1
        self.rows_first = False

    cdef bint _touch(self, uint64_t offset, uint64_t count) noexcept nogil:
        cdef uint64_t begin = offset // TTM_PAGE * TTM_PAGE
        return obtain(self.block + begin, round_up(offset + count - begin, TTM_PAGE))

    cdef bint _populate(self, uint32_t kind, uint32_t index, uint32_t *ready) noexcept nogil:
        # Asked a page at a time, so that it happens seldom and a nearly full /dev/shm is used to the end.
        cdef ttm_section *section = &self.section[kind]
        cdef uint64_t begin = section.offset + <uint64_t> ready[0] * section.stride
        cdef uint64_t end = round_up(section.offset + <uint64_t> (index + 1) * section.stride, TTM_PAGE)
        cdef uint64_t base = TTM_BLOCK_HEADER_BYTES
        if not self._touch(base + begin, end - begin) or not self._touch(base + self.image_bytes + begin, end - begin):
            self.dropped += 1
            ttm_store(&self.control.dropped, self.dropped)
            return False
        ready[0] = min(section.count, <uint32_t> ((end - section.offset) // section.stride))
        return True

    cdef inline uint32_t words_in_use(self, uint32_t kind, const uint64_t *record) noexcept nogil:
        # Of ranges only those that exist are summed and copied; the tag stands at the end all the same.
        if kind == TTM_CB_RANGES or kind == TTM_L1_RANGES:
            return min(<uint32_t> record[0], <uint32_t> TTM_RANGES_MAX) + 1
        if kind == TTM_PROGRAM_CBS:
            return 2 * min(<uint32_t> record[0], <uint32_t> TTM_CBS_MAX) + 1
        return self.section[kind].words - 1

    cdef void commit(self, uint64_t now_ns) noexcept nogil:
        """Publish the marked records: one new version, which a reader sees whole or not at all."""
        cdef uint32_t i, kind, index, used, last
        cdef uint64_t seq, offset
        cdef uint64_t *record
        cdef uint64_t *target
        if self.dirty_count == 0:
            return
        self.version += 1
        if now_ns:
            ttm_store(&self.updated_ns, now_ns)  # read without the lock, too
        if self.dirty_count == 1:
            kind = <uint32_t> (self.dirty[0] >> 32)
            index = <uint32_t> self.dirty[0]
            if self.section[kind].words == TTM_LINE_WORDS:
                offset = self.section[kind].offset + <uint64_t> index * self.section[kind].stride
                record = <uint64_t *> (self.shadow + offset)
                record[TTM_LINE_WORDS - 1] = ttm_tag(keys, record, TTM_LINE_WORDS - 1, self.dirty[0], self.version)
                self.is_dirty[self.first[kind] + index] = 0
                self.dirty_count = 0
                self.rows_first = False
                ttm_latch_commit_line(
                    &self.control.seq, &self.control.updated_ns, self.updated_ns, <uint64_t *> (self.image[0] + offset),
                    <uint64_t *> (self.image[1] + offset), record,
                )
                return
        if self.rows_first:
            self._put_rows_last()
        for i in range(self.dirty_count):
            kind = <uint32_t> (self.dirty[i] >> 32)
            index = <uint32_t> self.dirty[i]
            record = self.record(kind, index)
            last = self.section[kind].words - 1
            record[last] = ttm_tag(
                keys, record, self.words_in_use(kind, record), <uint64_t> kind << 32 | index, self.version
            )
            self.is_dirty[self.first[kind] + index] = 0
        seq = ttm_load(&self.control.seq)
        cdef int side
        for side in range(2):
            ttm_latch_turn(&self.control.seq, seq + 1 + side)
            for i in range(self.dirty_count):
                kind = <uint32_t> (self.dirty[i] >> 32)
                index = <uint32_t> self.dirty[i]
                offset = self.section[kind].offset + <uint64_t> index * self.section[kind].stride
                record = <uint64_t *> (self.shadow + offset)
                target = <uint64_t *> (self.image[side] + offset)
                last = self.section[kind].words - 1
                if kind > TTM_L1_MAP:
                    ttm_fence_release()
                if last + 1 == TTM_LINE_WORDS:
                    copy_line(target, record)
                    continue
                used = self.words_in_use(kind, record)
                copy_words(target, record, used)
                ttm_store(target + last, record[last])
            if side == 0:
                ttm_store(&self.control.updated_ns, self.updated_ns)
        self.dirty_count = 0


cdef class FileHeader:
    """The first page of a segment's file, mapped by its writer.

    The mapping is what keeps the writer's lock alive: it holds the open file description after the descriptor is closed, dies
    with the process or at an exec, and is not inherited by forked children.
    """

    cdef char *page
    cdef uint64_t owner             # who mapped it

    def __cinit__(self, int fd):
        cdef void *memory = mmap(NULL, TTM_HEADER_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if memory == MAP_FAILED:
            raise OSError(errno, "cannot map a segment")
        self.page = <char *> memory
        self.owner = ttm_process_token()
        madvise(memory, TTM_HEADER_BYTES, MADV_DONTFORK)
        if not obtain(memory, TTM_HEADER_BYTES) and (can_populate or fallocate(fd, 0, 0, TTM_HEADER_BYTES) != 0):
            raise OSError(errno, "no memory for a segment: /dev/shm is full")

    def __dealloc__(self):
        if self.page != NULL and ttm_process_token() == self.owner:
            munmap(self.page, TTM_HEADER_BYTES)

    def describe(self, *, bytes instance, bytes boot_id, uint32_t pid, uint32_t uid, uint64_t start_ticks,
                 uint64_t pidns_inode, uint64_t created_ns, uint32_t lock_mode, bytes process_name, bytes producer,
                 bytes schema):
        """Write what never changes: who publishes, since when, and what the records mean."""
        cdef ttm_file_header *header = <ttm_file_header *> self.page
        memcpy(header.magic, TTM_MAGIC, 8)
        header.endian = TTM_ENDIAN
        header.major = TTM_MAJOR
        header.minor = TTM_MINOR
        header.header_bytes = TTM_HEADER_BYTES
        memcpy(header.instance, <const char *> instance, 16)
        memcpy(header.boot_id, <const char *> boot_id, 16)
        header.pid = pid
        header.uid = uid
        header.start_ticks = start_ticks
        header.pidns_inode = pidns_inode
        header.created_ns = created_ns
        header.lock_mode = lock_mode
        header.schema_bytes = min(len(schema), TTM_HEADER_BYTES - TTM_SCHEMA)
        memcpy(self.page + TTM_SCHEMA, <const char *> schema, header.schema_bytes)
        strncpy(header.process_name, process_name, 63)
        strncpy(header.producer, producer, 31)
        header.check = ttm_check(<uint64_t *> header, TTM_STATIC_WORDS - 1)
        self.set_state(TTM_STATE_LIVE)

    def set_state(self, uint64_t state):
        """Publish the file's state: 1 live, 2 closed."""
        ttm_store_release(&(<ttm_file_control *> (self.page + TTM_CONTROL)).state, state)

    def set_committed(self, uint64_t committed_bytes):
        """Publish how far the file holds whole blocks."""
        ttm_store_release(&(<ttm_file_control *> (self.page + TTM_CONTROL)).committed_bytes, committed_bytes)


def process_token():
    """Return a number that tells this process from all that it was forked from, whatever their pids."""
    return ttm_process_token()


def record_grid(geometry):
    """Return (x, y) of the cores that a device's records have: its grid, or 32 x 32 where that is unknown."""
    return (32, 32) if geometry.grid is None else (geometry.grid.x, geometry.grid.y)


def static_check(bytes words):
    """Return the checksum of a header's immutable part, for writers and for tests that forge one.

    Args:
        words: uint64[n] as bytes.
    """
    return ttm_check(<const uint64_t *> <const char *> words, len(words) // 8)


def record_tag(bytes words, uint64_t place, uint32_t version):
    """Return the tag of a record, for tests that forge one.

    Args:
        words: uint64[n] as bytes, without the tag.
        place: section kind << 32 | index.
        version: of the commit.
    """
    return ttm_tag(keys, <const uint64_t *> <const char *> words, len(words) // 8, place, version)
