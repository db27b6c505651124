"""The table of a device's cores, made of what each of its writers published: the union of their ranges, not a sum."""

from libc.stdint cimport INT64_MIN, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memcpy

from ttmem._layout cimport (
    TTM_CB_CLASS,
    TTM_CB_MAP,
    TTM_CB_RANGES,
    TTM_L1_CLASS,
    TTM_L1_MAP,
    TTM_L1_RANGES,
    TTM_RANGES_MAX,
    TTM_RESIDENT,
)
from ttmem._reading cimport BlockReading


cdef inline int64_t least(int64_t a, int64_t b) noexcept nogil:
    return a if a < b else b


cdef inline int64_t most(int64_t a, int64_t b) noexcept nogil:
    return a if a > b else b


# One row of the table of cores: int64 each, -1 unknown.
cdef struct CoreRow:
    int64_t x
    int64_t y
    int64_t cb_physical_bytes
    int64_t cb_logical_bytes
    int64_t cb_resident_bytes
    int64_t cb_region_end
    int64_t l1_used_bytes
    int64_t l1_lowest_address
    int64_t headroom_bytes
    int64_t overlap_bytes
    int64_t cb_peak_bytes


cdef int by_begin(const void *a, const void *b) noexcept nogil:
    cdef uint32_t left = <uint32_t> (<const uint64_t *> a)[0]
    cdef uint32_t right = <uint32_t> (<const uint64_t *> b)[0]
    return (left > right) - (left < right)


cdef uint32_t merge(uint64_t *ranges, uint32_t count) noexcept nogil:
    """Sort ranges by begin and join those that overlap or touch; return how many remain."""
    cdef uint32_t i, kept = 0
    qsort(ranges, count, sizeof(uint64_t), by_begin)
    for i in range(count):
        if kept and (ranges[i] & 0xFFFFFFFFu) <= ranges[kept - 1] >> 32:
            if ranges[i] >> 32 > ranges[kept - 1] >> 32:
                ranges[kept - 1] = (ranges[kept - 1] & 0xFFFFFFFFu) | (ranges[i] >> 32) << 32
        else:
            ranges[kept] = ranges[i]
            kept += 1
    return kept


cdef int64_t covered(const uint64_t *ranges, uint32_t count) noexcept nogil:
    cdef uint32_t i
    cdef int64_t total = 0
    for i in range(count):
        total += <int64_t> (ranges[i] >> 32) - <int64_t> (ranges[i] & 0xFFFFFFFFu)
    return total


cdef int64_t common(const uint64_t *a, uint32_t a_count, const uint64_t *b, uint32_t b_count) noexcept nogil:
    """Return the bytes that two merged lists of ranges share."""
    cdef uint32_t i = 0, j = 0
    cdef int64_t begin, end, total = 0
    while i < a_count and j < b_count:
        begin = most(a[i] & 0xFFFFFFFFu, b[j] & 0xFFFFFFFFu)
        end = least(a[i] >> 32, b[j] >> 32)
        if end > begin:
            total += end - begin
        if a[i] >> 32 < b[j] >> 32:
            i += 1
        else:
            j += 1
    return total


def core_table(list readings, uint32_t width, uint32_t height, int64_t base, int64_t l1_top, unsigned char[::1] out not None):
    """Fill the table of cores from the readings of one device, one for each living writer.

    The physical bytes are the union over the writers, not a sum that would count shared addresses twice.

    Args:
        readings: list of :class:`BlockReading`.
        width, height: the cores to list, row by row.
        base: where the CB region begins, -1 if unknown.
        l1_top: where the region of L1 buffers ends, -1 if unknown.
        out: width x height rows of eleven int64: x, y, CB physical, logical and resident bytes, region end, bytes of L1
            buffers, the lowest of them, headroom, bytes that both claim, CB peak (over several writers the sum of theirs);
            -1 unknown, the lowest int64 for an unknown headroom.
    """
    cdef uint32_t count = len(readings)
    cdef BlockReading reading
    cdef uint32_t x, y, i
    cdef CoreRow *row = <CoreRow *> &out[0]
    cdef CoreRow *previous = NULL
    cdef int *slots
    cdef bint same
    cdef int slot
    cdef uint64_t *merged[2]
    cdef int64_t resident, peak
    if len(out) < <Py_ssize_t> (width * height * sizeof(CoreRow)):
        raise ValueError("the table of cores is too small")
    slots = <int *> malloc(4 * (count + 1) * sizeof(int))
    merged[0] = <uint64_t *> malloc((count + 1) * TTM_RANGES_MAX * 8)
    merged[1] = <uint64_t *> malloc((count + 1) * TTM_RANGES_MAX * 8)
    if slots == NULL or merged[0] == NULL or merged[1] == NULL:
        free(slots)
        free(merged[0])
        free(merged[1])
        raise MemoryError("no memory for the table of cores")
    try:
        for y in range(height):
            for x in range(width):
                same = previous != NULL
                resident = peak = 0
                for i in range(count):
                    reading = readings[i]
                    slot = reading.class_at(TTM_CB_MAP, TTM_CB_CLASS, x, y)
                    same = same and slots[2 * i] == slot
                    slots[2 * i] = slot
                    slot = reading.class_at(TTM_L1_MAP, TTM_L1_CLASS, x, y)
                    same = same and slots[2 * i + 1] == slot
                    slots[2 * i + 1] = slot
                    if x < reading.header.grid_x and y < reading.header.grid_y and resident >= 0:
                        if reading.rows[TTM_RESIDENT] and reading.valid[TTM_RESIDENT][0]:
                            resident += (<uint32_t *> reading.line(TTM_RESIDENT, 0))[y * reading.header.grid_x + x]
                        else:
                            resident = -1
                        peak = with_peak(peak, reading, y * reading.header.grid_x + x, slots[2 * i])
                if same:
                    # Cores of one class in every writer have the same figures but for what is resident.
                    row[0] = previous[0]
                else:
                    fill_row(row, readings, count, slots, merged, base, l1_top)
                row.x = x
                row.y = y
                row.cb_resident_bytes = resident
                row.cb_peak_bytes = peak
                previous = row
                row += 1
    finally:
        free(slots)
        free(merged[0])
        free(merged[1])


cdef inline int64_t with_peak(int64_t sum, BlockReading reading, uint32_t core, int slot) noexcept nogil:
    """Add a writer's CB peak of a core: the higher of its class's and of its floor; -1 if one is unknown."""
    if sum < 0 or slot < 0 or reading.rows[TTM_RESIDENT] < 2 or not reading.valid[TTM_RESIDENT][1]:
        return -1
    return sum + most(<int64_t> reading.line(TTM_CB_CLASS, slot)[5], (<uint32_t *> reading.line(TTM_RESIDENT, 1))[core])


cdef int fill_row(CoreRow *row, list readings, uint32_t count, const int *slots, uint64_t **merged, int64_t base,
                  int64_t l1_top) except -1:
    cdef BlockReading reading
    cdef uint32_t i, plane, class_kind, ranges_kind
    cdef int slot, got
    cdef int64_t total[2]
    cdef int64_t kept[2]
    cdef int64_t lowest = -1, end = 0, logical = 0, top
    cdef bint unknown_class[2]
    cdef const uint64_t *ranges = NULL
    cdef uint64_t *record
    cdef uint32_t holders
    for plane in range(2):
        class_kind = TTM_CB_CLASS if plane == 0 else TTM_L1_CLASS
        ranges_kind = TTM_CB_RANGES if plane == 0 else TTM_L1_RANGES
        total[plane] = kept[plane] = 0
        unknown_class[plane] = False
        holders = 0
        for i in range(count):
            reading = readings[i]
            slot = slots[2 * i + plane]
            if slot == -1:
                continue
            if slot < 0:
                unknown_class[plane] = True
                continue
            record = reading.line(class_kind, slot)
            if record[0]:
                holders += 1
                total[plane] += <int64_t> record[0]
                if plane == 0:
                    end = most(end, <int64_t> record[2])
                elif lowest < 0 or <int64_t> record[3] < lowest:
                    lowest = <int64_t> record[3]
            if plane == 0:
                logical += <int64_t> record[1]
            got = reading.ranges_at(class_kind, ranges_kind, slot, &ranges)
            if got < 0:
                kept[plane] = -1
            elif kept[plane] >= 0:
                memcpy(merged[plane] + kept[plane], ranges, 8 * got)
                kept[plane] += got
        if kept[plane] >= 0 and count > 1:
            kept[plane] = merge(merged[plane], <uint32_t> kept[plane])
        if unknown_class[plane]:
            total[plane] = kept[plane] = -1
        elif holders > 1:
            # One writer's own total is exact even without its ranges; a union needs them.
            total[plane] = covered(merged[plane], <uint32_t> kept[plane]) if kept[plane] >= 0 else -1
    row.cb_physical_bytes = total[0]
    row.cb_logical_bytes = -1 if unknown_class[0] else logical
    row.l1_used_bytes = total[1]
    row.l1_lowest_address = -1 if unknown_class[1] else lowest
    row.cb_region_end = -1 if unknown_class[0] else end if total[0] != 0 else base
    top = l1_top if lowest < 0 else lowest
    if unknown_class[0] or unknown_class[1] or top < 0 or row.cb_region_end < 0:
        row.headroom_bytes = INT64_MIN
    else:
        row.headroom_bytes = top - row.cb_region_end
    if total[0] == 0 or total[1] == 0:
        row.overlap_bytes = 0
    elif kept[0] < 0 or kept[1] < 0 or total[0] < 0 or total[1] < 0:
        row.overlap_bytes = -1
    else:
        row.overlap_bytes = common(merged[0], <uint32_t> kept[0], merged[1], <uint32_t> kept[1])
    return 0
