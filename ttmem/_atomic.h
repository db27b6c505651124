/* Atomics, fences and a small lock that Cython cannot express.
 *
 * Shared words are naturally aligned and 8 bytes wide. The builtins, not C11's _Atomic, because the same bytes are read by
 * other processes and languages: an _Atomic in a struct would make its layout the compiler's affair.
 */
#ifndef TTM_ATOMIC_H
#define TTM_ATOMIC_H

#include <stdint.h>
#include <time.h>

_Static_assert(__atomic_always_lock_free(8, 0), "a shared word must be written in one piece");

static inline uint64_t ttm_load(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }
static inline uint64_t ttm_load_acquire(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
static inline void ttm_store(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELAXED); }
static inline void ttm_store_release(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }
static inline void ttm_fence_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
static inline void ttm_fence_acquire(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }

/* A lock for sections of some tens of nanoseconds: uncontended it is one exchange and one store. It falls back to yielding the
 * processor, since a thread that holds it may be descheduled. Not recursive, not for signal handlers. */
typedef struct { uint32_t held; } ttm_lock;

static inline int ttm_trylock(ttm_lock *lock) {
    return !__atomic_exchange_n(&lock->held, 1u, __ATOMIC_ACQUIRE);
}

static inline void ttm_lock_acquire(ttm_lock *lock) {
    struct timespec nap = {0, 50000};
    for (unsigned spins = 0; !ttm_trylock(lock); ++spins) {
        while (__atomic_load_n(&lock->held, __ATOMIC_RELAXED)) {
            if (++spins > 200) nanosleep(&nap, 0);
        }
    }
}

static inline void ttm_lock_release(ttm_lock *lock) { __atomic_store_n(&lock->held, 0u, __ATOMIC_RELEASE); }

/* Nanoseconds since the epoch from the coarse clock: about 3 ns a call, off by a tick (1 to 10 ms). */
static inline uint64_t ttm_realtime_coarse_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif
