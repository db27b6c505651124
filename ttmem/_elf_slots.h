/* Find and redirect the dynamic-linkage slots of functions in the libraries that this process has loaded.
 *
 * A call from one function to an exported one goes through a pointer that the dynamic loader fills (the GOT). Writing another
 * function there redirects the calls of that library, and of no other, without touching its code. Traps:
 * 1. Only calls that go through a slot are seen: inlined, static and -Bsymbolic calls are not.
 * 2. With lazy binding a slot holds the resolver until the first call, so the original comes from dlsym, never from the slot.
 * 3. Slots of libraries linked with -z now lie in pages that the loader made read-only (RELRO).
 * 4. A slot that holds neither what was written there nor what was there before belongs to somebody else by now: leave it.
 */
#ifndef TTM_ELF_SLOTS_H
#define TTM_ELF_SLOTS_H

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__x86_64__)
#define TTM_JUMP_SLOT R_X86_64_JUMP_SLOT
#define TTM_GLOB_DAT R_X86_64_GLOB_DAT
#define TTM_SLOTS_SUPPORTED 1
#elif defined(__aarch64__)
#define TTM_JUMP_SLOT R_AARCH64_JUMP_SLOT
#define TTM_GLOB_DAT R_AARCH64_GLOB_DAT
#define TTM_SLOTS_SUPPORTED 1
#else
#define TTM_JUMP_SLOT 0xffffffffu
#define TTM_GLOB_DAT 0xffffffffu
#define TTM_SLOTS_SUPPORTED 0
#endif

enum { TTM_MAX_SLOTS = 128 };

/* A function to redirect. */
typedef struct {
    const char *symbol;  /* mangled name */
    void *replacement;   /* NULL: only looked up, never redirected */
    void *original;      /* from dlsym, NULL where the library does not export it */
    uint32_t slots;      /* how many slots were found */
    uint32_t required;   /* 1: without it nothing is redirected at all */
} ttm_target;

typedef struct {
    void **address;
    uint32_t target;     /* index of the ttm_target */
    uint32_t read_only;  /* 1: in a page that must be made writable first */
} ttm_slot;

typedef struct {
    ttm_target *targets;
    uint32_t target_count;
    ttm_slot slots[TTM_MAX_SLOTS];
    uint32_t slot_count;
    uint32_t overflow;   /* 1: there were more slots than the table holds */
} ttm_slots;

static inline uintptr_t ttm_dynamic_pointer(uintptr_t base, uintptr_t value) {
    /* glibc relocates the pointers of the dynamic section in place, other loaders leave offsets. */
    return value < base ? base + value : value;
}

static inline void ttm_scan_relocations(ttm_slots *found, uintptr_t base, const ElfW(Rela) *rela, size_t bytes,
                                        const ElfW(Sym) *symbols, const char *names, size_t names_bytes,
                                        uintptr_t relro_begin, uintptr_t relro_end) {
    for (size_t i = 0, n = bytes / sizeof *rela; i < n; ++i) {
        uint32_t type = (uint32_t)ELF64_R_TYPE(rela[i].r_info);
        if (type != TTM_JUMP_SLOT && type != TTM_GLOB_DAT) continue;
        size_t offset = symbols[ELF64_R_SYM(rela[i].r_info)].st_name;
        if (offset >= names_bytes) continue;
        const char *name = names + offset;
        if (name[0] != '_' || name[1] != 'Z' || name[2] != 'N') continue;
        for (uint32_t t = 0; t < found->target_count; ++t) {
            if (strcmp(name, found->targets[t].symbol)) continue;
            found->targets[t].slots++;
            if (!found->targets[t].replacement) break;
            if (found->slot_count == TTM_MAX_SLOTS) {
                found->overflow = 1;
                return;
            }
            uintptr_t address = base + rela[i].r_offset;
            ttm_slot *slot = &found->slots[found->slot_count++];
            slot->address = (void **)address;
            slot->target = t;
            slot->read_only = address >= relro_begin && address < relro_end;
            break;
        }
    }
}

static inline int ttm_scan_library(struct dl_phdr_info *info, size_t size, void *data) {
    ttm_slots *found = (ttm_slots *)data;
    uintptr_t base = info->dlpi_addr, relro_begin = 0, relro_end = 0;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const ElfW(Dyn) *dynamic = NULL;
    (void)size;
    /* The executable itself and the vdso have nothing that we look for, and some have an empty name. */
    if (!info->dlpi_name || !info->dlpi_name[0] || strstr(info->dlpi_name, "linux-vdso")) return 0;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        if (header->p_type == PT_DYNAMIC) dynamic = (const ElfW(Dyn) *)(base + header->p_vaddr);
        if (header->p_type == PT_GNU_RELRO) {
            relro_begin = (base + header->p_vaddr) & ~(page - 1);
            relro_end = (base + header->p_vaddr + header->p_memsz) & ~(page - 1);
        }
    }
    if (!dynamic) return 0;
    uintptr_t jump = 0, rela = 0, symbols = 0, names = 0;
    size_t jump_bytes = 0, rela_bytes = 0, names_bytes = 0;
    for (; dynamic->d_tag != DT_NULL; ++dynamic) {
        uintptr_t value = dynamic->d_un.d_val;
        switch (dynamic->d_tag) {
            case DT_JMPREL: jump = ttm_dynamic_pointer(base, value); break;
            case DT_PLTRELSZ: jump_bytes = value; break;
            case DT_PLTREL: if (value != DT_RELA) return 0; break;
            case DT_RELA: rela = ttm_dynamic_pointer(base, value); break;
            case DT_RELASZ: rela_bytes = value; break;
            case DT_SYMTAB: symbols = ttm_dynamic_pointer(base, value); break;
            case DT_STRTAB: names = ttm_dynamic_pointer(base, value); break;
            case DT_STRSZ: names_bytes = value; break;
            default: break;
        }
    }
    if (!symbols || !names) return 0;
    if (jump)
        ttm_scan_relocations(found, base, (const ElfW(Rela) *)jump, jump_bytes, (const ElfW(Sym) *)symbols, (const char *)names,
                             names_bytes, relro_begin, relro_end);
    /* Some linkers let DT_RELA span the jump slots as well: what was found there must not be found twice. */
    if (rela && jump >= rela && jump < rela + rela_bytes) rela_bytes = jump - rela;
    if (rela)
        ttm_scan_relocations(found, base, (const ElfW(Rela) *)rela, rela_bytes, (const ElfW(Sym) *)symbols, (const char *)names,
                             names_bytes, relro_begin, relro_end);
    return 0;
}

/* Fill the table of slots; call once. */
static inline void ttm_slots_find(ttm_slots *found) {
    found->slot_count = found->overflow = 0;
    for (uint32_t t = 0; t < found->target_count; ++t) found->targets[t].slots = 0;
    dl_iterate_phdr(ttm_scan_library, found);
}

/* Write `value` into the slot. Returns 0, or -1 if the page cannot be made writable. */
static inline int ttm_slot_write(const ttm_slot *slot, void *value) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    void *start = (void *)((uintptr_t)slot->address & ~(page - 1));
    if (slot->read_only && mprotect(start, page, PROT_READ | PROT_WRITE)) return -1;
    __atomic_store_n(slot->address, value, __ATOMIC_RELEASE);
    if (slot->read_only) mprotect(start, page, PROT_READ);
    return 0;
}

/* Put the originals back. A slot that somebody else redirected after us stays as it is. Returns the slots left alone. */
static inline uint32_t ttm_slots_restore(ttm_slots *found) {
    uint32_t left = 0;
    for (uint32_t i = 0; i < found->slot_count; ++i) {
        const ttm_slot *slot = &found->slots[i];
        const ttm_target *target = &found->targets[slot->target];
        void *now = __atomic_load_n(slot->address, __ATOMIC_ACQUIRE);
        if (now == target->original) continue;
        if (now != target->replacement || ttm_slot_write(slot, target->original)) ++left;
    }
    return left;
}

/* Redirect every slot. Returns 0; on a page that stays read-only everything is put back and -1 returned. */
static inline int ttm_slots_install(ttm_slots *found) {
    for (uint32_t i = 0; i < found->slot_count; ++i) {
        if (ttm_slot_write(&found->slots[i], found->targets[found->slots[i].target].replacement)) {
            ttm_slots_restore(found);
            return -1;
        }
    }
    return 0;
}

/* How many slots hold our function. A lazy binding that ran while we wrote, or another tool, may have taken some. */
static inline uint32_t ttm_slots_held(const ttm_slots *found) {
    uint32_t held = 0;
    for (uint32_t i = 0; i < found->slot_count; ++i)
        held += __atomic_load_n(found->slots[i].address, __ATOMIC_ACQUIRE) == found->targets[found->slots[i].target].replacement;
    return held;
}

#endif
