"""A module imports only from below: import-linter cannot see compiled modules, so their import lines are read here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ttmem"
# From below to above; modules of one line may import each other.
LAYERS = [
    "errors _version units peer_names",
    "cores pids lockstep frames peaks",
    "model region",
    "_core _invariants placement _layout _hook_events",
    "_engine _segment _reading fit",
    "segment _core_table _open_file _ledger snapshot",
    "reader _publisher",
    "publisher dumps capture _ttnn_hook _ttnn_feed",
    "tracker ttnn mesh fragments recording diff soak exporter process_peaks",
    "interpreter export pytest_plugin moments",
    "replay ttnn_capture reports visualizer",
    "clash playback",
    "thrown",
    "views",
    "top",
    "cli",
    "__main__ __init__",
]
RANK = {name: rank for rank, line in enumerate(LAYERS) for name in line.split()}
SOURCES = sorted(path for pattern in ("**/*.py", "**/*.pyx", "**/*.pxd") for path in PACKAGE.glob(pattern))
# Only lines that run at import count: what a function imports when it is called may lie above it.
IMPORT = re.compile(r"^(?:from|cimport|import) ttmem(?:\.(\w+))?[\w.]*(?: c?import \(?([\w, ]*))?", re.MULTILINE)


def noun_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].partition(".")[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_below(path):
    mine = noun_of(path)
    assert mine in RANK, f"name the place of {mine} in LAYERS"
    for module, names in IMPORT.findall(path.read_text()):
        for name in [module] if module else re.findall(r"\w+", names):
            if name == mine or name not in RANK:
                continue
            assert RANK[name] <= RANK[mine], f"{mine} imports {name}, which lies above it"


def test_the_engine_knows_nothing_but_errors():
    text = "".join((PACKAGE / name).read_text() for name in ("_core.pyx", "_core.pxd", "_invariants.pxd"))
    assert {module for module, _ in IMPORT.findall(text)} <= {"errors", "_core", "_invariants"}


def test_only_commands_print():
    printing = {
        noun_of(path)
        for path in SOURCES
        if path.suffix != ".pxd" and re.search(r"^\s*print\(", path.read_text(), re.MULTILINE)
    }
    assert printing <= {"cli", "__main__", "tracker", "soak"}, "tracker prints because its contract says so"
