"""Requests for a network that reads two grey pixels side by side, [n, 1, 1, 2], and knows three classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.master.spec import ValueSpec
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.validation.samples import DataRequest

GREY = Preprocessing(colour="L", size=(1, 2), divide_by=10.0, mean=(1.0,), std=(2.0,))
GREY_INPUT = ValueSpec(name="x", dtype="float32", shape=("n", 1, 1, 2))


@pytest.fixture
def request_for() -> Callable[..., DataRequest]:
    def make(path: Path, **changes: Any) -> DataRequest:
        values: dict[str, Any] = {
            "path": path,
            "preprocessing": GREY,
            "input_spec": GREY_INPUT,
            "classes": 3,
            "limit": None,
        }
        return DataRequest(**{**values, **changes})

    return make


@pytest.fixture
def grey_npz(tmp_path: Path) -> Path:
    """Four samples: pixels 10 i, 10 i + 1 of class i % 3."""
    path = tmp_path / "grey.npz"
    x = np.array([[[10 * i, 10 * i + 1]] for i in range(4)], dtype=np.uint8)
    np.savez(path, x=x, y=np.array([0, 1, 2, 0], dtype=np.uint8))
    return path
