"""Figures by name: --query, --csv, --fail-if."""

from __future__ import annotations

import csv
import io

import pytest
from made_devices import n150, stale, tt_metal

from ttmem.views.fields import (
    FIELDS,
    column_of,
    evaluate,
    find_field,
    parse_condition,
    parse_fields,
    parse_format,
    render_csv,
    render_help,
    render_query,
    value_of,
)
from ttmem.views.text import Screen


def test_a_query_prints_mib_with_one_decimal_and_a_header() -> None:
    text = render_query([n150()], parse_fields("device_id,memory.cb.physical,memory.l1.used"))
    assert text == "device_id, memory.cb.physical [MiB], memory.l1.used [MiB]\n0, 22.0 MiB, 2.2 MiB\n"


def test_nounits_prints_plain_bytes() -> None:
    header, units = parse_format("csv,noheader,nounits")
    text = render_query([n150()], parse_fields("memory.cb.physical, memory.l1.used"), header=header, units=units)
    assert text == "23101440, 2338816\n"


def test_what_is_unknown_prints_na_and_never_0() -> None:
    text = render_query([tt_metal()], list(FIELDS.values()), header=False)
    assert "0 MiB" not in text
    assert text.count("N/A") >= len(FIELDS) - 6


def test_every_field_of_a_full_device_is_the_json_figure() -> None:
    device = n150()
    for field in FIELDS.values():
        if "[" in field.path or field.path in ("grid", "warnings", "programs_omitted"):
            continue
        value: object = device
        for key in field.path.split("."):
            value = value[key]  # type: ignore[index]
        assert value_of(field, device) == value, field.name


def test_a_grid_is_printed_as_it_is_typed_and_compared() -> None:
    devices = [n150(grid={"x": 8, "y": 9}), tt_metal(1)]
    assert render_query(devices, parse_fields("device_id, grid", devices)) == "device_id, grid\n0, 8x9\n1, N/A\n"
    assert ",8x9,8,9," in render_csv(devices)
    assert evaluate(parse_condition("grid == 8x9"), devices[0])[0]
    assert not evaluate(parse_condition("grid == 8x9"), devices[1])[0]
    help_text = render_help(Screen(width=80))
    assert '"grid"\n' in help_text
    assert "grayskull" in help_text


def test_a_condition_on_a_device_without_a_number_names_its_chip() -> None:
    device = tt_metal(None, asic_id="0x5")
    assert evaluate(parse_condition("state == idle"), device)[1].startswith("device N/A (0x5): state")


def test_what_is_a_list_on_any_device_is_no_field() -> None:
    with pytest.raises(ValueError, match="unknown field 'programs'"):
        parse_fields("programs", [tt_metal(), n150()])


def test_programs_are_counted_as_everywhere_and_not_by_rows() -> None:
    field = find_field("programs.count")
    assert value_of(field, n150()) == 40
    assert value_of(field, n150(programs_omitted=7)) == 47
    assert value_of(field, n150(programs=[])) == 0
    assert value_of(field, tt_metal()) is None


def test_every_figure_of_memory_and_the_account_has_a_field() -> None:
    device = n150()
    paths = {field.path for field in FIELDS.values()}
    for group, figures in device["memory"].items():
        assert {f"memory.{group}.{name}" for name in figures} <= paths
    assert {f"l1_accounting.{name}" for name in device["l1_accounting"]} <= paths


def test_fields_of_cores_are_extremes_over_the_cores() -> None:
    device = n150()
    assert value_of(find_field("l1.core.min_headroom"), device) == -154816
    assert value_of(find_field("l1.core.max_used"), device) == 1024 * 1024
    assert value_of(find_field("l1.core.max_cb_physical"), device) == 475136
    assert value_of(find_field("l1.core.min_headroom"), stale()) is None


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("memory.cb.physical_bytes", "memory.cb.physical"),
        ("updated_ns", "updated"),
        ("index", "device_id"),
        ("memory.used", "memory.dram.used"),
    ],
)
def test_a_field_is_found_by_its_json_path_and_by_nvidia_smi_names(typed: str, meant: str) -> None:
    assert find_field(typed).name == meant


def test_a_path_that_only_the_device_knows_is_a_field() -> None:
    field = find_field("memory.dram.largest_free", [{"memory": {"dram": {"largest_free_bytes": 2**20}}}])
    assert (field.path, field.kind) == ("memory.dram.largest_free_bytes", "bytes")


def test_an_unknown_field_names_close_ones() -> None:
    with pytest.raises(ValueError, match=r"memory\.cb\.physical"):
        find_field("memory.cb.phisical")
    with pytest.raises(ValueError, match="--help-query"):
        find_field("zzz")
    with pytest.raises(ValueError, match="no field"):
        parse_fields(" , ")


@pytest.mark.parametrize("text", ["json", "noheader", "csv,nohead", ""])
def test_an_unknown_format_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected csv"):
        parse_format(text)


def test_csv_is_read_back_to_the_byte() -> None:
    device = n150(warnings=['a "quoted", text\nof two lines'])
    rows = list(csv.DictReader(io.StringIO(render_csv([device, tt_metal(1)]))))
    assert len(rows) == 2
    for field in FIELDS.values():
        value = value_of(field, device)
        if field.kind in ("bytes", "ns", "number", "address"):
            assert rows[0][column_of(field)] == ("N/A" if value is None else str(value))
    assert rows[1]["memory.dram.used_bytes"] == "N/A"
    assert "quoted" in rows[0]["warnings"]


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("l1.core.min_headroom<64KiB", True),
        ("l1.core.min_headroom < -1MiB", False),
        ("memory.cb.physical >= 23101440", True),
        ("memory.cb.physical > 23101440", False),
        ("memory.cb.physical != 22 MiB", True),
        ("memory.cb.physical > 20%", True),
        ("memory.dram.used > 90%", False),
        ("state != live", False),
        ("state == 'live'", True),
        ("consistent = true", True),
        ("cores.count == 64", True),
        ("device_id = 0", True),
        ("l1.core.max_cb_region_end > 0.5MiB", True),
    ],
)
def test_a_condition_is_compared_in_bytes(text: str, met: bool) -> None:
    got, sentence = evaluate(parse_condition(text), n150())
    assert got is met
    assert bool(sentence) is met


def test_an_unknown_figure_meets_no_condition_and_says_so() -> None:
    for text in ("memory.cb.physical < 1MiB", "memory.cb.physical >= 0", "memory.dram.used > 1%", "arch != blackhole"):
        met, sentence = evaluate(parse_condition(text), tt_metal(3))
        assert not met
        assert "device 3" in sentence
        assert "N/A" in sentence


@pytest.mark.parametrize(
    "text",
    [
        "",
        "memory.cb.physical",
        "memory.cb.physical > lots",
        "memory.cb.physical > x%",
        "state < live",
        "cores.count > 10%",
        "l1_accounting.total > 10%",
        "cores.count > many",
        "nothing.like.it > 1",
    ],
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_condition(text)


def test_help_lists_every_field_with_a_sentence() -> None:
    text = render_help(Screen(width=80))
    assert all(f'"{name}"' in text for name in FIELDS)
    assert max(map(len, text.splitlines())) <= 80
