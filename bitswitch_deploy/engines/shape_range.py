"""Which shapes an engine is built for, where a graph leaves dimensions open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.master.spec import ValueSpec

_ALLOWED = "positive sizes with minimum <= optimum <= maximum, the same number for each"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeRange:
    """Smallest, most common and largest shape of one network input; each is [d0, d1, ...].

    Raises:
        UsageError: the three shapes contradict each other.
    """

    input: str
    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]

    def __post_init__(self) -> None:
        same_rank = len(self.minimum) == len(self.optimum) == len(self.maximum)
        dims = zip(self.minimum, self.optimum, self.maximum, strict=False)
        if not same_rank or not all(1 <= low <= common <= high for low, common, high in dims):
            where, got = f"shapes of input {self.input!r}", f"{self.minimum}, {self.optimum}, {self.maximum}"
            raise UsageError(where=where, got=got, allowed=_ALLOWED, do="correct the shapes")


def batch_profile(inputs: Iterable[ValueSpec], *, batch: tuple[int, int, int]) -> tuple[ShapeRange, ...]:
    """Ranges of all inputs whose first dimension is open; `batch` is its (minimum, optimum, maximum).

    Raises:
        UsageError: another dimension than the first is open, or `batch` contradicts itself.
    """
    profile = []
    for value in inputs:
        if all(isinstance(dim, int) for dim in value.shape):
            continue
        rest = tuple(dim for dim in value.shape[1:] if isinstance(dim, int))
        if len(rest) != len(value.shape) - 1:
            raise UsageError(
                where=f"input {value.name!r}",
                got=f"shape {list(value.shape)}",
                allowed="an open first dimension only (the batch)",
                do="give the network a fixed size in every other dimension",
            )
        low, common, high = ((size, *rest) for size in batch)
        profile.append(ShapeRange(input=value.name, minimum=low, optimum=common, maximum=high))
    return tuple(profile)


def shape_texts(profile: Iterable[ShapeRange]) -> tuple[str, ...]:
    """Minimum, optimum and maximum as trtexec takes them, `x:1x3x8x8,y:1x4`; nothing for an empty profile."""
    entries = tuple(profile)
    if not entries:
        return ()
    return tuple(
        ",".join(f"{entry.input}:{'x'.join(map(str, getattr(entry, which)))}" for entry in entries)
        for which in ("minimum", "optimum", "maximum")
    )


def check_profile(shapes: Mapping[str, tuple[int | None, ...]], profile: Iterable[ShapeRange], *, where: str) -> None:
    """Compare a profile with the inputs of a graph; None is an open dimension.

    Without this, trtexec builds an open dimension with size 1 and says so in its log only.

    Raises:
        UsageError: an open input has no range, or a range does not fit its input.
    """
    ranges = {entry.input: entry for entry in profile}
    for name in ranges.keys() - shapes.keys():
        raise _misfit(where, f"a shape range for {name!r}, which is not an input", f"inputs {', '.join(shapes)}")
    for name, shape in shapes.items():
        entry = ranges.get(name)
        if entry is None:
            if None in shape:
                raise _misfit(where, f"input {name!r} has open dimensions {_text(shape)}", "a shape range for it")
        elif not _fits(shape, entry):
            got = f"range {entry.minimum}..{entry.maximum} for {name!r}"
            raise _misfit(where, got, f"sizes that fit {_text(shape)}")


def _fits(shape: tuple[int | None, ...], entry: ShapeRange) -> bool:
    return len(shape) == len(entry.minimum) and all(
        size is None or low == high == size for size, low, high in zip(shape, entry.minimum, entry.maximum, strict=True)
    )


def _misfit(where: str, got: str, allowed: str) -> UsageError:
    do = "state minimum, optimum and maximum of each open dimension"
    return UsageError(where=where, got=got, allowed=allowed, do=do)


def _text(shape: tuple[int | None, ...]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)
