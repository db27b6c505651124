"""The names behind the ranges of a core: against a set of bytes, and what is not known is not guessed."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from made_devices import n150

from ttmem.views.address import holding_lines, render_map
from ttmem.views.holders import NAMES_MAX, PIECES_MAX, Holders
from ttmem.views.text import Screen

GRID = 4


def cb(address: int, size: int, cores: str = "{[0-0 - 7-7]}", kind: str = "circular_buffer") -> dict[str, Any]:
    return {"address": address, "size": size, "core_ranges": cores, "kind": kind}


def program(name: str, *cbs: dict[str, Any], count: int = 1, program_id: int = 1) -> dict[str, Any]:
    return {"program_id": program_id, "name": name, "count": count, "circular_buffers": list(cbs)}


def device(*programs: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**n150(), "programs": list(programs), **changes}


def test_a_range_is_cut_where_programs_end_and_names_the_largest_first() -> None:
    held = Holders(
        device(
            program("small", cb(105664, 1000), count=3),
            program("large", cb(105664, 2000), cb(107664, 3000)),
            program("elsewhere", cb(105664, 9000, "{[5-5 - 6-6]}")),
        ),
        [],
    )
    told = held.details(0, 0, {"cb_ranges": [(105664, 110664)], "l1_ranges": []})
    assert told["cb_ranges"] == [(105664, 106664, ["large", "small (3)"], 2), (106664, 110664, ["large"], 1)]
    assert [(one.name, one.size, one.count) for one in held.on(0, 0)] == [("large", 5000, 1), ("small", 1000, 3)]
    assert [one.name for one in held.on(5, 5)] == ["elsewhere", "large", "small"]


def test_programs_of_one_name_are_told_together_and_kinds_are_told() -> None:
    held = Holders(
        device(
            program("matmul", cb(105664, 1000), count=2),
            program("matmul", cb(105664, 500)),
            program("softmax", cb(105664, 1000, kind="dataflow_buffer")),
        ),
        [],
    )
    (first, second) = held.details(0, 0, {"cb_ranges": [(105664, 106664)], "l1_ranges": []})["cb_ranges"] or []
    assert first[2:] == (["matmul (3)", "softmax (dataflow buffer)"], 2)
    assert second[2:] == (["matmul (2)", "softmax (dataflow buffer)"], 2)


def test_ranges_that_a_file_does_not_tell_come_from_its_programs_and_buffers_if_all_are_known() -> None:
    buffer = {"buffer_type": "L1", "size_bytes": 64 * 4096, "address": 1400000, "size_per_bank": 4096, "num_cores": 64}
    made = device(program("a", cb(105664, 1000)), buffers=[{**buffer, "name": "weights"}])
    made["memory"]["l1"]["used_bytes"] = 64 * 4096
    none = {"cb_ranges": None, "l1_ranges": None}
    told = Holders(made).details(3, 3, none)
    assert told == {
        "cb_ranges": [(105664, 106664, ["a"], 1)],
        "l1_ranges": [(1400000, 1404096, ["weights"], 1)],
    }
    assert "L1 buffer: weights" in render_map(made, (3, 3), told, Screen(width=120))
    made["memory"]["l1"]["used_bytes"] += 1
    assert Holders(made).details(3, 3, none)["l1_ranges"] is None
    for unknown in (
        {"programs_omitted": 1},
        {"programs": [*made["programs"], {**program("b"), "circular_buffers": None}]},
    ):
        assert Holders({**made, **unknown}).details(3, 3, none)["cb_ranges"] is None


def test_buffers_at_one_address_are_all_told_whoever_made_them() -> None:
    def row(name: str, num_cores: int) -> dict[str, Any]:
        place = {"buffer_type": 1, "size_bytes": 64 * 4096, "address": 1400000, "size_per_bank": 4096}
        return {**place, "name": name, "num_cores": num_cores}

    def told(*rows: dict[str, Any]) -> Any:
        held = Holders(device(), list(rows)).details(0, 0, {"cb_ranges": [], "l1_ranges": [[1400000, 1404096]]})
        text = render_map(n150(), (0, 0), held, Screen(width=120))
        (line,) = [line for line in text.split("\n") if "L1 buffer" in line]
        return line.split("L1 buffer")[1]

    assert told(row("weights0", 64), row("weights1", 64)) == ": weights0, weights1"
    assert told(row("weights", 64), row("weights", 64)) == ": weights (2)"
    # Of a writer that does not know the grid, and one that gave no name.
    assert told(row("weights0", 1024), row("weights1", 64)) == ": weights0, weights1"
    assert told(row("", 64), row("weights1", 64)) == ": weights1 and 1 more"
    assert told(row("weights0", 32), row("weights1", 64)) == ": weights1, weights0 (on 32 cores)"
    assert told(row("", 64), row("", 64)) == ""


def test_what_names_no_cores_or_no_place_lies_nowhere() -> None:
    broken = [cb(105664, 1000, "here"), {"address": None, "size": 4, "core_ranges": "{}"}, cb(-1, 2), {"size": 3}]
    held = Holders(device(program("odd", *broken)), [])
    assert held.on(0, 0) == []
    assert held.details(0, 0, {"cb_ranges": [(1, 2)], "l1_ranges": []})["cb_ranges"] == [(1, 2, [], 0)]


def test_many_programs_neither_cut_a_range_to_pieces_nor_fill_the_screen() -> None:
    made = device(*(program(f"op{i:03}", cb(105664, 1000 + i)) for i in range(200)))
    held = Holders(made, [])
    told = held.details(0, 0, {"cb_ranges": [(105664, 106863)], "l1_ranges": []})
    pieces = told["cb_ranges"] or []
    assert len(pieces) == PIECES_MAX
    assert pieces[0][:2] == (105664, 106664)
    assert (len(pieces[0][2]), pieces[0][3]) == (NAMES_MAX, 200)
    assert pieces[0][2][0] == "op199"
    text = render_map(made, (0, 0), told, Screen(width=80), holdings=held.on(0, 0))
    assert len(text.splitlines()) < 40
    assert "200 cached programs with CBs here, largest first" in text
    assert "and 189 more" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert len(holding_lines(held.on(0, 0), Screen(), limit=5)) == 5


def test_on_a_narrow_screen_names_come_before_the_ends_of_ranges() -> None:
    made = device(program("softmax", cb(105664, 4096)))
    held = Holders(made, [])
    told = held.details(0, 0, {"cb_ranges": [(105664, 109760)], "l1_ranges": []})
    narrow, wide = (render_map(made, (0, 0), told, Screen(width), holdings=held.on(0, 0)) for width in (44, 80))
    assert "0x019cc0      4.0 KiB  █ CB: softmax" in narrow
    assert "0x019cc0  0x01acc0      4.0 KiB  █ CB: softmax" in wide
    assert all(len(line) <= 44 for line in narrow.splitlines())


def test_programs_that_take_the_same_are_one_line() -> None:
    rows = [program("norm", cb(105664, 4096), program_id=i, count=2) for i in range(3)]
    ((one),) = Holders(device(*rows), []).on(1, 1)
    assert (one.name, one.count, one.size) == ("norm", 6, 4096)


rectangles = st.tuples(*[st.integers(0, GRID - 1)] * 4).map(
    lambda c: f"[{min(c[0], c[2])}-{min(c[1], c[3])} - {max(c[0], c[2])}-{max(c[1], c[3])}]"
)
cbs = st.builds(lambda a, s, r: cb(a, s, f"{{{r}}}"), st.integers(0, 40), st.integers(1, 20), rectangles)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(cbs, min_size=1, max_size=4), max_size=6), st.integers(0, GRID - 1), st.integers(0, GRID - 1))
def test_every_byte_is_named_by_those_who_reach_over_it(programs: list[list[dict[str, Any]]], x: int, y: int) -> None:
    rows = [program(f"p{i}", *found, program_id=i) for i, found in enumerate(programs)]

    def here(one: dict[str, Any]) -> bool:
        x0, y0, x1, y1 = (int(c) for c in one["core_ranges"].strip("{[]}").replace(" ", "").split("-"))
        return x0 <= x <= x1 and y0 <= y <= y1

    bytes_of: dict[str, set[int]] = {row["name"]: set() for row in rows}
    for row in rows:
        for one in filter(here, row["circular_buffers"]):
            bytes_of[row["name"]] |= set(range(one["address"], one["address"] + one["size"]))
    union = set().union(*bytes_of.values())
    held = Holders(device(*rows), [])
    assert {one.name: one.size for one in held.on(x, y)} == {
        name: len(found) for name, found in bytes_of.items() if found
    }
    told = held.details(x, y, {"cb_ranges": None, "l1_ranges": []})["cb_ranges"] or []
    assert {a for begin, end, _, _ in told for a in range(begin, end)} == union
    for begin, end, names, total in told:
        behind = {name for name, found in bytes_of.items() if found & set(range(begin, end))}
        assert set(names) == behind
        assert total == len(behind)
