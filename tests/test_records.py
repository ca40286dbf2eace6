"""Plain values to dataclasses: what is taken, and what is refused with the place named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from bitswitch_deploy.errors import MasterError
from bitswitch_deploy.records import Reader, shown
from bitswitch_deploy.tensors import Granularity, Rounding

READER = Reader(error=MasterError, do="mend it")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    size: int
    ratio: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str
    flag: bool
    kind: Literal["a", "b"]
    rounding: Rounding
    pair: tuple[int, int]
    inner: tuple[Inner, ...]
    maybe: Inner | None
    dims: tuple[int | str, ...]
    limits: tuple[tuple[str, int], ...] = ()


GOOD = {
    "name": "line\nbreak and tab\t, \u00e9\u200d\U0001f680",
    "flag": True,
    "kind": "b",
    "rounding": "half_even",
    "pair": [1, 2],
    "inner": [{"size": 3}, {"size": 4, "ratio": 2}],
    "maybe": None,
    "dims": ["n", 3],
}


def test_everything_that_is_understood() -> None:
    outer = READER.decode(Outer, GOOD, where="file")
    assert outer == Outer(
        name="line\nbreak and tab\t, \u00e9\u200d\U0001f680",
        flag=True,
        kind="b",
        rounding=Rounding.HALF_EVEN,
        pair=(1, 2),
        inner=(Inner(size=3), Inner(size=4, ratio=2.0)),
        maybe=None,
        dims=("n", 3),
    )
    assert type(outer.inner[1].ratio) is float
    assert READER.decode(Outer, {**GOOD, "maybe": {"size": 1}}, where="file").maybe == Inner(size=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, r"file: name: 3\n  allowed: text"),
        ({"name": None}, r"file: name: None\n  allowed: text"),
        ({"name": "\x1b[2J"}, r"file: name: .*\n  allowed: text without control characters"),
        ({"name": "\ud800"}, "text without control characters"),
        ({"flag": 1}, r"file: flag: 1\n  allowed: true or false"),
        ({"kind": "c"}, r"file: kind: 'c'\n  allowed: a, b"),
        ({"kind": ["a"]}, "allowed: a, b"),
        ({"rounding": "truncate"}, r"file: rounding: 'truncate'\n  allowed: half_up, half_even"),
        ({"rounding": True}, "allowed: half_up, half_even"),
        ({"pair": [1]}, r"file: pair: \[1\]\n  allowed: a list of 2"),
        ({"pair": [1, True]}, r"file: pair\[1\]: True\n  allowed: a whole number"),
        ({"pair": [1, 2.0]}, r"file: pair\[1\]: 2\.0\n  allowed: a whole number"),
        ({"pair": [1, 2**63]}, r"file: pair\[1\]: .*\n  allowed: a whole number of 64 bits"),
        ({"pair": "12"}, r"file: pair: '12'\n  allowed: a list"),
        ({"inner": {"size": 3}}, r"file: inner: .*\n  allowed: a list"),
        ({"inner": [3]}, r"file: inner\[0\]: 3\n  allowed: an object with the keys size, ratio"),
        ({"inner": [{}]}, r"file: inner\[0\]: no key size\n"),
        ({"inner": [{"size": 1, "depth": 2}]}, r"file: inner\[0\]: unknown key: 'depth'\n  allowed: size, ratio"),
        ({"inner": [{"size": 1, "ratio": "x"}]}, r"file: inner\[0\]\.ratio: 'x'\n  allowed: a finite number"),
        ({"inner": [{"size": 1, "ratio": float("nan")}]}, r"ratio: nan\n  allowed: a finite number"),
        ({"inner": [{"size": 1, "ratio": float("inf")}]}, r"ratio: inf\n  allowed: a finite number"),
        ({"inner": [{"size": 1, "ratio": 10**400}]}, r"ratio: .*\n  allowed: a finite number"),
        ({"maybe": []}, r"file: maybe: \[\]\n  allowed: an object"),
        ({"dims": [1.5]}, r"file: dims\[0\]: 1\.5\n  allowed: int or str"),
        ({"dims": [None]}, r"file: dims\[0\]: None\n  allowed: int or str"),
        ({"dims": [True]}, r"file: dims\[0\]: True\n  allowed: int or str"),
    ],
)
def test_wrong_values_are_refused_with_their_place(change: dict[str, object], message: str) -> None:
    with pytest.raises(MasterError, match=message):
        READER.decode(Outer, {**GOOD, **change}, where="file")


@pytest.mark.parametrize("value", [{"a": 1, "b": 2}, [["a", 1], ["b", 2]]])
def test_pairs_come_from_a_mapping_or_a_list(value: object) -> None:
    assert READER.decode(Outer, {**GOOD, "limits": value}, where="file").limits == (("a", 1), ("b", 2))


def test_a_wrong_value_of_a_mapping_is_named_by_its_key() -> None:
    with pytest.raises(MasterError, match=r"file: limits\[b\]: '2'\n  allowed: a whole number"):
        READER.decode(Outer, {**GOOD, "limits": {"a": 1, "b": "2"}}, where="file")


def test_text_that_may_be_a_path_may_hold_anything() -> None:
    reader = Reader(error=MasterError, do="mend it", plain_text=False)
    assert reader.decode(Outer, {**GOOD, "name": "\x1f\ud800"}, where="file").name == "\x1f\ud800"


def test_what_the_dataclass_refuses_is_a_master_error() -> None:
    with pytest.raises(MasterError, match=r"file: per_block does not go with axis=1, block_size=None"):
        READER.decode(Granularity, {"kind": "per_block", "axis": 1}, where="file")


@pytest.mark.parametrize("name", list(GOOD))
def test_a_missing_key_is_named(name: str) -> None:
    with pytest.raises(MasterError, match=f"file: no key {name}\n"):
        READER.decode(Outer, {key: value for key, value in GOOD.items() if key != name}, where="file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", r"where: \[\]\n  allowed: one JSON object"),
        ('"x"', "one JSON object"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is given twice"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
        ("{} {}", "Extra data"),
    ],
    ids=range(11),
)
def test_text_that_is_not_one_object(text: str, message: str) -> None:
    with pytest.raises(MasterError, match=message):
        READER.load_json(text, where="where")


def test_values_are_shown_shortly() -> None:
    for value in ("x" * 10**6, list(range(10**5)), {str(index): index for index in range(10**5)}, 10**4000):
        assert len(shown(value)) < 200
