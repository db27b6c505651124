"""The pytest plugin, run as a user runs it: pytest in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

TESTS = """
import pytest, ttmem

@pytest.fixture(scope="module")
def pub():
    with ttmem.publish(0, arch="wormhole_b0", grid=(8, 8)) as pub:
        pub.allocate("L1", 4096, name="held by the fixture")
        yield pub

@pytest.mark.no_l1_leaks
def test_clean(pub):
    pub.deallocate(pub.allocate("L1", 1024, name="freed"))

@pytest.mark.no_l1_leaks
def test_leaking(pub):
    pub.allocate("L1", 2048, name="ttnn.matmul")

@pytest.mark.no_l1_leaks
def test_dram_is_not_looked_at(pub):
    pub.allocate("DRAM", 2048)

@pytest.mark.no_l1_leaks(dram=True)
def test_dram_is_looked_at(pub):
    pub.allocate("DRAM", 77, name="ttnn.add")

@pytest.mark.no_l1_leaks(tolerance="4KiB")
def test_tolerated(pub):
    pub.allocate("L1", 4096)

@pytest.mark.no_l1_leaks
def test_own_failure_stays(pub):
    pub.allocate("L1", 1)
    assert "this" == "fails"

@pytest.mark.no_l1_leaks(dream=True)
def test_misspelt(pub):
    pass

def test_unmarked(pub):
    pub.allocate("L1", 1)
"""


def test_a_marked_test_fails_for_what_it_leaked_and_for_nothing_else(tmp_path):
    (tmp_path / "test_them.py").write_text(TESTS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TTMEM_SHM_DIR": str(tmp_path)}
    environment.pop("TTMEM_DISABLE", None)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "ttmem.pytest_plugin",
        "-p",
        "no:cacheprovider",
        "-rA",
        "--strict-markers",
    ]
    done = subprocess.run([*command, "test_them.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    for name in ("clean", "dram_is_not_looked_at", "tolerated", "unmarked"):
        assert f"PASSED test_them.py::test_{name}" in lines, done.stdout
    for name in ("leaking", "dram_is_looked_at", "own_failure_stays", "misspelt"):
        assert any(line.startswith(f"FAILED test_them.py::test_{name}") for line in lines), done.stdout
    assert "device 0 holds 2048 bytes more L1 than before the test: +1 ttnn.matmul (2.0 KiB)" in done.stdout
    assert "device 0 holds 77 bytes more DRAM than before the test: +1 ttnn.add (77.0 B)" in done.stdout
    assert "assert 'this' == 'fails'" in done.stdout
    assert "takes dram, trace and tolerance" in done.stdout
