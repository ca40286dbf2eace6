"""Whether approximations may stay: by predictions that they leave alone, or with labels by an accuracy that they keep.

A graph that agrees with the canonical one in 99.5 % of the samples has a top-1 within 0.5 points of it on these. The
converse is not true: at 2 bits a rounding tie in an early layer moves many predictions, as many to the right class as
away from it. So where each sample has a label that is tested, too: the hypothesis that top-1 falls by as much as the
limit lets predictions change, by the paired score test of the accuracy gate. Few samples cannot refute it, and then
agreement alone decides; so it does where the network is hardly better than a guess, which has nothing to lose.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bitswitch_deploy.gate.paired_counts import p_value_of_exclusion
from bitswitch_deploy.lowering.approximation import Approximation
from bitswitch_deploy.lowering.lowering_pass import Change
from bitswitch_deploy.validation.hops import HOPS, HopResult, WidthResult, percent_rounded_down

CHOICE = "choice of approximations"
# Chance that labels keep a set which costs as much top-1 as the limit, over all sets that are tried for a width.
_LEVEL = 0.05
# A guess must cost so many times as much, or labels say nothing about the network (or are those of another one). So
# they never count where a tenth of the predictions may change, or more.
_INFORMATIVE = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ApproximationLimit:
    """What approximations must leave as it is.

    min_agreement: percent of samples with the canonical graph's prediction.
    by_labels: whether it is enough, too, that labels exclude a drop of top-1 by 100 - min_agreement points. A user who
        asks for agreement means agreement.
    set_by: what says how much, for messages.
    """

    min_agreement: float
    by_labels: bool = True
    set_by: str = "--min-agreement"

    def judge(
        self, used: Iterable[Approximation], measured: WidthResult, *, looks: int, guess: float | None = None
    ) -> Change:
        """Say whether they stay, in a change that is inexact if they do and exact if not.

        used: the approximations of the graph that was measured.
        looks: how many sets may be judged on these samples, which share the level of the test.
        guess: percent of the samples that have the commonest label; None where labels do not count.
        """
        hops = [hop for hop in measured.hops[HOPS.index("lowered") :] if hop.n]
        names = approximation_names(used)
        agreement = min(map(_agreement, hops))
        text = f"{percent_rounded_down(agreement)} % agreement on {hops[0].n:,} samples"
        if any(hop.agreement_percent is None for hop in hops):
            text += ", which is 100 less the largest error in percent of the largest output"
        if agreement >= self.min_agreement:
            return choice(f"{names}: {text}", exact=False)
        wanted = f"{self.min_agreement:g} % is the limit ({self.set_by})"
        largest, before = 100.0 - self.min_agreement, measured.hop("canonical").top1_percent
        labelled = self.by_labels and largest > 0 and all(hop.lost is not None for hop in hops)
        if guess is None or before is None or not labelled:
            return choice(f"without {names}: {text}, {wanted}", exact=True)
        if before - guess < _INFORMATIVE * largest:
            wanted += f"; labels do not help: {before:.2f} % are right, and {guess:.2f} % are of one class"
            return choice(f"without {names}: {text}, {wanted}", exact=True)
        worst = max(hops, key=lambda hop: _chance(hop, largest))
        drop = f"top-1 {before:.2f} -> {worst.top1_percent:.2f} %, a drop of {largest:g} points"
        if _chance(worst, largest) <= _LEVEL / looks:
            return choice(f"{names}: {text}, {drop} is excluded", exact=False)
        return choice(f"without {names}: {text}, {wanted}; {drop} cannot be excluded", exact=True)


def choice(what: str, *, exact: bool) -> Change:
    """A change that tells what was chosen."""
    return Change(by=CHOICE, where="approximations", what=what, exact=exact)


def approximation_names(approximations: Iterable[Approximation]) -> str:
    """Their names as on the command line, in order."""
    return ", ".join(sorted(each.value for each in approximations))


def _agreement(hop: HopResult) -> float:
    """Percent of samples with the same prediction; of dense outputs, 100 less the relative error in percent."""
    if hop.agreement_percent is not None:
        return hop.agreement_percent
    return 100.0 - 100.0 * (hop.relative_error or 0.0)


def _chance(hop: HopResult, points: float) -> float:
    """P of the hypothesis that top-1 falls by `points` or more."""
    return float(p_value_of_exclusion(hop.lost or 0, hop.gained or 0, hop.n, bound=points / 100.0))
