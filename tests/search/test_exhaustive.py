"""Every assignment of four groups of the bundled network, measured: what do costs of single groups say about them?"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from bitswitch_deploy.catalogue import bundled_master, sample_set
from bitswitch_deploy.master import read_master
from bitswitch_deploy.pipeline.inputs import load_samples
from bitswitch_deploy.pipeline.searching.problem import layer_groups
from bitswitch_deploy.search.costs import assignment_of, measured_costs
from bitswitch_deploy.search.evaluate import Evaluator, Workers
from bitswitch_deploy.search.samples import store_samples
from bitswitch_deploy.search.statistics import rank_correlation
from bitswitch_deploy.search.store import ScoreStore

WIDTHS = (8, 6, 4, 2)
TIES = ("blocks.0.*", "blocks.1.conv*", "blocks.1.shortcut.conv,blocks.2.conv1")
# Mean Hessian traces of the groups, to one digit (tools/hessian_costs.py); the sign is what matters.
TRACES = (5.0, 2.0, 0.4, 0.08)


def test_costs_of_single_groups_rank_all_assignments(tmp_path: Path) -> None:
    master, found = read_master(bundled_master()), sample_set("digits")
    assert found is not None
    pool = load_samples(master, found.test, limit=None)
    assert pool is not None
    samples = store_samples(tmp_path, pool.source.read(0, 64), None)
    evaluator = Evaluator(bundled_master(), samples, ScoreStore(folder=tmp_path), workers=Workers())
    groups = layer_groups(master, TIES)
    layers = [layer for group in groups for layer in group]
    table = measured_costs(groups, WIDTHS, dict.fromkeys(layers, 8), evaluator.measure)
    selections = list(itertools.product(range(4), repeat=len(groups)))
    assert len(selections) == 4**4
    wanted = [{layer: WIDTHS[k] for group, k in zip(groups, each) for layer in group} for each in selections]
    truth = np.array([scores.mean_loss for scores in evaluator.measure([assignment_of(each) for each in wanted])])
    predicted = np.array([sum(group.costs[k].value for group, k in zip(table, each)) for each in selections])
    printed = np.array([sum(trace * WIDTHS[k] for trace, k in zip(TRACES, each)) for each in selections])
    assert rank_correlation(predicted, truth) > 0.8
    assert rank_correlation(printed, truth) < 0
