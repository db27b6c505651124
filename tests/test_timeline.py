"""The figures over time that the page holds: peaks survive whatever is joined, and absent is not 0."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from made_devices import TAKEN_NS

from ttmem.views import timeline as module
from ttmem.views.timeline import SERIES, Timeline

CB = [name for name, _ in SERIES].index("CB")


def device(device_id: int, cb: int | None) -> dict[str, Any]:
    return {"device_id": device_id, "asic_id": None, "memory": {"cb": {"physical_bytes": cb}}}


def unrolled(told: dict[str, Any], device_id: int) -> list[int | None]:
    (line,) = (one for one in told["devices"] if one["device_id"] == device_id)
    runs = told["lists"][line["series"][CB]]
    return [value for value, count in zip(runs[::2], runs[1::2], strict=True) for _ in range(count)]


def test_moments_stand_as_they_were_while_there_is_room() -> None:
    made = Timeline()
    for i, cb in enumerate([5, 5, 0, None, 7]):
        made.add(TAKEN_NS + i * 1_500_000, [device(0, cb)])
    told = made.to_dict()
    assert told is not None
    assert unrolled(told, 0) == [5, 5, 0, None, 7]
    assert told["ms"] == [0, 1.5, 3, 4.5, 6]
    assert (told["moments"], told["step"], made.fullest_index) == (5, 1, 4)


def test_one_moment_is_no_timeline() -> None:
    made = Timeline()
    made.add(TAKEN_NS, [device(0, 1)])
    assert made.to_dict() is None


def test_a_device_that_comes_late_and_leaves_early_has_no_value_before_and_after() -> None:
    made = Timeline()
    for i in range(6):
        made.add(TAKEN_NS + i, [device(0, i), *([device(1, 9)] if 2 <= i < 4 else [])])
    told = made.to_dict()
    assert told is not None
    assert unrolled(told, 1) == [None, None, 9, 9, None, None]


def test_chips_in_step_share_their_series() -> None:
    made = Timeline()
    for i in range(100):
        made.add(TAKEN_NS + i, [device(number, i * i) for number in range(32)])
    told = made.to_dict()
    assert told is not None
    assert len({line["series"][CB] for line in told["devices"]}) == 1
    assert len(told["lists"]) == 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.none() | st.integers(0, 9)] * 3), min_size=2, max_size=200), st.data())
def test_what_is_joined_is_the_highest_of_its_stretch(
    moments: list[tuple[int | None, ...]], data: st.DataObject
) -> None:
    most = data.draw(st.integers(2, 40))
    before = module._LEAST, module.POINTS_MAX
    module._LEAST, module.POINTS_MAX = most, 1
    try:
        made = Timeline()
        for i, values in enumerate(moments):
            # None: the device is not there.
            made.add(
                TAKEN_NS + i * 1_000_000, [device(n, value) for n, value in enumerate(values) if value is not None]
            )
    finally:
        module._LEAST, module.POINTS_MAX = before
    told = made.to_dict()
    assert told is not None
    step = told["step"]
    assert len(told["ms"]) <= most or step == 1
    assert told["ms"] == [float(i) for i in range(0, len(moments), step)]
    for number in {line["device_id"] for line in told["devices"]}:
        column = [values[number] for values in moments]
        stretches = [column[i : i + step] for i in range(0, len(column), step)]
        assert unrolled(told, number) == [
            max((value for value in stretch if value is not None), default=None) for stretch in stretches
        ]
    sums = [sum(value or 0 for value in values) for values in moments]
    assert made.fullest_index == sums.index(max(sums))


def test_an_hour_keeps_its_peak_and_stays_small() -> None:
    made = Timeline()
    for i in range(36_000):
        made.add(TAKEN_NS + i * 100_000_000, [device(0, 10**9 if i == 20_001 else i % 97)])
    told = made.to_dict()
    assert told is not None
    assert len(told["ms"]) <= module.POINTS_MAX
    assert max(value or 0 for value in unrolled(told, 0)) == 10**9
    assert told["moments"] == 36_000
