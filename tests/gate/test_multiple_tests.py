from __future__ import annotations

import pytest

from bitswitch_deploy.gate.multiple_tests import holm


def test_holm_steps_down_and_never_falls() -> None:
    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx((0.06, 0.04, 0.06, 0.06))


def test_one_test_is_left_as_it_is_and_nothing_exceeds_one() -> None:
    assert holm([0.03]) == (0.03,)
    assert holm([0.9, 0.8]) == (1.0, 1.0)
    assert holm([]) == ()
