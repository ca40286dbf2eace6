from __future__ import annotations

import numpy as np
import pytest
import torch

from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.training.batches import Augmentation, Batches, draw_moves, move, preprocess
from bitswitch_deploy.training.datasets import ImageSet

IDENTITY = Preprocessing(colour="L", size=(4, 4), divide_by=1.0, mean=(0.0,), std=(1.0,))
NONE = Augmentation(shift=0, flip=False)


def numbered(n: int = 10) -> ImageSet:
    """Image i is filled with i + 1 and has label i."""
    images = np.broadcast_to(np.arange(1, n + 1, dtype=np.uint8)[:, None, None, None], (n, 4, 4, 1))
    return ImageSet(images=images, labels=np.arange(n, dtype=np.int64), name="numbered", sha256="0" * 64)


def batches(seed: int = 0, augmentation: Augmentation = NONE, batch_size: int = 4) -> Batches:
    return Batches(numbered(), preprocessing=IDENTITY, augmentation=augmentation, batch_size=batch_size, seed=seed)


def test_preprocess() -> None:
    images = np.array([[[[0, 255], [51, 102]]]], dtype=np.uint8)  # [1, 1, 2, 2 channels]
    how = Preprocessing(colour="RGB", size=(1, 2), divide_by=255.0, mean=(0.0, 0.5), std=(1.0, 0.25))
    expected = torch.tensor([[[[0.0, 0.2]], [[2.0, -0.4]]]])
    torch.testing.assert_close(preprocess(images, how), expected)


class TestBatches:
    def test_an_epoch_shows_each_image_at_most_once(self) -> None:
        source = batches()
        assert source.per_epoch == 2
        labels = torch.cat([source.batch(step)[1] for step in range(2)])
        assert len(set(labels.tolist())) == 8

    def test_images_stay_with_their_labels(self) -> None:
        inputs, labels, _ = batches().batch(3)
        assert torch.equal(inputs[:, 0, 0, 0], labels.float() + 1)

    def test_indices_are_places_in_the_training_set(self) -> None:
        batch = batches().batch(3)
        assert torch.equal(batch.indices, batch.labels)

    def test_a_stream_is_the_batches_one_after_the_other(self) -> None:
        streamed = [batch.labels.tolist() for batch in batches().stream(1, 4)]
        assert streamed == [batches().batch(step).labels.tolist() for step in (1, 2, 3)]

    def test_epochs_are_shuffled_differently(self) -> None:
        source = batches()
        assert source.batch(0)[1].tolist() != source.batch(2)[1].tolist()

    def test_a_batch_depends_on_seed_and_step_alone(self) -> None:
        moving = Augmentation(shift=2, flip=True)
        source = batches(augmentation=moving)
        for step in range(5):
            source.batch(step)
        inputs, labels, _ = source.batch(3)
        fresh_inputs, fresh_labels, _ = batches(augmentation=moving).batch(3)
        assert torch.equal(inputs, fresh_inputs)
        assert torch.equal(labels, fresh_labels)
        assert batches(seed=1).batch(3)[1].tolist() != fresh_labels.tolist()

    def test_augmentation_differs_from_step_to_step(self) -> None:
        source = batches(augmentation=Augmentation(shift=2, flip=False), batch_size=10)
        patterns = []
        for step in range(2):
            patterns.append(source.batch(step)[0] > 0)  # where zeros came in, by place in the batch
        assert not torch.equal(patterns[0], patterns[1])

    def test_a_batch_is_never_larger_than_the_data(self) -> None:
        source = batches(batch_size=64)
        assert source.per_epoch == 1
        assert len(source.batch(0)[1]) == 10


def augment(images: np.ndarray, augmentation: Augmentation, seed: int) -> np.ndarray:
    moves = draw_moves(len(images), images.shape[1:3], augmentation, [seed])
    moved: np.ndarray = move(torch.from_numpy(images), augmentation.shift, moves).numpy()
    return moved


class TestAugment:
    image = np.arange(1, 17, dtype=np.uint8).reshape(1, 4, 4, 1)

    def results(self, augmentation: Augmentation) -> list[list[list[int]]]:
        return [augment(self.image, augmentation, seed)[0, :, :, 0].tolist() for seed in range(60)]

    def test_none(self) -> None:
        assert np.array_equal(augment(self.image, NONE, 0), self.image)

    def test_shift_brings_zeros_in(self) -> None:
        padded = np.pad(self.image[0, :, :, 0], 1)
        windows = [padded[r : r + 4, c : c + 4].tolist() for r in range(3) for c in range(3)]
        seen = self.results(Augmentation(shift=1, flip=False))
        assert all(result in windows for result in seen)
        assert all(window in seen for window in windows)

    def test_flip_mirrors_left_and_right(self) -> None:
        plain = self.image[0, :, :, 0].tolist()
        mirrored = self.image[0, :, ::-1, 0].tolist()
        seen = self.results(Augmentation(shift=0, flip=True))
        assert all(result in (plain, mirrored) for result in seen)
        assert plain in seen
        assert mirrored in seen

    def test_each_image_draws_its_own(self) -> None:
        images = np.repeat(self.image, 30, axis=0)
        moved = augment(images, Augmentation(shift=1, flip=False), 0)
        assert len({image.tobytes() for image in moved}) == pytest.approx(9, abs=1)
