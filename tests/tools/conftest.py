from __future__ import annotations

from tests.training.conftest import _one_thread, _torch_as_before

__all__ = ["_one_thread", "_torch_as_before"]
