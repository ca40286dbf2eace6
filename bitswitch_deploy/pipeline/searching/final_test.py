"""The final numbers of a search, from samples that it has not seen: all assignments see a block before the next one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bitswitch_deploy.engines.cpu_features import usable_cores
from bitswitch_deploy.master import Master
from bitswitch_deploy.pipeline.progress import Progress
from bitswitch_deploy.pipeline.searching.data import SearchData
from bitswitch_deploy.search.batchnorm import BatchNormAdapter
from bitswitch_deploy.search.costs import widths_text
from bitswitch_deploy.search.evaluate import circumstances, open_session, run_batches
from bitswitch_deploy.search.score import Criterion, Scores, score_against, score_labelled
from bitswitch_deploy.search.store import ScoreStore, key_of
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
    store: ScoreStore | None = None,
) -> TestScores:
    """Scores of all assignments on the same samples.

    criterion: the loss; without labels it is the divergence. store: what it has is not computed again.

    Raises:
        CheckFailedError: an output is not finite.
        DataError: an image cannot be decoded.
    """
    keys = _keys(master, data, assignments, criterion)
    stored = {each: store.load(key) for each, key in keys.items()} if store is not None else {}
    scores = {each: found for each, found in stored.items() if found is not None}
    missing = [each for each in keys if each not in scores]
    if missing:
        adapt = _adapter(master, data)
        progress.start("final test", data.test.n * -(-len(missing) // _AT_A_TIME))
        for start in range(0, len(missing), _AT_A_TIME):
            masters = {each: adapt(each) for each in missing[start : start + _AT_A_TIME]}
            for each, found in _pass(master, masters, data, progress, criterion).items():
                scores[each] = found
                if store is not None:
                    store.save(keys[each], found)
    n = len(next(iter(scores.values())).loss)
    return TestScores(scores=scores, n=n, left_out=data.test.n - n)


def _keys(
    master: Master, data: SearchData, assignments: Sequence[WidthAssignment], criterion: Criterion
) -> dict[WidthAssignment, str]:
    """Hashes of everything that the scores of each assignment depend on."""
    seen = hashlib.sha256(b"".join(sorted(data.seen))).hexdigest()
    statistics = data.statistics and data.statistics.sha256
    made_of = (*circumstances(), usable_cores(), master.sha256, data.test.sha256, seen, statistics, criterion)
    return {each: key_of("final test", *made_of, each.default, each.overrides) for each in assignments}


def _pass(
    master: Master,
    masters: Mapping[WidthAssignment, Master],
    data: SearchData,
    progress: Progress,
    criterion: Criterion,
) -> dict[WidthAssignment, Scores]:
    threads = usable_cores()
    sessions = {each: open_session(adapted, each, threads=threads) for each, adapted in masters.items()}
    reference = open_session(master, WidthAssignment(default=master.spec.widths[0]), threads=threads)
    parts: dict[WidthAssignment, list[Scores]] = {each: [] for each in masters}
    for x, y, n_seen in data.test_blocks():
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
    return {each: _joined(found) for each, found in parts.items()}


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
