"""Guards on the work of the interval engine: nodes and classes touched, which no machine's speed can hide.

Each claim is about one operation with few and with many programs cached.
"""

from __future__ import annotations

import random

import pytest

from ttmem._engine import IntervalEngine

BASE, LIMIT = 105664, 1499136
WORST_PER_RANGE = 1 + 2 * 3
"""The top of a cover, and a page, a kib and a cell at each end of a range."""


def full(engine: IntervalEngine) -> int:
    return (1 << engine.width * engine.height) - 1


def stacked(rng: random.Random, engine: IntervalEngine, tile: int, count: int = 4):
    program, address = [], BASE
    for _ in range(count):
        size = tile * rng.randint(1, 300000 // tile // count)
        program.append((address, address + size, full(engine)))
        address += size
    return program


def scattered(rng: random.Random, engine: IntervalEngine, tile: int, count: int = 4):
    """Unaligned ranges, each on a random rectangle: every footprint and in the end every core is different."""
    program = []
    for _ in range(count):
        x = sorted(rng.choices(range(engine.width), k=2))
        y = sorted(rng.choices(range(engine.height), k=2))
        mask = sum(1 << j * engine.width + i for i in range(x[0], x[1] + 1) for j in range(y[0], y[1] + 1))
        begin = rng.randrange(BASE, LIMIT - 100000)
        program.append((begin, begin + rng.randrange(1, 100000), mask))
    return program


def staircase(rng: random.Random, engine: IntervalEngine, tile: int, count: int = 4):
    begin = BASE + 4 * rng.randrange(100000)
    return [(begin, LIMIT - (begin - BASE), full(engine))]


def comb(rng: random.Random, engine: IntervalEngine, tile: int, count: int = 4):
    begin = BASE + 64 * rng.randrange(20000)
    return [(begin + 4096 * tooth, begin + 4096 * tooth + 20, full(engine)) for tooth in range(count)]


def mean_work(make, cached: int, grid: tuple[int, int]) -> tuple[float, float, int]:
    """Return the mean work of adding and of removing 64 unseen programs, and the classes, with `cached` there."""
    engine = IntervalEngine(*grid)
    rng = random.Random(7)
    for _ in range(cached):
        engine.add(engine.footprint(make(rng, engine, 32)))
    unseen = [engine.footprint(make(rng, engine, 32)) for _ in range(64)]
    before = engine.work
    for footprint in unseen:
        engine.add(footprint)
    between = engine.work
    for footprint in unseen:
        engine.remove(footprint)
    return (between - before) / 64, (engine.work - between) / 64, engine.num_classes


@pytest.mark.parametrize("make", [stacked, staircase, comb])
@pytest.mark.parametrize("grid", [(8, 8), (13, 10)])
def test_a_program_on_all_cores_costs_the_same_for_any_number_of_programs(make, grid):
    few = mean_work(make, 1, grid)
    many = mean_work(make, 4096, grid)
    assert few[2] == many[2] == 1
    for before, after in zip(few[:2], many[:2], strict=True):
        assert after <= before
        assert after <= 4 * WORST_PER_RANGE + 4


def test_scattered_rectangles_cost_the_same_for_256_and_4096_programs():
    few = mean_work(scattered, 256, (8, 8))
    many = mean_work(scattered, 4096, (8, 8))
    assert few[2] == many[2] == 64
    for before, after in zip(few[:2], many[:2], strict=True):
        assert after <= 1.1 * before
        assert after <= 4 * 64 * (WORST_PER_RANGE + 3)


@pytest.mark.parametrize("make", [stacked, scattered])
def test_a_known_footprint_touches_no_cover(make):
    engine = IntervalEngine(8, 8)
    rng = random.Random(3)
    for _ in range(512):
        engine.add(engine.footprint(make(rng, engine, 2048)))
    known = engine.footprint(make(rng, engine, 2048))
    engine.add(known)
    engine.changes()
    before = engine.work
    engine.add(known)
    changed, moved, laid_down = engine.changes()
    assert engine.work - before <= 4 * engine.num_classes
    engine.remove(known)
    assert engine.work - before <= 8 * engine.num_classes
    assert not moved
    assert not laid_down
    assert set(changed.values()) <= {1}


def test_preparing_a_known_list_takes_no_memory():
    engine = IntervalEngine(8, 8)
    program = stacked(random.Random(1), engine, 2048)
    first = engine.footprint(program)
    before = engine.memory_bytes
    others = [engine.footprint(program) for _ in range(100)]
    for footprint in others:
        engine.add(footprint)
    assert engine.memory_bytes - before <= 16384
    between = engine.memory_bytes
    for footprint in others:
        engine.add(footprint)
    assert engine.memory_bytes == between
    del first


def test_alternating_dispatches_touch_the_layers_and_nothing_else():
    engine = IntervalEngine(13, 10)
    left, right = (engine.footprint([(0, 64, mask)]) for mask in ((1 << 65) - 1, ((1 << 65) - 1) << 65))
    everywhere = engine.footprint([(0, 100, full(engine))])
    engine.dispatch(left)
    before = engine.work
    for _ in range(100):
        engine.dispatch(left)
    assert engine.work == before
    for _ in range(100):
        engine.dispatch(right)
        engine.dispatch(left)
    assert engine.work - before <= 400
    before = engine.work
    for _ in range(100):
        engine.dispatch(everywhere)
    assert engine.work - before <= 2


def test_splits_and_joins_in_turn_copy_a_cover_only_now_and_then():
    engine = IntervalEngine(8, 8)
    rng = random.Random(5)
    for _ in range(64):
        engine.add(engine.footprint(stacked(rng, engine, 32)))
    half = engine.footprint([(BASE, BASE + 64, full(engine) >> 32)])
    engine.add(half)
    engine.remove(half)
    before = engine.work
    for _ in range(100):
        engine.add(half)
        engine.remove(half)
    assert (engine.work - before) / 200 <= 200
