/* A table of small records by 64-bit id. Records lie in one growing array and are chained by 32-bit numbers: a program in the
 * cache is to cost little memory and no call of the allocator. A record's first words are a ttm_entry; the rest is the user's. */
#ifndef TTM_TABLE_H
#define TTM_TABLE_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    uint64_t id;
    uint32_t next; /* number + 1 of the next one in the bucket, or in the list of free ones; 0: none */
} ttm_entry;

typedef struct {
    char *entries;
    uint32_t *buckets; /* number + 1 of the first; as many as there is room for entries */
    uint32_t entry_bytes;
    uint32_t capacity; /* a power of two, or 0 */
    uint32_t count;
    uint32_t high;     /* entries from here on were never used */
    uint32_t spare;    /* number + 1 of the first free one below */
} ttm_table;

static inline void *ttm_table_at(const ttm_table *table, uint32_t number) {
    return table->entries + (size_t)number * table->entry_bytes;
}

static inline uint32_t ttm_table_number(const ttm_table *table, const void *entry) {
    return (uint32_t)((size_t)((const char *)entry - table->entries) / table->entry_bytes);
}

static inline uint32_t *ttm_table_bucket(const ttm_table *table, uint64_t id) {
    return &table->buckets[(uint32_t)((id * 0x9e3779b97f4a7c15u) >> 32) & (table->capacity - 1)];
}

static inline void *ttm_table_get(const ttm_table *table, uint64_t id) {
    uint32_t number;
    if (!table->count) return NULL;
    for (number = *ttm_table_bucket(table, id); number;) {
        ttm_entry *entry = (ttm_entry *)ttm_table_at(table, number - 1);
        if (entry->id == id) return entry;
        number = entry->next;
    }
    return NULL;
}

/* Have room for one more, so that the next put cannot fail. Returns 0, or -1 if there is no memory. Moves the entries. */
static inline int ttm_table_reserve(ttm_table *table) {
    uint32_t capacity, i;
    uint32_t *buckets;
    char *entries;
    if (table->count < table->capacity) return 0;
    if (table->capacity >= 1u << 30) return -1;
    capacity = table->capacity ? table->capacity * 2 : 64;
    buckets = (uint32_t *)calloc(capacity, sizeof *buckets);
    if (!buckets) return -1;
    entries = (char *)realloc(table->entries, (size_t)capacity * table->entry_bytes);
    if (!entries) {
        free(buckets);
        return -1;
    }
    free(table->buckets);
    table->entries = entries;
    table->buckets = buckets;
    table->capacity = capacity;
    /* It was full: all entries below `high` are in use. */
    for (i = 0; i < table->high; ++i) {
        ttm_entry *entry = (ttm_entry *)ttm_table_at(table, i);
        uint32_t *bucket = ttm_table_bucket(table, entry->id);
        entry->next = *bucket;
        *bucket = i + 1;
    }
    return 0;
}

/* Enter an id that is not there, after ttm_table_reserve; all but the id is zero. */
static inline void *ttm_table_put(ttm_table *table, uint64_t id) {
    uint32_t number = table->spare ? table->spare - 1 : table->high++;
    ttm_entry *entry = (ttm_entry *)ttm_table_at(table, number);
    uint32_t *bucket = ttm_table_bucket(table, id);
    if (table->spare) table->spare = entry->next;
    memset(entry, 0, table->entry_bytes);
    entry->id = id;
    entry->next = *bucket;
    *bucket = number + 1;
    table->count++;
    return entry;
}

static inline void ttm_table_drop(ttm_table *table, void *record) {
    ttm_entry *entry = (ttm_entry *)record;
    uint32_t number = ttm_table_number(table, record) + 1;
    uint32_t *link = ttm_table_bucket(table, entry->id);
    while (*link != number) link = &((ttm_entry *)ttm_table_at(table, *link - 1))->next;
    *link = entry->next;
    entry->next = table->spare;
    table->spare = number;
    table->count--;
}

static inline void ttm_table_free(ttm_table *table) {
    free(table->entries);
    free(table->buckets);
    table->entries = NULL;
    table->buckets = NULL;
    table->capacity = table->count = table->high = table->spare = 0;
}

#endif
