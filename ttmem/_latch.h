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
