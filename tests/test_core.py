"""The interval engine against the dumbest model: a set of bytes per core, rebuilt from the live programs.

The set is an int with a bit per byte; nothing is shared with the engine.
"""

from __future__ import annotations

import gc
import random
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from ttmem._engine import IntervalEngine
from ttmem.cores import CoreRange
from ttmem.errors import InvalidIntervalError, UnknownIdError

WIDTH, HEIGHT = 3, 2
NUM_CORES = WIDTH * HEIGHT
ALL = (1 << NUM_CORES) - 1
LIMIT = 3 * 65536 + 1000
SEAMS = (1, 16, 1024, 65536)

Cb = tuple[int, int, int]
Program = tuple[Cb, ...]


def bytes_of(program: Program, core: int) -> int:
    """The set of bytes that a program covers on a core."""
    covered = 0
    for begin, end, mask in program:
        if mask >> core & 1:
            covered |= (1 << end) - (1 << begin)
    return covered


def cores_of(program: Program) -> int:
    cores = 0
    for _, _, mask in program:
        cores |= mask
    return cores


def ranges_of(covered: int) -> list[tuple[int, int]]:
    found = []
    end = 0
    while covered >> end:
        rest = covered >> end
        begin = end + (rest & -rest).bit_length() - 1
        rest = ~(covered >> begin)
        end = begin + (rest & -rest).bit_length() - 1
        found.append((begin, end))
    return found


addresses = st.one_of(
    st.integers(0, LIMIT),
    st.builds(
        lambda seam, k, delta: min(LIMIT, max(0, seam * k + delta)),
        st.sampled_from(SEAMS),
        st.integers(0, 70),
        st.integers(-17, 17),
    ),
)
masks = st.one_of(st.just(ALL), st.integers(0, ALL), st.integers(0, NUM_CORES - 1).map(lambda core: 1 << core))
cbs = st.builds(lambda a, b, mask: (min(a, b), max(a, b), mask), addresses, addresses, masks)
programs = st.lists(cbs, max_size=5).map(tuple)


def logical_of(program: Program) -> int:
    return sum((end - begin) * mask.bit_count() for begin, end, mask in program)


class EngineAgainstBytes(RuleBasedStateMachine):
    """Any sequence of operations leaves the figures that the model has."""

    footprints = Bundle("footprints")
    live = Bundle("live")

    def __init__(self) -> None:
        super().__init__()
        self.engine = IntervalEngine(WIDTH, HEIGHT, limit=LIMIT, hash_bits=2)
        self.live_programs: list[Program] = []
        self.resident = [0] * NUM_CORES
        self.peaks = [0] * NUM_CORES

    def covered(self, core: int, *more: Program) -> int:
        covered = 0
        for program in (*self.live_programs, *more):
            covered |= bytes_of(program, core)
        return covered

    def note_peaks(self, *more: Program) -> None:
        for core in range(NUM_CORES):
            self.peaks[core] = max(self.peaks[core], self.covered(core, *more).bit_count())

    @rule(target=footprints, program=programs)
    def prepare(self, program: Program):
        prepared = self.engine.footprint(program)
        assert prepared.num_cores == cores_of(program).bit_count()
        assert prepared.bytes_per_core == max(
            sum(end - begin for begin, end, mask in program if mask >> core & 1) for core in range(NUM_CORES)
        )
        assert prepared.region_end == max((e for b, e, mask in program if e > b and mask), default=0)
        assert prepared.logical_bytes == logical_of(program)
        assert prepared.resident_bytes == sum(bytes_of(program, core).bit_count() for core in range(NUM_CORES))
        return program, prepared

    @rule(target=footprints, item=footprints, seam=st.sampled_from(SEAMS))
    def shift(self, item, seam: int):
        program = tuple((min(b + seam, LIMIT), min(e + seam, LIMIT), mask) for b, e, mask in item[0])
        return program, self.engine.footprint(program)

    @rule(target=live, item=footprints)
    def add(self, item):
        self.engine.add(item[1])
        self.live_programs.append(item[0])
        self.note_peaks()
        return item

    @rule()
    def reset_the_peaks(self):
        self.engine.reset_peaks()
        self.peaks = [0] * NUM_CORES
        self.note_peaks()

    @rule(target=live, item=footprints)
    def add_an_equal_list_in_another_order(self, item):
        prepared = self.engine.footprint(reversed(item[0]))
        self.engine.add(prepared)
        self.live_programs.append(item[0])
        self.note_peaks()
        return item

    @rule(item=consumes(live))
    def remove(self, item):
        self.engine.remove(item[1])
        self.live_programs.remove(item[0])

    @rule(item=footprints)
    def dispatch(self, item):
        self.engine.dispatch(item[1])
        for core in range(NUM_CORES):
            if cores_of(item[0]) >> core & 1:
                self.resident[core] = bytes_of(item[0], core).bit_count()

    @rule(items=st.lists(footprints, max_size=3))
    def replay_a_trace(self, items):
        self.engine.dispatch(self.engine.peak([prepared for _, prepared in items]))
        for core in range(NUM_CORES):
            touching = [program for program, _ in items if cores_of(program) >> core & 1]
            if touching:
                self.resident[core] = max(bytes_of(program, core).bit_count() for program in touching)

    @rule(item=footprints, allocations=st.integers(0, 40))
    def add_with_little_memory(self, item, allocations: int):
        self.engine.fail_after(allocations)
        try:
            self.engine.add(item[1])
        except MemoryError:
            pass
        else:
            self.engine.remove(item[1])
            self.note_peaks(item[0])
        finally:
            self.engine.fail_after(None)

    @rule(target=footprints, item=consumes(footprints))
    def forget(self, item):
        return multiple()

    @rule()
    def fail(self):
        for bad in [(5, 4, 1), (-1, 4, 1), (0, LIMIT + 1, 1), (0, 1, 1 << NUM_CORES), (0, 1, -1)]:
            with pytest.raises(InvalidIntervalError):
                self.engine.footprint([(0, 10, ALL), bad])

    @invariant()
    def figures_are_the_models(self):
        engine = self.engine
        engine.check()
        total = 0
        for core in range(NUM_CORES):
            covered = self.covered(core)
            physical = covered.bit_count()
            assert engine.core_peak(core % WIDTH, core // WIDTH) == self.peaks[core]
            total += physical
            ranges = ranges_of(covered)
            assert engine.core_physical(core) == physical
            assert engine.core_ranges(core) == ranges
            assert engine.core_ranges(core, 2) == ranges[:2]
            assert engine.core_region_end(core) == covered.bit_length()
            assert engine.core_lowest(core) == (ranges[0][0] if ranges else None)
            assert engine.core_logical(core) == sum(
                end - begin for program in self.live_programs for begin, end, mask in program if mask >> core & 1
            )
            assert engine.core_resident(core) == self.resident[core]
        assert engine.physical_bytes == total
        assert engine.logical_bytes == sum(logical_of(program) for program in self.live_programs)
        assert engine.resident_bytes == sum(self.resident)
        assert 1 <= engine.num_classes <= NUM_CORES

    @invariant()
    def what_changed_was_announced(self):
        now = {
            self.engine.class_of(core): (
                self.engine.core_physical(core),
                self.engine.core_logical(core),
                tuple(self.engine.core_ranges(core)),
                self.engine.peak_parts(core)[0],
            )
            for core in range(NUM_CORES)
        }
        floors = [self.engine.peak_parts(core)[1] for core in range(NUM_CORES)]
        slots = [self.engine.class_of(core) for core in range(NUM_CORES)]
        before, slots_before, floors_before = getattr(self, "announced", (None, None, None))
        changed, moved, laid_down = self.engine.changes()
        self.announced = now, slots, floors
        if before is None:
            return
        assert moved or slots == slots_before
        assert laid_down or floors == floors_before
        for slot, figures in now.items():
            if slot not in before or before[slot] != figures:
                assert slot in changed
            if slot not in before or before[slot][2] != figures[2]:
                assert changed[slot] == 2

    def teardown(self):
        for item in self.live_programs[:]:
            self.engine.remove(self.engine.footprint(item))
        assert self.engine.num_classes == 1
        assert self.engine.physical_bytes == self.engine.logical_bytes == 0
        self.engine.check()


TestEngineAgainstBytes = EngineAgainstBytes.TestCase
TestEngineAgainstBytes.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


def engine_of(*live: Program, hash_bits: int = 64) -> IntervalEngine:
    engine = IntervalEngine(WIDTH, HEIGHT, limit=LIMIT, hash_bits=hash_bits)
    for program in live:
        engine.add(engine.footprint(program))
    return engine


def figures(engine: IntervalEngine) -> list[object]:
    per_core = [
        (
            engine.core_ranges(core),
            engine.core_logical(core),
            engine.core_resident(core),
            engine.core_peak(core % WIDTH, core // WIDTH),
        )
        for core in range(NUM_CORES)
    ]
    return [engine.physical_bytes, engine.logical_bytes, engine.resident_bytes, per_core]


def crowd(chance: random.Random, positions: int, base: int) -> list[Program]:
    """Programs whose ranges begin and end at that many positions of one KiB."""
    places = [base + place for place in chance.sample(range(1, 1024), positions)]
    made = []
    for _ in range(3 * positions):
        begin, end = sorted((chance.choice(places), chance.choice([*places, base, base + 1024, base + 5000])))
        if begin < end:
            made.append(((begin, end, chance.choice((1, ALL))),))
    return made


@pytest.mark.parametrize("positions", [6, 14, 20, 47, 120, 1000])
@pytest.mark.parametrize("base", [0, 64512, 2048])
def test_any_number_of_ends_in_one_kib_comes_and_goes(positions: int, base: int):
    chance = random.Random(positions + base)
    engine = IntervalEngine(WIDTH, HEIGHT, limit=LIMIT)
    live = crowd(chance, positions, base)
    whole = ((base, base + 1024, ALL),)
    for program in live:
        engine.add(engine.footprint(program))
    for step, program in enumerate(chance.sample(live, len(live))):
        engine.remove(engine.footprint(program))
        live.remove(program)
        if step % 7 == 0:
            engine.add(engine.footprint(whole))
        if step % 7 == 3:
            engine.remove(engine.footprint(whole))
        if step % (1 + len(live) // 8) == 0:
            present = [*live, whole] if step % 7 < 3 else live
            for core in (0, NUM_CORES - 1):
                covered = 0
                for one in present:
                    covered |= bytes_of(one, core)
                assert engine.core_physical(core) == covered.bit_count()
                assert engine.core_ranges(core) == ranges_of(covered)
                assert engine.core_region_end(core) == covered.bit_length()
                assert engine.core_lowest(core) == (ranges_of(covered)[0][0] if covered else None)
    if step % 7 < 3:
        engine.remove(engine.footprint(whole))
    assert engine.physical_bytes == 0
    assert engine.num_classes == 1
    engine.check()


def test_thousands_of_ranges_that_begin_at_one_byte_are_counted_one_by_one():
    engine = IntervalEngine(1, 1, limit=LIMIT)
    empty = engine.memory_bytes
    prepared = [engine.footprint([(5, 2000 + 4 * number, 1)]) for number in range(2500)]
    prepared += [engine.footprint([(number, 100_001, 1)]) for number in range(3000, 5500)]
    for footprint in prepared:
        engine.add(footprint)
    assert engine.core_ranges(0) == [(5, 100_001)]
    for left in range(2499, -1, -1):
        engine.remove(prepared[left])
        # The longest of those that are left reaches those that begin at 3000 while it ends there or beyond.
        assert engine.core_lowest(0) == (5 if left else 3000)
        assert engine.physical_bytes == 100_001 - 3000 + (min(2000 + 4 * (left - 1), 3000) - 5 if left else 0)
    assert engine.core_ranges(0) == [(3000, 100_001)]
    for footprint in prepared[2500:]:
        engine.remove(footprint)
    engine.check()
    prepared.clear()
    del footprint
    assert engine.memory_bytes == empty


def test_two_programs_that_overlap_count_their_common_bytes_once():
    engine = engine_of(((100, 200, ALL),), ((150, 250, 0b1),))
    assert engine.physical_bytes == 100 * NUM_CORES + 50
    assert engine.logical_bytes == 100 * NUM_CORES + 100
    assert engine.core_ranges(0) == [(100, 250)]
    assert engine.core_ranges(1) == [(100, 200)]
    assert engine.num_classes == 2


def test_touching_ranges_merge_and_a_gap_of_one_byte_does_not():
    engine = engine_of(((10, 20, 1), (20, 30, 1), (31, 40, 1)))
    assert engine.core_ranges(0) == [(10, 30), (31, 40)]


@given(st.lists(programs, max_size=4), programs)
@settings(max_examples=60, deadline=None)
def test_adding_and_removing_a_program_restores_everything(live: list[Program], program: Program):
    engine = engine_of(*live)
    engine.reset_peaks()
    before = figures(engine)
    prepared = engine.footprint(program)
    engine.add(prepared)
    engine.add(prepared)
    engine.remove(prepared)
    engine.remove(prepared)
    engine.reset_peaks()
    assert figures(engine) == before
    engine.check()


@given(st.lists(programs, max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_removing_all_programs_in_any_order_gives_all_memory_back(live: list[Program], order):
    engine = IntervalEngine(WIDTH, HEIGHT, limit=LIMIT)
    empty = engine.memory_bytes
    prepared = [engine.footprint(program) for program in live]
    for footprint in prepared:
        engine.add(footprint)
    order.shuffle(prepared)
    while prepared:
        engine.remove(prepared.pop())
    del live
    footprint = None
    assert footprint is None
    assert engine.num_classes == 1
    assert engine.physical_bytes == engine.logical_bytes == 0
    assert engine.memory_bytes == empty


@given(st.lists(programs, max_size=5), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_programs_makes_no_difference(live: list[Program], order):
    shuffled = live[:]
    order.shuffle(shuffled)
    assert figures(engine_of(*live)) == figures(engine_of(*shuffled, hash_bits=0))


@given(programs)
@settings(max_examples=60, deadline=None)
def test_a_duplicate_leaves_physical_and_doubles_logical(program: Program):
    once, twice = engine_of(program), engine_of(program, program)
    assert once.physical_bytes == twice.physical_bytes
    assert 2 * once.logical_bytes == twice.logical_bytes


@given(programs, st.data())
@settings(max_examples=60, deadline=None)
def test_dividing_a_range_or_a_core_set_in_two_changes_no_figure(program: Program, data):
    pieces = []
    for begin, end, mask in program:
        middle = data.draw(st.integers(begin, end))
        some = data.draw(st.integers(0, ALL)) & mask
        pieces += [(b, e, m) for b, e in ((begin, middle), (middle, end)) for m in (some, mask & ~some)]
    whole, divided = engine_of(program), engine_of(tuple(pieces))
    whole.dispatch(whole.footprint(program))
    divided.dispatch(divided.footprint(pieces))
    assert figures(whole) == figures(divided)


@given(programs, programs)
@settings(max_examples=60, deadline=None)
def test_inclusion_and_exclusion_hold(one: Program, other: Program):
    common = sum((bytes_of(one, core) & bytes_of(other, core)).bit_count() for core in range(NUM_CORES))
    both = engine_of(one, other).physical_bytes
    assert both == engine_of(one).physical_bytes + engine_of(other).physical_bytes - common


@given(programs, st.permutations(range(NUM_CORES)))
@settings(max_examples=40, deadline=None)
def test_permuting_the_cores_permutes_the_figures(program: Program, to: list[int]):
    moved = tuple((b, e, sum(1 << to[c] for c in range(NUM_CORES) if mask >> c & 1)) for b, e, mask in program)
    engine, other = engine_of(program), engine_of(moved)
    assert [engine.core_ranges(c) for c in range(NUM_CORES)] == [other.core_ranges(to[c]) for c in range(NUM_CORES)]
    assert engine.num_classes == other.num_classes


@pytest.mark.parametrize("seam", SEAMS)
@given(live=st.lists(st.lists(cbs, max_size=3).map(tuple), max_size=3))
@settings(max_examples=20, deadline=None)
def test_a_shift_by_the_size_of_any_level_shifts_the_ranges_only(seam: int, live: list[Program]):
    room = IntervalEngine(WIDTH, HEIGHT, limit=LIMIT + 65536)
    for program in live:
        room.add(room.footprint([(b + seam, e + seam, mask) for b, e, mask in program]))
    engine = engine_of(*live)
    assert room.physical_bytes == engine.physical_bytes
    for core in range(NUM_CORES):
        assert room.core_ranges(core) == [(b + seam, e + seam) for b, e in engine.core_ranges(core)]


@given(st.lists(programs, min_size=1, max_size=4), st.integers(0, 60))
@settings(max_examples=80, deadline=None)
def test_running_out_of_memory_changes_nothing(live: list[Program], allocations: int):
    engine = engine_of(*live[:-1])
    engine.reset_peaks()
    before = figures(engine)
    engine.fail_after(allocations)
    try:
        prepared = engine.footprint(live[-1])
        engine.add(prepared)
    except MemoryError:
        assert figures(engine) == before
    else:
        peaks = [engine.core_peak(core % WIDTH, core // WIDTH) for core in range(NUM_CORES)]
        assert peaks == [engine.core_physical(core) for core in range(NUM_CORES)]
        fresh = engine_of(*live)
        fresh.reset_peaks()
        assert figures(engine) == figures(fresh)
    engine.fail_after(None)
    engine.check()


def test_a_program_without_cbs_is_a_program():
    engine = engine_of(())
    assert engine.physical_bytes == engine.logical_bytes == 0
    engine.remove(engine.footprint([]))
    with pytest.raises(UnknownIdError):
        engine.remove(engine.footprint([]))


def test_a_part_of_a_live_program_is_not_a_program():
    engine = engine_of(((0, 10, 0b1), (0, 20, 0b10)))
    with pytest.raises(UnknownIdError):
        engine.remove(engine.footprint([(0, 10, 0b1)]))
    assert engine.physical_bytes == 30


def test_a_peak_between_two_looks_is_kept():
    engine = engine_of(((0, 10, ALL),))
    large = engine.footprint([(0, 100, 0b11)])
    engine.add(large)
    engine.remove(large)
    assert [engine.core_peak(x, 0) for x in range(WIDTH)] == [100, 100, 10]
    engine.reset_peaks()
    assert [engine.core_peak(x, y) for y in range(HEIGHT) for x in range(WIDTH)] == [10] * NUM_CORES


def test_cores_that_were_joined_keep_peaks_of_their_own():
    engine = engine_of(((0, 10, ALL),))
    apart = [engine.footprint([(0, 20 * (core + 1), 1 << core)]) for core in range(NUM_CORES)]
    for footprint in apart:
        engine.add(footprint)
        engine.remove(footprint)
    engine.add(engine.footprint([(0, 50, ALL)]))
    assert engine.num_classes == 1
    peaks = [engine.core_peak(core % WIDTH, core // WIDTH) for core in range(NUM_CORES)]
    assert peaks == [max(50, 20 * (core + 1)) for core in range(NUM_CORES)]


@pytest.mark.parametrize("core", [(WIDTH, 0), (0, HEIGHT), (-1, 0), (0, -1)])
def test_the_peak_of_a_core_outside_the_grid_is_refused(core: tuple[int, int]):
    with pytest.raises(InvalidIntervalError, match="outside the grid of 3 x 2"):
        engine_of().core_peak(*core)


def test_a_zero_length_range_takes_its_cores_at_dispatch():
    engine = IntervalEngine(WIDTH, HEIGHT)
    engine.dispatch(engine.footprint([(0, 10, ALL)]))
    engine.dispatch(engine.footprint([(0, 0, 0b1)]))
    assert engine.resident_bytes == 10 * (NUM_CORES - 1)
    assert engine.core_resident(0) == 0


def test_a_removed_program_stays_resident_until_it_is_replaced():
    engine = IntervalEngine(WIDTH, HEIGHT)
    prepared = engine.footprint([(0, 10, ALL)])
    engine.add(prepared)
    engine.dispatch(prepared)
    engine.remove(prepared)
    del prepared
    assert (engine.physical_bytes, engine.resident_bytes) == (0, 10 * NUM_CORES)
    engine.dispatch(engine.footprint([(0, 4, 0b11)]))
    assert engine.resident_bytes == 10 * (NUM_CORES - 2) + 4 * 2


def test_cores_are_named_by_mask_or_by_core_ranges():
    engine = IntervalEngine(WIDTH, HEIGHT)
    engine.add(engine.footprint([(0, 10, CoreRange((1, 0), (2, 1)))]))
    assert [engine.core_physical(core) for core in range(NUM_CORES)] == [0, 10, 10, 0, 10, 10]
    with pytest.raises(InvalidIntervalError, match="outside the grid of 3 x 2"):
        engine.footprint([(0, 10, "{[0-0 - 3-0]}")])


@pytest.mark.parametrize("grid", [(0, 1), (33, 32), (-1, -1)])
def test_a_grid_without_cores_or_with_too_many_is_refused(grid: tuple[int, int]):
    with pytest.raises(InvalidIntervalError, match="1 to 1024 cores"):
        IntervalEngine(*grid)


def test_the_largest_grid_with_a_core_set_for_each_core_works():
    engine = IntervalEngine(32, 32)
    program = [(core, core + 4, 1 << core) for core in range(1024)]
    prepared = engine.footprint(program)
    engine.add(prepared)
    assert engine.num_classes == 1024
    assert engine.core_ranges(1023) == [(1023, 1027)]
    engine.dispatch(prepared)
    assert engine.physical_bytes == engine.resident_bytes == 4096
    engine.remove(prepared)
    assert engine.num_classes == 1


@pytest.mark.parametrize("limit", [1, 15, 16, 1024, 65535, 65536, 65537, 2 * 1024 * 1024, 2**32 - 1])
def test_the_last_byte_of_any_limit_can_be_covered(limit: int):
    engine = IntervalEngine(1, 1, limit=limit)
    engine.add(engine.footprint([(limit - 1, limit, 1), (0, limit // 2, 1)]))
    assert engine.core_region_end(0) == limit
    assert engine.physical_bytes == limit // 2 + 1
    with pytest.raises(InvalidIntervalError):
        engine.footprint([(0, limit + 1, 1)])


def test_a_footprint_of_another_engine_is_unknown():
    with pytest.raises(UnknownIdError, match="another engine"):
        engine_of().add(engine_of().footprint([]))


def test_a_peak_cannot_be_added():
    engine = engine_of()
    with pytest.raises(InvalidIntervalError, match="dispatched, not added"):
        engine.add(engine.peak([]))


def test_footprints_outlive_what_named_them():
    engine = IntervalEngine(WIDTH, HEIGHT)
    prepared = engine.footprint([(0, 10, ALL)])
    engine.dispatch(engine.peak([prepared]))
    del prepared
    assert engine.resident_bytes == 10 * NUM_CORES
    del engine


def test_a_cycle_of_garbage_takes_footprints_and_engine_in_any_order():
    class Holder:
        pass

    for _ in range(10):
        holder = Holder()
        holder.me, holder.engine = holder, IntervalEngine(WIDTH, HEIGHT)
        holder.footprints = [holder.engine.footprint([(0, size, ALL)]) for size in range(5)]
        holder.peak = holder.engine.peak(holder.footprints)
        holder.engine.dispatch(holder.peak)
        holder.engine.add(holder.footprints[2])
        del holder
    assert gc.collect() > 0


def test_threads_leave_the_figures_of_their_sum():
    engine = IntervalEngine(8, 8)

    def churn(seed: int) -> None:
        for step in range(300):
            prepared = engine.footprint([(step * 32, step * 32 + 64 * seed, (1 << 64) - 1 >> seed)])
            engine.add(prepared)
            engine.dispatch(prepared)
            engine.remove(prepared)

    threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.check()
    assert engine.physical_bytes == engine.logical_bytes == 0
    assert engine.num_classes == 1
