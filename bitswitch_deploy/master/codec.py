"""Plain JSON values to frozen dataclasses, strictly, led by their type hints.

Understood hints: str, int, float, bool, Literal, Enum, `tuple[X, ...]`, `tuple[A, B]`, `X | None`, `int | str` and
dataclasses of these. A key whose field has a default may be missing. Encoding needs no code here: `asdict`.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bitswitch_deploy.errors import MasterError

T = TypeVar("T")

MEND_WRITER = "mend the program that wrote it; bitswitch_deploy/master/README.md documents the format"

_INT_LIMIT = 2**63  # nothing in a spec is larger, and every size computed from it stays cheap


_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_SHORT = reprlib.Repr()
_SHORT.maxstring = 80
_SHORT.maxlist = _SHORT.maxdict = 3


def shown(value: object) -> str:
    """Short text of any value for a message, whatever its size."""
    return _SHORT.repr(value)


def is_plain_text(text: str) -> bool:
    """Tell whether `text` is safe to print and to encode: no control characters but white space, no lone surrogates."""
    return _CONTROL.search(text) is None


def load_object(text: str, *, where: str) -> dict[str, Any]:
    """Read a JSON object; keys given twice, NaN and Infinity are refused.

    Raises:
        MasterError: anything else than one such object.
    """
    try:
        document = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:  # ValueError: also numbers beyond the digit limit of int()
        reason = str(exc) if isinstance(exc, ValueError) else "nested too deeply"
        raise MasterError(where=where, got=reason, allowed="one JSON object", do=MEND_WRITER) from exc
    if not isinstance(document, dict):
        raise MasterError(where=where, got=shown(document), allowed="one JSON object", do=MEND_WRITER)
    return document


def decode(kind: type[T], value: object, *, where: str) -> T:
    """Build a `kind` from plain JSON `value`; `where` names its place in messages.

    Raises:
        MasterError: unknown or missing keys, a wrong type, a value that `kind` itself refuses.
    """
    return _decode(kind, value, where)  # type: ignore[no-any-return]


def _decode(hint: Any, value: object, where: str) -> Any:
    origin = get_origin(hint)
    if origin is Literal:
        return _one_of(get_args(hint), value, where)
    if origin is tuple:
        return _decode_tuple(get_args(hint), value, where)
    if origin in (Union, UnionType):
        return _decode_union(get_args(hint), value, where)
    if is_dataclass(hint):
        return _decode_dataclass(hint, value, where)
    if issubclass(hint, Enum):
        return hint(_one_of(tuple(member.value for member in hint), value, where))
    return _decode_scalar(hint, value, where)


def _decode_scalar(hint: Any, value: object, where: str) -> Any:
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
        if is_plain_text(value):
            return str(value)
        raise _refusal(where, value, "text without control characters")
    is_int = isinstance(value, int) and not isinstance(value, bool) and -_INT_LIMIT < value < _INT_LIMIT
    if hint is int and is_int:
        return value
    if hint is float and (is_int or (isinstance(value, float) and math.isfinite(value))):
        return float(value)  # type: ignore[arg-type]
    names = {bool: "true or false", str: "a string", int: "an integer of 64 bits", float: "a finite number"}
    raise _refusal(where, value, names[hint])


def _decode_tuple(hints: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list:
        raise _refusal(where, value, "a list")
    items: Sequence[object] = value  # type: ignore[assignment]
    if len(hints) == 2 and hints[1] is Ellipsis:
        return tuple(_decode(hints[0], item, f"{where}[{index}]") for index, item in enumerate(items))
    if len(items) != len(hints):
        raise _refusal(where, value, f"a list of {len(hints)}")
    return tuple(
        _decode(hint, item, f"{where}[{index}]") for index, (hint, item) in enumerate(zip(hints, items, strict=True))
    )


def _decode_union(hints: tuple[Any, ...], value: object, where: str) -> Any:
    if value is None and NoneType in hints:
        return None
    others = [hint for hint in hints if hint is not NoneType]
    for hint in others:
        if len(others) == 1 or type(value) is hint:
            return _decode(hint, value, where)
    raise _refusal(where, value, " or ".join(hint.__name__ for hint in others))


def _decode_dataclass(kind: Any, value: object, where: str) -> Any:
    known = {field.name: field.default for field in fields(kind)}
    if not isinstance(value, dict):
        raise _refusal(where, value, f"an object with the keys {', '.join(known)}")
    for key in value:
        if key not in known:
            raise _refusal(f"{where}: unknown key", key, ", ".join(known))
    missing = [name for name, default in known.items() if default is MISSING and name not in value]
    if missing:
        raise _refusal(where, f"no key {', '.join(missing)}", "all of " + ", ".join(known), is_text=True)
    hints = _hints(kind)
    decoded = {key: _decode(hints[key], item, f"{where}.{key}") for key, item in value.items()}
    try:
        return kind(**decoded)
    except ValueError as exc:
        raise _refusal(where, str(exc), f"a consistent {kind.__name__}", is_text=True) from exc


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _one_of(allowed: tuple[Any, ...], value: object, where: str) -> Any:
    for option in allowed:
        if isinstance(value, str) and value == option:
            return option
    raise _refusal(where, value, ", ".join(allowed))


def _refusal(where: str, got: object, allowed: str, *, is_text: bool = False) -> MasterError:
    return MasterError(where=where, got=str(got) if is_text else shown(got), allowed=allowed, do=MEND_WRITER)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for key, value in pairs:
        if key in document:
            raise ValueError(f"the key {shown(key)} is given twice")
        document[key] = value
    return document


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
