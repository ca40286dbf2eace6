from __future__ import annotations

import errno
import hashlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.errors import DataError, UnavailableError
from bitswitch_deploy.master.spec import ValueSpec
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.validation import images
from bitswitch_deploy.validation.images import read_image_folder
from bitswitch_deploy.validation.samples import DataRequest
from tests.validation.conftest import GREY

Image = pytest.importorskip("PIL.Image")
Make = Callable[..., DataRequest]

RGB = Preprocessing(colour="RGB", size=(1, 2), divide_by=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
RGB_INPUT = ValueSpec(name="x", dtype="float32", shape=("n", 3, 1, 2))


def _png(path: Path, pixels: list[list[object]]) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(np.array(pixels, dtype=np.uint8)).save(path, format="PNG")
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Classes ape (10 0), bee (20 0), (30 0), cat (40 0): written in another order than they sort."""
    folder = tmp_path / "photos"
    _png(folder / "cat" / "a.png", [[40, 0]])
    _png(folder / "bee" / "b.png", [[30, 0]])
    _png(folder / "bee" / "a.png", [[20, 0]])
    _png(folder / "ape" / "z.png", [[10, 0]])
    return folder


def test_classes_and_files_are_read_in_sorted_order(request_for: Make, photos: Path) -> None:
    samples = read_image_folder(request_for(photos))
    assert samples.class_names == ("ape", "bee", "cat")
    assert samples.y is not None
    assert samples.y.tolist() == [0, 1, 1, 2]
    # (raw / 10 - 1) / 2
    assert samples.source.read(0, 4)[:, 0, 0, 0].tolist() == [0.0, 0.5, 1.0, 1.5]
    assert samples.source.read(1, 2).tolist() == [[[[0.5, -0.5]]]]


def test_the_middle_of_an_image_is_taken_where_the_master_was_trained_so(request_for: Make, tmp_path: Path) -> None:
    file = _png(tmp_path / "photos" / "ape" / "a.png", [[99, 10, 20, 99]])
    middle = replace(GREY, centre_share=1.0)
    samples = read_image_folder(request_for(tmp_path / "photos", classes=1, preprocessing=middle))
    assert samples.source.read(0, 1).tolist() == [[[[0.0, 0.5]]]]
    whole = read_image_folder(request_for(tmp_path / "photos", classes=1))
    assert whole.source.read(0, 1).tolist() != [[[[0.0, 0.5]]]]
    # the digest that a trainer takes of the same middles
    content = file.read_bytes()
    assert samples.sha256 == hashlib.sha256(b"centre\n" + f"0 {len(content)}\n".encode() + content).hexdigest()
    assert whole.sha256 != samples.sha256


def test_the_digest_is_of_bytes_and_classes_not_of_names(request_for: Make, photos: Path) -> None:
    expected = hashlib.sha256()
    for label, name in [(0, "ape/z"), (1, "bee/a"), (1, "bee/b"), (2, "cat/a")]:
        content = (photos / f"{name}.png").read_bytes()
        expected.update(f"{label} {len(content)}\n".encode() + content)
    assert read_image_folder(request_for(photos)).sha256 == expected.hexdigest()
    (photos / "ape" / "z.png").rename(photos / "ape" / "y.png")
    (photos / "ape").rename(photos / "ant")
    assert read_image_folder(request_for(photos)).sha256 == expected.hexdigest()
    (photos / "bee" / "a.png").rename(photos / "bee" / "c.png")
    assert read_image_folder(request_for(photos)).sha256 != expected.hexdigest()


def test_a_limit_is_spread_over_the_classes(request_for: Make, photos: Path) -> None:
    samples = read_image_folder(request_for(photos, limit=2))
    assert samples.y is not None
    assert samples.y.tolist() == [0, 1]
    assert samples.source.read(0, 2)[:, 0, 0, 0].tolist() == [0.0, 1.0]


def test_images_are_converted_and_resized(request_for: Make, photos: Path) -> None:
    request = request_for(photos, preprocessing=RGB, input_spec=RGB_INPUT)
    _png(photos / "ape" / "z.png", [[[1, 2, 3], [4, 5, 6]]])
    _png(photos / "cat" / "a.png", [[100, 100, 200, 200], [100, 100, 200, 200]])
    inputs = read_image_folder(request).source.read(0, 4)
    assert inputs[0].tolist() == [[[1.0, 4.0]], [[2.0, 5.0]], [[3.0, 6.0]]]
    # A triangle two pixels wide: weights 3/4, 3/4, 1/4 of 7/4, so that 1/7 comes from the other side.
    assert inputs[3, 0].tolist() == [[114.0, 186.0]]


def test_batches_are_decoded_when_they_are_read(
    request_for: Make, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    pixels = images._pixels

    def noted(file: Path, how: Preprocessing) -> np.ndarray[Any, Any]:
        decoded.append(file.name)
        return pixels(file, how)

    monkeypatch.setattr(images, "_pixels", noted)
    source = read_image_folder(request_for(photos)).source
    assert decoded == []
    source.read(1, 3)
    assert decoded == ["a.png", "b.png"]


def test_hidden_entries_and_files_beside_the_classes_are_left_out(request_for: Make, photos: Path) -> None:
    (photos / ".git").mkdir()
    (photos / "README").write_text("about")
    (photos / "bee" / ".DS_Store").write_text("junk")
    assert read_image_folder(request_for(photos)).n == 4


@pytest.mark.parametrize("suffix", ["jpg", "webp", "bmp", "gif", "tiff", "ppm"])
def test_formats(request_for: Make, photos: Path, suffix: str) -> None:
    Image.fromarray(np.full((1, 2), 10, np.uint8)).save(photos / "ape" / f"a.{suffix}")
    assert read_image_folder(request_for(photos)).source.read(0, 1).shape == (1, 1, 1, 2)


def test_no_class_folders(request_for: Make, tmp_path: Path) -> None:
    _png(tmp_path / "a.png", [[1, 2]])
    with pytest.raises(DataError, match="0 class folders\n  allowed: one folder for each class, 3 as the network has"):
        read_image_folder(request_for(tmp_path))
    with pytest.raises(DataError, match="0 class folders\n  allowed: one folder for each class\n"):
        read_image_folder(request_for(tmp_path, classes=None))


def test_another_number_of_classes(request_for: Make, photos: Path) -> None:
    with pytest.raises(DataError, match=r"3 class folders \(ape, bee, cat\)\n.*, 10 as the network has"):
        read_image_folder(request_for(photos, classes=10))
    assert read_image_folder(request_for(photos, classes=None)).n == 4


def test_an_empty_class(request_for: Make, photos: Path) -> None:
    (photos / "ape" / "z.png").unlink()
    with pytest.raises(DataError, match="ape: no images\n"):
        read_image_folder(request_for(photos))


def test_a_folder_inside_a_class(request_for: Make, photos: Path) -> None:
    (photos / "bee" / "more").mkdir()
    with pytest.raises(DataError, match="bee: 'more', which is not a file"):
        read_image_folder(request_for(photos))


def test_a_file_that_is_no_image(request_for: Make, photos: Path) -> None:
    (photos / "bee" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"notes\.txt: not an image, or one of another format\n  allowed: .*PNG, JPEG"):
        read_image_folder(request_for(photos))


def test_postscript_is_not_handed_to_an_interpreter(request_for: Make, photos: Path) -> None:
    Image.fromarray(np.zeros((1, 2), np.uint8)).save(photos / "bee" / "c.eps")
    with pytest.raises(DataError, match=r"c\.eps: not an image, or one of another format"):
        read_image_folder(request_for(photos))


def test_a_broken_body_shows_when_it_is_decoded(request_for: Make, photos: Path) -> None:
    path = _png(photos / "cat" / "a.png", np.random.default_rng(0).integers(0, 255, (64, 64)).tolist())
    path.write_bytes(path.read_bytes()[:2000])
    source = read_image_folder(request_for(photos)).source
    source.read(0, 3)
    with pytest.raises(DataError, match=r"cat.a\.png: not readable as an image \(.*truncated"):
        source.read(3, 4)


def test_an_image_that_disappears(request_for: Make, photos: Path) -> None:
    source = read_image_folder(request_for(photos)).source
    (photos / "cat" / "a.png").unlink()
    with pytest.raises(DataError, match=r"cat.a\.png: not readable as an image \(.*No such file"):
        source.read(3, 4)


def test_more_than_eight_bits_are_refused(request_for: Make, photos: Path) -> None:
    Image.fromarray(np.full((1, 2), 60_000, np.uint16)).save(photos / "bee" / "a.png")
    with pytest.raises(DataError, match=r"bee.a\.png: pixels of mode I;16, not 8 bits per channel"):
        read_image_folder(request_for(photos))


def test_too_many_pixels(request_for: Make, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    with pytest.raises(DataError, match=r"ape.z\.png: too many pixels"):
        read_image_folder(request_for(photos))


def test_a_file_above_the_size_limit(request_for: Make, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (photos / "ape" / "z.png").stat().st_size
    monkeypatch.setattr(images, "MAX_FILE_BYTES", size - 1)
    with pytest.raises(DataError, match=rf"z\.png: a file of {size} bytes, above {size - 1}"):
        read_image_folder(request_for(photos))


def test_no_preprocessing(request_for: Make, photos: Path) -> None:
    with pytest.raises(DataError, match="the master does not say how to preprocess"):
        read_image_folder(request_for(photos, preprocessing=None))


def test_a_preprocessing_that_does_not_lead_to_the_input(request_for: Make, photos: Path) -> None:
    with pytest.raises(DataError, match=r"one sample has shape \[3, 1, 2\]\n  allowed: \[1, 1, 2\]"):
        read_image_folder(request_for(photos, preprocessing=RGB))


@pytest.mark.parametrize(
    ("method", "message"),
    [("iterdir", r"photos: cannot be listed \(Permission denied\)"), ("read_bytes", r"z\.png: cannot be read \(Perm")],
)
def test_what_may_not_be_read(
    request_for: Make, photos: Path, monkeypatch: pytest.MonkeyPatch, method: str, message: str
) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, method, denied)
    with pytest.raises(DataError, match=message):
        read_image_folder(request_for(photos))


def test_without_pillow(request_for: Make, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UnavailableError, match=r"do: pip install 'bitswitch-deploy\[images\]'"):
        read_image_folder(request_for(photos))
