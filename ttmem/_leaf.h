/* The lowest level of a cover, one KiB: at which positions ranges begin and end, and how many; and the memory that all nodes
 * of covers come from.
 *
 * A leaf is a sorted list in one or three cache lines while the positions are few, prefix sums over all 1024 bytes when they
 * are many. It keeps a position while any range begins or ends there, so that a removal never needs room.
 */
#ifndef TTM_LEAF_H
#define TTM_LEAF_H

#include "_store.h"

enum { TTM_KIB_SHIFT = 10, TTM_PAGE_SHIFT = 16, TTM_KIB = 1 << TTM_KIB_SHIFT };

enum { TTM_PAGE_NODE, TTM_SHORT_NODE, TTM_LONG_NODE, TTM_DENSE_NODE, TTM_NODE_KINDS };

/* Positions of a leaf before a long list becomes prefix sums, and where these become a list again. */
enum { TTM_SHORT_ROOM = 14, TTM_LONG_ROOM = 46, TTM_SHORT_AGAIN = 8, TTM_LONG_AGAIN = 24 };

/* An entry is position << 21 | ranges that end there << 10 | ranges that begin there, and none is above TTM_NO_ENTRY. Where
 * a count no longer fits, the list becomes prefix sums; that some are halfway there is noticed by then. */
enum { TTM_AT_SHIFT = 21, TTM_END_SHIFT = 10, TTM_MOST = 1023, TTM_TALL = 512, TTM_NO_ENTRY = 0x7fffffff };

/* A leaf as a sorted list; a short one has room for 14 entries, and what is free holds TTM_NO_ENTRY. The positions are 1 to
 * 1023: ranges that begin at the first byte are counted in base, ends at the last one's end need no count. */
typedef struct {
    uint16_t kind;  /* TTM_SHORT_NODE or TTM_LONG_NODE */
    uint16_t count; /* entries */
    uint32_t base;
    int32_t entry[TTM_LONG_ROOM];
} ttm_list;

/* A leaf as prefix sums: the coverage of a byte is base plus all deltas up to it. Of each 16 bytes and of each 128 the
 * sum of the deltas is known, the least prefix sum within, and how many bytes have it. */
typedef struct {
    uint16_t kind;  /* TTM_DENSE_NODE */
    uint16_t count; /* positions at which any range begins or ends */
    uint32_t base;
    uint32_t tall;  /* positions at which TTM_TALL ranges or more begin or end: too many for a list */
    int32_t block_sum[8], block_least[8];
    uint16_t block_bare[8];
    int32_t cell_sum[64], cell_least[64];
    uint8_t cell_bare[64];
    int32_t delta[TTM_KIB]; /* ranges that begin less ranges that end */
    uint32_t refs[TTM_KIB]; /* both together */
} ttm_dense;

/* Head first, a cache line of its own. */
typedef struct {
    uint32_t block[8];     /* cover counts of eight kibs at once */
    uint16_t block_sum[8]; /* bytes covered in the block by its kibs, 0 to 8192 */
    uint32_t refs;
    uint32_t unused;
    uint64_t stale; /* entries whose sum is out of date */
    uint32_t cover[64];
    uint16_t sum[64]; /* 0 to 1024 */
    ttm_list *leaf[64];
} ttm_page;

typedef struct ttm_spare {
    struct ttm_spare *next;
} ttm_spare;

/* Nodes of all covers of an engine, and the memory they come from. They are cut from slabs, each node at the start of a
 * cache line; slabs are given back when no node is in use. */
typedef struct {
    ttm_heap heap;
    ttm_spare *spare[TTM_NODE_KINDS];
    uint32_t spares[TTM_NODE_KINDS];
    uint32_t used[TTM_NODE_KINDS]; /* nodes in covers */
    ttm_spare *slabs;
    uint32_t tall;  /* whether any entry of a list has ever counted TTM_TALL since all was empty */
    uint32_t pages; /* entries at the top of each cover */
    uint64_t work;  /* nodes and classes touched since the beginning; scaling guards read it */
} ttm_pool;

enum { TTM_LINE = 64, TTM_SLAB_BYTES = 4096 };

static inline size_t ttm_node_size(int kind) {
    switch (kind) {
    case TTM_PAGE_NODE: return (sizeof(ttm_page) + TTM_LINE - 1) / TTM_LINE * TTM_LINE;
    case TTM_SHORT_NODE: return offsetof(ttm_list, entry) + TTM_SHORT_ROOM * sizeof(int32_t);
    case TTM_LONG_NODE: return sizeof(ttm_list);
    default: return (sizeof(ttm_dense) + TTM_LINE - 1) / TTM_LINE * TTM_LINE;
    }
}

static inline int ttm_pool_fill(ttm_pool *pool, int kind, uint32_t wanted) {
    size_t size = ttm_node_size(kind), count = size * 4 < TTM_SLAB_BYTES ? (TTM_SLAB_BYTES - TTM_LINE) / size : 1, i;
    while (pool->spares[kind] < wanted) {
        char *slab = (char *)ttm_alloc_lines(&pool->heap, TTM_LINE + count * size);
        if (!slab) return -1;
        ((ttm_spare *)slab)->next = pool->slabs;
        pool->slabs = (ttm_spare *)slab;
        for (i = count; i-- > 0;) {
            ttm_spare *node = (ttm_spare *)(slab + TTM_LINE + i * size);
            node->next = pool->spare[kind];
            pool->spare[kind] = node;
        }
        pool->spares[kind] += (uint32_t)count;
    }
    return 0;
}

/* Make sure that one update of [begin, end) finds its nodes. Returns 0, or -1 if out of memory. */
static inline int ttm_pool_reserve(ttm_pool *pool, uint32_t begin, uint32_t end) {
    uint32_t ends = begin | end;
    if (!(ends & 0xffff)) return 0;
    if (pool->spares[TTM_PAGE_NODE] < 2 && ttm_pool_fill(pool, TTM_PAGE_NODE, 2)) return -1;
    if (!(ends & 0x3ff)) return 0;
    if (pool->spares[TTM_SHORT_NODE] < 2 && ttm_pool_fill(pool, TTM_SHORT_NODE, 2)) return -1;
    if (!pool->used[TTM_SHORT_NODE] && !pool->used[TTM_LONG_NODE]) return 0;
    if (pool->spares[TTM_LONG_NODE] < 2 && ttm_pool_fill(pool, TTM_LONG_NODE, 2)) return -1;
    if (!pool->used[TTM_LONG_NODE] && !pool->tall) return 0;
    if (pool->spares[TTM_DENSE_NODE] < 2 && ttm_pool_fill(pool, TTM_DENSE_NODE, 2)) return -1;
    return 0;
}

/* A node; never NULL after ttm_pool_reserve. */
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

/* Take back a node; a page is all zero. */
static inline void ttm_pool_give(ttm_pool *pool, int kind, void *block) {
    ttm_spare *node = (ttm_spare *)block;
    node->next = pool->spare[kind];
    pool->spare[kind] = node;
    pool->spares[kind]++;
    pool->used[kind]--;
}

/* Give the memory back if no node is in use. */
static inline void ttm_pool_trim(ttm_pool *pool) {
    int kind;
    for (kind = 0; kind < TTM_NODE_KINDS; ++kind) if (pool->used[kind]) return;
    pool->tall = 0;
    while (pool->slabs) {
        ttm_spare *slab = pool->slabs;
        pool->slabs = slab->next;
        ttm_free(&pool->heap, slab);
    }
    for (kind = 0; kind < TTM_NODE_KINDS; ++kind) {
        pool->spare[kind] = NULL;
        pool->spares[kind] = 0;
    }
}

/* Four counters at once, and what four sums are read as. */
typedef int32_t ttm_four __attribute__((vector_size(16)));
typedef uint16_t ttm_four_sums __attribute__((vector_size(8)));

/* Leaves. */

static inline void ttm_cell_count(ttm_dense *dense, uint32_t cell) {
    const int32_t *delta = dense->delta + 16 * cell;
    int32_t run = 0, least = INT32_MAX, bare = 0, i;
    for (i = 0; i < 16; ++i) {
        run += delta[i];
        bare = run < least ? 1 : bare + (run == least);
        least = run < least ? run : least;
    }
    dense->cell_sum[cell] = run;
    dense->cell_least[cell] = least;
    dense->cell_bare[cell] = (uint8_t)bare;
}

static inline void ttm_block_count(ttm_dense *dense, uint32_t block) {
    int32_t run = 0, least = INT32_MAX, bare = 0;
    uint32_t i;
    for (i = 8 * block; i < 8 * block + 8; ++i) {
        int32_t here = run + dense->cell_least[i];
        bare = here < least ? dense->cell_bare[i] : bare + (here == least ? dense->cell_bare[i] : 0);
        least = here < least ? here : least;
        run += dense->cell_sum[i];
    }
    dense->block_sum[block] = run;
    dense->block_least[block] = least;
    dense->block_bare[block] = (uint16_t)bare;
}

/* The change of coverage at the position of an entry. */
static inline int32_t ttm_entry_begins(int32_t entry) { return entry & TTM_MOST; }

static inline int32_t ttm_entry_ends(int32_t entry) { return entry >> TTM_END_SHIFT & TTM_MOST; }

static inline int32_t ttm_entry_delta(int32_t entry) { return ttm_entry_begins(entry) - ttm_entry_ends(entry); }

/* The bytes of a leaf that are covered. */
static inline uint32_t ttm_leaf_sum(const ttm_list *leaf) {
    uint32_t covered = 0, last = 0, i;
    int32_t run = (int32_t)leaf->base, bare = 0;
    if (leaf->kind == TTM_DENSE_NODE) {
        const ttm_dense *dense = (const ttm_dense *)leaf;
        /* Coverage is nowhere below 0: bytes are bare where a least prefix sum is 0. */
        for (i = 0; i < 8; ++i) {
            if (run + dense->block_least[i] == 0) bare += dense->block_bare[i];
            run += dense->block_sum[i];
        }
        return TTM_KIB - (uint32_t)bare;
    }
    for (i = 0; i < leaf->count; ++i) {
        uint32_t at = (uint32_t)(leaf->entry[i] >> TTM_AT_SHIFT);
        covered += run ? at - last : 0;
        last = at;
        run += ttm_entry_delta(leaf->entry[i]);
    }
    return covered + (run ? TTM_KIB - last : 0);
}

static inline int ttm_list_room(int kind) { return kind == TTM_SHORT_NODE ? TTM_SHORT_ROOM : TTM_LONG_ROOM; }

static inline void ttm_list_clear(ttm_list *list, int kind) {
    int i;
    list->kind = (uint16_t)kind;
    list->count = 0;
    list->base = 0;
    for (i = 0; i < ttm_list_room(kind); ++i) list->entry[i] = TTM_NO_ENTRY;
}

/* How many entries of a list are below a key. Free ones are not, so that all are looked at, in vectors and without a
 * branch that depends on them. */
static inline uint32_t ttm_list_below(const ttm_list *list, int32_t key) {
    ttm_four below = {-(list->entry[0] < key), -(list->entry[1] < key), 0, 0}, four;
    int32_t room = ttm_list_room(list->kind), i;
    for (i = 2; i < room; i += 4) {
        memcpy(&four, list->entry + i, sizeof four);
        below += four < key;
    }
    return (uint32_t)-(below[0] + below[1] + below[2] + below[3]);
}

/* Replace a leaf by one of another kind. Nothing happens where there is no memory, which matters to shrinking only. */
static inline void ttm_leaf_become(ttm_pool *pool, ttm_list **leaf, int kind) {
    ttm_list *old = *leaf, *list = (ttm_list *)ttm_pool_take(pool, kind);
    ttm_dense *dense = (ttm_dense *)(kind == TTM_DENSE_NODE ? list : old);
    uint32_t i;
    if (!list) return;
    if (kind == TTM_DENSE_NODE) {
        memset(dense, 0, sizeof *dense);
        for (i = 0; i < old->count; ++i) {
            uint32_t at = (uint32_t)(old->entry[i] >> TTM_AT_SHIFT);
            dense->delta[at] = ttm_entry_delta(old->entry[i]);
            dense->refs[at] = (uint32_t)(ttm_entry_begins(old->entry[i]) + ttm_entry_ends(old->entry[i]));
            dense->tall += dense->refs[at] >= TTM_TALL;
        }
        for (i = 0; i < 64; ++i) ttm_cell_count(dense, i);
        for (i = 0; i < 8; ++i) ttm_block_count(dense, i);
        list->count = old->count;
    } else if (old->kind == TTM_DENSE_NODE) {
        ttm_list_clear(list, TTM_LONG_NODE);
        for (i = 0; i < TTM_KIB; ++i) {
            int32_t refs = (int32_t)dense->refs[i], begins = (refs + dense->delta[i]) / 2;
            if (!refs) continue;
            list->entry[list->count++] = (int32_t)(i << TTM_AT_SHIFT) | (refs - begins) << TTM_END_SHIFT | begins;
        }
    } else {
        ttm_list_clear(list, kind);
        memcpy(list->entry, old->entry, old->count * sizeof(int32_t));
        list->count = old->count;
    }
    list->kind = (uint16_t)kind;
    list->base = old->base;
    ttm_pool_give(pool, old->kind, old);
    *leaf = list;
}

/* Count a range more (step 1) or less (step -1) that begins (sign 1) or ends (sign -1) at a position. */
static inline void ttm_leaf_count(ttm_pool *pool, ttm_list **leaf, uint32_t at, int sign, int step) {
    ttm_list *list = *leaf;
    int32_t one = sign > 0 ? 1 : 1 << TTM_END_SHIFT, key = (int32_t)(at << TTM_AT_SHIFT), entry;
    uint32_t i, k;
    if (list->kind == TTM_DENSE_NODE) {
        ttm_dense *dense = (ttm_dense *)list;
        uint32_t before = dense->refs[at], after = before + (uint32_t)step;
        dense->refs[at] = after;
        dense->delta[at] += sign * step;
        dense->count = (uint16_t)(dense->count + (after != 0) - (before != 0));
        dense->tall += (uint32_t)((after >= TTM_TALL) - (before >= TTM_TALL));
        ttm_cell_count(dense, at >> 4);
        ttm_block_count(dense, at >> 7);
        if (step < 0 && dense->count <= TTM_LONG_AGAIN && !dense->tall) ttm_leaf_become(pool, leaf, TTM_LONG_NODE);
        return;
    }
    i = ttm_list_below(list, key);
    entry = i < list->count ? list->entry[i] : TTM_NO_ENTRY;
    if (i < list->count && entry >> TTM_AT_SHIFT == (int32_t)at) {
        int32_t counted = sign > 0 ? ttm_entry_begins(entry) : ttm_entry_ends(entry);
        if (step > 0 && counted >= TTM_TALL) {
            pool->tall = 1;
            if (counted == TTM_MOST) {
                ttm_leaf_become(pool, leaf, TTM_DENSE_NODE);
                ttm_leaf_count(pool, leaf, at, sign, step);
                return;
            }
        }
        list->entry[i] = entry += step > 0 ? one : -one;
        if (entry != key) return;
        list->count--;
        for (; i < list->count; ++i) list->entry[i] = list->entry[i + 1];
        list->entry[i] = TTM_NO_ENTRY;
        if (list->kind == TTM_LONG_NODE && list->count <= TTM_SHORT_AGAIN) ttm_leaf_become(pool, leaf, TTM_SHORT_NODE);
        return;
    }
    if (list->count == ttm_list_room(list->kind)) {
        ttm_leaf_become(pool, leaf, list->kind == TTM_SHORT_NODE ? TTM_LONG_NODE : TTM_DENSE_NODE);
        ttm_leaf_count(pool, leaf, at, sign, step);
        return;
    }
    for (k = list->count++; k > i; --k) list->entry[k] = list->entry[k - 1];
    list->entry[i] = key | one;
}

/* Coverage in a leaf at one position after the other: `at` is the next position at which it changes, `run` what it is from
 * the last one on. */
typedef struct {
    const ttm_list *leaf;
    uint32_t next; /* entry of a list, byte of prefix sums */
    uint32_t at;
    int32_t run;
} ttm_course;

static inline void ttm_course_find(ttm_course *course) {
    const ttm_dense *dense = (const ttm_dense *)course->leaf;
    uint32_t i = course->next;
    if (course->leaf->kind != TTM_DENSE_NODE) {
        course->at = i < course->leaf->count ? (uint32_t)(course->leaf->entry[i] >> TTM_AT_SHIFT) : TTM_KIB;
        return;
    }
    while (i < TTM_KIB && !dense->delta[i]) {
        /* Whole cells without a change are passed at once. */
        i += !(i & 15) && !dense->cell_sum[i >> 4] && dense->cell_bare[i >> 4] == 16 ? 16 : 1;
    }
    course->next = course->at = i;
}

static inline ttm_course ttm_course_begin(const ttm_list *leaf) {
    ttm_course course = {leaf, 0, 0, (int32_t)leaf->base};
    ttm_course_find(&course);
    return course;
}

static inline void ttm_course_step(ttm_course *course) {
    if (course->leaf->kind == TTM_DENSE_NODE) course->run += ((const ttm_dense *)course->leaf)->delta[course->next];
    else course->run += ttm_entry_delta(course->leaf->entry[course->next]);
    course->next++;
    ttm_course_find(course);
}

/* The first covered byte of a leaf and one past the last; it has some. */
static inline void ttm_leaf_span(const ttm_list *leaf, uint32_t *lowest, uint32_t *end) {
    ttm_course course = ttm_course_begin(leaf);
    uint32_t last = 0;
    *lowest = TTM_KIB;
    *end = 0;
    for (;;) {
        if (course.run && course.at > last) {
            if (*lowest == TTM_KIB) *lowest = last;
            *end = course.at;
        }
        if (course.at == TTM_KIB) return;
        last = course.at;
        ttm_course_step(&course);
    }
}

#endif
