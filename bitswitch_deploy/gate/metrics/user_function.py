"""A metric of the user's own, `module:function`: the one thing of a user's that is executed, because it is named.

    def score(outputs, labels): ...     # [b, ...], [b, ...] or None -> [b] numbers, one for each sample; higher is
    better

The module is looked for beside the configuration first. Its file is part of the metric's identity: outcomes of another
version of it are not compared.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.gate.metrics.metric import Labels, Metric, Outputs, Rows


class UserFunction(Metric):
    """The mean over samples of what the function returns, in its own unit.

    Raises:
        UsageError: there is no such module or function.
    """

    unit: ClassVar[str] = "units"
    dtype = np.float64
    needs_labels = False

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._function, self._sha256 = _load(name, folder)

    @property
    def identity(self) -> str:
        return f"{self.name} sha256 {self._sha256}"

    def measure(self, outputs: Outputs, labels: Labels | None, reference: Outputs | None) -> Rows:
        scores = np.asarray(self._function(outputs, labels))
        if scores.shape != (len(outputs),) or scores.dtype.kind not in "biuf":
            got = f"{scores.dtype} of shape {list(scores.shape)} for {len(outputs)} samples"
            raise self.misfit(got, f"numbers of shape [{len(outputs)}], one for each sample; higher is better")
        if not np.isfinite(scores).all():
            raise self.misfit("a number that is not finite", "finite numbers")
        return scores.astype(np.float64)[:, None]

    def _misfit(self, outputs: Outputs, labels: Labels | None) -> tuple[str, str]:
        return "", ""


def _load(name: str, folder: Path) -> tuple[Callable[..., Any], str]:
    module_name, _, function_name = name.partition(":")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(module_name)
        source = Path(inspect.getfile(module)).read_bytes()
    except (ImportError, TypeError, ValueError, OSError) as exc:
        raise _refusal(name, f"the module cannot be imported: {exc}") from exc
    function = getattr(module, function_name, None)
    if not callable(function):
        raise _refusal(name, f"{module_name} has no function {function_name!r}")
    return function, hashlib.sha256(source).hexdigest()


def _refusal(name: str, got: str) -> UsageError:
    return UsageError(
        where=f"metric {name}",
        got=got,
        allowed="MODULE:FUNCTION, importable from the folder of the configuration or installed",
        do="correct the name, or install the module",
    )
