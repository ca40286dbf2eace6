"""Whether the times moved while they were taken: this shows a throttled or shared machine that has no sensors."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from bitswitch_deploy.profiling.statistics import LatencyStatistics

MAX_DRIFT = 0.10
MAX_MEAN_OF_MEDIAN = 1.5


def disturbance(statistics: Sequence[LatencyStatistics]) -> str | None:
    """The sentence about candidates that were interrupted for much of their time, None when none was."""
    times = max(each.mean_ms / each.p50_ms for each in statistics)
    if times <= MAX_MEAN_OF_MEDIAN:
        return None
    return f"means are up to {times:.1f} x medians: runs were interrupted, by other work on this machine"


def drift(label: str, turn_medians_ms: Sequence[float]) -> str | None:
    """The sentence about a candidate whose last third of turns is not like its first, None when it is.

    turn_medians_ms: in the order of the turns, three or more.
    """
    third = len(turn_medians_ms) // 3
    first, last = median(turn_medians_ms[:third]), median(turn_medians_ms[-third:])
    change = last / first - 1
    if abs(change) <= MAX_DRIFT:
        return None
    became = "slower" if change > 0 else "faster"
    return f"{label} became {abs(change):.0%} {became} from the first to the last third of the turns"
