"""The reading side of a segment: takes a block out of a file without trusting a byte of it.

Traps
1. The file may be truncated, grown, zeroed or rewritten at any moment: everything is read with pread into memory of our own,
   never mapped, so that no access can raise SIGBUS.
2. Offsets, strides and counts come from the file: each is checked against the file's size, without overflow, before it is used.
3. The writer goes on while we read. An image is whole if ``seq`` is the same before and after; else each record is taken from the
   image in which its tag is right, and the reading says that it is no single cut.
4. Work is bounded: a fixed number of tries, and no more bytes than a fixed number of images.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from ttmem._layout cimport (
    TTM_BLOCK_DEVICE,
    TTM_BUFFER_ADDRESS,
    TTM_BUFFER_BANK,
    TTM_BUFFER_LIVE,
    TTM_BUFFER_NAMES,
    TTM_BUFFERS,
    TTM_CB_CLASS,
    TTM_CB_MAP,
    TTM_CB_FIRST,
    TTM_CB_KIND,
    TTM_CB_RANGES,
    TTM_CB_X1,
    TTM_CB_Y0,
    TTM_CB_Y1,
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
    TTM_MAX_FILE,
    TTM_NAME_BYTES,
    TTM_NAME_WORDS,
    TTM_PAGE,
    TTM_PEAK_BYTES,
    TTM_PEAK_COUNT,
    TTM_PEAK_ID,
    TTM_PEAK_NAME,
    TTM_PEAK_NS,
    TTM_PEAKS,
    TTM_PROGRAM_CBS,
    TTM_PROGRAM_NAMES,
    TTM_PROGRAMS,
    TTM_RANGES_MAX,
    TTM_RESIDENT,
    TTM_SECTION_COUNT,
    TTM_SECTIONS,
    TTM_STATE_CLOSED,
    TTM_STATE_LIVE,
    TTM_STATIC_WORDS,
    TTM_T_CB,
    TTM_T_TABLES,
    TTM_TOTALS,
    ttm_block_control,
    ttm_block_header,
    ttm_check,
    ttm_fence_acquire,
    ttm_file_control,
    ttm_file_header,
    ttm_key,
    ttm_section,
    ttm_tag,
)

from ttmem.errors import CorruptSegmentError, LayoutMismatchError


cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buffer, size_t count, long long offset)

cdef extern from "<string.h>" nogil:
    int memcmp(const void *a, const void *b, size_t count)
    size_t strnlen(const char *text, size_t maximum)

cdef enum:
    TRIES = 32          # for one cut of a block whose writer goes on writing
    ROUNDS = 8          # of records taken one by one, with a few more tries between them
    RETRIES = 4
    CORES_MAX = 1024
    BLOCKS_MAX = 4096
    SECTION_MAX = 4 << 20      # bytes; the largest of layout 1.1 has 512 KiB

cdef uint64_t SIZE_MAX_CLAIMED = <uint64_t> 1 << 62    # what a publisher takes at most

cdef uint64_t[TTM_KEYS] keys


def _fill_keys():
    cdef uint64_t index
    for index in range(TTM_KEYS):
        keys[index] = ttm_key(index)


_fill_keys()


cdef inline uint64_t least(uint64_t a, uint64_t b) noexcept nogil:
    return a if a < b else b


cdef bint read_exactly(int fd, void *target, uint64_t count, uint64_t offset) noexcept nogil:
    cdef uint64_t done = 0
    cdef ssize_t got
    while done < count:
        got = pread(fd, <char *> target + done, count - done, <long long> (offset + done))
        if got <= 0:
            return False
        done += got
    return True


cdef str text_of(const char *text, size_t maximum):
    return text[: strnlen(text, maximum)].decode("utf-8", "replace")


class FileFacts:
    """What a segment's header says of its writer; see _layout.h for the fields."""

    __slots__ = ("boot_id", "buried_ns", "committed_bytes", "created_ns", "header_bytes", "instance", "lock_mode", "minor",
                 "pid", "pidns_inode", "process_name", "producer", "start_ticks", "state", "uid")


def read_header(int fd, uint64_t file_bytes):
    """Return the :class:`FileFacts` of an open segment file.

    Args:
        fd: readable; nothing but pread is done with it.
        file_bytes: the size that fstat told.

    Raises:
        LayoutMismatchError: another major version, byte order or required feature.
        CorruptSegmentError: the header contradicts itself or the file.
    """
    cdef char[576] head
    cdef ttm_file_header *header = <ttm_file_header *> head
    cdef ttm_file_control *control = <ttm_file_control *> (head + TTM_CONTROL)
    if file_bytes < TTM_HEADER_BYTES or not read_exactly(fd, head, 576, 0):
        raise CorruptSegmentError(f"the segment is cut short: {file_bytes} bytes, at least {TTM_HEADER_BYTES} expected")
    if memcmp(header.magic, TTM_MAGIC, 8) != 0:
        raise CorruptSegmentError(f"not a segment of ttmem: it starts with {head[:8]!r}")
    if header.endian != TTM_ENDIAN:
        raise LayoutMismatchError("the segment has another byte order", found=header.endian, expected=TTM_ENDIAN)
    if header.major != TTM_MAJOR:
        raise LayoutMismatchError(
            f"the segment has layout {header.major}.{header.minor}, this ttmem reads {TTM_MAJOR}.x: upgrade ttmem",
            found=header.major, expected=TTM_MAJOR,
        )
    if header.feature_incompat != 0:
        raise LayoutMismatchError(
            f"the segment needs features that this ttmem lacks (bits {header.feature_incompat:#x}): upgrade ttmem",
            found=header.feature_incompat, expected=0,
        )
    if header.check != ttm_check(<uint64_t *> head, TTM_STATIC_WORDS - 1):
        raise CorruptSegmentError("the segment's header does not match its checksum")
    if header.header_bytes < TTM_HEADER_BYTES or header.header_bytes % TTM_PAGE or header.header_bytes > file_bytes:
        raise CorruptSegmentError(f"the segment's header claims {header.header_bytes} bytes of {file_bytes}")
    facts = FileFacts()
    facts.minor = header.minor
    facts.header_bytes = header.header_bytes
    facts.instance = (<char *> header.instance)[:16]
    facts.boot_id = (<char *> header.boot_id)[:16]
    facts.pid = header.pid
    facts.uid = header.uid
    facts.start_ticks = header.start_ticks
    facts.pidns_inode = header.pidns_inode
    facts.created_ns = header.created_ns
    facts.lock_mode = header.lock_mode
    facts.process_name = text_of(header.process_name, 64)
    facts.producer = text_of(header.producer, 32)
    facts.state = control.state
    facts.committed_bytes = control.committed_bytes
    facts.buried_ns = control.buried_ns
    return facts


def block_offsets(int fd, uint64_t file_bytes, uint64_t header_bytes):
    """Return where the device blocks of a segment start.

    Raises:
        CorruptSegmentError: the chain of blocks leaves the file or does not end.
    """
    cdef ttm_file_control control
    cdef char[512] head
    cdef ttm_block_header *block = <ttm_block_header *> head
    cdef uint64_t offset = header_bytes
    if not read_exactly(fd, &control, sizeof(control), TTM_CONTROL):
        raise CorruptSegmentError("the segment was cut short while it was read")
    if control.committed_bytes > file_bytes or control.committed_bytes > TTM_MAX_FILE:
        raise CorruptSegmentError(f"the segment claims {control.committed_bytes} bytes and has {file_bytes}")
    found = []
    while offset < control.committed_bytes:
        if len(found) >= BLOCKS_MAX or control.committed_bytes - offset < TTM_PAGE:
            raise CorruptSegmentError("the segment's chain of blocks does not end")
        if not read_exactly(fd, head, 16, offset):
            raise CorruptSegmentError("the segment was cut short while it was read")
        if block.block_bytes < TTM_PAGE or block.block_bytes % TTM_PAGE or (
                block.block_bytes > control.committed_bytes - offset):
            raise CorruptSegmentError(f"the block at {offset} claims {block.block_bytes} bytes")
        # Kinds of blocks that a later ttmem writes are passed over.
        if block.type == TTM_BLOCK_DEVICE:
            found.append(offset)
        offset += block.block_bytes
    return found


def cbs_of(bytes packed):
    """Return [(begin, end, kind, [(x, y, last x, last y), ...]), ...] of a program, from what ``programs`` gives of its CBs.

    Apart from the reading: most programs are the same ones at the next, and whoever remembers them need not unpack.
    """
    cdef const uint64_t *words = <const uint64_t *> <const char *> packed
    cdef uint64_t where
    cdef Py_ssize_t i
    found = []
    rectangles = []
    for i in range(len(packed) // 16):
        where = words[2 * i + 1]
        if where >> TTM_CB_FIRST & 1 or i == 0:
            rectangles = []
            found.append((words[2 * i] & 0xFFFFFFFFu, words[2 * i] >> 32, where >> TTM_CB_KIND & 15, rectangles))
        rectangles.append((where & 1023, where >> TTM_CB_Y0 & 1023, where >> TTM_CB_X1 & 1023, where >> TTM_CB_Y1 & 1023))
    return found


cdef class BlockReading:
    """One device's block as one writer published it, taken out of the file.

    Attributes:
        device_id, asic_id, arch, grid, ...: what the writer told; None where it did not.
        live: False if the device was withdrawn.
        consistent: whether all figures are of one moment of the writer.
        damaged: how many records match no checksum; figures that need them are unknown.
        bytes_read, tries: the work that was done.
    """

    def __init__(self, int fd, uint64_t offset, uint64_t file_bytes):
        self.read_header(fd, offset, file_bytes)

    def load(self, int fd, uint64_t offset):
        """Read the figures of a block whose header was read.

        Raises:
            CorruptSegmentError: the totals match no checksum, or the file was cut short meanwhile.
        """
        if self.live:
            self.read_images(fd, offset)

    cdef BlockReading successor(self):
        """Return a reading of the same block whose figures are yet to be read; valid while the generation is the same."""
        cdef BlockReading later = BlockReading.__new__(BlockReading)
        later.header = self.header
        later.control = self.control
        later.section = self.section
        later.live = self.live
        return later

    def __dealloc__(self):
        cdef uint32_t kind
        for kind in range(TTM_SECTION_COUNT):
            free(self.data[kind])
            free(self.valid[kind])

    cdef int read_header(self, int fd, uint64_t offset, uint64_t file_bytes) except -1:
        cdef char[512] head
        cdef ttm_block_control before, after
        cdef int _attempt
        cdef ttm_section *section
        cdef uint32_t i, kind, cores
        cdef uint64_t room, claimed = 0
        memset(&after, 0, sizeof(after))
        for _attempt in range(TRIES):
            if offset > file_bytes or file_bytes - offset < TTM_PAGE:
                raise CorruptSegmentError(f"the block at {offset} lies beyond the segment's end, {file_bytes}")
            if not read_exactly(fd, &before, sizeof(before), offset + TTM_CONTROL):
                raise CorruptSegmentError("the segment was cut short while it was read")
            ttm_fence_acquire()
            if not read_exactly(fd, head, sizeof(head), offset):
                raise CorruptSegmentError("the segment was cut short while it was read")
            ttm_fence_acquire()
            if not read_exactly(fd, &after, sizeof(after), offset + TTM_CONTROL):
                raise CorruptSegmentError("the segment was cut short while it was read")
            if before.generation == after.generation and before.generation % 2 == 0:
                break
        else:
            # The block is being written for another device, or its writer died while it did that.
            self.control = after
            self.live = False
            return 0
        memcpy(&self.header, head, sizeof(ttm_block_header))
        self.control = after
        self.live = after.state == TTM_STATE_LIVE
        if not self.live and after.state != TTM_STATE_CLOSED:
            raise CorruptSegmentError(f"the block at {offset} has the state {after.state}, which is none")
        if not self.live:
            return 0
        if self.header.check != ttm_check(<uint64_t *> head, TTM_STATIC_WORDS - 1):
            raise CorruptSegmentError(f"the header of the block at {offset} does not match its checksum")
        if self.header.version != 1:
            raise LayoutMismatchError(
                f"the block at {offset} has version {self.header.version}, this ttmem reads 1: upgrade ttmem",
                found=self.header.version, expected=1,
            )
        room = self.header.image_bytes
        if (
            self.header.block_bytes > file_bytes - offset
            or room > self.header.block_bytes // 2
            or self.header.image_offset > self.header.block_bytes
            or self.header.image_offset % 8 or room % 8
            or 2 * room > self.header.block_bytes - self.header.image_offset
            or self.header.section_count > TTM_SECTIONS
        ):
            raise CorruptSegmentError(f"the images of the block at {offset} lie outside of it")
        cores = self.header.grid_x * self.header.grid_y
        if not (0 < self.header.grid_x <= CORES_MAX and 0 < self.header.grid_y <= CORES_MAX and cores <= CORES_MAX):
            raise CorruptSegmentError(f"the block at {offset} has a grid of {self.header.grid_x} x {self.header.grid_y}")
        for i in range(5):
            # worker_l1_size, l1_cb_base, l1_small_size, dram_size, trace_region_size: sums of them must not overflow.
            if (&self.header.worker_l1_size)[i] > SIZE_MAX_CLAIMED:
                raise CorruptSegmentError(f"the block at {offset} claims a memory of {(&self.header.worker_l1_size)[i]} bytes")
        memset(self.section, 0, sizeof(self.section))
        for i in range(self.header.section_count):
            section = &self.header.sections[i]
            if section.kind >= TTM_SECTION_COUNT:
                continue
            if (
                section.words < 2 or section.words > TTM_KEYS or section.stride % 8
                or section.stride < 8 * section.words or section.count > 65536
                or section.offset % 8 or section.offset > room
                or <uint64_t> section.stride * section.count > room - section.offset
            ):
                raise CorruptSegmentError(f"section {section.kind} of the block at {offset} lies outside its image")
            # Sections that share bytes would make a small file a lot of work.
            claimed += <uint64_t> section.stride * section.count
            if <uint64_t> section.stride * section.count > SECTION_MAX or claimed > room:
                raise CorruptSegmentError(f"section {section.kind} of the block at {offset} is too large")
            self.section[section.kind] = section[0]
        for kind in range(TTM_SECTION_COUNT):
            if kind >= TTM_PROGRAM_CBS and self.section[kind].count == 0:
                continue  # written by 1.0
            i = 8 if kind == TTM_TOTALS else 1
            if self.section[kind].words < minimum_words(kind, cores) or self.section[kind].count < i:
                raise CorruptSegmentError(f"section {kind} of the block at {offset} is missing or too small")
        return 0

    cdef int read_images(self, int fd, uint64_t offset) except -1:
        cdef uint64_t images = offset + self.header.image_offset
        cdef bint whole = False
        cdef int again
        cdef uint32_t mixed
        cdef uint64_t cb_tag, l1_tag
        for again in range(ROUNDS):
            whole = self.read_cut(fd, offset, RETRIES if again else TRIES)
            if not self.live:
                return 0
            self.judge()
            if whole and not self.damaged:
                break
            cb_tag = self.map_tag(fd, images + self.header.image_bytes, TTM_CB_MAP)
            l1_tag = self.map_tag(fd, images + self.header.image_bytes, TTM_L1_MAP)
            ttm_fence_acquire()
            # Whatever is not right here may be right in the other image, which may be of another moment.
            self.read_one(fd, images + self.header.image_bytes, True)
            self.read_one(fd, images, True)
            if not whole:
                # The last image is written first, and there what belongs to a row before the row.
                ttm_fence_acquire()
                self.read_belongings(fd, images)
            self.judge()
            if whole:
                whole = False
                break
            mixed = self.unmix(TTM_PROGRAMS, TTM_PROGRAM_NAMES)
            mixed += self.unmix(TTM_PROGRAMS, TTM_PROGRAM_CBS)
            mixed += self.unmix(TTM_BUFFERS, TTM_BUFFER_NAMES)
            mixed += self.unmix_classes(TTM_CB_MAP, cb_tag, self.map_tag(fd, images, TTM_CB_MAP))
            mixed += self.unmix_classes(TTM_L1_MAP, l1_tag, self.map_tag(fd, images, TTM_L1_MAP))
            # Of a writer that goes on, a row may be told of and not be there yet: that is no damage, and gone the next time.
            if self.damaged + mixed == 0:
                break
        self.consistent = whole
        if not self.valid[TTM_TOTALS][TTM_T_CB] or not self.valid[TTM_TOTALS][TTM_T_TABLES]:
            raise CorruptSegmentError(f"the totals of device {self.header.device_id} match no checksum")
        return 0

    cdef int read_cut(self, int fd, uint64_t offset, int tries) except -1:
        """Read the image that readers are led to; False if the writer went on each time, or withdrew the device."""
        cdef ttm_block_control before, after
        cdef uint64_t image
        cdef int _attempt
        for _attempt in range(tries):
            self.tries += 1
            if not read_exactly(fd, &before, sizeof(before), offset + TTM_CONTROL):
                raise CorruptSegmentError("the segment was cut short while it was read")
            ttm_fence_acquire()
            image = offset + self.header.image_offset + (before.seq & 1) * self.header.image_bytes
            self.read_one(fd, image, False)
            ttm_fence_acquire()
            if not read_exactly(fd, &after, sizeof(after), offset + TTM_CONTROL):
                raise CorruptSegmentError("the segment was cut short while it was read")
            if after.generation != self.control.generation or after.state != TTM_STATE_LIVE:
                self.live = False
                return False
            if after.seq == before.seq:
                self.control = after
                return True
        self.control = after
        return False

    cdef int read_one(self, int fd, uint64_t image, bint merge) except -1:
        """Read what is in use of an image; with ``merge`` keep of each record the newest that is right."""
        cdef uint32_t kind, rows
        cdef uint64_t *totals
        for kind in range(TTM_SECTION_COUNT):
            rows = self.section[kind].count
            if kind == TTM_TOTALS:
                rows = 8
            elif kind >= TTM_CB_CLASS:
                totals = self.line(TTM_TOTALS, TTM_T_TABLES)
                if kind == TTM_CB_CLASS or kind == TTM_CB_RANGES:
                    rows = <uint32_t> least(rows, totals[5])
                elif kind == TTM_L1_CLASS or kind == TTM_L1_RANGES:
                    rows = <uint32_t> least(rows, totals[6])
                elif kind == TTM_PROGRAMS or kind == TTM_PROGRAM_NAMES or kind == TTM_PROGRAM_CBS:
                    rows = <uint32_t> least(rows, totals[0])
                elif kind == TTM_PEAKS:
                    pass
                elif totals[3]:
                    rows = <uint32_t> least(rows, rows // 2 + totals[3])
                else:
                    rows = <uint32_t> least(rows, totals[2])
            elif kind == TTM_RESIDENT:
                rows = <uint32_t> least(rows, 2)
            else:
                rows = 1
            self.read_section(fd, image, kind, rows, self.lower_rows(kind, rows), merge)
        return 0

    cdef int read_belongings(self, int fd, uint64_t image) except -1:
        """Read again what belongs to rows that were read before, from the same image."""
        cdef uint32_t kind
        for kind in (TTM_PROGRAM_NAMES, TTM_PROGRAM_CBS, TTM_BUFFER_NAMES):
            self.read_section(fd, image, kind, self.rows[kind], self.lower_rows(kind, self.rows[kind]), False)
        return 0

    cdef uint32_t lower_rows(self, uint32_t kind, uint32_t rows) noexcept nogil:
        """Return how many of the rows lie before a gap that nobody needs to read."""
        cdef uint32_t half = self.section[kind].count // 2
        if (kind != TTM_BUFFERS and kind != TTM_BUFFER_NAMES) or rows <= half:
            return rows
        return <uint32_t> least(half, self.line(TTM_TOTALS, TTM_T_TABLES)[2])

    cdef int read_section(self, int fd, uint64_t image, uint32_t kind, uint32_t rows, uint32_t lower, bint merge) except -1:
        cdef ttm_section *section = &self.section[kind]
        cdef uint64_t count = <uint64_t> rows * section.stride
        cdef uint64_t gap = <uint64_t> lower * section.stride
        cdef uint64_t rest = gap if lower == rows else <uint64_t> (section.count // 2) * section.stride
        cdef uint64_t *fresh
        cdef uint8_t *valid
        cdef uint32_t i, last = section.words - 1
        cdef uint64_t *mine
        cdef uint64_t *other
        if rows == 0 and not merge:
            self.rows[kind] = 0
            return 0
        # What is not read counts as empty.
        fresh = <uint64_t *> calloc(count + 8, 1) if gap < rest else <uint64_t *> malloc(count + 8)
        valid = <uint8_t *> malloc(rows + 1)
        if fresh == NULL or valid == NULL:
            free(fresh)
            free(valid)
            raise MemoryError("no memory to read a segment")
        if not (
            read_exactly(fd, fresh, gap, image + section.offset)
            and read_exactly(fd, <char *> fresh + rest, count - rest, image + section.offset + rest)
        ):
            free(fresh)
            free(valid)
            raise CorruptSegmentError("the segment was cut short while it was read")
        self.bytes_read += gap + count - rest
        memset(valid, 0, rows + 1)
        if merge:
            for i in range(rows):
                other = fresh + <uint64_t> i * section.stride // 8
                valid[i] = self.right(kind, i, other)
                if i < self.rows[kind] and self.valid[kind][i]:
                    mine = self.line(kind, i)
                    # Versions wrap after 2^32 commits: compare by distance.
                    if not valid[i] or <uint32_t> ((mine[last] >> 32) - (other[last] >> 32)) < 0x80000000u:
                        memcpy(other, mine, section.stride)
                        valid[i] = 1
        free(self.data[kind])
        free(self.valid[kind])
        self.data[kind] = fresh
        self.valid[kind] = valid
        self.rows[kind] = rows
        return 0

    cdef bint right(self, uint32_t kind, uint32_t index, const uint64_t *record) noexcept nogil:
        """Tell whether a record matches its tag, or was never written because shared memory was full."""
        cdef uint32_t last = self.section[kind].words - 1
        cdef uint32_t used = last
        cdef uint32_t i
        cdef uint64_t tag = record[last]
        if kind == TTM_CB_RANGES or kind == TTM_L1_RANGES:
            used = <uint32_t> least(record[0] & 0xFFFFFFFFu, last - 1) + 1
        elif kind == TTM_PROGRAM_CBS:
            used = 2 * <uint32_t> least(record[0] & 0xFFFFFFFFu, (last - 1) // 2) + 1
        if ttm_tag(keys, record, used, <uint64_t> kind << 32 | index, <uint32_t> (tag >> 32)) == tag:
            return True
        if tag != 0 or kind < TTM_CB_RANGES or self.control.dropped == 0:
            return False
        for i in range(last):
            if record[i]:
                return False
        return True

    cdef void judge(self) noexcept nogil:
        cdef uint32_t kind, i
        self.damaged = 0
        for kind in range(TTM_SECTION_COUNT):
            for i in range(self.rows[kind]):
                # Between the two halves of the buffer table lie rows that nobody promised anything of.
                if (kind == TTM_BUFFERS or kind == TTM_BUFFER_NAMES) and not self.buffer_in_use(i):
                    self.valid[kind][i] = 0
                    continue
                self.valid[kind][i] = self.right(kind, i, self.line(kind, i))
                if not self.valid[kind][i]:
                    self.damaged += 1

    cdef uint32_t unmix(self, uint32_t row_kind, uint32_t kind) noexcept nogil:
        """Forget what belongs to a later row than the one at its place; return how often.

        Records that were taken one by one may be of both. What belongs to an earlier row cannot be met: see ``mark_of_row``.
        """
        cdef uint32_t i, mixed = 0
        for i in range(min(self.rows[row_kind], self.rows[kind])):
            if self.valid[row_kind][i] and self.valid[kind][i] and not self.since(row_kind, kind, i):
                self.valid[kind][i] = 0
                mixed += 1
        return mixed

    cdef uint64_t map_tag(self, int fd, uint64_t image, uint32_t map_kind) except? 0:
        """Return the tag that a map of classes has in an image now."""
        cdef ttm_section *section = &self.section[map_kind]
        cdef uint64_t tag
        if not read_exactly(fd, &tag, sizeof(tag), image + section.offset + 8 * (section.words - 1)):
            raise CorruptSegmentError("the segment was cut short while it was read")
        return tag

    cdef uint32_t unmix_classes(self, uint32_t map_kind, uint64_t tag_before, uint64_t tag_after) noexcept nogil:
        """Forget a map whose classes may be those of another one; return how often.

        Classes get other cores only together with the map, which a commit writes first. So they are of this map if the last
        image had it before they were read, for then the first one has all that came with it, and the first one still has it.
        """
        cdef uint64_t tag = self.line(map_kind, 0)[self.section[map_kind].words - 1]
        if not self.valid[map_kind][0] or (tag == tag_before and tag == tag_after):
            return 0
        self.valid[map_kind][0] = 0
        return 1

    cdef bint since(self, uint32_t later, uint32_t earlier, uint32_t index) noexcept nogil:
        """Tell whether a record of the first kind is as new as the one of the second kind at the same place."""
        cdef uint64_t a = self.line(later, index)[self.section[later].words - 1]
        cdef uint64_t b = self.line(earlier, index)[self.section[earlier].words - 1]
        # Versions wrap after 2^32 commits: compare by distance.
        return <uint32_t> ((a >> 32) - (b >> 32)) < 0x80000000u

    cdef inline bint buffer_in_use(self, uint32_t index) noexcept nogil:
        cdef uint64_t *tables = self.line(TTM_TOTALS, TTM_T_TABLES)
        cdef uint32_t half = self.section[TTM_BUFFERS].count // 2
        return index < tables[2] or half <= index < half + tables[3]

    cdef inline uint64_t *line(self, uint32_t kind, uint32_t index) noexcept nogil:
        return self.data[kind] + <uint64_t> index * self.section[kind].stride // 8

    # What it says

    @property
    def updated_ns(self):
        """When a figure last changed, CLOCK_REALTIME_COARSE; 0 if none did."""
        return self.control.updated_ns

    @property
    def dropped(self):
        """How many records found no memory in the writer's file."""
        return self.control.dropped

    @property
    def seq(self):
        """The latch's number when the figures were taken."""
        return self.control.seq

    @property
    def notes(self):
        """What the writer says of the figures as a whole (``enum ttm_note``)."""
        return self.control.notes

    @property
    def device_id(self):
        return self.header.device_id

    @property
    def asic_id(self):
        return self.header.asic_id if self.header.known & TTM_KNOWN_ASIC else None

    @property
    def arch(self):
        return text_of(self.header.arch, 16) or None

    @property
    def grid(self):
        """(x, y), None if the writer did not know it."""
        return (self.header.grid_x, self.header.grid_y) if self.header.known & TTM_KNOWN_GRID else None

    @property
    def record_grid(self):
        """(x, y) of the cores that the records have, known or assumed."""
        return (self.header.grid_x, self.header.grid_y)

    @property
    def geometry(self):
        """The sizes that the writer told, by name; None where it did not."""
        cdef uint32_t known = self.header.known
        return {
            "worker_l1_size": self.header.worker_l1_size if known & TTM_KNOWN_L1 else None,
            "l1_cb_base": self.header.l1_cb_base if known & TTM_KNOWN_BASE else None,
            "l1_small_size": self.header.l1_small_size if known & TTM_KNOWN_L1_SMALL else None,
            "dram_size": self.header.dram_size if known & TTM_KNOWN_DRAM else None,
            "trace_region_size": self.header.trace_region_size if known & TTM_KNOWN_TRACE else None,
        }

    @property
    def published_ns(self):
        return self.header.published_ns

    @property
    def origin(self):
        """``live``; ``replay`` of a capture, which tells nothing of kernels; or ``recording``, the replay of one."""
        return {1: "replay", 2: "recording"}.get(self.header.origin, "live")

    def total(self, uint32_t index):
        """Return the words of a record of the totals; None if it is damaged."""
        cdef uint32_t i
        if index >= self.rows[TTM_TOTALS] or not self.valid[TTM_TOTALS][index]:
            return None
        return tuple([self.line(TTM_TOTALS, index)[i] for i in range(TTM_LINE_WORDS - 1)])

    def programs(self):
        """Return [(program_id, name, cores, bytes per core, region end, count, logical bytes, CBs), ...] as they lie.

        The CBs are packed, for :func:`cbs_of`; None where they are not all known.
        """
        cdef uint32_t i
        cdef uint64_t *row
        found = []
        for i in range(self.rows[TTM_PROGRAMS]):
            row = self.line(TTM_PROGRAMS, i)
            if not self.valid[TTM_PROGRAMS][i] or <uint32_t> row[1] == 0:
                continue
            found.append((
                row[0], self.name(TTM_PROGRAM_NAMES, i), row[1] >> 32, row[2] & 0xFFFFFFFFu, row[2] >> 32,
                row[1] & 0xFFFFFFFFu, row[3], self.program_cbs(i),
            ))
        return found

    cdef object program_cbs(self, uint32_t index):
        cdef uint64_t *record
        cdef uint32_t count
        if index >= self.rows[TTM_PROGRAM_CBS] or not self.valid[TTM_PROGRAM_CBS][index]:
            return None
        record = self.line(TTM_PROGRAM_CBS, index)
        count = <uint32_t> record[0]
        if record[0] >> 32 or 2 * <uint64_t> count + 2 > self.section[TTM_PROGRAM_CBS].words:
            return None
        return (<char *> (record + 1))[:16 * count]

    def peak(self, uint32_t total):
        """Return (bytes, ns, id, count, name) of a total's highest value; None if there is none, as in files of layout 1.0."""
        cdef uint64_t *row
        if total >= self.rows[TTM_PEAKS] or not self.valid[TTM_PEAKS][total]:
            return None
        row = self.line(TTM_PEAKS, total)
        name = text_of(<const char *> (row + TTM_PEAK_NAME), TTM_NAME_BYTES)
        return row[TTM_PEAK_BYTES], row[TTM_PEAK_NS], row[TTM_PEAK_ID], row[TTM_PEAK_COUNT], name

    def buffers(self):
        """Return [(buffer_id, type, size, address, size per bank, allocated ns, cores, name), ...] of live buffers."""
        cdef uint32_t i
        cdef uint64_t *row
        cdef uint64_t flags
        found = []
        for i in range(self.rows[TTM_BUFFERS]):
            row = self.line(TTM_BUFFERS, i)
            flags = row[1] >> 8
            if not self.valid[TTM_BUFFERS][i] or not flags & TTM_BUFFER_LIVE:
                continue
            found.append((
                row[0], row[1] & 0xFF, row[2], row[3] if flags & TTM_BUFFER_ADDRESS else None,
                row[4] if flags & TTM_BUFFER_BANK else None, row[5], row[6], self.name(TTM_BUFFER_NAMES, i),
            ))
        return found

    cdef str name(self, uint32_t kind, uint32_t index):
        if index >= self.rows[kind] or not self.valid[kind][index]:
            return ""
        return text_of(<const char *> self.line(kind, index), TTM_NAME_BYTES)

    cdef int class_at(self, uint32_t map_kind, uint32_t class_kind, uint32_t x, uint32_t y) noexcept nogil:
        """Return the class slot of a core; -1: not a core of this writer, -2: damaged."""
        cdef uint16_t slot
        if x >= self.header.grid_x or y >= self.header.grid_y:
            return -1
        if self.rows[map_kind] == 0 or not self.valid[map_kind][0]:
            return -2
        slot = (<uint16_t *> self.line(map_kind, 0))[y * self.header.grid_x + x]
        if slot >= self.rows[class_kind] or not self.valid[class_kind][slot]:
            return -2
        return slot

    cdef int ranges_at(self, uint32_t class_kind, uint32_t ranges_kind, int slot, const uint64_t **out) noexcept nogil:
        """Return how many merged ranges a class has, and where; -1 if not all are known."""
        cdef uint64_t *record
        cdef uint64_t count
        if slot == -1:
            return 0
        if slot < 0 or not self.line(class_kind, slot)[4] or <uint32_t> slot >= self.rows[ranges_kind]:
            return -1
        if not self.valid[ranges_kind][slot]:
            return -1
        record = self.line(ranges_kind, slot)
        count = record[0] & 0xFFFFFFFFu
        if record[0] >> 32 or count > TTM_RANGES_MAX or count > self.section[ranges_kind].words - 2:
            return -1
        out[0] = record + 1
        return <int> count

    def core_ranges(self, uint32_t x, uint32_t y):
        """Return the merged CB and L1 buffer ranges of a core as two lists of (begin, end); None where not all are known."""
        cdef const uint64_t *ranges = NULL
        cdef int count, i
        answer = []
        for map_kind, class_kind, ranges_kind in (
            (TTM_CB_MAP, TTM_CB_CLASS, TTM_CB_RANGES), (TTM_L1_MAP, TTM_L1_CLASS, TTM_L1_RANGES)
        ):
            count = self.ranges_at(class_kind, ranges_kind, self.class_at(map_kind, class_kind, x, y), &ranges)
            answer.append(None if count < 0 else [(ranges[i] & 0xFFFFFFFFu, ranges[i] >> 32) for i in range(count)])
        return tuple(answer)


cdef uint32_t minimum_words(uint32_t kind, uint32_t cores) noexcept nogil:
    if kind == TTM_CB_MAP or kind == TTM_L1_MAP:
        return (cores + 3) // 4 + 1
    if kind == TTM_RESIDENT:
        return (cores + 1) // 2 + 1
    if kind == TTM_PROGRAM_NAMES or kind == TTM_BUFFER_NAMES:
        return TTM_NAME_WORDS
    if kind == TTM_CB_RANGES or kind == TTM_L1_RANGES or kind == TTM_PROGRAM_CBS:
        return 3
    if kind == TTM_PEAKS:
        return TTM_PEAK_NAME + TTM_NAME_WORDS
    return TTM_LINE_WORDS
