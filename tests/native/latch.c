/* Threads drive the latch and the lock as a publisher does: some write under the lock, the others read and retry.
 *
 *     latch WRITERS READERS UPDATES
 *
 * Ends with 0 if every reading that was taken was a whole committed version, and 1 otherwise. The private copy is plain memory:
 * the thread sanitizer sees whether the lock orders it. Compiled with -DWITHOUT_LOCK, it must see that nothing does.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "_latch.h"

enum { WORDS = 32 };

static ttm_lock lock;
static uint64_t seq;
static uint64_t shadow[WORDS];
static uint64_t image[2][WORDS];
static uint64_t updates;
static uint64_t writing;
static uint64_t taken, retried, torn;

static void *write_all(void *unused) {
    for (uint64_t i = 0; i < updates; i++) {
#ifndef WITHOUT_LOCK
        ttm_lock_acquire(&lock);
#endif
        uint64_t before = ttm_load(&seq);
        for (int word = 0; word < WORDS; word++) shadow[word] = before / 2 + 1;
        for (uint64_t side = 0; side < 2; side++) {
            ttm_latch_turn(&seq, before + 1 + side);
            for (int word = 0; word < WORDS; word++) ttm_store(&image[side][word], shadow[word]);
        }
#ifndef WITHOUT_LOCK
        ttm_lock_release(&lock);
#endif
    }
    __atomic_fetch_sub(&writing, 1, __ATOMIC_RELEASE);
    return unused;
}

static void *read_all(void *unused) {
    uint64_t mine[3] = {0, 0, 0}, copy[WORDS];
    int last = 0;
    /* Once more after the writers have ended: that reading must be taken. */
    while (!last) {
        last = ttm_load_acquire(&writing) == 0;
        uint64_t entered = ttm_latch_enter(&seq);
        for (int word = 0; word < WORDS; word++) copy[word] = ttm_load(&image[entered & 1][word]);
        if (!ttm_latch_held(&seq, entered)) {
            mine[1]++;
            continue;
        }
        mine[0]++;
        for (int word = 0; word < WORDS; word++) mine[2] += copy[word] != entered / 2;
    }
    __atomic_fetch_add(&taken, mine[0], __ATOMIC_RELAXED);
    __atomic_fetch_add(&retried, mine[1], __ATOMIC_RELAXED);
    __atomic_fetch_add(&torn, mine[2], __ATOMIC_RELAXED);
    return unused;
}

int main(int count, char **arguments) {
    pthread_t threads[64];
    if (count != 4) return 2;
    int writers = atoi(arguments[1]), readers = atoi(arguments[2]);
    if (writers < 1 || readers < 1 || writers + readers > 64) return 2;
    updates = strtoull(arguments[3], 0, 10);
    writing = (uint64_t)writers;
    for (int i = 0; i < writers + readers; i++) {
        if (pthread_create(&threads[i], 0, i < writers ? write_all : read_all, 0)) return 2;
    }
    for (int i = 0; i < writers + readers; i++) pthread_join(threads[i], 0);
    printf("committed %llu taken %llu retried %llu torn %llu\n", (unsigned long long)(seq / 2), (unsigned long long)taken,
           (unsigned long long)retried, (unsigned long long)torn);
    return torn != 0 || taken < (uint64_t)readers || seq != 2 * updates * (uint64_t)writers;
}
