"""The final numbers of a search, from samples that it has not seen: all assignments see a block before the next one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bitswitch_deploy.engines.cpu_features import usable_cores
from bitswitch_deploy.master import Master
from bitswitch_deploy.pipeline.progress import Progress
from bitswitch_deploy.pipeline.searching.data import SearchData
from bitswitch_deploy.search.batchnorm import BatchNormAdapter
from bitswitch_deploy.search.costs import widths_text
from bitswitch_deploy.search.evaluate import open_session, run_batches
from bitswitch_deploy.search.score import Criterion, Scores, score_against, score_labelled
from bitswitch_deploy.tensors import WidthAssignment

# Sessions that are open at a time; more of them take another pass over the samples.
_AT_A_TIME = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TestScores:
    """Scores of each assignment on n samples. left_out: samples that the search had seen."""

    scores: dict[WidthAssignment, Scores]
    n: int
    left_out: int


def run_final_test(
    master: Master,
    data: SearchData,
    assignments: Sequence[WidthAssignment],
    progress: Progress,
    *,
    criterion: Criterion = "divergence",
) -> TestScores:
    """Scores of all assignments on the same samples. criterion: the loss; without labels it is the divergence.

    Raises:
        CheckFailedError: an output is not finite.
        DataError: an image cannot be decoded.
    """
    different = list(dict.fromkeys(assignments))
    scores: dict[WidthAssignment, Scores] = {}
    n = left_out = 0
    adapt = _adapter(master, data)
    progress.start("final test", data.test.n * -(-len(different) // _AT_A_TIME))
    for start in range(0, len(different), _AT_A_TIME):
        part = different[start : start + _AT_A_TIME]
        masters = {each: adapt(each) for each in part}
        found, n, left_out = _pass(master, masters, data, progress, criterion)
        scores |= found
    return TestScores(scores=scores, n=n, left_out=left_out)


def _pass(
    master: Master,
    masters: Mapping[WidthAssignment, Master],
    data: SearchData,
    progress: Progress,
    criterion: Criterion,
) -> tuple[dict[WidthAssignment, Scores], int, int]:
    threads = usable_cores()
    sessions = {each: open_session(adapted, each, threads=threads) for each, adapted in masters.items()}
    reference = open_session(master, WidthAssignment(default=master.spec.widths[0]), threads=threads)
    parts: dict[WidthAssignment, list[Scores]] = {each: [] for each in masters}
    left_out = 0
    for x, y, n_seen in data.test_blocks():
        left_out += n_seen
        if len(x):
            by_divergence = y is None or criterion == "divergence"
            expected = run_batches(reference, x) if by_divergence else None
            for each, session in sessions.items():
                outputs, where = run_batches(session, x), f"{widths_text(each)} in the final test"
                if expected is not None:
                    parts[each].append(score_against(outputs, expected, y, where=where))
                elif y is not None:
                    parts[each].append(score_labelled(outputs, y, where=where))
        progress.advance(len(x) + n_seen)
    return {each: _joined(found) for each, found in parts.items()}, data.test.n - left_out, left_out


def _adapter(master: Master, data: SearchData) -> Callable[[WidthAssignment], Master]:
    """The master to open an assignment from."""
    if data.statistics is None:
        return lambda assignment: master
    x, _ = data.statistics.read(0, data.statistics.n)
    return BatchNormAdapter(master, x, threads=usable_cores()).adapted


def _joined(parts: Sequence[Scores]) -> Scores:
    return Scores(
        loss=np.concatenate([part.loss for part in parts]), right=np.concatenate([part.right for part in parts])
    )
