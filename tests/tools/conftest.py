from __future__ import annotations

import importlib.util

if importlib.util.find_spec("torch") is not None:  # some of the tools do without
    from tests.training.conftest import _one_thread, _torch_as_before

    __all__ = ["_one_thread", "_torch_as_before"]
