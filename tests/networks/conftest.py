from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch

from tests.networks.zoo import ZOO, Sample, make


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tensors this small are slower on several threads, by far where cores are shared."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sample() -> Callable[[str], Sample]:
    """A network of the zoo by name; made once, since exporting it takes seconds."""
    return cache(lambda name: make(ZOO[name]))
