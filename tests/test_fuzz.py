"""Forged files with right checksums: no crash, bounded work, only bytes of the file, and a cost to nobody else.

What :mod:`fuzz` does with coverage and sanitizers, in short and in every build.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from forge import NAME, Forger, forger
from hypothesis import given, settings
from hypothesis import strategies as st

from ttmem.reader import Host

PINNED = {
    "sizes of memory that no column holds": "6a78a609e3687dafbb82eba094fe942936eb2f543cf137aa4ed2bb10f9abdbdc",
}
"""Inputs that once failed, by what they showed."""


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forger]:
    with forger(tmp_path_factory.mktemp("forged")) as made:
        yield made


@pytest.mark.parametrize("text", PINNED.values(), ids=PINNED.keys())
def test_what_the_fuzzer_once_found_stays_mended(text: str, forge: Forger) -> None:
    forge.run(bytes.fromhex(text))


@settings(max_examples=400, deadline=None)
@given(data=st.binary(max_size=120))
def test_a_forged_file_costs_only_itself_and_shows_only_its_own_bytes(data: bytes, forge: Forger) -> None:
    forge.run(data)


def test_a_file_that_is_forged_without_an_edit_is_read_like_the_true_one(forge: Forger) -> None:
    host = Host(forge.directory, "")
    try:
        before = forge._devices(host)
        forge.seal(tags=True)
        assert forge._devices(host) == before
        assert {7, 8} < {device["device_id"] for device in before}
        assert forge.now[:4096] == forge.true[:4096]
    finally:
        host.close()
        forge.restore()
    assert (forge.directory / NAME).read_bytes() == forge.true
