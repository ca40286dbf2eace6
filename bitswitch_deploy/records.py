"""Plain values, as JSON and YAML give them, to frozen dataclasses: strictly, led by the type hints.

The dataclass is the schema. Understood hints: str, int, float, bool, Literal, Enum, `X | None`, `X | Y` of different
plain types, dataclasses, `tuple[X, ...]` and `tuple[A, B]` from lists, `tuple[tuple[K, V], ...]` from a mapping or from
a list of pairs. A key whose field has a default may be missing; an unknown key never passes. Encoding needs no code:
`dataclasses.asdict` does it.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bitswitch_deploy.errors import InputFileError

T = TypeVar("T")

_INT_LIMIT = 2**63  # nothing in our files is larger, and every size computed from it stays cheap
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_SHOWN = 200
_SHORT = reprlib.Repr()
_SHORT.maxstring = 80
_SHORT.maxlist = _SHORT.maxdict = 3

_SCALARS = {
    bool: "true or false",
    str: "text without control characters",
    int: "a whole number of 64 bits",
    float: "a finite number",
}


def shown(value: object) -> str:
    """Short text of any value for a message, whatever its size."""
    text = _SHORT.repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def is_plain_text(text: str) -> bool:
    """Whether `text` is safe to print and to encode: no control characters but white space, no lone surrogates."""
    return _CONTROL.search(text) is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Reads the records of one kind of file.

    error: what is raised. do: how the user mends a file of this kind.
    plain_text: refuse text that is not safe to print; off where the text may be a path.
    """

    error: type[InputFileError]
    do: str
    plain_text: bool = True

    def load_json(self, text: str, *, where: str) -> dict[str, Any]:
        """The JSON object in `text`; keys given twice, NaN and Infinity are refused.

        Raises:
            InputFileError: (as `error`) anything else than one such object.
        """
        try:
            document = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
        except (ValueError, RecursionError) as exc:  # ValueError: also numbers beyond the digit limit of int()
            reason = str(exc) if isinstance(exc, ValueError) else "nested too deeply"
            raise self.error(where=where, got=reason, allowed="one JSON object", do=self.do) from exc
        if not isinstance(document, dict):
            raise self.refusal(where, document, "one JSON object")
        return document

    def decode(self, kind: type[T], value: object, *, where: str) -> T:
        """Build a `kind` from plain `value`; `where` names its place in messages.

        Raises:
            InputFileError: (as `error`) unknown or missing keys, a wrong type, a value that `kind` itself refuses.
        """
        arguments = self.arguments(kind, value, where=where)
        try:
            return kind(**arguments)
        except ValueError as exc:
            raise self.refusal(where, str(exc), "values that fit together", is_text=True) from exc

    def arguments(self, kind: Any, value: object, *, where: str, omit: tuple[str, ...] = ()) -> dict[str, Any]:
        """Constructor arguments of dataclass `kind`; fields in `omit` are not the file's to set.

        Raises:
            InputFileError: as `decode`.
        """
        known = {field.name: field.default for field in fields(kind) if field.name not in omit}
        if not isinstance(value, Mapping):
            raise self.refusal(where, value, f"an object with the keys {', '.join(known)}")
        for key in value:
            if key not in known:
                close = difflib.get_close_matches(str(key)[:80], known, n=1)
                hint = f" (did you mean {close[0]}?)" if close else ""
                raise self.refusal(f"{where}: unknown key", f"{shown(key)}{hint}", ", ".join(known), is_text=True)
        required = [name for name, default in known.items() if default is MISSING]
        missing = [name for name in required if name not in value]
        if missing:
            raise self.refusal(where, f"no key {', '.join(missing)}", f"all of {', '.join(required)}", is_text=True)
        hints = _hints(kind)
        return {name: self._decode(hints[name], value[name], _inside(where, name)) for name in known if name in value}

    def refusal(self, where: str, got: object, allowed: str, *, is_text: bool = False) -> InputFileError:
        """The error for one place: `got` is shown as a value, or as it is when `is_text`."""
        return self.error(where=where, got=str(got) if is_text else shown(got), allowed=allowed, do=self.do)

    def _decode(self, hint: Any, value: object, where: str) -> Any:
        origin, args = get_origin(hint), get_args(hint)
        if origin is Literal:
            return self._one_of(args, value, where)
        if origin is tuple:
            return self._decode_tuple(args, value, where)
        if origin in (Union, UnionType):
            return self._decode_union(args, value, where)
        if isinstance(hint, type) and is_dataclass(hint):
            return self.decode(hint, value, where=where)
        if issubclass(hint, Enum):
            return hint(self._one_of(tuple(member.value for member in hint), value, where))
        return self._decode_scalar(hint, value, where)

    def _decode_scalar(self, hint: Any, value: object, where: str) -> Any:
        is_int = isinstance(value, int) and not isinstance(value, bool) and -_INT_LIMIT < value < _INT_LIMIT
        if hint is float and (is_int or (isinstance(value, float) and math.isfinite(value))):
            return float(value)  # type: ignore[arg-type]
        if (hint is int and is_int) or (hint is bool and isinstance(value, bool)):
            return value
        if hint is str and isinstance(value, str) and (not self.plain_text or is_plain_text(value)):
            return str(value)
        number = hint is str and isinstance(value, int | float) and not isinstance(value, bool)
        raise self.refusal(where, value, _SCALARS[hint] + (" (a number needs quotes here)" if number else ""))

    def _decode_tuple(self, hints: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
        of_pairs = get_origin(hints[0]) is tuple and get_args(hints[0])[-1] is not Ellipsis
        if of_pairs and isinstance(value, Mapping):
            key, item = get_args(hints[0])
            places = [(k, v, f"{where}[{shown(k) if not isinstance(k, str) else k[:80]}]") for k, v in value.items()]
            return tuple((self._decode(key, k, place), self._decode(item, v, place)) for k, v, place in places)
        if not isinstance(value, list | tuple):
            raise self.refusal(where, value, "a list")
        if len(hints) == 2 and hints[1] is Ellipsis:
            return tuple(self._decode(hints[0], item, f"{where}[{index}]") for index, item in enumerate(value))
        if len(value) != len(hints):
            raise self.refusal(where, value, f"a list of {len(hints)}")
        pairs = zip(hints, value, strict=True)
        return tuple(self._decode(hint, item, f"{where}[{index}]") for index, (hint, item) in enumerate(pairs))

    def _decode_union(self, hints: tuple[Any, ...], value: object, where: str) -> Any:
        if value is None and NoneType in hints:
            return None
        others = [hint for hint in hints if hint is not NoneType]
        for hint in others:
            if len(others) == 1 or _may_be(hint, value):
                return self._decode(hint, value, where)
        raise self.refusal(where, value, " or ".join(getattr(hint, "__name__", str(hint)) for hint in others))

    def _one_of(self, allowed: tuple[Any, ...], value: object, where: str) -> Any:
        for option in allowed:
            # True == 1, and 1.0 == 1: compare the types as well; a str Enum is a str
            if isinstance(value, type(option)) and not isinstance(value, bool) and value == option:
                return option
        raise self.refusal(where, value, ", ".join(map(str, allowed)))


def _inside(where: str, name: str) -> str:
    """`file: key`, and from there on `file: key.key[0].key`."""
    return f"{where}.{name}" if ": " in where else f"{where}: {name}"


def _may_be(hint: Any, value: object) -> bool:
    """Whether `value` has the plain type of `hint`, to choose a member of a union."""
    origin = get_origin(hint)
    if origin is tuple:
        return isinstance(value, Mapping | list | tuple)
    if origin is Literal:
        return isinstance(value, type(get_args(hint)[0]))
    return type(value) is hint or (is_dataclass(hint) and isinstance(value, Mapping))


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for key, value in pairs:
        if key in document:
            raise ValueError(f"the key {shown(key)} is given twice")
        document[key] = value
    return document


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
