"""A policy on a real package."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.runtime import LatencyBudget, RuntimeOptions, load
from tests.runtime.conftest import LABELS, Packages, graph_file

ALL = RuntimeOptions(threads=1, max_sessions=5)


class InTurn:
    """Every width after the other, and what it was told."""

    def __init__(self) -> None:
        self.offered: list[tuple[str, ...]] = []
        self.observed: list[tuple[str, float]] = []

    def choose(self, widths: tuple[str, ...], active: str) -> str:
        self.offered.append(widths)
        return widths[len(self.offered) % len(widths)]

    def observe(self, width: str, latency_ms: float) -> None:
        self.observed.append((width, latency_ms))


def test_the_policy_chooses_the_width_of_each_request(package: Path, packages: Packages) -> None:
    policy = InTurn()
    with load(package, policy=policy, options=ALL) as switcher:
        for index in range(1, 11):
            answer = switcher.run(packages.inputs[:1])[0]
            label = LABELS[index % len(LABELS)]
            assert switcher.width == label
            assert np.array_equal(answer, packages.outputs[label][0])
    assert set(policy.offered) == {LABELS}
    assert [width for width, _ in policy.observed] == [LABELS[index % len(LABELS)] for index in range(1, 11)]
    assert all(latency > 0 for _, latency in policy.observed)


def test_a_policy_may_go_by_what_it_looks_up(package: Path, packages: Packages) -> None:
    """As the charge of a battery, or the load of the machine."""

    class Battery:
        percent = 100

        def choose(self, widths: tuple[str, ...], active: str) -> str:
            return "w8" if self.percent > 50 else "w4" if self.percent > 20 else "w2"

        def observe(self, width: str, latency_ms: float) -> None:
            pass

    battery = Battery()
    with load(package, policy=battery, options=ALL) as switcher:
        for battery.percent, expected in ((90, "w8"), (40, "w4"), (10, "w2"), (80, "w8")):
            answer = switcher.run(packages.inputs[:1])[0]
            assert np.array_equal(answer, packages.outputs[expected][0])


def test_calls_of_switch_beside_a_policy_are_refused(package: Path) -> None:
    with load(package, policy=InTurn(), options=ALL) as switcher, pytest.raises(UsageError, match="beside a policy"):
        switcher.switch(4)


def test_a_width_that_the_package_lacks_is_the_mistake_of_the_policy(package: Path, packages: Packages) -> None:
    class Wrong(InTurn):
        def choose(self, widths: tuple[str, ...], active: str) -> str:
            return "w3"

    with load(package, policy=Wrong(), options=ALL) as switcher, pytest.raises(UsageError, match="width: w3"):
        switcher.run(packages.inputs[:1])


def test_a_width_that_cannot_be_opened_is_left_out_and_requests_are_answered(
    package: Path, packages: Packages, caplog: pytest.LogCaptureFixture
) -> None:
    policy = InTurn()
    options = RuntimeOptions(threads=1, max_sessions=5, warm=(8, 6, 2, "mixed"))
    with load(package, policy=policy, options=options) as switcher:
        for path in (package / "digits.weights", graph_file(package, "w4")):
            path.unlink(missing_ok=True)
        with caplog.at_level(logging.WARNING):
            for _ in range(12):
                answer = switcher.run(packages.inputs[:1])[0]
                assert np.array_equal(answer, packages.outputs[switcher.width][0])
    assert policy.offered[-1] == ("w8", "w6", "w2", "mixed")
    (record,) = caplog.records
    assert "w4 cannot be used, going on at w6" in record.getMessage()


def test_the_latency_budget_goes_down_on_a_real_package(package: Path, packages: Packages) -> None:
    """No width answers in a nanosecond: two requests tell so at each, and three windows of 20 at the lowest."""
    policy = LatencyBudget(1e-6, window=20)
    widths = []
    with load(package, policy=policy, options=ALL) as switcher:
        for _ in range(65):
            answer = switcher.run(packages.inputs[:1])[0]
            assert np.array_equal(answer, packages.outputs[switcher.width][0])
            widths.append(switcher.width)
    assert widths == ["w8"] * 2 + ["w6"] * 2 + ["w4"] * 2 + ["w2"] * 59
    assert not policy.is_met
