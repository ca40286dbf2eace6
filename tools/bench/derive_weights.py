"""How fast weights are derived from a master, against memcpy on the same core, for every width and tie rule.

    python tools/bench/derive_weights.py [--mib 128] [--repeats 9] [--json results.json]

Copies (numpy.copyto, of C memcpy) and derivations take turns on buffers that no cache holds and whose pages exist; a
figure is the ratio of the medians. The compiled form and NumPy's are both measured where the first is installed. Codes
of a master below 8 bits are also checked to be in its range, which reads them twice more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bitswitch_deploy.quantization import derive_codes, rounding_shift
from bitswitch_deploy.tensors import MAX_BITS, MIN_BITS, Rounding

# (of the master, derived)
WIDTH_PAIRS = (*((MAX_BITS, bits) for bits in range(MIN_BITS, MAX_BITS)), (6, 4), (4, 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One form, rule and width. Spread: (third - first quartile) / median of the derivation's seconds."""

    form: str
    rounding: str
    from_bits: int
    to_bits: int
    gigabytes_per_second: float
    ratio_to_memcpy: float
    spread: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=128, help="size of the tensor, above that of the last cache")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the rows and the versions here as well")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    # in the range of every width of a master
    codes = np.random.default_rng(0).integers(-8, 8, options.mib << 20, dtype=np.int8)
    out = np.zeros_like(codes)  # written once: its pages exist
    rows = [row for form in _forms() for row in _measure_form(form, codes, out, options.repeats)]
    versions = {"python": platform.python_version(), "numpy": np.__version__, "machine": platform.machine()}
    _print(rows, versions, options.mib, options.repeats)
    if options.json:
        result = {"mib": options.mib, "repeats": options.repeats, "versions": versions, "rows": list(map(asdict, rows))}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _forms() -> tuple[str, ...]:
    formula = rounding_shift.Formula.of(from_bits=MAX_BITS, to_bits=MIN_BITS, rounding=Rounding.HALF_UP)
    return ("compiled", "numpy") if rounding_shift.compiled_shift(formula) else ("numpy",)


def _measure_form(form: str, codes: np.ndarray, out: np.ndarray, repeats: int) -> list[Row]:
    if form == "numpy":
        rounding_shift.LIBRARY = Path("none")
    return [
        Row(
            form=form,
            rounding=rule.value,
            from_bits=from_bits,
            to_bits=to_bits,
            **_measure(codes, out, from_bits=from_bits, to_bits=to_bits, rounding=rule, repeats=repeats),
        )
        for rule in Rounding
        for from_bits, to_bits in WIDTH_PAIRS
    ]


def _measure(
    codes: np.ndarray, out: np.ndarray, *, from_bits: int, to_bits: int, rounding: Rounding, repeats: int
) -> dict[str, float]:
    copies, derivations = [], []
    for _ in range(repeats):
        copies.append(_seconds(lambda: np.copyto(out, codes)))
        derivations.append(
            _seconds(lambda: derive_codes(codes, from_bits=from_bits, to_bits=to_bits, rounding=rounding, out=out))
        )
    median = statistics.median(derivations)
    first, _, third = statistics.quantiles(derivations, n=4)
    return {
        "gigabytes_per_second": codes.nbytes / median / 1e9,
        "ratio_to_memcpy": statistics.median(copies) / median,
        "spread": (third - first) / median,
    }


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _print(rows: list[Row], versions: dict[str, str], mib: int, repeats: int) -> None:
    print(f"{mib} MiB of codes, one core, medians of {repeats} interleaved runs")
    print("form      rule         bits   GB/s  of memcpy  spread")
    for row in rows:
        print(
            f"{row.form:<9} {row.rounding:<9} {row.from_bits}->{row.to_bits} {row.gigabytes_per_second:>6.1f}"
            f" {row.ratio_to_memcpy:>9.0%} {row.spread:>7.0%}"
        )
    print(", ".join(f"{name} {version}" for name, version in versions.items()))


if __name__ == "__main__":
    main()
