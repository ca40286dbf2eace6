from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tensors this small are slower on several threads, by far where cores are shared."""
    torch.set_num_threads(1)
