"""Fixtures: real servers, one at a time, each started for the tests of one file and stopped after them, even if they fail."""

import os
from pathlib import Path

import pytest
from servers import PYTHON


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session", autouse=True)
def _needs_vllm():
    if not Path(PYTHON).exists():
        pytest.fail(f"there is no {PYTHON}; run these tests with `make test-vllm`")


@pytest.fixture(scope="session")
def logs(tmp_path_factory):
    """Folder for what the servers print."""
    folder = os.environ.get("SPRING_RAG_VLLM_LOGS")
    return Path(folder) if folder else tmp_path_factory.mktemp("logs")
