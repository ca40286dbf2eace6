"""Chances by hand and by simulation, the threshold's schedule, and what a draw may not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import chisquare

from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.training.roulette import draw_widths, probabilities, sensitive_layers, spin, threshold

WIDTHS = (2, 4, 6, 8)
LAYERS = {"a": (8, 6, 4, 2), "b": (8, 6, 4, 2)}


@pytest.mark.parametrize(
    ("widths", "expected", "mean"),
    [
        ((2, 4, 6, 8), (0.1, 0.2, 0.3, 0.4), 6.0),
        ((2, 3, 4), (2 / 9, 3 / 9, 4 / 9), 29 / 9),
        ((4, 8), (1 / 3, 2 / 3), 20 / 3),
    ],
)
def test_probabilities(widths: tuple[int, ...], expected: tuple[float, ...], mean: float) -> None:
    favoured = probabilities(widths, sensitive=True)
    assert favoured == pytest.approx(expected, abs=1e-12)
    assert float(favoured @ widths) == pytest.approx(mean, abs=1e-12)
    assert probabilities(widths, sensitive=False) == pytest.approx([1 / len(widths)] * len(widths), abs=1e-12)


@pytest.mark.parametrize(
    ("r", "bits"),
    [(0.0, 2), (0.1, 2), (math.nextafter(0.1, 1), 4), (0.3, 4), (0.31, 6), (0.6, 6), (0.61, 8), (1.0, 8)],
)
def test_edges_of_the_wheel(r: float, bits: int) -> None:
    # 0.1 + 0.2 is above 0.3 and 0.1 + 0.2 + 0.3 is 0.6000000000000001, so both edges are inside
    assert spin(r, WIDTHS, sensitive=True) == bits


def test_the_order_of_the_candidates_does_not_matter() -> None:
    for r in np.linspace(0, 1, 41):
        assert spin(float(r), (8, 6, 4, 2), sensitive=True) == spin(float(r), WIDTHS, sensitive=True)


def test_sums_that_end_below_one_do_not_run_off_the_wheel() -> None:
    widths = (2, 3, 4, 5, 6, 7, 8)
    for r in (math.nextafter(1.0, 0), 1.0):
        assert spin(r, widths, sensitive=True) == spin(r, widths, sensitive=False) == 8


@pytest.mark.parametrize("sigma", [0.3, 1.0])
@pytest.mark.parametrize("sensitive", [True, False])
def test_simulated_shares(sigma: float, sensitive: bool) -> None:
    """P(b) = (1 - sigma) [b = base] + sigma p(b)."""
    generator = np.random.default_rng(7)
    favoured = ("a",) if sensitive else ()
    drawn = [draw_widths(4, LAYERS, favoured, sigma=sigma, generator=generator) for _ in range(3000)]
    counts = [sum(each.bits_of("a") == bits for each in drawn) for bits in WIDTHS]
    expected = sigma * probabilities(WIDTHS, sensitive=sensitive) + (1 - sigma) * np.array([0, 1, 0, 0])
    assert chisquare(counts, expected * len(drawn)).pvalue > 1e-3
    both = sum(each.bits_of("a") == each.bits_of("b") == 8 for each in drawn) / len(drawn)  # layers draw by themselves
    assert both == pytest.approx(expected[3] * sigma / 4, abs=0.02)


def test_no_draw_of_many_leaves_the_wheel() -> None:
    rs = [*np.random.default_rng(0).random(20_000).tolist(), 0.0, math.nextafter(1.0, 0), 1.0]
    for sensitive in (True, False):
        assert {spin(r, WIDTHS, sensitive=sensitive) for r in rs} == set(WIDTHS)


@pytest.mark.parametrize("sigma", [0.25, 0.5, 1.0])
def test_mean_bits_over_the_passes_of_a_step(sigma: float) -> None:
    """(1 - sigma) * 5 + sigma * 6 of a sensitive layer, whatever the threshold 5 of another."""
    generator, n = np.random.default_rng(1), 1500
    drawn = [draw_widths(base, LAYERS, ("a",), sigma=sigma, generator=generator) for base in WIDTHS for _ in range(n)]
    means = {name: float(np.mean([each.bits_of(name) for each in drawn])) for name in LAYERS}
    allowed = 4 * np.std([each.bits_of("b") for each in drawn]) / math.sqrt(len(drawn))
    assert means == pytest.approx({"a": (1 - sigma) * 5 + sigma * 6, "b": 5.0}, abs=float(allowed))


def test_without_a_chance_to_leave_all_keep_the_base() -> None:
    for base in WIDTHS:
        drawn = draw_widths(base, LAYERS, ("a",), sigma=0.0, generator=np.random.default_rng(0))
        assert drawn == WidthAssignment(default=base)


def test_a_layer_that_may_not_take_the_base_keeps_the_next_width() -> None:
    drawn = draw_widths(2, {"a": (8, 6, 4), "b": (8, 2)}, (), sigma=0.0, generator=np.random.default_rng(0))
    assert drawn == WidthAssignment(default=2, overrides=(("a", 4),))


def test_the_draw_of_a_layer_is_that_of_its_place() -> None:
    """Neither the base nor who is sensitive changes when another layer switches."""
    for seed in range(50):
        wide, narrow = (
            draw_widths(8, {"a": first, "b": (8, 4, 2)}, (), sigma=0.5, generator=np.random.default_rng(seed))
            for first in ((8, 4, 2), (8,))
        )
        assert wide.bits_of("b") == narrow.bits_of("b")


def test_the_threshold_starts_late_and_never_compounds() -> None:
    sigmas = [threshold(0.5, epoch, 90, warmup_epochs=10) for epoch in range(90)]
    assert sigmas[:10] == [0.0] * 10
    assert sigmas[10:] == [0.5 * (epoch + 1) / 90 for epoch in range(10, 90)]
    assert sigmas[-1] == 0.5
    assert threshold(0.5, 50, 90, warmup_epochs=10) == threshold(0.5, 50, 90, warmup_epochs=10)


def test_the_mean_itself_is_sensitive() -> None:
    assert sensitive_layers({"a": 1.0, "b": 2.0, "c": 3.0}) == ("b", "c")
    assert sensitive_layers({"a": 0.5, "b": 0.5}) == ("a", "b")
