"""The latch's memory order is right, also where processors reorder: every execution of a small model of it is tried.

The model: a writer's stores reach memory in any order that its releases and fences leave open (and that of one word), a
reader's loads happen in any order that its fences leave open, and both interleave freely. A reader may guess which
image it will be told to take, as a processor may. Two words an image, two updates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import ttmem

WORDS = 2
SEQ = ("seq", 0)
Place = tuple[str, int]


@dataclass(frozen=True)
class Store:
    """A store of the writer; with ``release`` all earlier stores reach memory before it."""

    place: Place
    value: int
    release: bool = False


@dataclass(frozen=True)
class Load:
    """A load of the reader."""

    place: Place


FENCE = "fence"
Operation = Store | Load | str


def writer(updates: int, without: str = "") -> list[Operation]:
    """Return what DeviceBlock.commit does, in the order of the program, for so many updates."""
    operations: list[Operation] = []
    for version in range(1, updates + 1):
        for side in range(2):
            release = f"release of side {side}" != without
            operations.append(Store(SEQ, 2 * (version - 1) + 1 + side, release))
            if f"fence of side {side}" != without:
                operations.append(FENCE)
            operations += [Store((f"image {side}", word), version) for word in range(WORDS)]
    return operations


def reader(side: int, without: str = "") -> list[Operation]:
    """Return what BlockReading.read_images does to take an image, in the order of the program."""
    operations: list[Operation] = [Load(SEQ)]
    if without != "first fence of the reader":
        operations.append(FENCE)
    operations += [Load((f"image {side}", word)) for word in range(WORDS)]
    if without != "second fence of the reader":
        operations.append(FENCE)
    operations.append(Load(SEQ))
    return operations


def constraints(operations: list[Operation]) -> tuple[list[Store | Load], list[int]]:
    """Return the stores or loads, and for each the bits of those that must have happened before it."""
    events: list[Store | Load] = []
    before: list[int] = []
    fenced = 0
    for operation in operations:
        if isinstance(operation, str):
            fenced = (1 << len(events)) - 1
            continue
        needed = fenced
        if isinstance(operation, Store) and operation.release:
            needed = (1 << len(events)) - 1
        for index, earlier in enumerate(events):
            if earlier.place == operation.place:
                needed |= 1 << index
        events.append(operation)
        before.append(needed)
    return events, before


def outcomes(stores: list[Operation], loads: list[Operation]) -> tuple[set[tuple[int, ...]], int]:
    """Return every tuple of values that the loads can have, and how many states there were."""
    written, written_before = constraints(stores)
    read, read_before = constraints(loads)
    unread = -1
    start = (0, (unread,) * len(read))
    seen = {start}
    waiting = [start]
    found = set()
    while waiting:
        done, values = waiting.pop()
        following = []
        for index in range(len(written)):
            if not done >> index & 1 and written_before[index] & ~done == 0:
                following.append((done | 1 << index, values))
        have = sum(1 << index for index, value in enumerate(values) if value != unread)
        for index, load in enumerate(read):
            if not have >> index & 1 and read_before[index] & ~have == 0:
                # A word's stores happen in their order: the newest that did is what memory holds.
                value = 0
                for number, store in enumerate(written):
                    if done >> number & 1 and store.place == load.place and isinstance(store, Store):
                        value = store.value
                following.append((done, (*values[:index], value, *values[index + 1 :])))
        if unread not in values:
            found.add(values)
            continue
        for state in following:
            if state not in seen:
                seen.add(state)
                waiting.append(state)
    return found, len(seen)


def wrong_readings(updates: int, without: str = "") -> list[tuple[int, ...]]:
    """Return the readings that a reader would take for whole and that are not the version that ``seq`` tells."""
    wrong = []
    for side in range(2):
        found, states = outcomes(writer(updates, without), reader(side, without))
        assert states > 100
        for first, *words, second in found:
            # Otherwise the guess was wrong, or the reader tries again.
            if first & 1 == side and first == second and words != [first // 2] * WORDS:
                wrong.append((first, *words, second))
    return wrong


@pytest.mark.parametrize("updates", [1, 2, 3])
def test_every_reading_that_is_taken_is_a_whole_committed_version(updates: int) -> None:
    assert wrong_readings(updates) == []


@pytest.mark.parametrize(
    "without",
    [
        "release of side 0",
        "release of side 1",
        "fence of side 0",
        "fence of side 1",
        "first fence of the reader",
        "second fence of the reader",
    ],
)
def test_without_any_one_of_its_fences_a_torn_reading_would_be_taken(without: str) -> None:
    assert wrong_readings(2, without)


def test_readers_get_through_and_see_each_version() -> None:
    versions = set()
    for side in range(2):
        found, _ = outcomes(writer(2), reader(side))
        versions |= {first // 2 for first, *_, second in found if first == second and first & 1 == side}
    assert versions == {0, 1, 2}


SOURCE = Path(ttmem.__file__).parent
needs_source = pytest.mark.skipif(
    not (SOURCE / "_segment.pyx").exists(), reason="the installed package holds no .pyx files"
)


def steps(file: str, function: str, names: str) -> list[str]:
    """Return the calls of some names in a function's text, in order."""
    text = (SOURCE / file).read_text()
    start = text.index(f"cdef {function}(")
    end = re.search(r"\n    (cdef|def) |\ncdef |\ndef ", text[start + 1 :])
    body = text[start : start + 1 + end.start()] if end else text[start:]
    return re.findall(names, body)


@needs_source
def test_the_writers_code_has_the_models_order() -> None:
    found = steps("_segment.pyx", "void commit", r"for side in|ttm_latch_turn\(&self\.control\.seq|copy_words")
    assert found == ["for side in", "ttm_latch_turn(&self.control.seq", "copy_words"]
    turn = (SOURCE / "_latch.h").read_text().partition("ttm_latch_turn(uint64_t")[2].partition("}")[0]
    assert re.findall(r"ttm_\w+\(", turn) == ["ttm_store_release(", "ttm_fence_release("]
    line = (SOURCE / "_latch.h").read_text().partition("ttm_latch_commit_line(uint64_t")[2].partition("}")[0]
    found = re.findall(r"ttm_latch_turn\(|ttm_store\(image\d", line)
    assert found == ["ttm_latch_turn(", *["ttm_store(image0"] * 8, "ttm_latch_turn(", *["ttm_store(image1"] * 8]


@needs_source
def test_the_readers_code_has_the_models_order() -> None:
    found = steps("_reading.pyx", "int read_cut", r"&before, sizeof|ttm_fence_acquire|read_one|&after, sizeof")
    expected = ["&before, sizeof", "ttm_fence_acquire", "read_one", "ttm_fence_acquire", "&after, sizeof"]
    assert found == expected
