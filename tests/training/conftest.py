from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tensors this small are slower on several threads, by far where cores are shared."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    """A session makes torch repeat itself, for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)
