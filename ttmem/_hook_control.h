/* Switch the ttnn hook on and off: find TT-Metal, check everything that the hook relies on, redirect, put back. Part of _hook.h. */
#ifndef TTM_HOOK_CONTROL_H
#define TTM_HOOK_CONTROL_H

static ttm_target ttm_targets[T_COUNT] = {
    [T_ALLOCATE] = {TTM_NS "12GraphTracker14track_allocateEPKNS0_6BufferE", (void *)ttm_hook_allocate, NULL, 0, 1},
    [T_DEALLOCATE] = {TTM_NS "12GraphTracker16track_deallocateEPNS0_6BufferE", (void *)ttm_hook_deallocate, NULL, 0, 1},
    [T_VETO] = {TTM_NS "12GraphTracker13hook_allocateEPKNS0_6BufferE", (void *)ttm_hook_veto, NULL, 0, 1},
    /* Not redirected, only asked. */
    [T_VETO_PROGRAM] = {TTM_NS "12GraphTracker12hook_programEPNS0_7ProgramE", NULL, NULL, 0, 1},
    [T_CB] = {TTM_NS "12GraphTracker17track_allocate_cbERKNS0_12CoreRangeSetEmmbPKNS0_7IDeviceE", (void *)ttm_hook_cb, NULL, 0, 1},
    [T_DFB] = {TTM_NS "12GraphTracker30track_allocate_dataflow_bufferERKNS0_12CoreRangeSetEmmbPKNS0_7IDeviceE",
               (void *)ttm_hook_dfb, NULL, 0, 0},
    [T_SCRATCHPAD] = {TTM_NS "12GraphTracker25track_allocate_scratchpadERKNS0_12CoreRangeSetEmmPKNS0_7IDeviceE",
                      (void *)ttm_hook_scratchpad, NULL, 0, 0},
    [T_PROGRAM] = {TTM_NS "12GraphTracker13track_programEPNS0_7ProgramEPKNS0_7IDeviceE", (void *)ttm_hook_dispatch, NULL, 0, 1},
    [T_LAYOUT] = {TTM_NS "6detail11ProgramImpl25allocate_circular_buffersEPKNS0_7IDeviceE", (void *)ttm_hook_layout, NULL, 0, 1},
    [T_LAYOUT_DFB] = {TTM_NS "6detail11ProgramImpl25allocate_dataflow_buffersEPKNS0_7IDeviceE", (void *)ttm_hook_layout_dfb, NULL, 0, 0},
    [T_REGISTER] = {TTM_NS "6Device16register_programEPNS0_6detail11ProgramImplE", (void *)ttm_hook_register, NULL, 0, 1},
    [T_UNREGISTER] = {TTM_NS "6Device18unregister_programEPNS0_6detail11ProgramImplE", (void *)ttm_hook_unregister, NULL, 0, 1},
    [T_END] = {TTM_NS "6detail11ProgramImpl27deallocate_circular_buffersEv", (void *)ttm_hook_end, NULL, 0, 1},
    [T_RESERVE] = {TTM_NS "6detail11ProgramImpl24reserve_program_local_l1EPKNS0_7IDeviceERKNS0_12CoreRangeSetE",
                   (void *)ttm_hook_reserve, NULL, 0, 0},
    [T_MARK] = {TTM_NS "6detail11ProgramImpl23CircularBufferAllocator12mark_addressEmmm", (void *)ttm_hook_mark, NULL, 0, 0},
#define TTM_TRACE_ID "RKN4ttsl10StrongTypeIjNS1_14MeshTraceIdTagEEE"
    [T_TRACE_BEGIN] = {TTM_NS "11distributed14MeshDeviceImpl16begin_mesh_traceEh" TTM_TRACE_ID, (void *)ttm_hook_trace_begin, NULL, 0, 0},
    [T_TRACE_END] = {TTM_NS "11distributed14MeshDeviceImpl14end_mesh_traceEh" TTM_TRACE_ID, (void *)ttm_hook_trace_end, NULL, 0, 0},
    [T_TRACE_REPLAY] = {TTM_NS "11distributed14MeshDeviceImpl17replay_mesh_traceEh" TTM_TRACE_ID "b", (void *)ttm_hook_trace_replay,
                        NULL, 0, 0},
    [T_TRACE_RELEASE] = {TTM_NS "11distributed14MeshDeviceImpl18release_mesh_traceE" TTM_TRACE_ID, (void *)ttm_hook_trace_release,
                         NULL, 0, 0},
    [T_CLOSE] = {TTM_NS "13DeviceManager13close_devicesERKSt6vectorIPNS0_7IDeviceESaIS4_EEb", (void *)ttm_hook_close_devices, NULL,
                 0, 0},
};

static int ttm_find_metal(struct dl_phdr_info *info, size_t size, void *data) {
    (void)size;
    const char *name = info->dlpi_name ? strrchr(info->dlpi_name, '/') : NULL;
    if (!name || strncmp(name, "/libtt_metal.so", 15)) return 0;
    snprintf((char *)data, 4096, "%s", info->dlpi_name);
    return 1;
}

static int ttm_lacks(const char *what) {
    snprintf(ttm_hook.reason, sizeof ttm_hook.reason, "this ttnn does not have what the hook needs: %s", what);
    return -1;
}

/* The bytes of a symbol, 0 if unknown. */
static size_t ttm_symbol_bytes(const void *address) {
    Dl_info info;
    ElfW(Sym) *symbol = NULL;
    return dladdr1(address, &info, (void **)&symbol, RTLD_DL_SYMENT) && symbol ? symbol->st_size : 0;
}

static size_t ttm_index_in_table(const void *const *table, size_t entries, const void *function) {
    for (size_t i = 0; i < entries; ++i)
        if (table[i] == function) return i;
    return (size_t)-1;
}

/* Find the virtual tables and the place of `id()` in them. */
static int ttm_find_devices(void *library) {
    const void *const *device = (const void *const *)dlsym(library, "_ZTVN2tt8tt_metal6DeviceE");
    const void *const *mesh = (const void *const *)dlsym(library, "_ZTVN2tt8tt_metal11distributed10MeshDeviceE");
    void *mesh_id = dlsym(library, TTM_NSK "11distributed10MeshDevice2idEv");
    void *mesh_arch = dlsym(library, TTM_NSK "11distributed10MeshDevice4archEv");
    void *device_arch = dlsym(library, TTM_NSK "6Device4archEv");
    if (!device || !mesh || !mesh_id || !mesh_arch || !device_arch) return ttm_lacks("Device, MeshDevice");
    size_t device_entries = ttm_symbol_bytes(device) / sizeof(void *), mesh_entries = ttm_symbol_bytes(mesh) / sizeof(void *);
    if (device_entries < 3 || mesh_entries < 3) return ttm_lacks("virtual tables of Device and MeshDevice");
    size_t id = ttm_index_in_table(mesh + 2, mesh_entries - 2, mesh_id);
    size_t arch = ttm_index_in_table(mesh + 2, mesh_entries - 2, mesh_arch);
    /* Both classes override IDevice: that arch() stands at one place in both says that id() does. */
    if (id >= device_entries - 2 || arch >= device_entries - 2 || device[2 + arch] != device_arch)
        return ttm_lacks("IDevice::id() in the virtual tables");
    ttm_metal.device_table = device + 2;
    ttm_metal.mesh_table = mesh + 2;
    ttm_metal.id_index = id;
    return 0;
}

static int ttm_find_functions(void *library) {
#define TTM_FIND(member, name, required)                                      \
    *(void **)&ttm_metal.member = dlsym(library, name);                       \
    if (required && !*(void **)&ttm_metal.member) return ttm_lacks(name)
    TTM_FIND(ranges, TTM_NSK "12CoreRangeSet6rangesEv", 1);
    TTM_FIND(program_id, TTM_NSK "6detail11ProgramImpl6get_idEv", 1);
    TTM_FIND(buffer_address, TTM_NSK "6Buffer7addressEv", 1);
    TTM_FIND(buffer_bank_bytes, TTM_NSK "6Buffer21aligned_size_per_bankEv", 1);
    TTM_FIND(buffer_size, TTM_NSK "6Buffer4sizeEv", 0);
    TTM_FIND(buffer_type, TTM_NSK "6Buffer11buffer_typeEv", 0);
    TTM_FIND(buffer_device, TTM_NSK "6Buffer6deviceEv", 0);
    if (!ttm_metal.buffer_size || !ttm_metal.buffer_type || !ttm_metal.buffer_device) {
        ttm_metal.buffer_size = NULL;
        TTM_FIND(buffer_pages, TTM_NSK "6Buffer9num_pagesEv", 1);
        TTM_FIND(buffer_page_bytes, TTM_NSK "6Buffer9page_sizeEv", 1);
        TTM_FIND(buffer_is_l1, TTM_NSK "6Buffer5is_l1Ev", 1);
        TTM_FIND(buffer_is_dram, TTM_NSK "6Buffer7is_dramEv", 1);
    }
    TTM_FIND(mesh_ids, TTM_NSK "11distributed10MeshDevice14get_device_idsEv", 1);
    TTM_FIND(mesh_impl_ids, TTM_NSK "11distributed14MeshDeviceImpl14get_device_idsEv", 0);
    TTM_FIND(graph_hook, TTM_NSK "12GraphTracker8get_hookEv", 1);
    TTM_FIND(active_device, TTM_NS "6detail15GetActiveDeviceEi", 0);
    TTM_FIND(total_cb, TTM_NSK "6Device22get_total_cb_allocatedEv", 0);
    TTM_FIND(delete_, "_ZdlPv", 1);
    return 0;
}

static void ttm_hook_after_fork(void) {
    /* The child has no device: TT-Metal's handles do not survive a fork. */
    ttm_hook.lock.held = 0;
    ttm_hook.on = 0;
}

/* Find and check everything, once. Returns 0, or -1 with the reason set. Changes nothing in TT-Metal. */
static int ttm_hook_prepare(void) {
    char path[4096] = "";
    if (ttm_hook.prepared) return 0;
    ttm_hook.reason[0] = 0;
    if (!TTM_SLOTS_SUPPORTED) return ttm_lacks("a processor that is x86-64 or aarch64");
    if (!dl_iterate_phdr(ttm_find_metal, path)) {
        snprintf(ttm_hook.reason, sizeof ttm_hook.reason, "libtt_metal.so is not loaded: import ttnn first");
        return -1;
    }
    void *library = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
    if (!library) {
        snprintf(ttm_hook.reason, sizeof ttm_hook.reason, "cannot open %.200s again", path);
        return -1;
    }
    /* The handle stays open: our functions call into the library for as long as the process lives. */
    if (ttm_find_functions(library) || ttm_find_devices(library)) return -1;
    for (int i = 0; i < T_COUNT; ++i) {
        ttm_targets[i].original = dlsym(library, ttm_targets[i].symbol);
        if (ttm_targets[i].required && !ttm_targets[i].original) return ttm_lacks(ttm_targets[i].symbol);
    }
    ttm_hook.slots.targets = ttm_targets;
    ttm_hook.slots.target_count = T_COUNT;
    ttm_slots_find(&ttm_hook.slots);
    if (ttm_hook.slots.overflow) return ttm_lacks("fewer linkage slots");
    for (int i = 0; i < T_COUNT; ++i)
        if (ttm_targets[i].required && !ttm_targets[i].slots) {
            snprintf(ttm_hook.reason, sizeof ttm_hook.reason, "this ttnn calls %.180s without a linkage slot", ttm_targets[i].symbol);
            return -1;
        }
    ttm_hook.prepared = 1;
    pthread_atfork(NULL, NULL, ttm_hook_after_fork);
    return 0;
}

/* Redirect and let events flow to the log. Returns 0, or -1 with the reason set. Not from two threads at once. */
static int ttm_hook_start(void) {
    if (ttm_hook_prepare()) return -1;
    ttm_lock_acquire(&ttm_hook.lock);
    ttm_hook.reason[0] = 0;
    ttm_hook.sink = ttm_log_sink(&ttm_hook.log);
    ttm_hook.events = ttm_hook.lost = ttm_hook.unknown_devices = ttm_hook.unknown_dispatches = ttm_hook.blocked = 0;
    ttm_hook.layouts = ttm_hook.registrations = 0;
    __atomic_store_n(&ttm_hook.on, 1, __ATOMIC_RELEASE);
    ttm_lock_release(&ttm_hook.lock);
    if (ttm_slots_install(&ttm_hook.slots)) {
        __atomic_store_n(&ttm_hook.on, 0, __ATOMIC_RELEASE);
        snprintf(ttm_hook.reason, sizeof ttm_hook.reason, "a page of linkage slots cannot be made writable");
        return -1;
    }
    ttm_hook.installed = 1;
    return 0;
}

/* Put every slot back. Calls that are under way end well: our functions stay, and pass on. Returns the slots left alone. */
static uint32_t ttm_hook_stop(void) {
    uint32_t left = ttm_hook.installed ? ttm_slots_restore(&ttm_hook.slots) : 0;
    ttm_hook.installed = 0;
    ttm_lock_acquire(&ttm_hook.lock);
    __atomic_store_n(&ttm_hook.on, 0, __ATOMIC_RELEASE);
    for (size_t i = 0; ttm_hook.programs.keys && i <= ttm_hook.programs.mask; ++i)
        if (ttm_hook.programs.values[i]) free(((ttm_hook_program *)ttm_hook.programs.values[i])->chips);
    ttm_map_free(&ttm_hook.programs);
    ttm_map_free(&ttm_hook.buffers);
    memset(&ttm_hook.sink, 0, sizeof ttm_hook.sink);
    ttm_lock_release(&ttm_hook.lock);
    return left;
}

/* Keep the events in the log from now on: nothing runs in the sink that was there until it gets them again. */
static void ttm_hook_hold(void) {
    ttm_lock_acquire(&ttm_hook.lock);
    if (ttm_hook.on) ttm_hook.sink = ttm_log_sink(&ttm_hook.log);
    ttm_lock_release(&ttm_hook.lock);
}

/* Give a sink the events that were kept, those of `earlier` first, and from now on each at once. Returns 0, or the number of
 * events that had found no memory: then nothing was given. */
static uint64_t ttm_hook_release(const ttm_hook_sink *sink, ttm_log *earlier) {
    ttm_lock_acquire(&ttm_hook.lock);
    uint64_t dropped = ttm_hook.log.dropped + (earlier ? earlier->dropped : 0);
    if (!dropped && ttm_hook.on) {
        if (earlier) ttm_log_replay(earlier, sink);
        ttm_log_replay(&ttm_hook.log, sink);
        ttm_log_free(&ttm_hook.log);
        ttm_hook.sink = *sink;
    }
    ttm_lock_release(&ttm_hook.lock);
    return dropped;
}

/* Take what the log has collected; the caller frees it. */
static ttm_log ttm_hook_take_log(void) {
    ttm_lock_acquire(&ttm_hook.lock);
    ttm_log taken = ttm_hook.log;
    memset(&ttm_hook.log, 0, sizeof ttm_hook.log);
    ttm_lock_release(&ttm_hook.lock);
    return taken;
}

/* TT-Metal's own count of the CB bytes on a chip (its region shows it up to 100 ms late), or UINT64_MAX. The device must be open. */
static uint64_t ttm_hook_total_cb(int chip) {
    if (!ttm_hook.prepared || !ttm_metal.active_device || !ttm_metal.total_cb) return UINT64_MAX;
    const void *device = ttm_metal.active_device(chip);
    return device && *(const void *const *)device == ttm_metal.device_table ? ttm_metal.total_cb(device) : UINT64_MAX;
}

#endif
