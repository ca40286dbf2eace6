"""Costs fitted to whole assignments, for networks whose layers do not add up.

Costs of single layers, c, are all that is known where no two measured assignments differ: a fit stays near them.

    L_i = b + sum over groups g of c'[g][k_gi]      for the measured assignments i, with their losses L_i
    minimise over c', b:   sum_i (L_i - b - sum_g c'[g][k_gi])^2  +  RIDGE * sum (c' - u c)^2

a ridge regression on one-hot choices. u brings costs of any unit to the losses' one: the ratio of their standard
deviations over the measured assignments, as the major axis of both has it; least squares would make it 0 or less just
where predictions are poor. Solved in as many unknowns as there are assignments, with P the one-hot choices [n, choices]
and a bar over what has its mean over the assignments taken off:

    c' = u c + P̄ᵀ (P̄ P̄ᵀ + RIDGE I)^-1 (L̄ - u P̄ c)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from bitswitch_deploy.search.problem import Problem, Selection

# One measured assignment says as much about a sum of costs as the prediction does about each of them.
RIDGE = 1.0
_ROUNDING = 1e-12


def refitted(problem: Problem, losses: Mapping[Selection, float]) -> Problem:
    """The problem with costs that agree with what was measured, as far as costs that add up can.

    Args:
        problem: with the costs of single layers. losses: of two or more selections, not all the same.
    """
    choices = [(g, k) for g, group in enumerate(problem.groups) for k in range(len(group.widths))]
    costs = np.array([problem.groups[g].costs[k] for g, k in choices])
    chosen = np.array([[float(selection[g] == k) for g, k in choices] for selection in losses])
    measured = np.array(list(losses.values()))
    predicted = chosen @ costs
    spread = float(predicted.std())
    # sums that should be equal differ in their last bits, which is no spread to divide by
    is_spread = spread > _ROUNDING * float(np.abs(predicted).max())
    costs *= float(measured.std()) / spread if is_spread else 1.0
    centred = chosen - chosen.mean(axis=0)
    missed = measured - measured.mean() - centred @ costs
    fitted = costs + centred.T @ np.linalg.solve(centred @ centred.T + RIDGE * np.eye(len(centred)), missed)
    by_choice = dict(zip(choices, fitted.tolist()))
    groups = tuple(
        replace(group, costs=tuple(by_choice[g, k] for k in range(len(group.widths))))
        for g, group in enumerate(problem.groups)
    )
    return replace(problem, groups=groups)
