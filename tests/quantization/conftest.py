"""The wheel's compiled rounding shift, built as users build it."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from tests.quantization.wheels import LIBRARY, build_wheel


@pytest.fixture(scope="session")
def compiled_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of a wheel built here."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    folder = tmp_path_factory.mktemp("wheel")
    wheel, _ = build_wheel(folder, "cc")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(LIBRARY, folder))
