/* The self-check of covers, for debug builds: everything is counted anew from the bytes upward. */
#ifndef TTM_COVER_CHECK_H
#define TTM_COVER_CHECK_H

#include "_cover.h"

/* Spell a leaf out, or a missing one: how many ranges begin and end at each position. */
static inline void ttm_leaf_spell(const ttm_list *leaf, uint32_t *begins, uint32_t *ends) {
    const ttm_dense *dense = (const ttm_dense *)leaf;
    uint32_t i;
    memset(begins, 0, TTM_KIB * sizeof *begins);
    memset(ends, 0, TTM_KIB * sizeof *ends);
    if (!leaf) return;
    for (i = 0; leaf->kind == TTM_DENSE_NODE && i < TTM_KIB; ++i) {
        begins[i] = (uint32_t)(((int64_t)dense->refs[i] + dense->delta[i]) / 2);
        ends[i] = dense->refs[i] - begins[i];
    }
    for (i = 0; leaf->kind != TTM_DENSE_NODE && i < leaf->count; ++i) {
        begins[leaf->entry[i] >> TTM_AT_SHIFT] = (uint32_t)ttm_entry_begins(leaf->entry[i]);
        ends[leaf->entry[i] >> TTM_AT_SHIFT] = (uint32_t)ttm_entry_ends(leaf->entry[i]);
    }
    begins[0] = leaf->base;
}

static inline const char *ttm_leaf_fault(const ttm_list *leaf, uint32_t *covered) {
    uint32_t begins[TTM_KIB], ends[TTM_KIB], i, count = 0;
    int64_t run = 0;
    *covered = 0;
    if (!leaf->count && !leaf->base) return "a leaf of a cover outlives its ranges (cover 2)";
    for (i = 1; leaf->kind != TTM_DENSE_NODE && i < leaf->count; ++i) {
        if (leaf->entry[i - 1] >> TTM_AT_SHIFT >= leaf->entry[i] >> TTM_AT_SHIFT) return "a leaf of a cover is out of order";
    }
    ttm_leaf_spell(leaf, begins, ends);
    for (i = 0; i < TTM_KIB; ++i) {
        run += (int64_t)begins[i] - ends[i];
        if (run < 0) return "a leaf of a cover has more ends than begins";
        *covered += run > 0;
        count += i && (begins[i] || ends[i]);
    }
    return count == leaf->count ? NULL : "a leaf of a cover counts other positions than it has";
}

static inline const char *ttm_page_fault(const ttm_page *page, uint32_t *covered) {
    uint32_t i, in_block = 0;
    *covered = 0;
    if (!page->refs) return "a page of a cover outlives its ranges (cover 2)";
    for (i = 0; i < 64; ++i) {
        uint32_t bytes = 0;
        const char *fault = page->leaf[i] ? ttm_leaf_fault(page->leaf[i], &bytes) : NULL;
        if (fault) return fault;
        if (page->stale >> i & 1) {
            if (!page->cover[i] || !page->leaf[i]) return "a sum of a cover is out of date that is needed (cover 1)";
        } else if (bytes != page->sum[i]) {
            return "a leaf of a cover has other bytes than its page says (cover 1)";
        }
        in_block += page->cover[i] ? TTM_KIB : bytes;
        if ((i & 7) != 7) continue;
        if (in_block != page->block_sum[i >> 3]) return "a block of a page has other bytes than it says (cover 1)";
        *covered += page->block[i >> 3] ? 8192 : in_block;
        in_block = 0;
    }
    return NULL;
}

/* Whether two leaves, or missing ones, count the same; how they are kept depends on what was there before. */
static inline int ttm_leaf_same(const ttm_list *a, const ttm_list *b) {
    uint32_t begins[2][TTM_KIB], ends[2][TTM_KIB];
    if (!a || !b) return a == b;
    ttm_leaf_spell(a, begins[0], ends[0]);
    ttm_leaf_spell(b, begins[1], ends[1]);
    return !memcmp(begins[0], begins[1], sizeof begins[0]) && !memcmp(ends[0], ends[1], sizeof ends[0]);
}

static inline int ttm_page_same(const ttm_page *a, const ttm_page *b) {
    int i;
    if (!a || !b) return a == b;
    if (a->refs != b->refs || memcmp(a->cover, b->cover, sizeof a->cover)) return 0;
    if (memcmp(a->block, b->block, sizeof a->block)) return 0;
    for (i = 0; i < 64; ++i) {
        if (!ttm_leaf_same(a->leaf[i], b->leaf[i])) return 0;
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
    for (r = 0; r < count; ++r) {
        if (ttm_pool_reserve(&own, (uint32_t)ranges[r], (uint32_t)(ranges[r] >> 32))) abort();
        ttm_cover_update(&own, &anew, (uint32_t)ranges[r], (uint32_t)(ranges[r] >> 32), 1);
    }
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
