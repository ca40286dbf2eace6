from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitswitch_deploy.errors import DataError, UsageError
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.training.batches import Augmentation, FolderBatches, make_batches
from bitswitch_deploy.training.evaluation import top1
from bitswitch_deploy.training.image_folder import ImageFolder, load_image_folder

RAW = Preprocessing(colour="RGB", size=(8, 8), centre_share=0.875, divide_by=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
CROPS = Augmentation(min_area=0.3, flip=True)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, 6 and 4 images; red rises from left to right, green is 60 times the class, blue the number."""
    folder = tmp_path_factory.mktemp("images") / "ramps"
    for split in ("train", "val"):
        for label, (name, count) in enumerate((("ant", 6), ("bee", 4))):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.zeros((16 + number, 24, 3), dtype=np.uint8)
                pixels[..., 0] = np.arange(24) * 10
                pixels[..., 1], pixels[..., 2] = 60 * label, 10 * number
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    (folder / "train" / "ant" / ".hidden").write_text("not an image")
    return folder


def batches(root: Path, workers: int = 0, seed: int = 0) -> FolderBatches:
    train, _ = load_image_folder(root, RAW, workers)
    return FolderBatches(train, augmentation=CROPS, batch_size=4, seed=seed)


def test_splits_classes_and_digests(root: Path) -> None:
    train, val = load_image_folder(root, RAW)
    assert train.labels.tolist() == [0] * 6 + [1] * 4
    assert [path.name for path in train.files] == [f"{i}.png" for i in (*range(6), *range(4))]
    assert (train.name, val.name) == ("ramps", "ramps")
    digest = hashlib.sha256(b"centre\n")
    for label, path in zip(val.labels, val.files, strict=True):
        digest.update(f"{label} {len(path.read_bytes())}\n".encode() + path.read_bytes())
    assert val.sha256 == digest.hexdigest()


def test_evaluation_takes_the_centre(root: Path) -> None:
    _, val = load_image_folder(root, RAW)
    ((images, labels),) = val.raw(0, 10)
    assert images.shape == (10, 8, 8, 3)
    assert labels.tolist() == val.labels.tolist()
    # the first image is 24 wide and 16 high: the box is 14 x 14, columns 5 to 19
    red = images[0, :, :, 0].float()
    assert torch.equal(red, red[:1].expand(8, 8))
    assert red[0, 0] == pytest.approx(10 * (5 + 14 / 16 - 0.5), abs=2)
    assert red[0, -1] == pytest.approx(10 * (19 - 14 / 16 - 0.5), abs=2)
    assert images[:, 0, 0, 2].tolist() == [10 * n for n in (*range(6), *range(4))]


def test_evaluation_takes_all_where_the_recipe_names_no_centre(root: Path) -> None:
    _, val = load_image_folder(root, replace(RAW, centre_share=None))
    ((images, _),) = val.raw(0, 1)
    # 24 columns become 8
    assert images[0, 0, :, 0].tolist() == pytest.approx([10 * (3 * column + 1) for column in range(8)], abs=10)
    assert val.sha256 != load_image_folder(root, RAW)[1].sha256


def test_a_part_can_be_evaluated(root: Path) -> None:
    _, val = load_image_folder(root, RAW)
    (part,) = val.raw(4, 8)
    ((images, labels),) = val.raw(0, 10)
    assert torch.equal(part[0], images[4:8])
    assert torch.equal(part[1], labels[4:8])


class TestTraining:
    def test_images_stay_with_labels_and_places(self, root: Path) -> None:
        source = batches(root)
        assert (source.per_epoch, source.samples) == (2, 10)
        for batch in source.stream(0, 4):
            assert batch.inputs.shape == (4, 3, 8, 8)
            assert (batch.inputs[:, 1, 0, 0] / 60).tolist() == batch.labels.tolist()
            assert batch.labels.tolist() == [int(place >= 6) for place in batch.indices]
        epoch = [int(place) for batch in source.stream(0, 2) for place in batch.indices]
        assert len(set(epoch)) == 8

    def test_a_resumed_stream_is_the_rest_of_the_whole_one(self, root: Path) -> None:
        whole = list(batches(root).stream(0, 6))
        rest = list(batches(root).stream(3, 6))
        for actual, expected in zip(rest, whole[3:], strict=True):
            assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
        other = next(batches(root, seed=1).stream(3, 4))
        assert not torch.equal(other.inputs, whole[3].inputs)

    def test_crops_vary_with_the_epoch_and_are_flipped_at_times(self, root: Path) -> None:
        steep, falling = set(), set()
        for batch in batches(root).stream(0, 20):
            for red in batch.inputs[:, 0, 0]:
                steep.add(round(abs(float(red[-1] - red[0])), 1))
                falling.add(bool(red[-1] < red[0]))
        assert len(steep) > 10
        assert min(steep) > 240 * 0.3  # 30 % of the area is 47 % of the width at the narrowest shape
        assert falling == {True, False}

    def test_workers_give_the_same_images(self, root: Path) -> None:
        alone, helped = (list(batches(root, workers).stream(1, 3)) for workers in (0, 1))
        for actual, expected in zip(helped, alone, strict=True):
            assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


class TestRefusals:
    @pytest.fixture
    def copy(self, tmp_path: Path) -> Path:
        for split in ("train", "val"):
            for name in ("ant", "bee"):
                (tmp_path / split / name).mkdir(parents=True)
                Image.new("RGB", (9, 9)).save(tmp_path / split / name / "0.png")
        return tmp_path

    def test_classes_in_one_split_only(self, copy: Path) -> None:
        (copy / "val" / "cow").mkdir()
        with pytest.raises(DataError, match="class folders in one split only: cow"):
            load_image_folder(copy, RAW)

    def test_an_empty_class(self, copy: Path) -> None:
        (copy / "train" / "bee" / "0.png").unlink()
        with pytest.raises(DataError, match=r"train/bee: no images"):
            load_image_folder(copy, RAW)

    def test_no_split(self, copy: Path) -> None:
        with pytest.raises(DataError, match=r"ant/train: cannot be listed: No such file"):
            load_image_folder(copy / "train" / "ant", RAW)
        with pytest.raises(DataError, match=r"root/train/CLASS"):
            load_image_folder(copy / "nowhere", RAW)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_file_that_is_no_image_is_named(self, copy: Path, workers: int) -> None:
        broken = copy / "val" / "bee" / "0.png"
        broken.write_bytes(broken.read_bytes()[:40])
        _, val = load_image_folder(copy, RAW, workers)
        with pytest.raises(DataError, match=r"val/bee/0\.png: not readable as an image"):
            top1(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2)), val, RAW)

    def test_augmentations_of_the_other_kind(self, root: Path) -> None:
        train: ImageFolder = load_image_folder(root, RAW)[0]
        with pytest.raises(UsageError, match="augmentation of ramps: shift on an image folder"):
            make_batches(train, RAW, Augmentation(shift=2), batch_size=4, seed=0, device=CPU)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_images_of_more_than_8_bits_are_refused(root: Path, tmp_path: Path, dtype: type[np.generic]) -> None:
    shutil.copytree(root, tmp_path / "deep")
    path = tmp_path / "deep" / "val" / "ant" / "0.png"
    path.unlink()
    Image.fromarray(np.full((16, 16), 300, dtype=dtype)).save(path.with_suffix(".tiff"))
    _, val = load_image_folder(tmp_path / "deep", RAW)
    with pytest.raises(
        DataError, match=r"0\.tiff: not readable as an image \(mode (I|F).*write it with 8 bits a channel"
    ):
        next(val.raw(0, 1))
