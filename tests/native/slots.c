/* A library whose function calls another of its own, and a program that redirects that call and puts it back. */
#ifdef LIBRARY
__attribute__((noinline)) int _ZN6answerEv(void) { return 1; }
int _ZN3askEv(void) { return _ZN6answerEv() * 10; }
#else
#define _GNU_SOURCE
#include <stdio.h>

#include "_elf_slots.h"

int _ZN3askEv(void);

static int (*original)(void);
static int ours(void) { return original() + 1; }

int main(void) {
    ttm_target targets[] = {{"_ZN6answerEv", (void *)ours, NULL, 0, 1}};
    static ttm_slots slots;
    slots.targets = targets;
    slots.target_count = 1;
    targets[0].original = dlsym(RTLD_DEFAULT, targets[0].symbol);
    *(void **)&original = targets[0].original;
    ttm_slots_find(&slots);
    if (!TTM_SLOTS_SUPPORTED || !slots.slot_count) return 1;
    printf("before %d ", _ZN3askEv());
    if (ttm_slots_install(&slots)) return 2;
    printf("redirected %d held %u ", _ZN3askEv(), ttm_slots_held(&slots));
    printf("left %u ", ttm_slots_restore(&slots));
    printf("after %d slots %u\n", _ZN3askEv(), slots.slot_count);
    return 0;
}
#endif
