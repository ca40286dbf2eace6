from __future__ import annotations

import pytest
import torch

from bitswitch_deploy.errors import CheckpointError
from bitswitch_deploy.training.batches import Batch
from bitswitch_deploy.training.distillation import make_teacher
from bitswitch_deploy.training.schedule import Position

LABELS = torch.tensor([2, 0])
LOGITS = torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, -5.0]])
OTHER = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]])


def batch(*indices: int) -> Batch:
    return Batch(torch.zeros(len(indices), 1), LABELS, torch.tensor(indices))


def at(epoch: int) -> Position:
    return Position(step=epoch * 5, total=20, per_epoch=5)


def test_without_distillation_every_width_learns_the_labels() -> None:
    teacher = make_teacher("none", share=0.7, samples=4)
    target = teacher.first_target(batch(0, 1), at(0))
    assert target is LABELS
    assert teacher.next_target(batch(0, 1), LOGITS, target) is LABELS
    assert teacher.state() is None


def test_in_batch_softens_the_lower_widths_only() -> None:
    teacher = make_teacher("in_batch", share=0.6, samples=4)
    target = teacher.first_target(batch(0, 1), at(0))
    assert target is LABELS
    expected = 0.6 * LOGITS.double().softmax(1)
    expected[0, 2] += 0.4
    expected[1, 0] += 0.4
    torch.testing.assert_close(teacher.next_target(batch(0, 1), LOGITS, target).double(), expected)


class TestPreviousEpoch:
    def test_the_first_epoch_learns_the_labels(self) -> None:
        teacher = make_teacher("ps_kd", share=0.7, samples=4)
        assert teacher.first_target(batch(0, 1), at(0)) is LABELS
        teacher.next_target(batch(0, 1), LOGITS, LABELS)
        one_hot = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
        assert torch.equal(teacher.first_target(batch(3, 2), at(0)), one_hot)

    @pytest.mark.parametrize(("epoch", "share"), [(1, 0.7 * 2 / 4), (3, 0.7)])
    def test_later_ones_what_the_highest_width_said_of_the_sample_last(self, epoch: int, share: float) -> None:
        teacher = make_teacher("ps_kd", share=0.7, samples=4)
        teacher.next_target(batch(3, 1), OTHER, LABELS)
        teacher.next_target(batch(3, 1), LOGITS, LABELS)
        target = teacher.first_target(batch(1, 3), at(epoch))  # the other way round
        expected = share * LOGITS.double().softmax(1).flip(0)
        expected[0, 2] += 1 - share
        expected[1, 0] += 1 - share
        torch.testing.assert_close(target.double(), expected, atol=1e-3, rtol=0)  # the memory is float16
        assert teacher.next_target(batch(1, 3), OTHER, target) is target  # the same for every width

    def test_the_memory_is_state(self) -> None:
        teacher, other = (make_teacher("ps_kd", share=0.7, samples=4) for _ in range(2))
        teacher.next_target(batch(3, 1), LOGITS, LABELS)
        other.restore(teacher.state(), "run.state")
        expected = teacher.first_target(batch(1, 3), at(2))
        assert torch.equal(other.first_target(batch(1, 3), at(2)), expected)

    @pytest.mark.parametrize("state", [torch.zeros(5, 3).half(), torch.zeros(4, 3), [1.0]])
    def test_another_memory_is_refused(self, state: object) -> None:
        teacher = make_teacher("ps_kd", share=0.7, samples=4)
        with pytest.raises(CheckpointError, match=r"run\.state: no fitting distillation memory"):
            teacher.restore(state, "run.state")

    def test_a_memory_without_distillation_is_refused(self) -> None:
        with pytest.raises(CheckpointError, match=r"run\.state: the memory of a distillation"):
            make_teacher("none", share=0.7, samples=4).restore(torch.zeros(4, 3).half(), "run.state")
