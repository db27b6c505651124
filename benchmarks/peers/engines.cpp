// Peers in C++: a recompute that works as TT-Metal's does, and boost's interval_map for each core.
// The loops that are timed are here too, so that no call from Python is in the figures.
#include <time.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#if defined(WITH_ICL)
#include <boost/icl/interval_map.hpp>
#endif

namespace {

struct Workload {
    uint32_t cores, words;
    const uint64_t* first;
    const uint32_t* begin;
    const uint32_t* end;
    const uint32_t* mask_of;
    const uint64_t* masks;

    template <typename Each>
    void each_core(uint32_t mask, Each each) const {
        for (uint32_t word = 0; word < words; ++word) {
            for (uint64_t bits = masks[std::size_t(mask) * words + word]; bits; bits &= bits - 1) {
                each(64 * word + __builtin_ctzll(bits));
            }
        }
    }
};

uint64_t now_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return uint64_t(now.tv_sec) * 1000000000u + uint64_t(now.tv_nsec);
}

struct Engine {
    const Workload work;
    explicit Engine(const Workload& w) : work(w) {}
    virtual ~Engine() = default;
    virtual void load(uint64_t program) = 0;  // add while the cache is filled, when nobody asks for the total
    virtual void add(uint64_t program) = 0;
    virtual void remove(uint64_t program) = 0;
    virtual uint64_t physical() = 0;
};

// For every registered program collect the regions of each core; per core sort by start, merge what overlaps or touches, and
// add up the lengths. Done again whenever a program comes or goes. Its regions per core are kept with the program, and its
// vectors keep their memory: what TT-Metal must allocate anew each time is spared here.
struct Recompute final : Engine {
    using Regions = std::vector<std::pair<uint64_t, uint64_t>>;
    std::vector<uint64_t> programs;
    std::vector<Regions> of_core;
    uint64_t total = 0;

    explicit Recompute(const Workload& w) : Engine(w), of_core(w.cores) {}

    void recompute() {
        for (Regions& regions : of_core) regions.clear();
        for (uint64_t program : programs) {
            for (uint64_t i = work.first[program]; i < work.first[program + 1]; ++i) {
                work.each_core(work.mask_of[i], [&](uint32_t core) { of_core[core].emplace_back(work.begin[i], work.end[i]); });
            }
        }
        total = 0;
        for (Regions& regions : of_core) {
            std::sort(regions.begin(), regions.end());
            uint64_t low = 0, high = 0;
            for (const auto& region : regions) {
                if (region.first <= high) {
                    high = std::max(high, region.second);
                } else {
                    total += high - low;
                    low = region.first;
                    high = region.second;
                }
            }
            total += high - low;
        }
    }
    void load(uint64_t program) override { programs.push_back(program); }
    void add(uint64_t program) override {
        programs.push_back(program);
        recompute();
    }
    void remove(uint64_t program) override {
        programs.erase(std::find(programs.begin(), programs.end(), program));
        recompute();
    }
    uint64_t physical() override {
        recompute();
        return total;
    }
};

#if defined(WITH_ICL)
// Only the update is timed: the library keeps no total, a query walks over all segments.
struct Icl final : Engine {
    using Map = boost::icl::interval_map<uint32_t, int32_t>;
    std::vector<Map> of_core;

    explicit Icl(const Workload& w) : Engine(w), of_core(w.cores) {}

    void change(uint64_t program, bool adding) {
        for (uint64_t i = work.first[program]; i < work.first[program + 1]; ++i) {
            const auto interval = boost::icl::interval<uint32_t>::right_open(work.begin[i], work.end[i]);
            work.each_core(work.mask_of[i], [&](uint32_t core) {
                if (adding) {
                    of_core[core].add(std::make_pair(interval, 1));
                } else {
                    of_core[core].subtract(std::make_pair(interval, 1));
                }
            });
        }
    }
    void load(uint64_t program) override { change(program, true); }
    void add(uint64_t program) override { change(program, true); }
    void remove(uint64_t program) override { change(program, false); }
    uint64_t physical() override {
        uint64_t total = 0;
        for (const Map& map : of_core) {
            for (const auto& segment : map) total += boost::icl::length(segment.first);
        }
        return total;
    }
};
#endif

}  // namespace

extern "C" {

int peer_has_icl() {
#if defined(WITH_ICL)
    return 1;
#else
    return 0;
#endif
}

void* peer_new(int kind, uint32_t cores, uint32_t words, const uint64_t* first, const uint32_t* begin, const uint32_t* end,
               const uint32_t* mask_of, const uint64_t* masks) {
    const Workload work{cores, words, first, begin, end, mask_of, masks};
    if (kind == 0) return new Recompute(work);
#if defined(WITH_ICL)
    if (kind == 1) return new Icl(work);
#endif
    return nullptr;
}

void peer_free(void* engine) { delete static_cast<Engine*>(engine); }

// Load programs [low, high); return how many were loaded before the time was over.
uint64_t peer_load(void* engine, uint64_t low, uint64_t high, uint64_t limit_ns) {
    const uint64_t begin = now_ns();
    for (uint64_t program = low; program < high; ++program) {
        static_cast<Engine*>(engine)->load(program);
        if (program % 32 == 31 && now_ns() - begin > limit_ns) return program + 1 - low;
    }
    return high - low;
}

uint64_t peer_add(void* engine, uint64_t low, uint64_t high) {
    const uint64_t begin = now_ns();
    for (uint64_t program = low; program < high; ++program) static_cast<Engine*>(engine)->add(program);
    return now_ns() - begin;
}

uint64_t peer_remove(void* engine, uint64_t low, uint64_t high) {
    const uint64_t begin = now_ns();
    for (uint64_t program = low; program < high; ++program) static_cast<Engine*>(engine)->remove(program);
    return now_ns() - begin;
}

uint64_t peer_physical(void* engine) { return static_cast<Engine*>(engine)->physical(); }
}
