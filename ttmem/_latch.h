/* The latch between a writer and its readers: two images, and a number that says which of them is whole.
 *
 * A commit is turn(seq + 1), write image 0, turn(seq + 2), write image 1: `seq` is odd only while image 0 is being written, and
 * readers take image (seq & 1). A writer that dies anywhere leaves one of them whole.
 */
#ifndef TTM_LATCH_H
#define TTM_LATCH_H

#include "_atomic.h"

/* Lead readers to the other image, before the one that they leave is written. */
static inline void ttm_latch_turn(uint64_t *seq, uint64_t value) {
    /* release: a reader that sees this number sees the image that it names whole ... */
    ttm_store_release(seq, value);
    /* ... and one that sees a word written from here on also sees that the number moved on. */
    ttm_fence_release();
}

/* Commit one record of a cache line, which lies at the same place in both images. Written out, because it is most of what an
 * update of one figure costs: the line is loaded once and stays in registers. */
static inline void ttm_latch_commit_line(uint64_t *seq, uint64_t *updated_ns, uint64_t now_ns, uint64_t *image0, uint64_t *image1,
                                         const uint64_t *record) {
    const uint64_t before = ttm_load(seq);
    const uint64_t a = record[0], b = record[1], c = record[2], d = record[3];
    const uint64_t e = record[4], f = record[5], g = record[6], tag = record[7];
    ttm_latch_turn(seq, before + 1);
    ttm_store(image0, a), ttm_store(image0 + 1, b), ttm_store(image0 + 2, c), ttm_store(image0 + 3, d);
    ttm_store(image0 + 4, e), ttm_store(image0 + 5, f), ttm_store(image0 + 6, g), ttm_store(image0 + 7, tag);
    ttm_store(updated_ns, now_ns);
    ttm_latch_turn(seq, before + 2);
    ttm_store(image1, a), ttm_store(image1 + 1, b), ttm_store(image1 + 2, c), ttm_store(image1 + 3, d);
    ttm_store(image1 + 4, e), ttm_store(image1 + 5, f), ttm_store(image1 + 6, g), ttm_store(image1 + 7, tag);
}

/* Return the number that names the image to read. */
static inline uint64_t ttm_latch_enter(const uint64_t *seq) {
    return ttm_load_acquire(seq);
}

/* Tell whether what was read since ttm_latch_enter returned `entered` is one whole version. */
static inline int ttm_latch_held(const uint64_t *seq, uint64_t entered) {
    ttm_fence_acquire();
    return ttm_load(seq) == entered;
}

#endif
