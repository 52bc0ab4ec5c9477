"""What the parity tests share."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def saved(case: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that transformers writes of a module's ``made(case)``, once for all tests of the case."""
    folder = tmp_path_factory.mktemp(case)
    request.module.made(case).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where a case's model is, as transformers wrote it, to be read only."""

    @cache
    def saved(case: str) -> Path:
        from tests.parity import tiny

        path = tmp_path_factory.mktemp(case)
        tiny.model(case).save_pretrained(path)
        return path

    return saved
