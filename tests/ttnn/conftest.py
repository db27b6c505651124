from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from kit import Environment, UnavailableError, environment

VERSIONS = ("0.77.0", "0.81.1")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ttnn: runs the real ttnn on a mock cluster (see tests/ttnn/README.md)")


@pytest.fixture(scope="session")
def ttnn_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ttnn")


def _environment(version: str, work: Path) -> Environment:
    try:
        return environment(version, work)
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=VERSIONS)
def ttnn(request: pytest.FixtureRequest, ttnn_work: Path) -> Environment:
    """Each pinned version of ttnn in turn."""
    return _environment(request.param, ttnn_work)


@pytest.fixture(scope="session")
def ttnn_77(ttnn_work: Path) -> Environment:
    """The version that uses circular buffers nearly throughout."""
    return _environment(VERSIONS[0], ttnn_work)


@pytest.fixture(scope="session")
def ttnn_81(ttnn_work: Path) -> Environment:
    """The version with dataflow buffers."""
    return _environment(VERSIONS[1], ttnn_work)
