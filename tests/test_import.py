"""``import ttmem`` is nearly free, and so is what it leads to: nothing is imported before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ttmem

HEAVY = {"numpy", "asyncio", "inspect", "json", "logging", "socket", "rich", "textual", "psutil", "jinja2", "ijson"}


def modules_after(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has after running code, without those that it had before."""
    script = f"import sys; before = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before))"
    root = str(Path(ttmem.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {root!r})\n{script}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_the_import_takes_two_modules() -> None:
    assert modules_after("import ttmem") == {"ttmem", "ttmem._version"}


def test_publishing_and_reading_take_nothing_heavy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTMEM_SHM_DIR", str(tmp_path))
    code = """
import ttmem
with ttmem.publish(0, grid=(2, 2), arch="wormhole_b0", l1_cb_base=0, l1_small_size=0) as publisher:
    publisher.add_program([ttmem.CircularBuffer(0, 512, "{[0-0 - 1-1]}")])
    with ttmem.attach(0) as reader:
        assert reader.snapshot().to_dict()["memory"]["cb"]["physical_bytes"] == 2048
"""
    loaded = modules_after(code)
    assert "ttmem.reader" in loaded
    # The log is told where nothing can be published, dataclasses look at signatures, and core ranges may be JSON.
    assert loaded & HEAVY <= {"logging", "inspect", "json", "socket"}


def test_every_public_name_is_where_a_type_checker_looks_for_it() -> None:
    tree = ast.parse(Path(ttmem.__file__).read_text())
    seen = {
        name.name: (node.module or "").removeprefix("ttmem.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert seen.pop("__version__") == "_version"
    assert seen == ttmem._HOME
    assert set(ttmem.__all__) == {*seen, "__version__"}
    for name in ttmem.__all__:
        assert getattr(ttmem, name) is not None
        assert name in dir(ttmem)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'publsh'"):
        ttmem.publsh  # noqa: B018
