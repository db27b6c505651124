/* How often each byte of one L1 is covered, as a radix tree of fixed shape: an interval tree over a bounded universe.
 *
 * Levels: pages of 64 KiB at the top, 64 KiB-blocks ("kib") of 1 KiB in a page, 64 cells of 16 bytes in a kib, 16 bytes in
 * a cell. Every entry has a cover count (ranges that span exactly this entry, and no larger one) and, above the bytes,
 * `sum`: the bytes covered by the node below it. An entry's covered bytes are its size when its count is above 0, else its
 * sum. A range adds to whole entries where it can and descends at its two ends only, so that an update touches at most
 * pages + 2 (63 + 63 + 15) counters, however many ranges there are.
 *
 * Invariants:
 *  1. sum[i] is the covered bytes of node i, 0 where there is none.
 *  2. refs of a node is the number of range ends that descend into it; it lives while that is above 0.
 *  3. A node with refs 0 is all zero, so that it is taken from the free list without being cleared.
 *  4. The counts are a linear function of the multiset of ranges: order does not matter, and removing is exact.
 */
#ifndef TTM_COVER_H
#define TTM_COVER_H

#include "_store.h"

enum { TTM_CELL_SHIFT = 4, TTM_KIB_SHIFT = 10, TTM_PAGE_SHIFT = 16 };

/* gcc vectorizes loops of unknown length at -O3 only, and the runs of counters are where the time goes. */
#if defined(__GNUC__) && !defined(__clang__) && !defined(TTM_DEBUG)
#define TTM_VECTORIZED __attribute__((optimize("O3")))
#else
#define TTM_VECTORIZED
#endif

typedef struct {
    uint32_t cover[16];
    uint32_t refs;
    uint32_t covered; /* bytes with a count above 0 */
} ttm_cell;

typedef struct {
    ttm_cell *cell[64];
} ttm_cells;

typedef struct {
    uint32_t cover[64];
    uint8_t sum[64]; /* 0 to 16 */
    ttm_cells *cells; /* NULL while no range has an end inside a cell */
    uint32_t refs;
    uint32_t cell_refs; /* range ends inside cells */
} ttm_kib;

typedef struct {
    uint32_t cover[64];
    uint16_t sum[64]; /* 0 to 1024 */
    ttm_kib *kib[64];
    uint32_t refs;
    uint32_t unused;
} ttm_page;

typedef struct {
    uint32_t *cover; /* [pages]; one block holds the three arrays */
    uint32_t *sum;   /* 0 to 65536 */
    ttm_page **page;
} ttm_cover;

enum { TTM_PAGE_NODE, TTM_KIB_NODE, TTM_CELLS_NODE, TTM_CELL_NODE, TTM_NODE_KINDS, TTM_SPARE_NODES = 64 };

typedef struct ttm_spare {
    struct ttm_spare *next;
} ttm_spare;

/* Free nodes of all covers of an engine, and the memory they come from. */
typedef struct {
    ttm_heap heap;
    ttm_spare *spare[TTM_NODE_KINDS];
    uint32_t spares[TTM_NODE_KINDS];
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
    node->next = NULL;
    return node;
}

/* Take back a node that is all zero. */
static inline void ttm_pool_give(ttm_pool *pool, int kind, void *block) {
    ttm_spare *node = (ttm_spare *)block;
    if (pool->spares[kind] >= TTM_SPARE_NODES) {
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

static inline int32_t ttm_cell_update(ttm_cell *cell, uint32_t begin, uint32_t end, int step) {
    int32_t change = 0;
    uint32_t i;
    for (i = begin; i < end; ++i) {
        uint32_t before = cell->cover[i], after = before + (uint32_t)step;
        cell->cover[i] = after;
        change += (after != 0) - (before != 0);
    }
    cell->refs += (uint32_t)step;
    cell->covered += (uint32_t)change;
    return change;
}

static inline int32_t ttm_kib_partial(ttm_pool *pool, ttm_kib *kib, uint32_t i, uint32_t begin, uint32_t end, int step) {
    ttm_cell *cell;
    int32_t change;
    pool->work++;
    if (!kib->cells) kib->cells = (ttm_cells *)ttm_pool_take(pool, TTM_CELLS_NODE);
    cell = kib->cells->cell[i];
    if (!cell) cell = kib->cells->cell[i] = (ttm_cell *)ttm_pool_take(pool, TTM_CELL_NODE);
    change = ttm_cell_update(cell, begin, end, step);
    kib->sum[i] = (uint8_t)(kib->sum[i] + change);
    kib->cell_refs += (uint32_t)step;
    if (!cell->refs) {
        kib->cells->cell[i] = NULL;
        ttm_pool_give(pool, TTM_CELL_NODE, cell);
        if (!kib->cell_refs) {
            ttm_pool_give(pool, TTM_CELLS_NODE, kib->cells);
            kib->cells = NULL;
        }
    }
    return kib->cover[i] ? 0 : change;
}

TTM_VECTORIZED static inline int32_t ttm_kib_run(ttm_kib *kib, uint32_t begin, uint32_t end, int step) {
    int32_t change = 0;
    uint32_t i, n = end - begin;
    uint32_t *cover = kib->cover + begin;
    const uint8_t *sum = kib->sum + begin;
    if (step > 0) {
        for (i = 0; i < n; ++i) {
            change += cover[i] ? 0 : 16 - (int32_t)sum[i];
            cover[i] += 1;
        }
    } else {
        for (i = 0; i < n; ++i) {
            cover[i] -= 1;
            change -= cover[i] ? 0 : 16 - (int32_t)sum[i];
        }
    }
    return change;
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

static inline int32_t ttm_page_partial(ttm_pool *pool, ttm_page *page, uint32_t i, uint32_t begin, uint32_t end, int step) {
    ttm_kib *kib = page->kib[i];
    int32_t change;
    pool->work++;
    if (!kib) kib = page->kib[i] = (ttm_kib *)ttm_pool_take(pool, TTM_KIB_NODE);
    change = ttm_kib_update(pool, kib, begin, end, step);
    page->sum[i] = (uint16_t)(page->sum[i] + change);
    if (!kib->refs) {
        page->kib[i] = NULL;
        ttm_pool_give(pool, TTM_KIB_NODE, kib);
    }
    return page->cover[i] ? 0 : change;
}

TTM_VECTORIZED static inline int32_t ttm_page_run(ttm_page *page, uint32_t begin, uint32_t end, int step) {
    int32_t change = 0;
    uint32_t i, n = end - begin;
    uint32_t *cover = page->cover + begin;
    const uint16_t *sum = page->sum + begin;
    if (step > 0) {
        for (i = 0; i < n; ++i) {
            change += cover[i] ? 0 : 1024 - (int32_t)sum[i];
            cover[i] += 1;
        }
    } else {
        for (i = 0; i < n; ++i) {
            cover[i] -= 1;
            change -= cover[i] ? 0 : 1024 - (int32_t)sum[i];
        }
    }
    return change;
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

static inline int32_t ttm_cover_partial(ttm_pool *pool, ttm_cover *cover, uint32_t i, uint32_t begin, uint32_t end, int step) {
    ttm_page *page = cover->page[i];
    int32_t change;
    pool->work++;
    if (!page) page = cover->page[i] = (ttm_page *)ttm_pool_take(pool, TTM_PAGE_NODE);
    change = ttm_page_update(pool, page, begin, end, step);
    cover->sum[i] += (uint32_t)change;
    if (!page->refs) {
        cover->page[i] = NULL;
        ttm_pool_give(pool, TTM_PAGE_NODE, page);
    }
    return cover->cover[i] ? 0 : change;
}

/* Add (step 1) or take away (step -1) a range with begin < end. Needs ttm_pool_reserve before adding. Returns by how many
 * bytes the covered ones grow, which is below 0 or 0 when taking away. */
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

static inline void ttm_kib_free(ttm_pool *pool, ttm_kib *kib) {
    int i;
    if (kib->cells) {
        for (i = 0; i < 64; ++i) ttm_free(&pool->heap, kib->cells->cell[i]);
        ttm_free(&pool->heap, kib->cells);
    }
    ttm_free(&pool->heap, kib);
}

static inline void ttm_page_free(ttm_pool *pool, ttm_page *page) {
    int i;
    for (i = 0; i < 64; ++i) if (page->kib[i]) ttm_kib_free(pool, page->kib[i]);
    ttm_free(&pool->heap, page);
}

static inline void ttm_cover_free(ttm_pool *pool, ttm_cover *cover) {
    uint32_t i;
    if (!cover->page) return;
    for (i = 0; i < pool->pages; ++i) if (cover->page[i]) ttm_page_free(pool, cover->page[i]);
    ttm_free(&pool->heap, cover->page);
    cover->page = NULL;
}

static inline void *ttm_copy(ttm_pool *pool, const void *source, size_t size) {
    void *copy = ttm_alloc(&pool->heap, size);
    pool->work++;
    if (copy) memcpy(copy, source, size);
    return copy;
}

static inline ttm_kib *ttm_kib_copy(ttm_pool *pool, const ttm_kib *source) {
    ttm_kib *copy = (ttm_kib *)ttm_copy(pool, source, sizeof *source);
    int i;
    if (!copy || !source->cells) return copy;
    copy->cells = (ttm_cells *)ttm_alloc_zeroed(&pool->heap, sizeof *copy->cells);
    for (i = 0; copy->cells && i < 64; ++i) {
        if (!source->cells->cell[i]) continue;
        copy->cells->cell[i] = (ttm_cell *)ttm_copy(pool, source->cells->cell[i], sizeof(ttm_cell));
        if (!copy->cells->cell[i]) break;
    }
    if (copy->cells && i == 64) return copy;
    ttm_kib_free(pool, copy);
    return NULL;
}

static inline ttm_page *ttm_page_copy(ttm_pool *pool, const ttm_page *source) {
    ttm_page *copy = (ttm_page *)ttm_copy(pool, source, sizeof *source);
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
        if (kib->cover[i] || kib->sum[i] == 16) {
            if (ttm_walk_piece(walk, base, base + 16)) return 1;
        } else if (kib->sum[i]) {
            const ttm_cell *cell = kib->cells->cell[i];
            for (b = 0; b < 16; ++b) if (cell->cover[b] && ttm_walk_piece(walk, base + b, base + b + 1)) return 1;
        }
    }
    return 0;
}

static inline int ttm_walk_page(ttm_walk *walk, const ttm_page *page, uint32_t base) {
    uint32_t i;
    for (i = 0; i < 64; ++i, base += 1024) {
        if (page->cover[i] || page->sum[i] == 1024) {
            if (ttm_walk_piece(walk, base, base + 1024)) return 1;
        } else if (page->sum[i] && ttm_walk_kib(walk, page->kib[i], base)) {
            return 1;
        }
    }
    return 0;
}

/* Write at most `maximum` merged ranges, ascending, as begin | end << 32. Only nodes that are covered in part are entered,
 * and each of those holds an end of a merged range, so that the cost is bounded by `maximum`. */
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
    uint32_t i = pool->pages, j = 64, k = 64, b = 16;
    while (i && !cover->cover[i - 1] && !cover->sum[i - 1]) --i;
    if (!i--) return 0;
    if (cover->cover[i]) return (i + 1) << TTM_PAGE_SHIFT;
    page = cover->page[i];
    while (!page->cover[j - 1] && !page->sum[j - 1]) --j;
    --j;
    if (page->cover[j]) return (i << TTM_PAGE_SHIFT) + ((j + 1) << TTM_KIB_SHIFT);
    kib = page->kib[j];
    while (!kib->cover[k - 1] && !kib->sum[k - 1]) --k;
    --k;
    if (kib->cover[k]) return (i << TTM_PAGE_SHIFT) + (j << TTM_KIB_SHIFT) + ((k + 1) << TTM_CELL_SHIFT);
    cell = kib->cells->cell[k];
    while (!cell->cover[b - 1]) --b;
    return (i << TTM_PAGE_SHIFT) + (j << TTM_KIB_SHIFT) + (k << TTM_CELL_SHIFT) + b;
}

/* The lowest covered byte, UINT32_MAX if none is. */
static inline uint32_t ttm_cover_lowest(const ttm_pool *pool, const ttm_cover *cover) {
    const ttm_page *page;
    const ttm_kib *kib;
    const ttm_cell *cell;
    uint32_t i = 0, j = 0, k = 0, b = 0;
    while (i < pool->pages && !cover->cover[i] && !cover->sum[i]) ++i;
    if (i == pool->pages) return UINT32_MAX;
    if (cover->cover[i]) return i << TTM_PAGE_SHIFT;
    page = cover->page[i];
    while (!page->cover[j] && !page->sum[j]) ++j;
    if (page->cover[j]) return (i << TTM_PAGE_SHIFT) + (j << TTM_KIB_SHIFT);
    kib = page->kib[j];
    while (!kib->cover[k] && !kib->sum[k]) ++k;
    if (!kib->cover[k]) {
        cell = kib->cells->cell[k];
        while (!cell->cover[b]) ++b;
    }
    return (i << TTM_PAGE_SHIFT) + (j << TTM_KIB_SHIFT) + (k << TTM_CELL_SHIFT) + b;
}

#endif
