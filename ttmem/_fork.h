/* Whether this is still the process that remembers a number: pids cannot tell, they repeat in nested pid namespaces. */
#ifndef TTM_FORK_H
#define TTM_FORK_H

#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

/* Return a number that this process has to itself among all that it was forked from: it lies in a private page that every fork
 * leaves zeroed, whoever forks and however. Not for two threads at once. */
static inline uint64_t ttm_process_token(void) {
    static volatile uint64_t *page;
    static uint64_t last;
    if (!page) {
        void *memory = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED || madvise(memory, 4096, MADV_WIPEONFORK)) return (uint64_t)getpid();
        page = (volatile uint64_t *)memory;
    }
    if (!*page) *page = ++last;
    return *page;
}

#endif
