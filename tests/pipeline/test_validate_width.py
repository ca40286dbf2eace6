"""What a validation keeps of the canonical graph."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from bitswitch_deploy.pipeline import validate_width
from bitswitch_deploy.pipeline.validate_width import _Remembered


class Counting:
    """Returns its inputs, and counts the calls."""

    calls = 0

    def run(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        self.calls += 1
        return x


@pytest.mark.parametrize(("limit", "computed_again"), [(1000, 0), (80, 1), (41, 1), (40, 2), (1, 2)])
def test_outputs_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch, limit: int, computed_again: int) -> None:
    monkeypatch.setattr(validate_width, "_MAX_REMEMBERED_BYTES", limit)
    batches = [np.full((10,), value, np.float32) for value in range(3)]
    counting = Counting()
    remembered = _Remembered(counting)
    for _ in range(2):
        remembered.rewind()
        for batch in batches:
            np.testing.assert_array_equal(remembered.run(batch), batch)
    assert counting.calls == 3 + computed_again
