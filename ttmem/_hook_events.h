/* What the ttnn hook tells: the records, the sink that takes them, and a sink that only remembers them. */
#ifndef TTM_HOOK_EVENTS_H
#define TTM_HOOK_EVENTS_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum ttm_cb_kind { TTM_CIRCULAR_BUFFER = 0, TTM_DATAFLOW_BUFFER = 1, TTM_SCRATCHPAD = 2 };
enum ttm_trace_action { TTM_TRACE_BEGIN = 0, TTM_TRACE_END = 1, TTM_TRACE_REPLAY = 2, TTM_TRACE_RELEASE = 3 };

/* A rectangle of logical cores, inclusive at both corners. */
typedef struct { uint16_t start_x, start_y, end_x, end_y; } ttm_core_range;

/* A circular buffer of a program on one chip: [address, address + size) on every core of its ranges. */
typedef struct {
    uint64_t address;            /* first byte in L1 */
    uint64_t size;               /* bytes on each core */
    uint32_t first_range;        /* index of its first range in the ranges that come with it */
    uint32_t range_count;
    uint8_t kind;                /* enum ttm_cb_kind */
    uint8_t globally_allocated;  /* 1: aliases an L1 buffer, counts there */
} ttm_cb_record;

typedef struct {
    uint64_t id;                 /* unique while the hook is on; 0: allocated before it */
    uint64_t address;            /* in the first bank */
    uint64_t size;               /* bytes over all banks of one chip, Buffer::size() */
    uint64_t size_per_bank;      /* aligned bytes per bank; 0 where not asked (not in L1) */
    uint32_t type;               /* BufferType, TT-Metal's numbers */
} ttm_buffer_record;

typedef struct {
    uint64_t id;                 /* ProgramImpl::get_id(), unique in the process */
    const char *name;            /* class name of the device operation, "" if unknown; lives as long as the process */
} ttm_program_record;

/* Where events go. Every function is called under the hook's lock, in the order of the events, on whatever thread: it must be
 * quick, must not call TT-Metal, must not throw and must not need the GIL. `chip` is TT-Metal's physical device id. */
typedef struct {
    void *context;
    void (*buffer_allocate)(void *context, int32_t chip, const ttm_buffer_record *buffer);
    void (*buffer_free)(void *context, int32_t chip, const ttm_buffer_record *buffer);
    /* The program's whole footprint on the chip: it replaces what was told before under the same id. */
    void (*program_add)(void *context, int32_t chip, const ttm_program_record *program, const ttm_cb_record *cbs,
                        uint32_t cb_count, const ttm_core_range *ranges);
    void (*program_remove)(void *context, int32_t chip, const ttm_program_record *program);
    void (*program_dispatch)(void *context, int32_t chip, const ttm_program_record *program);
    /* Programs dispatched between begin and end are recorded into the trace and do not run. */
    void (*trace)(void *context, int32_t chip, uint32_t trace_id, int action);
    /* Comes after buffer_free and program_remove for all that was known: nothing is left on the chip. */
    void (*device_close)(void *context, int32_t chip);
} ttm_hook_sink;

/* The name of a Python capsule that holds a ttm_hook_sink. */
#define TTM_SINK_CAPSULE "ttmem.ttnn_hook_sink"

/* A growing array of plain records. */
typedef struct { char *data; size_t count, capacity; } ttm_array;

static inline void *ttm_array_append(ttm_array *array, size_t item_bytes, size_t items) {
    if (array->count + items > array->capacity) {
        size_t capacity = array->capacity ? array->capacity * 2 : 64;
        while (capacity < array->count + items) capacity *= 2;
        char *data = (char *)realloc(array->data, capacity * item_bytes);
        if (!data) return NULL;
        array->data = data;
        array->capacity = capacity;
    }
    void *item = array->data + array->count * item_bytes;
    array->count += items;
    return item;
}

static inline void ttm_array_free(ttm_array *array) {
    free(array->data);
    memset(array, 0, sizeof *array);
}

/* An open-addressing map from a nonzero word to a pointer. No tombstones: a removal moves its followers up. */
typedef struct { uint64_t *keys; void **values; size_t mask, count; } ttm_map;

static inline size_t ttm_map_home(const ttm_map *map, uint64_t key) {
    return (size_t)((key * 0x9e3779b97f4a7c15u) >> 20) & map->mask;
}

static inline size_t ttm_map_slot(const ttm_map *map, uint64_t key) {
    size_t i = ttm_map_home(map, key);
    while (map->keys[i] && map->keys[i] != key) i = (i + 1) & map->mask;
    return i;
}

static inline void *ttm_map_get(const ttm_map *map, uint64_t key) {
    return map->count ? map->values[ttm_map_slot(map, key)] : NULL;
}

/* Returns 0, or -1 if there is no memory. */
static inline int ttm_map_put(ttm_map *map, uint64_t key, void *value) {
    if (!map->keys || map->count * 2 > map->mask) {
        ttm_map grown = {NULL, NULL, map->keys ? map->mask * 2 + 1 : 255, map->count};
        grown.keys = (uint64_t *)calloc(grown.mask + 1, sizeof *grown.keys);
        grown.values = (void **)calloc(grown.mask + 1, sizeof *grown.values);
        if (!grown.keys || !grown.values) {
            free(grown.keys);
            free(grown.values);
            return -1;
        }
        for (size_t i = 0; map->keys && i <= map->mask; ++i) {
            if (!map->keys[i]) continue;
            size_t to = ttm_map_slot(&grown, map->keys[i]);
            grown.keys[to] = map->keys[i];
            grown.values[to] = map->values[i];
        }
        free(map->keys);
        free(map->values);
        *map = grown;
    }
    size_t i = ttm_map_slot(map, key);
    map->count += !map->keys[i];
    map->keys[i] = key;
    map->values[i] = value;
    return 0;
}

static inline void *ttm_map_take(ttm_map *map, uint64_t key) {
    if (!map->count) return NULL;
    size_t hole = ttm_map_slot(map, key);
    if (!map->keys[hole]) return NULL;
    void *value = map->values[hole];
    for (size_t i = (hole + 1) & map->mask; map->keys[i]; i = (i + 1) & map->mask) {
        size_t home = ttm_map_home(map, map->keys[i]);
        if (((i - home) & map->mask) < ((i - hole) & map->mask)) continue;
        map->keys[hole] = map->keys[i];
        map->values[hole] = map->values[i];
        hole = i;
    }
    map->keys[hole] = 0;
    map->values[hole] = NULL;
    map->count--;
    return value;
}

/* Frees the map and, with free(), every value in it. */
static inline void ttm_map_free(ttm_map *map) {
    for (size_t i = 0; map->keys && i <= map->mask; ++i) free(map->values[i]);
    free(map->keys);
    free(map->values);
    memset(map, 0, sizeof *map);
}

/* The sink that remembers: for tests, for recordings, and until a publisher takes over. */
enum ttm_event_kind {
    TTM_BUFFER_ALLOCATE, TTM_BUFFER_FREE, TTM_PROGRAM_ADD, TTM_PROGRAM_REMOVE, TTM_PROGRAM_DISPATCH, TTM_TRACE, TTM_DEVICE_CLOSE
};

typedef struct {
    uint32_t kind;               /* enum ttm_event_kind */
    int32_t chip;
    ttm_buffer_record buffer;    /* of buffer events */
    ttm_program_record program;  /* of program events; of a trace event id is the trace's */
    uint32_t action;             /* of a trace event, enum ttm_trace_action */
    uint32_t first_cb, cb_count; /* of TTM_PROGRAM_ADD; the CBs' first_range counts in the log's ranges */
} ttm_event;

enum { TTM_LOG_LIMIT = 4000000 };

typedef struct { ttm_array events, cbs, ranges; uint64_t dropped; } ttm_log;

static inline ttm_event *ttm_log_event(ttm_log *log, uint32_t kind, int32_t chip) {
    ttm_event *event = log->events.count < TTM_LOG_LIMIT ? (ttm_event *)ttm_array_append(&log->events, sizeof *event, 1) : NULL;
    if (!event) {
        log->dropped++;
        return NULL;
    }
    memset(event, 0, sizeof *event);
    event->kind = kind;
    event->chip = chip;
    return event;
}

static void ttm_log_buffer_allocate(void *context, int32_t chip, const ttm_buffer_record *buffer) {
    ttm_event *event = ttm_log_event((ttm_log *)context, TTM_BUFFER_ALLOCATE, chip);
    if (event) event->buffer = *buffer;
}

static void ttm_log_buffer_free(void *context, int32_t chip, const ttm_buffer_record *buffer) {
    ttm_event *event = ttm_log_event((ttm_log *)context, TTM_BUFFER_FREE, chip);
    if (event) event->buffer = *buffer;
}

static void ttm_log_program_add(void *context, int32_t chip, const ttm_program_record *program, const ttm_cb_record *cbs,
                                uint32_t cb_count, const ttm_core_range *ranges) {
    ttm_log *log = (ttm_log *)context;
    size_t first = log->cbs.count;
    for (uint32_t i = 0; i < cb_count; ++i) {
        ttm_cb_record *cb = (ttm_cb_record *)ttm_array_append(&log->cbs, sizeof *cb, 1);
        ttm_core_range *range = (ttm_core_range *)ttm_array_append(&log->ranges, sizeof *range, cbs[i].range_count);
        if (!cb || (!range && cbs[i].range_count)) {
            log->dropped++;
            return;
        }
        *cb = cbs[i];
        cb->first_range = (uint32_t)(log->ranges.count - cbs[i].range_count);
        memcpy(range, ranges + cbs[i].first_range, cbs[i].range_count * sizeof *range);
    }
    ttm_event *event = ttm_log_event(log, TTM_PROGRAM_ADD, chip);
    if (!event) return;
    event->program = *program;
    event->first_cb = (uint32_t)first;
    event->cb_count = cb_count;
}

static void ttm_log_program_remove(void *context, int32_t chip, const ttm_program_record *program) {
    ttm_event *event = ttm_log_event((ttm_log *)context, TTM_PROGRAM_REMOVE, chip);
    if (event) event->program = *program;
}

static void ttm_log_program_dispatch(void *context, int32_t chip, const ttm_program_record *program) {
    ttm_event *event = ttm_log_event((ttm_log *)context, TTM_PROGRAM_DISPATCH, chip);
    if (event) event->program = *program;
}

static void ttm_log_trace(void *context, int32_t chip, uint32_t trace_id, int action) {
    ttm_event *event = ttm_log_event((ttm_log *)context, TTM_TRACE, chip);
    if (!event) return;
    event->program.id = trace_id;
    event->action = (uint32_t)action;
}

static void ttm_log_device_close(void *context, int32_t chip) {
    ttm_log_event((ttm_log *)context, TTM_DEVICE_CLOSE, chip);
}

static inline ttm_hook_sink ttm_log_sink(ttm_log *log) {
    ttm_hook_sink sink = {log, ttm_log_buffer_allocate, ttm_log_buffer_free, ttm_log_program_add, ttm_log_program_remove,
                          ttm_log_program_dispatch, ttm_log_trace, ttm_log_device_close};
    return sink;
}

/* Give a sink what a log has kept. */
static inline void ttm_log_replay(const ttm_log *log, const ttm_hook_sink *sink) {
    for (size_t i = 0; i < log->events.count; ++i) {
        const ttm_event *event = (const ttm_event *)log->events.data + i;
        void *context = sink->context;
        switch (event->kind) {
        case TTM_BUFFER_ALLOCATE: sink->buffer_allocate(context, event->chip, &event->buffer); break;
        case TTM_BUFFER_FREE: sink->buffer_free(context, event->chip, &event->buffer); break;
        case TTM_PROGRAM_ADD:
            sink->program_add(context, event->chip, &event->program, (const ttm_cb_record *)log->cbs.data + event->first_cb,
                              event->cb_count, (const ttm_core_range *)log->ranges.data);
            break;
        case TTM_PROGRAM_REMOVE: sink->program_remove(context, event->chip, &event->program); break;
        case TTM_PROGRAM_DISPATCH: sink->program_dispatch(context, event->chip, &event->program); break;
        case TTM_TRACE: sink->trace(context, event->chip, (uint32_t)event->program.id, (int)event->action); break;
        default: sink->device_close(context, event->chip);
        }
    }
}

static inline void ttm_log_free(ttm_log *log) {
    ttm_array_free(&log->events);
    ttm_array_free(&log->cbs);
    ttm_array_free(&log->ranges);
    log->dropped = 0;
}

#endif
