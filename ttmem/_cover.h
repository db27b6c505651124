/* How often each byte of one L1 is covered: a radix tree of fixed shape, an interval tree over a bounded universe.
 *
 * Levels: pages of 64 KiB at the top, 64 kibs of 1 KiB in a page, 64 cells of 16 bytes in a kib, 16 bytes in
 * a cell. Every entry has a cover count (ranges that span exactly this entry, and no larger one) and, above the bytes,
 * `sum`: the bytes covered by the node below it. An entry's covered bytes are its size if its count is above 0, else
 * its sum. A range adds to whole entries where it can and descends at its two ends only, so that an update touches at
 * most pages + 2 (14 + 7 + 14 + 7 + 15) counters, however many ranges there are. Entries of pages and kibs are counted
 * in blocks of eight, too, which is in effect two more levels.
 *
 * Invariants:
 *  1. sum[i] is the covered bytes of node i, 0 where there is none; block_sum likewise of a block's entries.
 *  2. refs of a node is the number of range ends that descend into it; it lives while that is above 0.
 *  3. A node with refs 0 is all zero, so that it is taken from the free list without being cleared.
 *  4. The counts are a linear function of the multiset of ranges: order does not matter, and removing is exact.
 */
#ifndef TTM_COVER_H
#define TTM_COVER_H

#include "_store.h"

enum { TTM_CELL_SHIFT = 4, TTM_KIB_SHIFT = 10, TTM_PAGE_SHIFT = 16 };

typedef struct {
    uint32_t cover[16];
    uint32_t refs;
    uint32_t unused;
} ttm_cell;

typedef struct {
    ttm_cell *cell[8];
} ttm_cells;

/* Head first: an update reads it, one or two blocks of eight entries, and nothing else of the node. */
typedef struct {
    uint32_t block[8];    /* cover counts of eight cells at once */
    uint8_t block_sum[8]; /* bytes covered in the block by its cells, 0 to 128 */
    uint32_t refs;
    uint32_t unused;
    uint32_t cover[64];
    uint8_t sum[64];     /* 0 to 16 */
    ttm_cells *cells[8]; /* of each block; few exist, so that one table of 64 would be mostly empty */
} ttm_kib;

typedef struct {
    uint32_t block[8];
    uint16_t block_sum[8]; /* 0 to 8192 */
    uint32_t refs;
    uint32_t unused;
    uint32_t cover[64];
    uint16_t sum[64]; /* 0 to 1024 */
    ttm_kib *kib[64];
} ttm_page;

typedef struct {
    uint32_t *cover; /* [pages]; one block holds the three arrays */
    uint32_t *sum;   /* 0 to 65536 */
    ttm_page **page;
} ttm_cover;

enum { TTM_PAGE_NODE, TTM_KIB_NODE, TTM_CELLS_NODE, TTM_CELL_NODE, TTM_NODE_KINDS, TTM_SPARE_NODES = 256 };

typedef struct ttm_spare {
    struct ttm_spare *next;
} ttm_spare;

/* Free nodes of all covers of an engine, and the memory they come from. */
typedef struct {
    ttm_heap heap;
    ttm_spare *spare[TTM_NODE_KINDS];
    uint32_t spares[TTM_NODE_KINDS];
    uint32_t used[TTM_NODE_KINDS]; /* nodes in covers */
    uint32_t pages; /* entries at the top of each cover */
    uint64_t work;  /* nodes and classes touched since the beginning; scaling guards read it */
} ttm_pool;

static inline size_t ttm_node_size(int kind) {
    switch (kind) {
    case TTM_PAGE_NODE: return sizeof(ttm_page);
    case TTM_KIB_NODE: return sizeof(ttm_kib);
    case TTM_CELLS_NODE: return sizeof(ttm_cells);
    default: return sizeof(ttm_cell);
    }
}

static inline int ttm_pool_fill(ttm_pool *pool, int kind, uint32_t wanted) {
    while (pool->spares[kind] < wanted) {
        ttm_spare *node = (ttm_spare *)ttm_alloc_zeroed(&pool->heap, ttm_node_size(kind));
        if (!node) return -1;
        node->next = pool->spare[kind];
        pool->spare[kind] = node;
        pool->spares[kind]++;
    }
    return 0;
}

/* Make sure that one update of [begin, end) finds its nodes. Returns 0, or -1 if out of memory. */
static inline int ttm_pool_reserve(ttm_pool *pool, uint32_t begin, uint32_t end) {
    uint32_t ends = begin | end;
    if (!(ends & 0xffff)) return 0;
    if (pool->spares[TTM_PAGE_NODE] < 2 && ttm_pool_fill(pool, TTM_PAGE_NODE, 2)) return -1;
    if (!(ends & 0x3ff)) return 0;
    if (pool->spares[TTM_KIB_NODE] < 2 && ttm_pool_fill(pool, TTM_KIB_NODE, 2)) return -1;
    if (!(ends & 0xf)) return 0;
    if (pool->spares[TTM_CELLS_NODE] < 2 && ttm_pool_fill(pool, TTM_CELLS_NODE, 2)) return -1;
    if (pool->spares[TTM_CELL_NODE] < 2 && ttm_pool_fill(pool, TTM_CELL_NODE, 2)) return -1;
    return 0;
}

/* A zeroed node; never NULL after ttm_pool_reserve. */
static inline void *ttm_pool_take(ttm_pool *pool, int kind) {
    ttm_spare *node;
    if (!pool->spare[kind] && ttm_pool_fill(pool, kind, 1)) return NULL;
    node = pool->spare[kind];
    pool->spare[kind] = node->next;
    pool->spares[kind]--;
    pool->used[kind]++;
    node->next = NULL;
    return node;
}

/* Take back a node that is all zero. No more are kept than are in use: a round of programs that come and go then asks
 * for no memory, and a device that empties gives it back. */
static inline void ttm_pool_give(ttm_pool *pool, int kind, void *block) {
    ttm_spare *node = (ttm_spare *)block;
    pool->used[kind]--;
    if (pool->spares[kind] >= TTM_SPARE_NODES + pool->used[kind]) {
        ttm_free(&pool->heap, block);
        return;
    }
    node->next = pool->spare[kind];
    pool->spare[kind] = node;
    pool->spares[kind]++;
}

static inline void ttm_pool_trim(ttm_pool *pool) {
    int kind;
    for (kind = 0; kind < TTM_NODE_KINDS; ++kind) {
        while (pool->spare[kind]) {
            ttm_spare *node = pool->spare[kind];
            pool->spare[kind] = node->next;
            ttm_free(&pool->heap, node);
        }
        pool->spares[kind] = 0;
    }
}

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

/* Four counters at once, and what four sums are read as. */
typedef int32_t ttm_four __attribute__((vector_size(16)));
typedef uint8_t ttm_four_bytes __attribute__((vector_size(4)));
typedef uint16_t ttm_four_shorts __attribute__((vector_size(8)));

/* One step over the entries [begin, end) of eight; `sum` is what each has covered below it, of `size` bytes. All eight
 * are computed and masked: that is a few vectors and no branch that depends on the range, where a loop over the entries
 * costs a misprediction or two. Where much is covered, nothing changes, and the sums are not even read. */
#define TTM_EIGHT(name, sum_type, four_sums, size) \
    static inline int32_t name(uint32_t *cover, const sum_type *sum, int32_t begin, int32_t end, int32_t step) { \
        const ttm_four first = {0, 1, 2, 3}, second = {4, 5, 6, 7}; \
        ttm_four in_low = (first >= begin) & (first < end), in_high = (second >= begin) & (second < end); \
        ttm_four low, high, bare_low, bare_high, both; \
        int32_t emptying = step >> 31; \
        uint64_t any[2]; \
        four_sums sums; \
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

TTM_EIGHT(ttm_kib_eight, uint8_t, ttm_four_bytes, 16)
TTM_EIGHT(ttm_kib_blocks, uint8_t, ttm_four_bytes, 128)
TTM_EIGHT(ttm_page_eight, uint16_t, ttm_four_shorts, 1024)
TTM_EIGHT(ttm_page_blocks, uint16_t, ttm_four_shorts, 8192)

static inline int32_t ttm_cell_update(ttm_cell *cell, uint32_t begin, uint32_t end, int step) {
    int32_t change = 0;
    uint32_t i;
    for (i = begin; i < end; ++i) {
        uint32_t before = cell->cover[i], after = before + (uint32_t)step;
        cell->cover[i] = after;
        change += (after != 0) - (before != 0);
    }
    cell->refs += (uint32_t)step;
    return change;
}

static inline int32_t ttm_kib_partial(ttm_pool *pool, ttm_kib *kib, uint32_t i, uint32_t begin, uint32_t end,
                                      int step) {
    ttm_cells *cells = kib->cells[i >> 3];
    ttm_cell *cell;
    int32_t change, k;
    pool->work++;
    if (!cells) cells = kib->cells[i >> 3] = (ttm_cells *)ttm_pool_take(pool, TTM_CELLS_NODE);
    cell = cells->cell[i & 7];
    if (!cell) cell = cells->cell[i & 7] = (ttm_cell *)ttm_pool_take(pool, TTM_CELL_NODE);
    change = ttm_cell_update(cell, begin, end, step);
    kib->sum[i] = (uint8_t)(kib->sum[i] + change);
    if (!cell->refs) {
        cells->cell[i & 7] = NULL;
        ttm_pool_give(pool, TTM_CELL_NODE, cell);
        for (k = 0; k < 8 && !cells->cell[k]; ++k) {}
        if (k == 8) {
            kib->cells[i >> 3] = NULL;
            ttm_pool_give(pool, TTM_CELLS_NODE, cells);
        }
    }
    if (kib->cover[i]) return 0;
    kib->block_sum[i >> 3] = (uint8_t)(kib->block_sum[i >> 3] + change);
    return kib->block[i >> 3] ? 0 : change;
}

static inline int32_t ttm_kib_block(ttm_kib *kib, uint32_t b, uint32_t begin, uint32_t end, int step) {
    int32_t change = ttm_kib_eight(kib->cover + 8 * b, kib->sum + 8 * b, (int32_t)begin, (int32_t)end, step);
    if (!change) return 0;
    kib->block_sum[b] = (uint8_t)(kib->block_sum[b] + change);
    return kib->block[b] ? 0 : change;
}

static inline int32_t ttm_kib_run(ttm_kib *kib, uint32_t begin, uint32_t end, int step) {
    uint32_t first = begin >> 3, last = end >> 3, head = begin & 7, tail = end & 7;
    int32_t change = 0;
    if (begin >= end) return 0;
    if (head) {
        change += ttm_kib_block(kib, first, head, first == last ? tail : 8, step);
        if (first == last) return change;
        ++first;
    }
    if (tail) change += ttm_kib_block(kib, last, 0, tail, step);
    if (first == last) return change;
    return change + ttm_kib_blocks(kib->block, kib->block_sum, (int32_t)first, (int32_t)last, step);
}

static inline int32_t ttm_kib_update(ttm_pool *pool, ttm_kib *kib, uint32_t begin, uint32_t end, int step) {
    uint32_t first = begin >> TTM_CELL_SHIFT, last = end >> TTM_CELL_SHIFT;
    uint32_t head = begin & 15, tail = end & 15;
    int32_t change = 0;
    kib->refs += (uint32_t)step;
    if (head) {
        change += ttm_kib_partial(pool, kib, first, head, first == last ? tail : 16, step);
        if (first == last) return change;
        ++first;
    }
    if (tail) change += ttm_kib_partial(pool, kib, last, 0, tail, step);
    return change + ttm_kib_run(kib, first, last, step);
}

static inline int32_t ttm_page_partial(ttm_pool *pool, ttm_page *page, uint32_t i, uint32_t begin, uint32_t end,
                                      int step) {
    ttm_kib *kib = page->kib[i];
    int32_t change;
    pool->work++;
    if (!kib) kib = page->kib[i] = (ttm_kib *)ttm_pool_take(pool, TTM_KIB_NODE);
    change = ttm_kib_update(pool, kib, begin, end, step);
    if (!kib->refs) {
        page->kib[i] = NULL;
        ttm_pool_give(pool, TTM_KIB_NODE, kib);
    }
    if (!change) return 0;
    page->sum[i] = (uint16_t)(page->sum[i] + change);
    if (page->cover[i]) return 0;
    page->block_sum[i >> 3] = (uint16_t)(page->block_sum[i >> 3] + change);
    return page->block[i >> 3] ? 0 : change;
}

static inline int32_t ttm_page_block(ttm_page *page, uint32_t b, uint32_t begin, uint32_t end, int step) {
    int32_t change = ttm_page_eight(page->cover + 8 * b, page->sum + 8 * b, (int32_t)begin, (int32_t)end, step);
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

/* Ask for the memory that an update at one of its ends will need, without waiting for it: first for that of the page,
 * and when it is there, for that of the kib. */
static inline void ttm_cover_prefetch_page(const ttm_cover *cover, uint32_t at) {
    const ttm_page *page;
    if (!(at & 0xffff)) return;
    page = cover->page[at >> TTM_PAGE_SHIFT];
    if (!page) return;
    __builtin_prefetch(page, 1);
    __builtin_prefetch(&page->cover[(at >> 10) & 56], 1);
    __builtin_prefetch(&page->kib[(at >> 10) & 63], 1);
}

static inline void ttm_cover_prefetch_kib(const ttm_cover *cover, uint32_t at) {
    const ttm_page *page;
    const ttm_kib *kib;
    if (!(at & 0x3ff)) return;
    page = cover->page[at >> TTM_PAGE_SHIFT];
    if (!page) return;
    kib = page->kib[(at >> 10) & 63];
    if (!kib) return;
    __builtin_prefetch(kib, 1);
    __builtin_prefetch(&kib->refs, 1);
    __builtin_prefetch(&kib->cover[(at >> 4) & 56], 1);
    if (at & 15) __builtin_prefetch(&kib->cells[(at >> 7) & 7], 1);
}

static inline void ttm_node_free(ttm_pool *pool, int kind, void *node) {
    if (node) pool->used[kind]--;
    ttm_free(&pool->heap, node);
}

static inline void ttm_kib_free(ttm_pool *pool, ttm_kib *kib) {
    int i;
    for (i = 0; i < 64; ++i) {
        if (kib->cells[i >> 3]) ttm_node_free(pool, TTM_CELL_NODE, kib->cells[i >> 3]->cell[i & 7]);
    }
    for (i = 0; i < 8; ++i) ttm_node_free(pool, TTM_CELLS_NODE, kib->cells[i]);
    ttm_node_free(pool, TTM_KIB_NODE, kib);
}

static inline void ttm_page_free(ttm_pool *pool, ttm_page *page) {
    int i;
    for (i = 0; i < 64; ++i) if (page->kib[i]) ttm_kib_free(pool, page->kib[i]);
    ttm_node_free(pool, TTM_PAGE_NODE, page);
}

static inline void ttm_cover_free(ttm_pool *pool, ttm_cover *cover) {
    uint32_t i;
    if (!cover->page) return;
    for (i = 0; i < pool->pages; ++i) if (cover->page[i]) ttm_page_free(pool, cover->page[i]);
    ttm_free(&pool->heap, cover->page);
    cover->page = NULL;
}

static inline void *ttm_node_copy(ttm_pool *pool, int kind, const void *source) {
    void *copy = ttm_alloc(&pool->heap, ttm_node_size(kind));
    pool->work++;
    if (!copy) return NULL;
    pool->used[kind]++;
    return memcpy(copy, source, ttm_node_size(kind));
}

static inline ttm_kib *ttm_kib_copy(ttm_pool *pool, const ttm_kib *source) {
    ttm_kib *copy = (ttm_kib *)ttm_node_copy(pool, TTM_KIB_NODE, source);
    const ttm_cell *cell;
    int i;
    if (!copy) return NULL;
    memset(copy->cells, 0, sizeof copy->cells);
    for (i = 0; i < 64; ++i) {
        ttm_cells **cells = &copy->cells[i >> 3];
        if (!source->cells[i >> 3]) {
            i += 7;
            continue;
        }
        if (!*cells) {
            *cells = (ttm_cells *)ttm_node_copy(pool, TTM_CELLS_NODE, source->cells[i >> 3]);
            if (*cells) memset(*cells, 0, sizeof **cells);
        }
        cell = source->cells[i >> 3]->cell[i & 7];
        if (*cells && cell) (*cells)->cell[i & 7] = (ttm_cell *)ttm_node_copy(pool, TTM_CELL_NODE, cell);
        if (!*cells || (cell && !(*cells)->cell[i & 7])) {
            ttm_kib_free(pool, copy);
            return NULL;
        }
    }
    return copy;
}

static inline ttm_page *ttm_page_copy(ttm_pool *pool, const ttm_page *source) {
    ttm_page *copy = (ttm_page *)ttm_node_copy(pool, TTM_PAGE_NODE, source);
    int i;
    if (!copy) return NULL;
    memset(copy->kib, 0, sizeof copy->kib);
    for (i = 0; i < 64; ++i) {
        if (!source->kib[i]) continue;
        copy->kib[i] = ttm_kib_copy(pool, source->kib[i]);
        if (!copy->kib[i]) {
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

static inline int ttm_walk_kib(ttm_walk *walk, const ttm_kib *kib, uint32_t base) {
    uint32_t i, b;
    for (i = 0; i < 64; ++i, base += 16) {
        if (!(i & 7)) {
            int whole = kib->block[i >> 3] || kib->block_sum[i >> 3] == 128;
            if (whole && ttm_walk_piece(walk, base, base + 128)) return 1;
            if (whole || !kib->block_sum[i >> 3]) {
                i += 7;
                base += 7 * 16;
                continue;
            }
        }
        if (kib->cover[i] || kib->sum[i] == 16) {
            if (ttm_walk_piece(walk, base, base + 16)) return 1;
        } else if (kib->sum[i]) {
            const ttm_cell *cell = kib->cells[i >> 3]->cell[i & 7];
            for (b = 0; b < 16; ++b) if (cell->cover[b] && ttm_walk_piece(walk, base + b, base + b + 1)) return 1;
        }
    }
    return 0;
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
        } else if (page->sum[i] && ttm_walk_kib(walk, page->kib[i], base)) {
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
    const ttm_kib *kib;
    const ttm_cell *cell;
    uint32_t i = pool->pages, base, j = 7, b = 15;
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
    if (page->cover[j]) return base + 1024;
    kib = page->kib[j];
    j = 7;
    while (!kib->block[j] && !kib->block_sum[j]) --j;
    if (kib->block[j]) return base + (j + 1) * 128;
    j = 8 * j + 7;
    while (!kib->cover[j] && !kib->sum[j]) --j;
    base += j << TTM_CELL_SHIFT;
    if (kib->cover[j]) return base + 16;
    cell = kib->cells[j >> 3]->cell[j & 7];
    while (!cell->cover[b]) --b;
    return base + b + 1;
}

/* The lowest covered byte, UINT32_MAX if none is. */
static inline uint32_t ttm_cover_lowest(const ttm_pool *pool, const ttm_cover *cover) {
    const ttm_page *page;
    const ttm_kib *kib;
    const ttm_cell *cell;
    uint32_t i = 0, base, j = 0, b = 0;
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
    kib = page->kib[j];
    j = 0;
    while (!kib->block[j] && !kib->block_sum[j]) ++j;
    if (kib->block[j]) return base + j * 128;
    j *= 8;
    while (!kib->cover[j] && !kib->sum[j]) ++j;
    base += j << TTM_CELL_SHIFT;
    if (kib->cover[j]) return base;
    cell = kib->cells[j >> 3]->cell[j & 7];
    while (!cell->cover[b]) ++b;
    return base + b;
}

/* The self-check: what is wrong with a cover, NULL if nothing is. Everything is counted anew from the bytes upward. */

static inline const char *ttm_kib_fault(const ttm_kib *kib, uint32_t *covered) {
    uint32_t i, b, in_block = 0;
    *covered = 0;
    if (!kib->refs) return "a kib of a cover outlives its ranges";
    for (i = 0; i < 64; ++i) {
        const ttm_cells *cells = kib->cells[i >> 3];
        const ttm_cell *cell = cells ? cells->cell[i & 7] : NULL;
        uint32_t bytes = 0;
        if (cell && !cell->refs) return "a cell of a cover outlives its ranges";
        for (b = 0; cell && b < 16; ++b) bytes += cell->cover[b] != 0;
        if (bytes != kib->sum[i]) return "a cell of a cover has other bytes than its kib says";
        in_block += kib->cover[i] ? 16 : bytes;
        if ((i & 7) != 7) continue;
        if (in_block != kib->block_sum[i >> 3]) return "a block of a kib has other bytes than it says";
        *covered += kib->block[i >> 3] ? 128 : in_block;
        in_block = 0;
    }
    return NULL;
}

static inline const char *ttm_page_fault(const ttm_page *page, uint32_t *covered) {
    uint32_t i, in_block = 0;
    *covered = 0;
    if (!page->refs) return "a page of a cover outlives its ranges";
    for (i = 0; i < 64; ++i) {
        uint32_t bytes = 0;
        const char *fault = page->kib[i] ? ttm_kib_fault(page->kib[i], &bytes) : NULL;
        if (fault) return fault;
        if (bytes != page->sum[i]) return "a kib of a cover has other bytes than its page says";
        in_block += page->cover[i] ? 1024 : bytes;
        if ((i & 7) != 7) continue;
        if (in_block != page->block_sum[i >> 3]) return "a block of a page has other bytes than it says";
        *covered += page->block[i >> 3] ? 8192 : in_block;
        in_block = 0;
    }
    return NULL;
}

/* Whether two nodes, or two missing ones, have the same counts. */
static inline int ttm_kib_same(const ttm_kib *a, const ttm_kib *b) {
    int i;
    if (!a || !b) return a == b;
    if (a->refs != b->refs || memcmp(a->cover, b->cover, sizeof a->cover)) return 0;
    if (memcmp(a->block, b->block, sizeof a->block)) return 0;
    for (i = 0; i < 64; ++i) {
        const ttm_cell *x = a->cells[i >> 3] ? a->cells[i >> 3]->cell[i & 7] : NULL;
        const ttm_cell *y = b->cells[i >> 3] ? b->cells[i >> 3]->cell[i & 7] : NULL;
        if (x && y ? memcmp(x, y, sizeof *x) : x != y) return 0;
    }
    return 1;
}

static inline int ttm_page_same(const ttm_page *a, const ttm_page *b) {
    int i;
    if (!a || !b) return a == b;
    if (a->refs != b->refs || memcmp(a->cover, b->cover, sizeof a->cover)) return 0;
    if (memcmp(a->block, b->block, sizeof a->block)) return 0;
    for (i = 0; i < 64; ++i) {
        if (!ttm_kib_same(a->kib[i], b->kib[i])) return 0;
    }
    return 1;
}

/* What is wrong with a cover that should hold these ranges, in any order; NULL if nothing is. */
static inline const char *ttm_cover_fault(const ttm_pool *pool, const ttm_cover *cover, const uint64_t *ranges,
                                          size_t count) {
    ttm_pool own;
    ttm_cover anew;
    const char *fault = NULL;
    uint32_t i;
    size_t r;
    for (i = 0; i < pool->pages; ++i) {
        uint32_t bytes = 0;
        fault = cover->page[i] ? ttm_page_fault(cover->page[i], &bytes) : NULL;
        if (fault) return fault;
        if (bytes != cover->sum[i]) return "a page of a cover has other bytes than the top says";
    }
    memset(&own, 0, sizeof own);
    own.pages = pool->pages;
    own.heap.allowed = -1;
    if (ttm_cover_init(&own, &anew)) return NULL;
    for (r = 0; r < count; ++r) ttm_cover_update(&own, &anew, (uint32_t)ranges[r], (uint32_t)(ranges[r] >> 32), 1);
    for (i = 0; i < pool->pages && !fault; ++i) {
        if (cover->cover[i] != anew.cover[i] || !ttm_page_same(cover->page[i], anew.page[i])) {
            fault = "the cover of a class does not count what its programs add up to (2)";
        }
    }
    ttm_cover_free(&own, &anew);
    ttm_pool_trim(&own);
    return fault;
}

#endif
