"""What every test gets: a namespace of its own in shared memory, empty again at its end."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CAPTURES = Path(__file__).parent / "captures"
_numbers = itertools.count()


@pytest.fixture(autouse=True)
def namespace(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Keep the test's segments apart from everybody else's, and fail if one is left behind."""
    name = f"ttmem-test-{os.getpid()}-{next(_numbers)}"
    monkeypatch.setenv("TTMEM_NAMESPACE", name)
    yield name
    left = list(Path("/dev/shm").glob(f"ttmem1.{name}.*"))
    for path in left:
        path.unlink(missing_ok=True)
    assert not left, f"the test left {left} behind"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory that stands in for /dev/shm in this test."""
    monkeypatch.setenv("TTMEM_SHM_DIR", str(tmp_path))
    monkeypatch.delenv("TTMEM_DISABLE", raising=False)
    return tmp_path


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs ``python -m ttmem VERB ...`` to its end."""

    def run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ttmem", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            **options,  # type: ignore[call-overload]
        )

    return run


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """In CI a check that cannot run fails: a skip would hide that it says nothing."""
    outcome = yield
    report = outcome.get_result()
    if os.environ.get("TTMEM_CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} could not run here: {reason}"
