/* Follow what TT-Metal does in this process, live, by redirecting calls that it makes to its own exported functions.
 *
 * What is relied on besides the names and arguments of exported functions, each checked before it is used:
 * 1. `CoreRangeSet::ranges()` returns a reference to a std::vector of {start x, start y, end x, end y}, size_t each.
 * 2. The first word of a Program points to its ProgramImpl (used as a key only, never followed).
 * 3. An IDevice is a Device or a MeshDevice, told apart by their exported virtual tables; the place of `id()` in the table is
 *    looked up in MeshDevice's, where it is an exported function.
 * 4. Where `Buffer::device()`, `size()` and `buffer_type()` are inlined (0.77), they are three neighbouring members, found by
 *    comparing with what the exported members say, on the first buffer.
 * 5. The first member of a CircularBufferAllocator is its CoreRange (dataflow buffers only, where
 *    `reserve_program_local_l1` does not name the cores, 0.77).
 *
 * Nothing here needs Python or its GIL. Exceptions of TT-Metal pass through these functions, which hold no lock around the
 * original and keep nothing on their stack that would have to be undone.
 */
#ifndef TTM_HOOK_H
#define TTM_HOOK_H

#include <execinfo.h>
#include <pthread.h>
#include <stdio.h>

#include "_atomic.h"
#include "_elf_slots.h"
#include "_hook_events.h"

#define TTM_NS "_ZN2tt8tt_metal"
#define TTM_NSK "_ZNK2tt8tt_metal"

enum { TTM_NAME_BYTES = 96, TTM_MAX_CHIPS = 1024, TTM_MAX_RANGES = 4096, TTM_MAX_CORE = 255 };

typedef struct { const char *begin, *end, *capacity; } ttm_vector;  /* std::vector of anything */

typedef struct {
    uint64_t id;
    const char *name;
    uint64_t pending;      /* dispatches before its footprint was known */
    uint64_t owed;         /* dispatches to tell when it has a footprint on some chip */
    uint32_t dispatched;   /* 1: at least once */
    uint32_t laid_out;     /* 1: its footprint is known, be it empty */
    uint32_t chip_count, chip_capacity;
    int32_t *chips;        /* where its footprint was told to the sink */
} ttm_hook_program;

typedef struct {
    ttm_buffer_record record;
    uint32_t chip_count;
    int32_t chips[];
} ttm_hook_buffer;

/* The program that a thread lays out just now. */
typedef struct {
    const void *program;   /* NULL: none */
    uint32_t dataflow;     /* 1: in allocate_dataflow_buffers */
    ttm_array cbs, cb_chips, ranges, chips, reserved;
    uint32_t reserve_count, last_reserve;
} ttm_layout;

typedef struct {
    ttm_lock lock;
    uint32_t on;           /* 1: events go to the sink */
    uint32_t installed;    /* 1: slots are redirected */
    uint32_t prepared;     /* 1: symbols were found */
    char reason[256];      /* why it is off; empty otherwise */
    ttm_hook_sink sink;
    ttm_log log;
    ttm_map programs, buffers, names;
    uint64_t next_buffer;
    ttm_slots slots;
    /* counters, under the lock */
    uint64_t events, lost, unknown_devices, unknown_dispatches, blocked, layouts, registrations;
    /* where 0.77's Buffer keeps its device, size and type; 0: not yet known */
    uint32_t buffer_offset;
} ttm_hook_state;

static ttm_hook_state ttm_hook;
static _Thread_local ttm_layout ttm_current;

/* ---- TT-Metal's functions that are called */

static struct {
    const ttm_vector *(*ranges)(const void *);
    uint64_t (*program_id)(const void *);
    uint64_t (*buffer_address)(const void *);
    uint64_t (*buffer_bank_bytes)(const void *);
    uint64_t (*buffer_pages)(const void *);
    uint64_t (*buffer_page_bytes)(const void *);
    unsigned char (*buffer_is_l1)(const void *);
    unsigned char (*buffer_is_dram)(const void *);
    uint64_t (*buffer_size)(const void *);         /* NULL where inlined, as the next two */
    uint32_t (*buffer_type)(const void *);
    const void *(*buffer_device)(const void *);
    ttm_vector (*mesh_ids)(const void *);
    ttm_vector (*mesh_impl_ids)(const void *);     /* NULL: traces are not followed */
    const void *const *(*graph_hook)(const void *);
    void (*delete_)(void *);
    void *(*active_device)(int);                   /* NULL: no cross-check */
    uint64_t (*total_cb)(const void *);
    const void *device_table, *mesh_table;         /* what the first word of a Device, of a MeshDevice, points to */
    size_t id_index;
} ttm_metal;

enum ttm_target_index {
    T_ALLOCATE, T_DEALLOCATE, T_VETO, T_VETO_PROGRAM, T_CB, T_DFB, T_SCRATCHPAD, T_PROGRAM, T_LAYOUT, T_LAYOUT_DFB, T_REGISTER, T_UNREGISTER, T_END,
    T_RESERVE, T_MARK, T_TRACE_BEGIN, T_TRACE_END, T_TRACE_REPLAY, T_TRACE_RELEASE, T_CLOSE, T_COUNT
};
static ttm_target ttm_targets[T_COUNT];
#define TTM_ORIGINAL(index, type) ((type)ttm_targets[index].original)

/* ---- chips */

/* Write the physical device ids behind an IDevice to `chips`. Returns their number; 0 if it is no device that we know. */
static inline uint32_t ttm_chips(const void *device, int32_t *chips, uint32_t limit) {
    if (!device) return 0;
    const void *table = *(const void *const *)device;
    if (table == ttm_metal.device_table) {
        typedef int (*id_function)(const void *);
        chips[0] = ((id_function)((void *const *)table)[ttm_metal.id_index])(device);
        return 1;
    }
    if (table != ttm_metal.mesh_table) return 0;
    ttm_vector ids = ttm_metal.mesh_ids(device);
    uint32_t count = (uint32_t)((ids.end - ids.begin) / (ptrdiff_t)sizeof(int32_t));
    if (count > limit) count = limit;
    if (count) memcpy(chips, ids.begin, count * sizeof(int32_t));
    if (ids.begin) ttm_metal.delete_((void *)ids.begin);
    return count;
}

/* ---- programs, under the lock */

static inline ttm_hook_program *ttm_program(const void *impl, int make) {
    ttm_hook_program *program = (ttm_hook_program *)ttm_map_get(&ttm_hook.programs, (uint64_t)(uintptr_t)impl);
    if (program || !make) return program;
    program = (ttm_hook_program *)calloc(1, sizeof *program);
    if (!program || ttm_map_put(&ttm_hook.programs, (uint64_t)(uintptr_t)impl, program)) {
        free(program);
        ttm_hook.lost++;
        return NULL;
    }
    program->name = "";
    return program;
}

static inline int ttm_program_has_chip(const ttm_hook_program *program, int32_t chip) {
    for (uint32_t i = 0; i < program->chip_count; ++i)
        if (program->chips[i] == chip) return 1;
    return 0;
}

static inline void ttm_program_put_chip(ttm_hook_program *program, int32_t chip) {
    if (ttm_program_has_chip(program, chip)) return;
    if (program->chip_count == program->chip_capacity) {
        uint32_t capacity = program->chip_capacity ? program->chip_capacity * 2 : 2;
        int32_t *chips = (int32_t *)realloc(program->chips, capacity * sizeof *chips);
        if (!chips) {
            ttm_hook.lost++;
            return;
        }
        program->chips = chips;
        program->chip_capacity = capacity;
    }
    program->chips[program->chip_count++] = chip;
}

static inline void ttm_tell_remove(ttm_hook_program *program, int32_t chip) {
    for (uint32_t i = 0; i < program->chip_count; ++i) {
        if (program->chips[i] != chip) continue;
        ttm_program_record record = {program->id, program->name};
        program->chips[i] = program->chips[--program->chip_count];
        ttm_hook.events++;
        ttm_hook.sink.program_remove(ttm_hook.sink.context, chip, &record);
        return;
    }
}

static inline void ttm_tell_dispatch(ttm_hook_program *program) {
    ttm_program_record record = {program->id, program->name};
    program->dispatched = 1;
    ttm_hook.events += program->chip_count;
    for (uint32_t i = 0; i < program->chip_count; ++i)
        ttm_hook.sink.program_dispatch(ttm_hook.sink.context, program->chips[i], &record);
}

/* The footprint is known now, be it empty: what was dispatched meanwhile was this. */
static inline void ttm_program_laid_out(ttm_hook_program *program) {
    ttm_hook.unknown_dispatches -= program->pending;
    program->owed += program->pending;
    program->pending = 0;
    program->laid_out = 1;
}

/* The class name of a device operation in the mangled name of its `enqueue_mesh_workload`, "" if there is none. */
static inline void ttm_operation_name(const char *symbol, char *name) {
    static const char adapter[] = "26MeshDeviceOperationAdapterI";
    const char *at = symbol ? strstr(symbol, adapter) : NULL;
    name[0] = 0;
    if (!at) return;
    at += sizeof adapter - 1;
    if (*at == 'N') ++at;
    while (*at) {
        if (*at == 'S') { /* a substitution: S_, S0_, St */
            for (++at; (*at >= '0' && *at <= '9') || (*at >= 'A' && *at <= 'Z'); ++at) {}
            if (*at) ++at;
        } else if (*at >= '1' && *at <= '9') {
            char *word;
            size_t length = strtoul(at, &word, 10);
            if (length >= TTM_NAME_BYTES || strnlen(word, length) < length) {
                name[0] = 0;
                return;
            }
            memcpy(name, word, length);
            name[length] = 0;
            at = word + length;
        } else {
            return;
        }
    }
}

/* The name of the operation whose code lies around `site`. Takes the lock; slow (about 0.1 ms) once for each site. */
static inline const char *ttm_site_name(void *site) {
    uint64_t key = (uint64_t)(uintptr_t)site;
    ttm_lock_acquire(&ttm_hook.lock);
    const char *known = (const char *)ttm_map_get(&ttm_hook.names, key);
    ttm_lock_release(&ttm_hook.lock);
    if (known) return known;
    Dl_info info;
    char *name = (char *)malloc(TTM_NAME_BYTES);
    if (!name) return "";
    name[0] = 0;
    if (dladdr(site, &info)) ttm_operation_name(info.dli_sname, name);
    ttm_lock_acquire(&ttm_hook.lock);
    known = (const char *)ttm_map_get(&ttm_hook.names, key);
    if (known || ttm_map_put(&ttm_hook.names, key, name)) {
        free(name);
        name = NULL;
    }
    ttm_lock_release(&ttm_hook.lock);
    return known ? known : name ? name : "";
}

/* The name of the operation that this thread is in, found among its callers; "" if there is none. Slow, for new programs only. */
static const char *ttm_caller_name(void) {
    void *frames[24];
    int count = backtrace(frames, 24);
    for (int i = 2; i < count; ++i) {
        const char *name = ttm_site_name(frames[i]);
        if (name[0]) return name;
    }
    return "";
}

static inline int ttm_is_on(void) { return __atomic_load_n(&ttm_hook.on, __ATOMIC_RELAXED); }

/* The buffer whose allocation was vetoed on this thread: in a NO_DISPATCH capture allocations are only pretended. */
static _Thread_local const void *ttm_vetoed;

static unsigned char ttm_hook_veto(void *tracker, const void *buffer) {
    unsigned char vetoed = TTM_ORIGINAL(T_VETO, unsigned char (*)(void *, const void *))(tracker, buffer);
    ttm_vetoed = vetoed ? buffer : NULL;
    return vetoed;
}

/* 1 if TT-Metal will not run the program: it asks the same question before it does. */
static inline int ttm_is_vetoed(void *tracker, const void *program) {
    const void *const *hook = ttm_metal.graph_hook(tracker);
    return hook && *hook && TTM_ORIGINAL(T_VETO_PROGRAM, unsigned char (*)(void *, const void *))(tracker, program);
}

/* ---- buffers */

/* Copy 8 bytes from an address that may be anything: the kernel tells whether it can be read. */
static inline int ttm_peek(const void *address, uint64_t *value) {
    int ends[2];
    if (pipe(ends)) return 0;
    int ok = write(ends[1], address, sizeof *value) == sizeof *value && read(ends[0], value, sizeof *value) == sizeof *value;
    close(ends[0]);
    close(ends[1]);
    return ok;
}

static inline int ttm_buffer_layout_holds(const char *buffer, uint32_t offset) {
    uint64_t size, pages = ttm_metal.buffer_pages(buffer), page = ttm_metal.buffer_page_bytes(buffer);
    uint32_t type;
    memcpy(&size, buffer + offset + 8, sizeof size);
    memcpy(&type, buffer + offset + 16, sizeof type);
    /* An empty buffer would agree with anything. */
    return size && size == pages * page && type <= 4 && (type == 1 || type == 3) == (ttm_metal.buffer_is_l1(buffer) != 0) &&
           (type == 0 || type == 4) == (ttm_metal.buffer_is_dram(buffer) != 0);
}

/* Find the members of an 0.77 Buffer: a device, then the size, then the type. Returns 0 if they are not where they should be. */
static inline uint32_t ttm_find_buffer_layout(const char *buffer) {
    for (uint32_t offset = 8; offset <= 48; offset += 8) {
        uint64_t word, table;
        memcpy(&word, buffer + offset, sizeof word);
        if (!word || word % 8 || !ttm_peek((const void *)(uintptr_t)word, &table)) continue;
        if (table != (uint64_t)(uintptr_t)ttm_metal.device_table && table != (uint64_t)(uintptr_t)ttm_metal.mesh_table) continue;
        if (ttm_buffer_layout_holds(buffer, offset)) return offset;
    }
    return 0;
}

static inline void ttm_switch_off(const char *reason) {
    ttm_lock_acquire(&ttm_hook.lock);
    if (!ttm_hook.reason[0]) snprintf(ttm_hook.reason, sizeof ttm_hook.reason, "%s", reason);
    __atomic_store_n(&ttm_hook.on, 0, __ATOMIC_RELEASE);
    ttm_lock_release(&ttm_hook.lock);
}

/* Read a buffer's record and device. Returns 0 if it cannot be read. */
static inline int ttm_read_buffer(const char *buffer, ttm_buffer_record *record, const void **device) {
    memset(record, 0, sizeof *record);
    if (ttm_metal.buffer_size) {
        record->size = ttm_metal.buffer_size(buffer);
        record->type = ttm_metal.buffer_type(buffer);
        *device = ttm_metal.buffer_device(buffer);
    } else {
        uint32_t offset = __atomic_load_n(&ttm_hook.buffer_offset, __ATOMIC_ACQUIRE);
        if (!offset) {
            offset = ttm_find_buffer_layout(buffer);
            if (!offset) {
                if (ttm_metal.buffer_pages(buffer)) ttm_switch_off("a Buffer of this ttnn has an unknown layout");
                return 0;
            }
            __atomic_store_n(&ttm_hook.buffer_offset, offset, __ATOMIC_RELEASE);
        }
        memcpy(device, buffer + offset, sizeof *device);
        memcpy(&record->size, buffer + offset + 8, sizeof record->size);
        memcpy(&record->type, buffer + offset + 16, sizeof record->type);
    }
    record->address = ttm_metal.buffer_address(buffer);
    if (record->type == 1 || record->type == 3) record->size_per_bank = ttm_metal.buffer_bank_bytes(buffer);
    return 1;
}

static void ttm_hook_allocate(void *tracker, const char *buffer) {
    TTM_ORIGINAL(T_ALLOCATE, void (*)(void *, const char *))(tracker, buffer);
    if (!ttm_is_on() || !buffer) return;
    ttm_buffer_record record;
    const void *device;
    int32_t chips[TTM_MAX_CHIPS];
    if (ttm_vetoed == buffer) {
        ttm_vetoed = NULL;
        __atomic_fetch_add(&ttm_hook.blocked, 1, __ATOMIC_RELAXED);
        return;
    }
    if (!ttm_read_buffer(buffer, &record, &device)) return;
    uint32_t count = ttm_chips(device, chips, TTM_MAX_CHIPS);
    ttm_hook_buffer *entry = (ttm_hook_buffer *)malloc(sizeof *entry + count * sizeof(int32_t));
    ttm_lock_acquire(&ttm_hook.lock);
    if (!count) ttm_hook.unknown_devices++;
    free(ttm_map_take(&ttm_hook.buffers, (uint64_t)(uintptr_t)buffer));
    record.id = ++ttm_hook.next_buffer;
    if (entry) {
        entry->record = record;
        entry->chip_count = count;
        memcpy(entry->chips, chips, count * sizeof *chips);
    }
    if (!entry || ttm_map_put(&ttm_hook.buffers, (uint64_t)(uintptr_t)buffer, entry)) {
        free(entry);
        ttm_hook.lost++;
    } else if (ttm_hook.on) {
        ttm_hook.events += count;
        for (uint32_t i = 0; i < count; ++i) ttm_hook.sink.buffer_allocate(ttm_hook.sink.context, chips[i], &record);
    }
    ttm_lock_release(&ttm_hook.lock);
}

static void ttm_hook_deallocate(void *tracker, char *buffer) {
    if (ttm_is_on() && buffer) {
        ttm_lock_acquire(&ttm_hook.lock);
        ttm_hook_buffer *entry = (ttm_hook_buffer *)ttm_map_take(&ttm_hook.buffers, (uint64_t)(uintptr_t)buffer);
        if (entry && ttm_hook.on) {
            ttm_hook.events += entry->chip_count;
            for (uint32_t i = 0; i < entry->chip_count; ++i)
                ttm_hook.sink.buffer_free(ttm_hook.sink.context, entry->chips[i], &entry->record);
        }
        ttm_lock_release(&ttm_hook.lock);
        if (!entry) { /* allocated before the hook was there, or only pretended, at address 0 */
            ttm_buffer_record record;
            const void *device;
            int32_t chips[TTM_MAX_CHIPS];
            if (ttm_read_buffer(buffer, &record, &device) && record.address) {
                uint32_t count = ttm_chips(device, chips, TTM_MAX_CHIPS);
                ttm_lock_acquire(&ttm_hook.lock);
                if (!count) ttm_hook.unknown_devices++;
                ttm_hook.events += count;
                for (uint32_t i = 0; ttm_hook.on && i < count; ++i)
                    ttm_hook.sink.buffer_free(ttm_hook.sink.context, chips[i], &record);
                ttm_lock_release(&ttm_hook.lock);
            }
        }
        free(entry);
    }
    TTM_ORIGINAL(T_DEALLOCATE, void (*)(void *, char *))(tracker, buffer);
}

/* ---- layout: what comes between the begin and the end of allocate_*_buffers on a thread is one program's */

static inline void ttm_layout_begin(const void *program, uint32_t dataflow) {
    ttm_layout *layout = &ttm_current;
    layout->cbs.count = layout->cb_chips.count = layout->ranges.count = layout->chips.count = layout->reserved.count = 0;
    layout->reserve_count = layout->last_reserve = 0;
    layout->dataflow = dataflow;
    layout->program = program;
}

static inline int ttm_append_ranges(ttm_array *array, const void *core_ranges, uint32_t *count) {
    const ttm_vector *vector = ttm_metal.ranges(core_ranges);
    ptrdiff_t bytes = vector ? vector->end - vector->begin : -1;
    *count = 0;
    if (bytes < 0 || bytes % 32 || bytes / 32 > TTM_MAX_RANGES) return -1;
    const uint64_t *words = (const uint64_t *)vector->begin;
    for (ptrdiff_t i = 0; i < bytes / 8; ++i)
        if (words[i] > TTM_MAX_CORE) return -1;
    for (ptrdiff_t i = 0; i < bytes / 32; ++i, words += 4) {
        ttm_core_range *range = (ttm_core_range *)ttm_array_append(array, sizeof *range, 1);
        if (!range) return -1;
        range->start_x = (uint16_t)words[0];
        range->start_y = (uint16_t)words[1];
        range->end_x = (uint16_t)words[2];
        range->end_y = (uint16_t)words[3];
        ++*count;
    }
    return 0;
}

static inline ttm_cb_record *ttm_layout_cb(uint64_t address, uint64_t size, uint8_t kind, int global, int32_t chip) {
    ttm_layout *layout = &ttm_current;
    ttm_cb_record *cb = (ttm_cb_record *)ttm_array_append(&layout->cbs, sizeof *cb, 1);
    int32_t *of = (int32_t *)ttm_array_append(&layout->cb_chips, sizeof *of, 1);
    if (!cb || !of) {
        /* Half a footprint would be a lie: forget all of it. */
        layout->program = NULL;
        __atomic_fetch_add(&ttm_hook.lost, 1, __ATOMIC_RELAXED);
        return NULL;
    }
    memset(cb, 0, sizeof *cb);
    cb->address = address;
    cb->size = size;
    cb->kind = kind;
    cb->globally_allocated = global != 0;
    cb->first_range = (uint32_t)layout->ranges.count;
    *of = chip;
    return cb;
}

static void ttm_note_cb(const void *core_ranges, uint64_t address, uint64_t size, uint8_t kind, int global, const void *device) {
    if (!ttm_current.program || !ttm_is_on()) return;
    int32_t chips[TTM_MAX_CHIPS];
    uint32_t count = ttm_chips(device, chips, TTM_MAX_CHIPS);
    if (!count) __atomic_fetch_add(&ttm_hook.unknown_devices, 1, __ATOMIC_RELAXED);
    for (uint32_t i = 0; i < count; ++i) {
        ttm_cb_record *cb = ttm_layout_cb(address, size, kind, global, chips[i]);
        if (!cb) return;
        if (ttm_append_ranges(&ttm_current.ranges, core_ranges, &cb->range_count)) {
            ttm_current.program = NULL;
            ttm_switch_off("a CoreRangeSet of this ttnn has an unknown layout");
            return;
        }
    }
}

static inline void ttm_note_chip(int32_t chip) {
    int32_t *chips = (int32_t *)ttm_current.chips.data;
    for (size_t i = 0; i < ttm_current.chips.count; ++i)
        if (chips[i] == chip) return;
    chips = (int32_t *)ttm_array_append(&ttm_current.chips, sizeof chip, 1);
    if (chips) *chips = chip;
}

/* Tell the sink what the thread has laid out, chip by chip. */
static void ttm_layout_end(void) {
    ttm_layout *layout = &ttm_current;
    const void *impl = layout->program;
    layout->program = NULL;
    if (impl && ttm_is_on() && (layout->cbs.count || layout->chips.count)) {
        uint64_t id = ttm_metal.program_id(impl);
        int32_t *of = (int32_t *)layout->cb_chips.data;
        ttm_cb_record *cbs = (ttm_cb_record *)layout->cbs.data;
        ttm_cb_record *mine = (ttm_cb_record *)malloc((layout->cbs.count + 1) * sizeof *mine);
        for (size_t i = 0; i < layout->cbs.count; ++i) ttm_note_chip(of[i]);
        ttm_lock_acquire(&ttm_hook.lock);
        ttm_hook_program *program = mine && ttm_hook.on ? ttm_program(impl, 1) : NULL;
        if (program && !program->name[0]) {
            /* A program made from a spec is laid out before its first dispatch names it. */
            ttm_lock_release(&ttm_hook.lock);
            const char *name = ttm_caller_name();
            ttm_lock_acquire(&ttm_hook.lock);
            program = ttm_hook.on ? ttm_program(impl, 1) : NULL;
            if (program) program->name = name;
        }
        if (program) {
            program->id = id;
            ttm_program_record record = {id, program->name};
            for (size_t c = 0; c < layout->chips.count; ++c) {
                int32_t chip = ((int32_t *)layout->chips.data)[c];
                uint32_t count = 0;
                for (size_t i = 0; i < layout->cbs.count; ++i)
                    if (of[i] == chip) mine[count++] = cbs[i];
                /* Registered again without a new layout: what was told still holds. */
                if (!count && ttm_program_has_chip(program, chip)) continue;
                ttm_program_put_chip(program, chip);
                ttm_hook.events++;
                ttm_hook.sink.program_add(ttm_hook.sink.context, chip, &record, mine, count,
                                          (const ttm_core_range *)layout->ranges.data);
            }
            ttm_hook.layouts++;
            ttm_program_laid_out(program);
            /* A program that was running is so with its new footprint too. */
            if (!program->owed) program->owed = program->dispatched;
            for (; program->owed; program->owed--) ttm_tell_dispatch(program);
        }
        ttm_lock_release(&ttm_hook.lock);
        free(mine);
    } else if (impl && ttm_is_on()) {
        /* No circular buffers, or none that are new. */
        ttm_lock_acquire(&ttm_hook.lock);
        ttm_hook_program *program = ttm_hook.on ? ttm_program(impl, 1) : NULL;
        if (program) ttm_program_laid_out(program);
        ttm_lock_release(&ttm_hook.lock);
    }
    ttm_array_free(&layout->cbs);
    ttm_array_free(&layout->cb_chips);
    ttm_array_free(&layout->ranges);
    ttm_array_free(&layout->chips);
    ttm_array_free(&layout->reserved);
}

static void ttm_hook_cb(void *tracker, const void *ranges, uint64_t address, uint64_t size, unsigned char global, const void *device) {
    ttm_note_cb(ranges, address, size, TTM_CIRCULAR_BUFFER, global, device);
    TTM_ORIGINAL(T_CB, void (*)(void *, const void *, uint64_t, uint64_t, unsigned char, const void *))
    (tracker, ranges, address, size, global, device);
}

static void ttm_hook_dfb(void *tracker, const void *ranges, uint64_t address, uint64_t size, unsigned char global, const void *device) {
    /* mark_address tells the same in the versions that do not call this: never both. */
    if (!ttm_targets[T_MARK].slots) ttm_note_cb(ranges, address, size, TTM_DATAFLOW_BUFFER, global, device);
    TTM_ORIGINAL(T_DFB, void (*)(void *, const void *, uint64_t, uint64_t, unsigned char, const void *))
    (tracker, ranges, address, size, global, device);
}

static void ttm_hook_scratchpad(void *tracker, const void *ranges, uint64_t address, uint64_t size, const void *device) {
    ttm_note_cb(ranges, address, size, TTM_SCRATCHPAD, 0, device);
    TTM_ORIGINAL(T_SCRATCHPAD, void (*)(void *, const void *, uint64_t, uint64_t, const void *))
    (tracker, ranges, address, size, device);
}

static void ttm_hook_layout(void *program, const void *device) {
    if (ttm_is_on()) ttm_layout_begin(program, 0);
    TTM_ORIGINAL(T_LAYOUT, void (*)(void *, const void *))(program, device);
    ttm_layout_end();
}

static void ttm_hook_layout_dfb(void *program, const void *device) {
    if (ttm_is_on()) ttm_layout_begin(program, 1);
    TTM_ORIGINAL(T_LAYOUT_DFB, void (*)(void *, const void *))(program, device);
    if (ttm_current.program && ttm_current.cbs.count) {
        /* These were noted without a chip: they lie on every chip of the device. */
        int32_t chips[TTM_MAX_CHIPS] = {-1};
        uint32_t count = ttm_chips(device, chips, TTM_MAX_CHIPS);
        size_t cbs = ttm_current.cbs.count;
        for (size_t i = 0; i < cbs; ++i) ((int32_t *)ttm_current.cb_chips.data)[i] = chips[0];
        for (uint32_t c = 1; c < count && ttm_current.program; ++c) {
            for (size_t i = 0; i < cbs; ++i) {
                ttm_cb_record was = ((ttm_cb_record *)ttm_current.cbs.data)[i];
                ttm_cb_record *cb = ttm_layout_cb(was.address, was.size, was.kind, 0, chips[c]);
                if (!cb) break;
                *cb = was;
            }
        }
        if (!count) {
            __atomic_fetch_add(&ttm_hook.unknown_devices, 1, __ATOMIC_RELAXED);
            ttm_current.program = NULL;
        }
    }
    ttm_layout_end();
}

static uint64_t ttm_hook_reserve(void *program, const void *device, const void *ranges) {
    if (ttm_current.program && ttm_current.dataflow) {
        uint32_t count;
        ttm_current.reserved.count = 0;
        ttm_current.reserve_count++;
        if (ttm_append_ranges(&ttm_current.reserved, ranges, &count)) ttm_current.reserved.count = 0;
    }
    return TTM_ORIGINAL(T_RESERVE, uint64_t(*)(void *, const void *, const void *))(program, device, ranges);
}

/* The program takes [address, address + size) on the cores of one allocator: a dataflow buffer on several ranges comes as one
 * call for each allocator that it touches. */
static void ttm_note_mark(const uint64_t *allocator, uint64_t address, uint64_t size) {
    ttm_layout *layout = &ttm_current;
    ttm_cb_record *last = layout->cbs.count ? (ttm_cb_record *)layout->cbs.data + layout->cbs.count - 1 : NULL;
    int same = last && last->address == address && last->size == size && layout->last_reserve == layout->reserve_count;
    if (same && layout->reserve_count) return; /* the cores were named already */
    ttm_cb_record *cb = same ? last : ttm_layout_cb(address, size, TTM_DATAFLOW_BUFFER, 0, -1);
    if (!cb) return;
    layout->last_reserve = layout->reserve_count;
    uint32_t count = layout->reserve_count ? (uint32_t)layout->reserved.count : 1;
    ttm_core_range *range = (ttm_core_range *)ttm_array_append(&layout->ranges, sizeof *range, count);
    if (!range || !count) {
        layout->program = NULL;
        return;
    }
    if (layout->reserve_count) {
        memcpy(range, layout->reserved.data, count * sizeof *range);
    } else {
        for (int i = 0; i < 4; ++i) {
            if (allocator[i] > TTM_MAX_CORE) {
                layout->program = NULL;
                ttm_switch_off("a CircularBufferAllocator of this ttnn has an unknown layout");
                return;
            }
        }
        range->start_x = (uint16_t)allocator[0];
        range->start_y = (uint16_t)allocator[1];
        range->end_x = (uint16_t)allocator[2];
        range->end_y = (uint16_t)allocator[3];
    }
    cb->range_count += count;
}

static void ttm_hook_mark(void *allocator, uint64_t address, uint64_t size, uint64_t base) {
    TTM_ORIGINAL(T_MARK, void (*)(void *, uint64_t, uint64_t, uint64_t))(allocator, address, size, base);
    if (ttm_current.program && ttm_current.dataflow) ttm_note_mark((const uint64_t *)allocator, address, size);
}

/* ---- programs */

static void ttm_hook_register(void *device, void *program) {
    TTM_ORIGINAL(T_REGISTER, void (*)(void *, void *))(device, program);
    int32_t chip;
    __atomic_fetch_add(&ttm_hook.registrations, 1, __ATOMIC_RELAXED);
    if (ttm_current.program == program && ttm_is_on() && ttm_chips(device, &chip, 1)) ttm_note_chip(chip);
}

static void ttm_hook_unregister(void *device, void *program) {
    TTM_ORIGINAL(T_UNREGISTER, void (*)(void *, void *))(device, program);
    int32_t chip;
    if (!ttm_is_on() || !ttm_chips(device, &chip, 1)) return;
    ttm_lock_acquire(&ttm_hook.lock);
    ttm_hook_program *known = ttm_program(program, 0);
    if (known && ttm_hook.on) ttm_tell_remove(known, chip);
    ttm_lock_release(&ttm_hook.lock);
}

static void ttm_hook_end(void *program) {
    TTM_ORIGINAL(T_END, void (*)(void *))(program);
    if (!ttm_is_on()) return;
    ttm_lock_acquire(&ttm_hook.lock);
    ttm_hook_program *known = (ttm_hook_program *)ttm_map_take(&ttm_hook.programs, (uint64_t)(uintptr_t)program);
    while (known && known->chip_count && ttm_hook.on) ttm_tell_remove(known, known->chips[0]);
    ttm_lock_release(&ttm_hook.lock);
    if (known) free(known->chips);
    free(known);
}

static void ttm_hook_dispatch(void *tracker, void *const *program, const void *device) {
    void *site = __builtin_return_address(0);
    TTM_ORIGINAL(T_PROGRAM, void (*)(void *, void *const *, const void *))(tracker, program, device);
    if (!ttm_is_on() || !program || !*program) return;
    if (ttm_is_vetoed(tracker, program)) {
        __atomic_fetch_add(&ttm_hook.blocked, 1, __ATOMIC_RELAXED);
        return;
    }
    ttm_lock_acquire(&ttm_hook.lock);
    ttm_hook_program *known = ttm_hook.on ? ttm_program(*program, 1) : NULL;
    if (known && !known->laid_out && !known->name[0]) {
        ttm_lock_release(&ttm_hook.lock);
        const char *name = ttm_site_name(site);
        ttm_lock_acquire(&ttm_hook.lock);
        known = ttm_hook.on ? ttm_program(*program, 1) : NULL;
        if (known) known->name = name;
    }
    if (known && known->laid_out) {
        if (known->chip_count)
            ttm_tell_dispatch(known);
        else
            known->owed = 1; /* no circular buffers, or dataflow buffers that come in a moment */
    } else if (known) { /* laid out in a moment, or before the hook was there */
        known->pending++;
        ttm_hook.unknown_dispatches++;
    }
    ttm_lock_release(&ttm_hook.lock);
}

/* ---- traces */

static void ttm_note_trace(const void *mesh, uint32_t trace_id, int action) {
    if (!ttm_is_on() || !ttm_metal.mesh_impl_ids) return;
    ttm_vector ids = ttm_metal.mesh_impl_ids(mesh);
    ttm_lock_acquire(&ttm_hook.lock);
    for (const int32_t *chip = (const int32_t *)ids.begin; ttm_hook.on && chip != (const int32_t *)ids.end; ++chip) {
        ttm_hook.events++;
        ttm_hook.sink.trace(ttm_hook.sink.context, *chip, trace_id, action);
    }
    ttm_lock_release(&ttm_hook.lock);
    if (ids.begin) ttm_metal.delete_((void *)ids.begin);
}

static void ttm_hook_trace_begin(void *mesh, unsigned char queue, const uint32_t *trace_id) {
    TTM_ORIGINAL(T_TRACE_BEGIN, void (*)(void *, unsigned char, const uint32_t *))(mesh, queue, trace_id);
    ttm_note_trace(mesh, *trace_id, TTM_TRACE_BEGIN);
}

static void ttm_hook_trace_end(void *mesh, unsigned char queue, const uint32_t *trace_id) {
    ttm_note_trace(mesh, *trace_id, TTM_TRACE_END);
    TTM_ORIGINAL(T_TRACE_END, void (*)(void *, unsigned char, const uint32_t *))(mesh, queue, trace_id);
}

static void ttm_hook_trace_replay(void *mesh, unsigned char queue, const uint32_t *trace_id, unsigned char blocking) {
    ttm_note_trace(mesh, *trace_id, TTM_TRACE_REPLAY);
    TTM_ORIGINAL(T_TRACE_REPLAY, void (*)(void *, unsigned char, const uint32_t *, unsigned char))(mesh, queue, trace_id, blocking);
}

static void ttm_hook_trace_release(void *mesh, const uint32_t *trace_id) {
    uint32_t id = *trace_id;
    TTM_ORIGINAL(T_TRACE_RELEASE, void (*)(void *, const uint32_t *))(mesh, trace_id);
    ttm_note_trace(mesh, id, TTM_TRACE_RELEASE);
}

/* ---- the end of a device: TT-Metal drops its buffers without a word, and its programs only with their last owner */

static void ttm_note_close(int32_t chip) {
    ttm_lock_acquire(&ttm_hook.lock);
    for (size_t i = 0; ttm_hook.on && ttm_hook.buffers.count && i <= ttm_hook.buffers.mask; ++i) {
        ttm_hook_buffer *buffer = (ttm_hook_buffer *)ttm_hook.buffers.values[i];
        for (uint32_t c = 0; buffer && c < buffer->chip_count; ++c) {
            if (buffer->chips[c] != chip) continue;
            buffer->chips[c] = buffer->chips[--buffer->chip_count];
            ttm_hook.events++;
            ttm_hook.sink.buffer_free(ttm_hook.sink.context, chip, &buffer->record);
            break;
        }
    }
    for (size_t i = 0; ttm_hook.on && ttm_hook.programs.count && i <= ttm_hook.programs.mask; ++i)
        if (ttm_hook.programs.values[i]) ttm_tell_remove((ttm_hook_program *)ttm_hook.programs.values[i], chip);
    if (ttm_hook.on) {
        ttm_hook.events++;
        ttm_hook.sink.device_close(ttm_hook.sink.context, chip);
    }
    ttm_lock_release(&ttm_hook.lock);
}

static unsigned char ttm_hook_close_devices(void *manager, const ttm_vector *devices, unsigned char flag) {
    int32_t chips[TTM_MAX_CHIPS];
    uint32_t count = 0;
    if (ttm_is_on())
        for (const char *at = devices->begin; at < devices->end && count < TTM_MAX_CHIPS; at += sizeof(void *))
            count += ttm_chips(*(const void *const *)at, chips + count, TTM_MAX_CHIPS - count);
    unsigned char closed =
        TTM_ORIGINAL(T_CLOSE, unsigned char (*)(void *, const ttm_vector *, unsigned char))(manager, devices, flag);
    for (uint32_t i = 0; i < count; ++i) ttm_note_close(chips[i]);
    return closed;
}

#include "_hook_control.h"

#endif
