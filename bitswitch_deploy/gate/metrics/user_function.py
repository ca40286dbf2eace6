"""A metric of the user's own, `module:function`: the one thing of a user's that is executed, because it is named.

    def score(outputs, labels): ...     # [b, ...], [b, ...] or None -> [b] numbers, one for each sample; higher is
    better

The module is looked for beside the configuration first. Its file, and those that it imports from there, are part of the
metric's identity: outcomes of another version of them are not compared. What it imports from elsewhere is not.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bitswitch_deploy.errors import DataError, UsageError
from bitswitch_deploy.gate.metrics.metric import Labels, Metric, Outputs, Rows

# sys.exit() of a script would end the run with its own code, 0 among them
_RAISED = (Exception, SystemExit)


class UserFunction(Metric):
    """The mean over samples of what the function returns, in its own unit.

    Raises:
        UsageError: there is no such module or function, or it cannot be imported.
    """

    unit: ClassVar[str] = "units"
    dtype = np.float64
    needs_labels = False

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._function, self._sha256 = _load(name, folder)

    @property
    def identity(self) -> str:
        return f"{self.name} sha256 {self._sha256}"

    def measure(self, outputs: Outputs, labels: Labels | None, reference: Outputs | None) -> Rows:
        try:
            scores = np.asarray(self._function(outputs, labels))
        except _RAISED as exc:  # it is not ours: what it raises is its author's to mend
            raise DataError(
                where=f"metric {self.name}",
                got=_failure(exc, self._folder),
                allowed="a function that takes outputs [n, ...] and labels, and returns n numbers",
                do="correct the function",
            ) from exc
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
    except _RAISED as exc:  # importing a module runs it
        raise _refusal(name, f"the module cannot be imported: {_failure(exc, folder)}") from exc
    own, found = folder / f"{module_name}.py", inspect.getfile(module)
    if own.is_file() and not own.samefile(found):
        raise _refusal(name, f"{module_name} is {found} already, which {own} cannot take the place of")
    function = getattr(module, function_name, None)
    if not callable(function):
        raise _refusal(name, f"{module_name} has no function {function_name!r}")
    helpers = _imported(module_name, folder)
    texts = [source, *(each for name in sorted(helpers) for each in (name.encode(), helpers[name]))]
    digests = [hashlib.sha256(text) for text in texts]
    whole = hashlib.sha256(b"".join(each.digest() for each in digests))
    return function, (whole if helpers else digests[0]).hexdigest()


def _imported(module_name: str, folder: Path) -> dict[str, bytes]:
    """Sources in `folder` of what a module there imports, by name, and of what these import in turn; not our own."""
    found: dict[str, bytes] = {}
    waiting = list(accumulate(module_name.split("."), "{}.{}".format))  # a package is imported before what is in it
    while waiting:
        name = waiting.pop()
        place = folder.joinpath(*name.split("."))
        path = next((each for each in (place.with_suffix(".py"), place / "__init__.py") if each.is_file()), None)
        if path is not None and name not in found and name.partition(".")[0] != "bitswitch_deploy":
            found[name] = path.read_bytes()
            waiting += _names_imported(found[name], f"{name}." if path.name == "__init__.py" else name)
    found.pop(module_name, None)
    return found


def _names_imported(source: bytes, importer: str) -> Iterator[str]:
    """Modules that a source may import: `from a import b` names `a` and `a.b`. A package's name ends with a dot."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):  # it has not been imported, then
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            for each in node.names:
                yield from accumulate(each.name.split("."), "{}.{}".format)
        elif isinstance(node, ast.ImportFrom):
            above = importer.split(".")[: -node.level] if node.level else []
            base = [*above, *([node.module] if node.module else [])]
            for parts in (base, *([*base, each.name] for each in node.names)):
                yield from accumulate(parts, "{}.{}".format)


def _failure(error: BaseException, folder: Path) -> str:
    """What went wrong, and the last line that ran of a file in `folder`, where one did."""
    text, here = f"{type(error).__name__}: {error}", folder.resolve()
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).resolve().parent == here]
    return f"{own[-1].filename}, line {own[-1].lineno}: {text}" if own else text


def _refusal(name: str, got: str) -> UsageError:
    return UsageError(
        where=f"metric {name}",
        got=got,
        allowed="MODULE:FUNCTION, importable from the folder of the configuration or installed",
        do="correct the name or the module, or install it",
    )
