/* A kernel that TT-Metal's ELF loader takes: one entry point and at least one relocation. Nothing ever runs it. */
volatile int counter;
static __attribute__((noinline)) void touch(int by) { counter += by; }
__attribute__((section(".start"), used)) void _start(void) { touch(1); }
