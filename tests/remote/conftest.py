from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.remote.server import Server, running_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "sshd"
    folder.mkdir()
    with running_server(folder) as running:
        yield running
