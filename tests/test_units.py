"""Sizes in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttmem.units import format_bytes, format_exact, format_mib, parse_size


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (None, "N/A"),
        (0, "0.0 B"),
        (1, "1.0 B"),
        (1023, "1023.0 B"),
        (1024, "1.0 KiB"),
        (30408704, "29.0 MiB"),
        (1499136, "1.4 MiB"),
        (12 * 1024**3, "12.0 GiB"),
        (-154816, "-151.2 KiB"),
        (5 * 1024**6, "5.0 EiB"),
    ],
)
def test_sizes_read_as_binary_units_with_one_decimal(size_bytes: int | None, text: str) -> None:
    assert format_bytes(size_bytes) == text


def test_a_size_just_below_a_unit_does_not_read_as_1024_of_the_smaller() -> None:
    assert format_bytes(2**20 - 1) == "1.0 MiB"
    assert format_bytes(2**30 - 1) == "1.0 GiB"
    assert format_bytes(1024 * 1023 + 900) == "1023.9 KiB"


def test_exact_and_mib_forms_say_unknown_too() -> None:
    assert format_exact(None) == format_mib(None) == "N/A"
    assert format_exact(30408704) == "30,408,704"
    assert format_mib(30408704) == "29.0"


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1.3MiB", 1363149),
        ("64KiB", 65536),
        ("2 GiB", 2 * 1024**3),
        ("4096", 4096),
        ("4096 B", 4096),
        ("1k", 1024),
        ("1KB", 1024),
        ("-64KiB", -65536),
        (".5 MiB", 524288),
        ("1_000", 1000),
        (" 7 bytes ", 7),
        ("1.B", 1),
    ],
)
def test_sizes_are_read_in_every_usual_spelling(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "MiB", "1.2.3", "ten", "1 XiB", "0x10", "1 MiB 2", "nan", "inf", "１KiB"[:0] + "--1"]
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="64KiB"):
        parse_size(text)


@given(st.integers(-(2**60), 2**60))
def test_plain_bytes_come_back_to_the_byte(size_bytes: int) -> None:
    assert parse_size(str(size_bytes)) == size_bytes


@given(st.integers(0, 2**59))
def test_a_size_in_words_is_within_half_of_its_last_digit(size_bytes: int) -> None:
    text = format_bytes(size_bytes)
    unit = parse_size("1 " + text.split()[1])
    assert abs(parse_size(text) - size_bytes) <= 0.05 * unit + 1
