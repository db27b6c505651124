/* Accounted allocation and seeded hashing for the interval engine. */
#ifndef TTM_STORE_H
#define TTM_STORE_H

#include <malloc.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#ifdef TTM_DEBUG
#define TTM_DEBUG_BUILD 1
#else
#define TTM_DEBUG_BUILD 0
#endif

/* Where an engine's memory comes from. `bytes` is what malloc really hands out, its own header included. */
typedef struct {
    uint64_t bytes;  /* handed out and not yet returned */
    int64_t allowed; /* allocations until one fails, for tests; below 0: no limit */
} ttm_heap;

static inline void *ttm_alloc(ttm_heap *heap, size_t size) {
    void *block;
    if (heap->allowed == 0) return NULL;
    if (heap->allowed > 0) heap->allowed--;
    block = malloc(size ? size : 1);
    if (block) heap->bytes += malloc_usable_size(block) + sizeof(size_t);
    return block;
}

static inline void *ttm_alloc_zeroed(ttm_heap *heap, size_t size) {
    void *block = ttm_alloc(heap, size);
    if (block) memset(block, 0, size);
    return block;
}

/* Whole cache lines, at the start of one; `size` is a multiple of theirs. */
static inline void *ttm_alloc_lines(ttm_heap *heap, size_t size) {
    void *block;
    if (heap->allowed == 0) return NULL;
    if (heap->allowed > 0) heap->allowed--;
    block = aligned_alloc(64, size);
    if (!block) return NULL;
    heap->bytes += malloc_usable_size(block) + sizeof(size_t);
    return memset(block, 0, size);
}

static inline void ttm_free(ttm_heap *heap, void *block) {
    if (!block) return;
    heap->bytes -= malloc_usable_size(block) + sizeof(size_t);
    free(block);
}

static inline uint64_t ttm_mix(uint64_t a, uint64_t b) {
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t ttm_hash(const uint64_t *words, size_t count, uint64_t seed) {
    uint64_t hash = seed ^ (count * 0x9e3779b97f4a7c15u);
    size_t i;
    for (i = 0; i < count; ++i) hash = ttm_mix(hash ^ words[i], 0xa0761d6478bd642fu) + seed;
    return ttm_mix(hash, 0xe7037ed1a0b428dbu ^ seed);
}

/* The next number of a splitmix64 sequence. */
static inline uint64_t ttm_random(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline uint64_t ttm_entropy(const void *salt) {
    uint64_t seed = 0;
    struct timespec now;
    if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) != (ssize_t)sizeof seed) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        seed = (uint64_t)now.tv_nsec * 0x9e3779b97f4a7c15u ^ (uint64_t)now.tv_sec ^ (uint64_t)(uintptr_t)salt;
    }
    return seed;
}

/* The compiler's own is a call into a library where the processor is not known to count bits. */
static inline uint32_t ttm_count_bits(uint64_t word) {
    word -= (word >> 1) & 0x5555555555555555u;
    word = (word & 0x3333333333333333u) + ((word >> 2) & 0x3333333333333333u);
    return (uint32_t)((((word + (word >> 4)) & 0x0f0f0f0f0f0f0f0fu) * 0x0101010101010101u) >> 56);
}

static inline uint32_t ttm_popcount(const uint64_t *mask, size_t words) {
    uint32_t count = 0;
    size_t i;
    for (i = 0; i < words; ++i) count += ttm_count_bits(mask[i]);
    return count;
}

static inline uint32_t ttm_popcount_and(const uint64_t *a, const uint64_t *b, size_t words) {
    uint32_t count = 0;
    size_t i;
    for (i = 0; i < words; ++i) count += ttm_count_bits(a[i] & b[i]);
    return count;
}

static inline uint32_t ttm_lowest_bit(uint64_t word) { return (uint32_t)__builtin_ctzll(word); }

/* Ranges as begin | end << 32 have their begin in the low half: they sort by begin when the halves are swapped. */
static inline uint64_t ttm_swap_halves(uint64_t range) { return range << 32 | range >> 32; }

static inline int ttm_compare_ranges(const void *a, const void *b) {
    uint64_t x = ttm_swap_halves(*(const uint64_t *)a), y = ttm_swap_halves(*(const uint64_t *)b);
    return (x > y) - (x < y);
}

static inline void ttm_sort_ranges(uint64_t *ranges, size_t count) {
    size_t i, j;
    if (count > 24) {
        qsort(ranges, count, sizeof *ranges, ttm_compare_ranges);
        return;
    }
    for (i = 1; i < count; ++i) {
        uint64_t range = ranges[i], key = ttm_swap_halves(range);
        for (j = i; j > 0 && ttm_swap_halves(ranges[j - 1]) > key; --j) ranges[j] = ranges[j - 1];
        ranges[j] = range;
    }
}

/* Merge sorted, non-empty ranges that overlap or touch, in place; return how many are left. */
static inline size_t ttm_merge_ranges(uint64_t *ranges, size_t count, uint64_t *covered) {
    size_t kept = 0, i;
    *covered = 0;
    for (i = 0; i < count; ++i) {
        uint32_t begin = (uint32_t)ranges[i], end = (uint32_t)(ranges[i] >> 32);
        if (kept && begin <= (uint32_t)(ranges[kept - 1] >> 32)) {
            uint32_t last = (uint32_t)(ranges[kept - 1] >> 32);
            if (end > last) {
                *covered += end - last;
                ranges[kept - 1] = (uint32_t)ranges[kept - 1] | (uint64_t)end << 32;
            }
        } else {
            *covered += end - begin;
            ranges[kept++] = ranges[i];
        }
    }
    return kept;
}

/* A range on a set of cores while a footprint is being interned, sorted so that equal sets are neighbours. */
typedef struct {
    void *cores;
    uint64_t range;
} ttm_item;

static inline int ttm_compare_items(const void *a, const void *b) {
    const ttm_item *x = (const ttm_item *)a, *y = (const ttm_item *)b;
    if (x->cores != y->cores) return (uintptr_t)x->cores > (uintptr_t)y->cores ? 1 : -1;
    return ttm_compare_ranges(&x->range, &y->range);
}

static inline void ttm_sort_items(ttm_item *items, size_t count) {
    size_t i, j;
    if (count > 24) {
        qsort(items, count, sizeof *items, ttm_compare_items);
        return;
    }
    for (i = 1; i < count; ++i) {
        ttm_item item = items[i];
        for (j = i; j > 0 && ttm_compare_items(&items[j - 1], &item) > 0; --j) items[j] = items[j - 1];
        items[j] = item;
    }
}

typedef struct {
    uint64_t key, value;
} ttm_pair;

static inline int ttm_compare_pairs(const void *a, const void *b) {
    uint64_t x = ((const ttm_pair *)a)->key, y = ((const ttm_pair *)b)->key;
    return (x > y) - (x < y);
}

static inline void ttm_sort_pairs(uint64_t *words, size_t count) {
    if (count > 1) qsort(words, count, sizeof(ttm_pair), ttm_compare_pairs);
}

static inline uint64_t ttm_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif
