"""The examples run, and print what they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(
    ("name", "printed"),
    [("manual.py", "CB:          1.2 MiB"), ("publish_and_read.py", "physical CB bytes: 786432")],
)
def test_an_example_prints_what_it_promises(name, printed):
    done = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert printed in done.stdout
