"""The examples run, and print what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("manual.py", "CB:          1.2 MiB"),
        (
            "wrapper.py",
            "while it ran, L1 bytes: 1966080\nCB bytes: 786432\nsmallest headroom: 1325888\nafter it, L1 bytes: 0\n",
        ),
        ("publish_and_read.py", "physical CB bytes: 786432"),
    ],
)
def test_an_example_prints_what_it_promises(name, printed):
    done = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert printed in done.stdout


def test_the_pictures_of_the_readme_are_there_small_and_ask_the_network_for_nothing():
    root = EXAMPLES.parent
    named = re.findall(r"\]\((docs/screens/[^)]+)\)", (root / "README.md").read_text())
    pictures = sorted((root / "docs" / "screens").iterdir())
    assert sorted(root / name for name in named) == pictures
    assert sum(path.stat().st_size for path in pictures) < 400_000
    for path in pictures:
        if path.suffix == ".svg":
            assert set(re.findall(r"https?:[^\"' )]*", path.read_text())) == {"http://www.w3.org/2000/svg"}
