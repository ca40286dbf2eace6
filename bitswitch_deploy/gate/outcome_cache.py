"""Outcomes that were computed before, by content: what did not change is not evaluated twice, what was killed goes on.

    CACHE/<key of the evaluation>/<first>-<end>.npy      one finished range of samples, written in one step
    CACHE/.gitignore                                     keeps the folder out of git

A file that is damaged, or not of the wanted shape, is computed again. Its SHA-256 follows the array in it: an .npy file
alone does not show a changed bit. Deleting the folder costs time and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bitswitch_deploy.atomic_file import replace_file
from bitswitch_deploy.errors import OutputError
from bitswitch_deploy.gate.evaluation import Evaluation, evaluate
from bitswitch_deploy.gate.metrics.metric import Rows

# A multiple of the batch: whoever computes a range, and when, computes the same batches.
RANGE_SAMPLES = 256
_NAME_DIGITS = 16
_DIGEST_BYTES = 32


class Executor(Protocol):
    """Where evaluations run: the part of concurrent.futures.Executor that is needed.

    slots: how many ranges it works on at a time.
    """

    slots: int

    def submit(self, function: Callable[..., Rows], *arguments: Any) -> Future[Rows]:
        """Run function(*arguments) somewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """Rows [n, k] of all samples, and how many samples were computed for them in this run."""

    rows: Rows
    computed: int


def evaluate_all(
    evaluation: Evaluation, n: int, *, executor: Executor, cache: Path, advance: Callable[[int], None]
) -> Evaluated:
    """Evaluate samples 0..n-1: what the cache has is read, the rest is computed and kept there, range by range.

    Raises:
        OutputError: the cache cannot be written.
        BitswitchError: as `evaluate`.
    """
    folder = cache / evaluation.key()[: 2 * _NAME_DIGITS]
    try:
        is_new = not cache.exists()
        folder.mkdir(parents=True, exist_ok=True)
        if is_new:
            (cache / ".gitignore").write_text("*\n", encoding="utf-8")
    except OSError as exc:
        do = "name another folder with --cache"
        got = f"cannot be made: {exc.strerror}"
        raise OutputError(where=str(folder), got=got, allowed="a writable folder", do=do) from exc
    ranges = [(start, min(start + RANGE_SAMPLES, n)) for start in range(0, n, RANGE_SAMPLES)]
    known = {each: rows for each in ranges if (rows := _read(folder, each)) is not None}
    missing = [each for each in ranges if each not in known]
    for start, stop in known:
        advance(stop - start)
    for each, rows in _computed(evaluation, missing, executor):
        _write(folder, each, rows)
        known[each] = rows
        advance(len(rows))
    computed = sum(stop - start for start, stop in missing)
    return Evaluated(rows=np.concatenate([known[each] for each in ranges]), computed=computed)


def _computed(
    evaluation: Evaluation, ranges: list[tuple[int, int]], executor: Executor
) -> Iterable[tuple[tuple[int, int], Rows]]:
    """Results as they come. Few ranges are handed out ahead, so that a failure ends the run at once."""
    waiting = list(reversed(ranges))
    running: dict[Future[Rows], tuple[int, int]] = {}
    while waiting or running:
        while waiting and len(running) < executor.slots + 1:
            each = waiting.pop()
            running[executor.submit(evaluate, evaluation, *each)] = each
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            yield running.pop(future), future.result()


def _file(folder: Path, samples: tuple[int, int]) -> Path:
    return folder / f"{samples[0]:09d}-{samples[1]:09d}.npy"


def _read(folder: Path, samples: tuple[int, int]) -> Rows | None:
    try:
        content = _file(folder, samples).read_bytes()
        array, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if hashlib.sha256(array).digest() != digest:
            return None
        rows = np.load(BytesIO(array), allow_pickle=False)
    except (OSError, ValueError):
        return None
    start, stop = samples
    return rows if isinstance(rows, np.ndarray) and rows.ndim == 2 and len(rows) == stop - start else None


def _write(folder: Path, samples: tuple[int, int], rows: Rows) -> None:
    buffer = BytesIO()
    np.save(buffer, rows, allow_pickle=False)
    array = buffer.getvalue()
    replace_file(_file(folder, samples), array + hashlib.sha256(array).digest())
