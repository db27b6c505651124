/* Gives the sink of the ttnn hook one event after the other, as a thread of TT-Metal's does that needs no GIL. */
#include "_hook_events.h"

static volatile int active;

void pounding_end(void) {
    active = 0;
}

/* Returns how many buffers were allocated and freed, each in a commit of its own. */
uint64_t pounding_start(const ttm_hook_sink *sink, int32_t chip) {
    ttm_buffer_record buffer = {1, 0, 64, 64, 0};
    for (active = 1; active; ++buffer.id) {
        buffer.type = buffer.id % 3;
        sink->buffer_allocate(sink->context, chip, &buffer);
        sink->buffer_free(sink->context, chip, &buffer);
    }
    return buffer.id - 1;
}
