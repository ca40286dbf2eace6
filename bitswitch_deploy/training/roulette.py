"""The roulette of HASB: which width each layer of a supernet takes in one pass (Huang et al., arXiv 2502.01199).

Of the candidate widths B of a layer with sensitivity t (trace of its Hessian per weight), t_m their mean over layers:

    p(b) = b / sum(B)    sensitive, t >= t_m
    p(b) = 1 / |B|       otherwise

In a pass with base width b each layer draws anew with probability sigma, by itself, else it keeps b. In epoch e of E

    sigma = 0 in the first epochs, then sigma_0 * (e + 1) / E

The paper's own loop multiplies sigma in place, epoch after epoch, and so drives it to 0; and its drawn width becomes
the base of all later layers. Neither is meant: sigma comes from sigma_0, and the base stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.tensors import WidthAssignment


def probabilities(candidates: Sequence[int], *, sensitive: bool) -> npt.NDArray[np.float64]:
    """Chance of each width, float64 [len(candidates)], in their order."""
    weights = np.asarray(candidates if sensitive else [1] * len(candidates), dtype=np.float64)
    chances: npt.NDArray[np.float64] = weights / weights.sum()
    return chances


def spin(r: float, candidates: Sequence[int], *, sensitive: bool) -> int:
    """The width that the ball `r` in 0..1 falls on: from low to high the first whose summed chance reaches it."""
    ordered = sorted(candidates)
    edges = np.cumsum(probabilities(ordered, sensitive=sensitive))
    return ordered[min(int(np.searchsorted(edges, r, side="left")), len(ordered) - 1)]  # sums may end below 1


def threshold(initial: float, epoch: int, epochs: int, *, warmup_epochs: int) -> float:
    """Sigma of an epoch (counted from 0): 0 while it warms up, then `initial` * (epoch + 1) / epochs."""
    return 0.0 if epoch < warmup_epochs else initial * (epoch + 1) / epochs


def sensitive_layers(sensitivities: Mapping[str, float]) -> tuple[str, ...]:
    """The layers whose sensitivity is at least the mean of all."""
    mean = sum(sensitivities.values()) / len(sensitivities)
    return tuple(layer for layer, value in sensitivities.items() if value >= mean)


def draw_widths(
    base: int,
    candidates: Mapping[str, Sequence[int]],
    sensitive: Sequence[str],
    *,
    sigma: float,
    generator: np.random.Generator,
) -> WidthAssignment:
    """Widths of all layers for a pass with width `base`.

    Args:
        candidates: of each layer; one that may not take the base keeps the candidate next to it instead.
        sensitive: layers with chances in proportion to the width. sigma: chance to draw anew.
        generator: gives two numbers for each layer, whatever happens, so one layer's draw moves no other's.
    """
    chances = generator.random((len(candidates), 2))
    overrides = []
    for (layer, widths), (switch, ball) in zip(candidates.items(), chances):
        if switch < sigma:
            bits = spin(float(ball), widths, sensitive=layer in sensitive)
        else:
            bits = min(widths, key=lambda width: (abs(width - base), -width))
        if bits != base:
            overrides.append((layer, bits))
    return WidthAssignment(default=base, overrides=tuple(overrides))
