"""The pytest plugin, run as a user runs it: pytest in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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

LIMITS = """
import pytest, ttmem

N150 = dict(arch="wormhole_b0", grid=(8, 8), l1_cb_base=105664, l1_small_size=24576)

def whole_grid(size):
    return [ttmem.CircularBuffer(105664, size, "{[0-0 - 7-7]}")]

@pytest.fixture(scope="module")
def pub():
    with ttmem.publish(0, **N150) as pub:
        pub.deallocate(pub.allocate("L1", 2**26, address=200000, size_per_bank=2**20, name="before any test"))
        yield pub

def both(pub):
    pub.remove_program(pub.add_program(whole_grid(512 * 1024), name="softmax"))
    pub.deallocate(pub.allocate("L1", 64 * 262144, address=10**6, size_per_bank=262144, name="ttnn.matmul"))

@pytest.mark.limit_l1("768 KiB", per_core=True)
def test_within(pub):
    both(pub)

@pytest.mark.limit_l1("767 KiB", per_core=True)
def test_beyond(pub):
    both(pub)

@pytest.mark.limit_l1("48 MiB")
def test_device_within(pub):
    both(pub)

@pytest.mark.limit_l1(size := 48 * 2**20 - 1)
def test_device_beyond(pub):
    both(pub)

@pytest.mark.limit_l1("1 KiB", per_core=True)
def test_published_and_gone():
    with ttmem.publish(7, **N150) as mine:
        mine.add_program(whole_grid(4096), name="inner")

@pytest.mark.limit_l1("1 KiB")
@pytest.mark.no_l1_leaks
def test_own_failure_stays(pub):
    both(pub)
    assert "this" == "fails"

@pytest.mark.limit_l1("1 KiB", dram=True)
def test_misspelt(pub):
    pass

@pytest.mark.limit_l1
def test_no_size(pub):
    pass

def test_unmarked(pub):
    both(pub)
"""

NOTHING = """
import pytest

@pytest.mark.limit_l1("1 MiB")
def test_nothing_is_published():
    pass
"""

CHEAP = """
import sys

def test_plain():
    found = {name for name in sys.modules if name in ("numpy", "ijson") or name.startswith("ttmem.")}
    assert found == {"ttmem.pytest_plugin", "ttmem._version"}
"""


def run_pytest(tmp_path, text, *options, installed=False, **environment):
    (tmp_path / "test_them.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\naddopts = --strict-markers\n")
    where = str(ROOT)
    if installed:
        # What pip leaves of an installation, the files lying elsewhere.
        info = tmp_path / "site" / "ttmem-0.1.0.dist-info"
        info.mkdir(parents=True)
        points = pytest_entry_points()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ttmem\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text("[pytest11]\n" + "".join(f"{a} = {b}\n" for a, b in points.items()))
        files = [path.relative_to(ROOT) for path in (ROOT / "ttmem").glob("*.py")]
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))
        where = f"{info.parent}{os.pathsep}{where}"
    environment = {**os.environ, "PYTHONPATH": where, "TTMEM_SHM_DIR": str(tmp_path), **environment}
    if "TTMEM_DISABLE" not in environment or environment["TTMEM_DISABLE"] == "":
        environment.pop("TTMEM_DISABLE", None)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", *options, "test_them.py"]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)


def pytest_entry_points():
    """Return the pytest11 entry points of pyproject.toml."""
    section = (ROOT / "pyproject.toml").read_text().partition("[project.entry-points.pytest11]")[2].partition("\n[")[0]
    return dict(re.findall(r'^"?([\w.]+)"? = "([\w.:]+)"$', section, re.MULTILINE))


PLUGIN = ("-p", "ttmem.pytest_plugin")


def outcomes(done):
    lines = re.findall(r"^(PASSED|FAILED|ERROR) test_them.py::(\w+)", done.stdout, re.MULTILINE)
    return {name: outcome for outcome, name in lines}


def test_a_marked_test_fails_for_what_it_leaked_and_for_nothing_else(tmp_path):
    done = run_pytest(tmp_path, TESTS, *PLUGIN)
    found = outcomes(done)
    for name in ("clean", "dram_is_not_looked_at", "tolerated", "unmarked"):
        assert found[f"test_{name}"] == "PASSED", done.stdout
    for name in ("leaking", "dram_is_looked_at", "own_failure_stays", "misspelt"):
        assert found[f"test_{name}"] == "FAILED", done.stdout
    assert "device 0 holds 2048 bytes more L1 than before the test: +1 ttnn.matmul (2.0 KiB)" in done.stdout
    assert "device 0 holds 77 bytes more DRAM than before the test: +1 ttnn.add (77.0 B)" in done.stdout
    assert "assert 'this' == 'fails'" in done.stdout
    assert "takes dram, trace and tolerance" in done.stdout


def test_a_marked_test_fails_when_its_peak_exceeded_the_limit_however_short_it_was(tmp_path):
    done = run_pytest(tmp_path, LIMITS, *PLUGIN)
    failing = {"beyond", "device_beyond", "published_and_gone", "own_failure_stays", "misspelt", "no_size"}
    assert outcomes(done) == {
        f"test_{name}": "FAILED" if name in failing else "PASSED"
        for name in ("within", "device_within", "unmarked", *failing)
    }, done.stdout
    assert (
        "device 0 used up to 786432 bytes (768.0 KiB) of L1 on a core for circular buffers and L1 buffers, 1024 more "
        "than 767.0 KiB: circular buffers were highest with softmax; L1 buffers were highest with ttnn.matmul"
    ) in done.stdout
    assert "device 0 used up to 50331648 bytes (48.0 MiB) of L1 on all cores" in done.stdout
    assert "device 7 used up to 4096 bytes (4.0 KiB) of L1 on a core" in done.stdout
    assert "assert 'this' == 'fails'" in done.stdout
    for given in ("('1 KiB',) {'dram': True}", "() {}"):
        assert f"limit_l1: it takes a size and per_core, got {given}" in done.stdout
    table = done.stdout.partition("ttmem: peaks of device memory")[2]
    rows = {line.split("::")[-1]: line.split() for line in table.splitlines() if "::" in line and "  " in line[:12]}
    assert "test_unmarked" not in rows
    row = " ".join(rows["test_within"])
    assert row == "0 0.0 B 16.0 MiB 0.0 B 32.0 MiB 768.0 KiB 768.0 KiB test_them.py::test_within"


def test_the_table_tells_of_all_tests_where_that_is_asked_for_and_under_xdist_too(tmp_path):
    text = "\n".join(line for line in LIMITS.splitlines() if "limit_l1" not in line and "no_l1_leaks" not in line)
    for number, options in enumerate(((), ("-p", "xdist", "-n", "2"))):
        (tmp_path / str(number)).mkdir()
        done = run_pytest(tmp_path / str(number), text, *PLUGIN, "--ttmem-peaks", *options)
        table = done.stdout.partition("ttmem: peaks of device memory")[2]
        assert "16.0 MiB  " in table, done.stdout + done.stderr
        assert "test_published_and_gone" in table
        assert "N/A" in table


def test_a_limit_with_nothing_to_look_at_fails_unless_ttmem_is_switched_off(tmp_path):
    done = run_pytest(tmp_path, NOTHING, *PLUGIN)
    assert "this process published no device" in done.stdout
    assert done.returncode == 1
    done = run_pytest(tmp_path, NOTHING, *PLUGIN, TTMEM_DISABLE="1")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("options", [(), PLUGIN], ids=["by itself", "named too"])
def test_once_installed_the_plugin_is_there_by_itself_once_and_without_a_warning(options, tmp_path):
    done = run_pytest(tmp_path, LIMITS, *options, installed=True)
    assert outcomes(done)["test_within"] == "PASSED", done.stdout + done.stderr
    assert outcomes(done)["test_beyond"] == "FAILED"
    assert done.stdout.count("ttmem: peaks of device memory") == 1
    assert "arning" not in done.stdout + done.stderr


def test_without_a_mark_nothing_of_ttmem_or_numpy_is_imported(tmp_path):
    done = run_pytest(tmp_path, CHEAP, installed=True)
    assert outcomes(done) == {"test_plain": "PASSED"}, done.stdout
