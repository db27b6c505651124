/* How often each byte of one L1 is covered: a radix tree of fixed shape, an interval tree over a bounded universe.
 *
 * Levels: pages of 64 KiB at the top, 64 kibs of 1 KiB in a page, and a leaf for each kib in which a range begins or
 * ends. Every entry of the upper two has a cover count (ranges that span exactly this entry, and no larger one) and
 * `sum`: the bytes covered by the node below it. An entry's covered bytes are its size if its count is above 0, else
 * its sum. A range adds to whole entries where it can and descends at its two ends only. Entries of a page are counted
 * in blocks of eight, too, which is in effect one more level.
 *
 * A leaf knows the positions at which ranges begin or end, and how many: a sorted list in one or three cache lines while
 * they are few, prefix sums over all 1024 bytes when they are many. So an update touches at most pages + 2 (14 + 16)
 * entries and two leaves, whose size is bounded, however many ranges there are.
 *
 * Invariants:
 *  1. sum[i] of a page is the covered bytes of leaf i, 0 where there is none, unless bit i of `stale` is set, which it is
 *     only while cover[i] is above 0: then nobody needs to know. block_sum is that of a block's entries, always.
 *  2. refs of a page is the number of range ends that descend into it; a page lives while that is above 0, a leaf while it
 *     has any position.
 *  3. A page with refs 0 is all zero, so that it is taken from the free list without being cleared.
 *  4. The counts are a linear function of the multiset of ranges: order does not matter, and removing is exact. A leaf
 *     keeps a position while any range begins or ends there, so that a removal never needs room.
 */
#ifndef TTM_COVER_H
#define TTM_COVER_H

#include "_leaf.h"

typedef struct {
    uint32_t *cover; /* [pages]; one block holds the three arrays */
    uint32_t *sum;   /* 0 to 65536 */
    ttm_page **page;
} ttm_cover;

static inline int ttm_cover_init(ttm_pool *pool, ttm_cover *cover) {
    size_t pages = pool->pages;
    char *block = (char *)ttm_alloc_zeroed(&pool->heap, pages * (sizeof(ttm_page *) + 2 * sizeof(uint32_t)));
    if (!block) return -1;
    cover->page = (ttm_page **)block;
    cover->cover = (uint32_t *)(block + pages * sizeof(ttm_page *));
    cover->sum = cover->cover + pages;
    return 0;
}

/* Each of the functions below changes the counts by one, up (step 1) or down (step -1), in [begin, end) relative to its
 * node, and returns by how many bytes the covered ones of that node grow. */

/* One step over the entries [begin, end) of eight; `sum` is what each has covered below it, of `size` bytes. All eight
 * are computed and masked: that is a few vectors and no branch that depends on the range, where a loop over the entries
 * costs a misprediction or two. Where much is covered, nothing changes, and the sums are not even read. */
#define TTM_EIGHT(name, size) \
    static inline int32_t name(uint32_t *cover, const uint16_t *sum, int32_t begin, int32_t end, int32_t step) { \
        const ttm_four first = {0, 1, 2, 3}, second = {4, 5, 6, 7}; \
        ttm_four in_low = (first >= begin) & (first < end), in_high = (second >= begin) & (second < end); \
        ttm_four low, high, bare_low, bare_high, both; \
        int32_t emptying = step >> 31; \
        uint64_t any[2]; \
        ttm_four_sums sums; \
        memcpy(&low, cover, sizeof low); \
        memcpy(&high, cover + 4, sizeof high); \
        /* 0 before an addition, 1 before a removal. */ \
        bare_low = ((low + emptying) == 0) & in_low; \
        bare_high = ((high + emptying) == 0) & in_high; \
        low += in_low & step; \
        high += in_high & step; \
        memcpy(cover, &low, sizeof low); \
        memcpy(cover + 4, &high, sizeof high); \
        both = bare_low | bare_high; \
        memcpy(any, &both, sizeof any); \
        if (!(any[0] | any[1])) return 0; \
        memcpy(&sums, sum, sizeof sums); \
        both = bare_low & ((size) - __builtin_convertvector(sums, ttm_four)); \
        memcpy(&sums, sum + 4, sizeof sums); \
        both += bare_high & ((size) - __builtin_convertvector(sums, ttm_four)); \
        memcpy(any, &both, sizeof any); \
        any[0] += any[1]; /* the halves stay below 2^31, so that nothing is carried between them */ \
        return ((int32_t)(any[0] >> 32) + (int32_t)any[0]) * step; \
    }

TTM_EIGHT(ttm_page_eight, 1024)
TTM_EIGHT(ttm_page_blocks, 8192)

static inline int32_t ttm_page_partial(ttm_pool *pool, ttm_page *page, uint32_t i, uint32_t begin, uint32_t end,
                                      int step) {
    ttm_list **leaf = &page->leaf[i];
    uint64_t bit = (uint64_t)1 << i;
    int32_t sum = 0, change;
    pool->work++;
    if (!*leaf) {
        *leaf = (ttm_list *)ttm_pool_take(pool, TTM_SHORT_NODE);
        ttm_list_clear(*leaf, TTM_SHORT_NODE);
    }
    if (begin) ttm_leaf_count(pool, leaf, begin, 1, step);
    else (*leaf)->base += (uint32_t)step;
    if (end < TTM_KIB) ttm_leaf_count(pool, leaf, end, -1, step);
    if (!(*leaf)->count && !(*leaf)->base) {
        ttm_pool_give(pool, (*leaf)->kind, *leaf);
        *leaf = NULL;
        page->stale &= ~bit;
    } else if (page->cover[i]) {
        page->stale |= bit;
        return 0;
    } else {
        sum = (int32_t)ttm_leaf_sum(*leaf);
    }
    change = sum - page->sum[i];
    if (!change) return 0;
    page->sum[i] = (uint16_t)sum;
    if (page->cover[i]) return 0;
    page->block_sum[i >> 3] = (uint16_t)(page->block_sum[i >> 3] + change);
    return page->block[i >> 3] ? 0 : change;
}

/* Bring the sums up to date of those entries [begin, end) of a block that the last range is about to leave. */
static inline void ttm_page_refresh(ttm_page *page, uint32_t b, uint32_t begin, uint32_t end) {
    uint32_t i;
    for (i = 8 * b + begin; i < 8 * b + end; ++i) {
        if (page->cover[i] != 1 || !(page->stale >> i & 1)) continue;
        page->sum[i] = (uint16_t)ttm_leaf_sum(page->leaf[i]);
        page->stale &= ~((uint64_t)1 << i);
    }
}

static inline int32_t ttm_page_block(ttm_page *page, uint32_t b, uint32_t begin, uint32_t end, int step) {
    int32_t change;
    if (step < 0 && (page->stale >> (8 * b) & 0xff)) ttm_page_refresh(page, b, begin, end);
    change = ttm_page_eight(page->cover + 8 * b, page->sum + 8 * b, (int32_t)begin, (int32_t)end, step);
    if (!change) return 0;
    page->block_sum[b] = (uint16_t)(page->block_sum[b] + change);
    return page->block[b] ? 0 : change;
}

static inline int32_t ttm_page_run(ttm_page *page, uint32_t begin, uint32_t end, int step) {
    uint32_t first = begin >> 3, last = end >> 3, head = begin & 7, tail = end & 7;
    int32_t change = 0;
    if (begin >= end) return 0;
    if (head) {
        change += ttm_page_block(page, first, head, first == last ? tail : 8, step);
        if (first == last) return change;
        ++first;
    }
    if (tail) change += ttm_page_block(page, last, 0, tail, step);
    if (first == last) return change;
    return change + ttm_page_blocks(page->block, page->block_sum, (int32_t)first, (int32_t)last, step);
}

static inline int32_t ttm_page_update(ttm_pool *pool, ttm_page *page, uint32_t begin, uint32_t end, int step) {
    uint32_t first = begin >> TTM_KIB_SHIFT, last = end >> TTM_KIB_SHIFT;
    uint32_t head = begin & 0x3ff, tail = end & 0x3ff;
    int32_t change = 0;
    page->refs += (uint32_t)step;
    if (head) {
        change += ttm_page_partial(pool, page, first, head, first == last ? tail : 1024, step);
        if (first == last) return change;
        ++first;
    }
    if (tail) change += ttm_page_partial(pool, page, last, 0, tail, step);
    return change + ttm_page_run(page, first, last, step);
}

static inline int32_t ttm_cover_partial(ttm_pool *pool, ttm_cover *cover, uint32_t i, uint32_t begin, uint32_t end,
                                        int step) {
    ttm_page *page = cover->page[i];
    int32_t change;
    pool->work++;
    if (!page) page = cover->page[i] = (ttm_page *)ttm_pool_take(pool, TTM_PAGE_NODE);
    change = ttm_page_update(pool, page, begin, end, step);
    if (!page->refs) {
        cover->page[i] = NULL;
        ttm_pool_give(pool, TTM_PAGE_NODE, page);
    }
    if (!change) return 0;
    cover->sum[i] += (uint32_t)change;
    return cover->cover[i] ? 0 : change;
}

/* Add (step 1) or take away (step -1) a range with begin < end. Needs ttm_pool_reserve before adding. Returns by
 * how many bytes the covered ones grow, which is below 0 or 0 when taking away. */
static inline int64_t ttm_cover_update(ttm_pool *pool, ttm_cover *cover, uint32_t begin, uint32_t end, int step) {
    uint32_t first = begin >> TTM_PAGE_SHIFT, last = end >> TTM_PAGE_SHIFT;
    uint32_t head = begin & 0xffff, tail = end & 0xffff, i;
    int64_t change = 0;
    pool->work++;
    if (head) {
        change += ttm_cover_partial(pool, cover, first, head, first == last ? tail : 0x10000, step);
        if (first == last) return change;
        ++first;
    }
    if (tail) change += ttm_cover_partial(pool, cover, last, 0, tail, step);
    for (i = first; i < last; ++i) {
        uint32_t before = cover->cover[i], after = before + (uint32_t)step;
        cover->cover[i] = after;
        change += ((after != 0) - (before != 0)) * (0x10000 - (int64_t)cover->sum[i]);
    }
    return change;
}

/* gcc takes a function that only prefetches for one without an effect, and drops the call, unless it is inlined. */
#define TTM_INLINED static inline __attribute__((always_inline))

/* Ask for the memory that an update at one of its ends will need, without waiting for it: first for that of the page,
 * and when it is there, for that of the leaf. */
TTM_INLINED void ttm_cover_prefetch_page(const ttm_cover *cover, uint32_t at) {
    const ttm_page *page;
    if (!(at & 0xffff)) return;
    page = cover->page[at >> TTM_PAGE_SHIFT];
    if (!page) return;
    __builtin_prefetch(page, 1);
    __builtin_prefetch(&page->cover[(at >> 10) & 56], 1);
    __builtin_prefetch(&page->leaf[(at >> 10) & 63], 1);
}

TTM_INLINED void ttm_cover_prefetch_leaf(const ttm_cover *cover, uint32_t at) {
    const ttm_page *page;
    const ttm_list *leaf;
    if (!(at & 0x3ff)) return;
    page = cover->page[at >> TTM_PAGE_SHIFT];
    if (!page) return;
    leaf = page->leaf[(at >> 10) & 63];
    if (leaf) __builtin_prefetch(leaf, 1);
}

static inline void ttm_node_free(ttm_pool *pool, int kind, void *node) {
    if (node) pool->used[kind]--;
    ttm_free(&pool->heap, node);
}

static inline void ttm_page_free(ttm_pool *pool, ttm_page *page) {
    int i;
    for (i = 0; i < 64; ++i) if (page->leaf[i]) ttm_pool_give(pool, page->leaf[i]->kind, page->leaf[i]);
    memset(page, 0, sizeof *page);
    ttm_pool_give(pool, TTM_PAGE_NODE, page);
}

static inline void ttm_cover_free(ttm_pool *pool, ttm_cover *cover) {
    uint32_t i;
    if (!cover->page) return;
    for (i = 0; i < pool->pages; ++i) if (cover->page[i]) ttm_page_free(pool, cover->page[i]);
    ttm_free(&pool->heap, cover->page);
    cover->page = NULL;
}

static inline void *ttm_node_copy(ttm_pool *pool, int kind, const void *source) {
    void *copy = ttm_pool_take(pool, kind);
    pool->work++;
    return copy ? memcpy(copy, source, ttm_node_size(kind)) : NULL;
}

static inline ttm_page *ttm_page_copy(ttm_pool *pool, const ttm_page *source) {
    ttm_page *copy = (ttm_page *)ttm_node_copy(pool, TTM_PAGE_NODE, source);
    int i;
    if (!copy) return NULL;
    memset(copy->leaf, 0, sizeof copy->leaf);
    for (i = 0; i < 64; ++i) {
        if (!source->leaf[i]) continue;
        copy->leaf[i] = (ttm_list *)ttm_node_copy(pool, source->leaf[i]->kind, source->leaf[i]);
        if (!copy->leaf[i]) {
            ttm_page_free(pool, copy);
            return NULL;
        }
    }
    return copy;
}

/* Make `copy` equal to `source`. Returns 0, or -1 if out of memory, with nothing kept. */
static inline int ttm_cover_copy(ttm_pool *pool, ttm_cover *copy, const ttm_cover *source) {
    uint32_t i;
    if (ttm_cover_init(pool, copy)) return -1;
    memcpy(copy->cover, source->cover, pool->pages * 2 * sizeof(uint32_t));
    for (i = 0; i < pool->pages; ++i) {
        if (!source->page[i]) continue;
        copy->page[i] = ttm_page_copy(pool, source->page[i]);
        if (!copy->page[i]) {
            ttm_cover_free(pool, copy);
            return -1;
        }
    }
    return 0;
}

/* Where merged ranges are collected: touching pieces are joined as they come, in ascending order. */
typedef struct {
    uint64_t *out;
    uint32_t maximum, count;
    uint32_t begin, end; /* the range still growing; begin == end: none */
} ttm_walk;

static inline void ttm_walk_flush(ttm_walk *walk) {
    if (walk->begin != walk->end && walk->count < walk->maximum) {
        walk->out[walk->count++] = walk->begin | (uint64_t)walk->end << 32;
    }
    walk->begin = walk->end = 0;
}

/* Returns 1 once enough was found. */
static inline int ttm_walk_piece(ttm_walk *walk, uint32_t begin, uint32_t end) {
    if (walk->begin != walk->end && walk->end == begin) {
        walk->end = end;
        return 0;
    }
    ttm_walk_flush(walk);
    walk->begin = begin;
    walk->end = end;
    return walk->count >= walk->maximum;
}

static inline int ttm_walk_leaf(ttm_walk *walk, const ttm_list *leaf, uint32_t base) {
    ttm_course course = ttm_course_begin(leaf);
    uint32_t last = 0;
    for (;;) {
        if (course.run && course.at > last && ttm_walk_piece(walk, base + last, base + course.at)) return 1;
        if (course.at == TTM_KIB) return 0;
        last = course.at;
        ttm_course_step(&course);
    }
}

static inline int ttm_walk_page(ttm_walk *walk, const ttm_page *page, uint32_t base) {
    uint32_t i;
    for (i = 0; i < 64; ++i, base += 1024) {
        if (!(i & 7)) {
            int whole = page->block[i >> 3] || page->block_sum[i >> 3] == 8192;
            if (whole && ttm_walk_piece(walk, base, base + 8192)) return 1;
            if (whole || !page->block_sum[i >> 3]) {
                i += 7;
                base += 7 * 1024;
                continue;
            }
        }
        if (page->cover[i] || page->sum[i] == 1024) {
            if (ttm_walk_piece(walk, base, base + 1024)) return 1;
        } else if (page->sum[i] && ttm_walk_leaf(walk, page->leaf[i], base)) {
            return 1;
        }
    }
    return 0;
}

/* Write at most `maximum` merged ranges, ascending, as begin | end << 32. Only nodes that are covered in part are
 * entered, and each of those holds an end of a merged range, so that the cost is bounded by `maximum`. */
static inline uint32_t ttm_cover_ranges(const ttm_pool *pool, const ttm_cover *cover, uint64_t *out, uint32_t maximum) {
    ttm_walk walk = {out, maximum, 0, 0, 0};
    uint32_t i;
    if (!maximum) return 0;
    for (i = 0; i < pool->pages; ++i) {
        uint32_t base = i << TTM_PAGE_SHIFT;
        if (cover->cover[i] || cover->sum[i] == 0x10000) {
            if (ttm_walk_piece(&walk, base, base + 0x10000)) return walk.count;
        } else if (cover->sum[i] && ttm_walk_page(&walk, cover->page[i], base)) {
            return walk.count;
        }
    }
    ttm_walk_flush(&walk);
    return walk.count;
}

/* One past the highest covered byte, 0 if none is. */
static inline uint32_t ttm_cover_end(const ttm_pool *pool, const ttm_cover *cover) {
    const ttm_page *page;
    uint32_t i = pool->pages, base, j = 7, lowest, end;
    while (i && !cover->cover[i - 1] && !cover->sum[i - 1]) --i;
    if (!i--) return 0;
    base = i << TTM_PAGE_SHIFT;
    if (cover->cover[i]) return base + 0x10000;
    page = cover->page[i];
    while (!page->block[j] && !page->block_sum[j]) --j;
    if (page->block[j]) return base + (j + 1) * 8192;
    j = 8 * j + 7;
    while (!page->cover[j] && !page->sum[j]) --j;
    base += j << TTM_KIB_SHIFT;
    if (page->cover[j]) return base + TTM_KIB;
    ttm_leaf_span(page->leaf[j], &lowest, &end);
    return base + end;
}

/* The lowest covered byte, UINT32_MAX if none is. */
static inline uint32_t ttm_cover_lowest(const ttm_pool *pool, const ttm_cover *cover) {
    const ttm_page *page;
    uint32_t i = 0, base, j = 0, lowest, end;
    while (i < pool->pages && !cover->cover[i] && !cover->sum[i]) ++i;
    if (i == pool->pages) return UINT32_MAX;
    base = i << TTM_PAGE_SHIFT;
    if (cover->cover[i]) return base;
    page = cover->page[i];
    while (!page->block[j] && !page->block_sum[j]) ++j;
    if (page->block[j]) return base + j * 8192;
    j *= 8;
    while (!page->cover[j] && !page->sum[j]) ++j;
    base += j << TTM_KIB_SHIFT;
    if (page->cover[j]) return base;
    ttm_leaf_span(page->leaf[j], &lowest, &end);
    return base + lowest;
}

#endif
