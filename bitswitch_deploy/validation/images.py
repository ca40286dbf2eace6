"""Read a data set from a folder of images per class. The only module that touches Pillow (extra `images`).

    photos/cat/0001.png        the class folders in sorted order are classes 0, 1, 2 ...
    photos/dog/0001.jpg        each holds image files, nothing else; hidden files are left out

Images are converted to the colour mode of the master; the whole of each, or the middle where the master says so, is
resized to its size, bilinear as in torchvision, then preprocessed. They are decoded a batch at a time, so memory does
not grow with the folder.
"""

from __future__ import annotations

import hashlib
import io
import struct
import types
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.errors import DataError, UnavailableError
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.validation.samples import DataRequest, Samples

if TYPE_CHECKING:
    from PIL.Image import Image

# Named, because Pillow would also hand EPS to Ghostscript: reading never executes what is in a file.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
BILINEAR = 2  # PIL.Image.Resampling.BILINEAR
MAX_FILE_BYTES = 2**28
# Wider integers and floats ("I", "I;16", "F") are cut off at 255 by Pillow's conversion: refused.
EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")

_BROKEN = (OSError, EOFError, SyntaxError, ValueError, IndexError, struct.error, zlib.error)


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSource:
    """Image files in the order of the samples."""

    files: tuple[Path, ...]
    preprocessing: Preprocessing

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Samples start..stop-1, float32 [stop - start, C, H, W].

        Raises:
            DataError: an image cannot be decoded.
        """
        files = self.files[start:stop]
        return self.preprocessing.apply(np.stack([_pixels(file, self.preprocessing) for file in files]))


def read_image_folder(request: DataRequest) -> Samples:
    """Find the images of `request`, see that each is one, and take the digest of their bytes and classes.

    The digest is the SHA-256 of the line `centre` where the middle of each image is taken, and of the line
    `<class> <size>` and the bytes of each file used, in order: it does not depend on file names or on how a version of
    Pillow decodes. The trainer takes the same.

    Raises:
        DataError: no class folders, an empty one, another number than the network has classes, no image.
        UnavailableError: Pillow is not installed.
    """
    _pillow(request.path)
    preprocessing = request.needed_preprocessing()
    request.check_sample((preprocessing.channels, *preprocessing.size))
    folders = _class_folders(request)
    labelled = [(label, file) for label, folder in enumerate(folders) for file in _files(folder)]
    chosen = [labelled[index] for index in request.pick(len(labelled))]
    digest = hashlib.sha256(b"" if preprocessing.centre_share is None else b"centre\n")
    for label, file in chosen:
        data = _checked_bytes(file)
        digest.update(f"{label} {len(data)}\n".encode())
        digest.update(data)
    return Samples(
        source=FolderSource(files=tuple(file for _, file in chosen), preprocessing=preprocessing),
        y=np.array([label for label, _ in chosen], dtype=np.int64),
        n=len(chosen),
        sha256=digest.hexdigest(),
        class_names=tuple(folder.name for folder in folders),
    )


def _pillow(wanted_by: Path) -> types.ModuleType:
    try:
        from PIL import Image
    except ImportError as exc:
        raise UnavailableError(
            where=str(wanted_by),
            got="reading images needs Pillow, which is not installed",
            allowed="Pillow, or the data set as an .npz file",
            do="pip install 'bitswitch-deploy[images]'",
        ) from exc
    return Image


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=lambda e: e.name)
    except OSError as exc:
        raise DataError(
            where=str(folder),
            got=f"cannot be listed ({exc.strerror})",
            allowed="a folder that you may read",
            do="check its permissions",
        ) from exc


def _class_folders(request: DataRequest) -> list[Path]:
    folders = [entry for entry in _entries(request.path) if entry.is_dir()]
    if not folders or request.classes not in (None, len(folders)):
        names = ", ".join(folder.name for folder in folders[:5])
        raise DataError(
            where=str(request.path),
            got=f"{len(folders)} class folders" + (f" ({names}{', ...' if len(folders) > 5 else ''})" if names else ""),
            allowed="one folder for each class"
            + (f", {request.classes} as the network has" if request.classes is not None else ""),
            do="put the images of each class into a folder of its own; the sorted names are the classes 0, 1, 2 ...",
        )
    return folders


def _files(folder: Path) -> list[Path]:
    entries = _entries(folder)
    strange = [entry for entry in entries if not entry.is_file()]
    if not entries or strange:
        raise DataError(
            where=str(folder),
            got=f"'{strange[0].name}', which is not a file" if strange else "no images",
            allowed="image files of one class",
            do="move it out of the class folder" if strange else "add images of this class",
        )
    return entries


def _not_an_image(file: Path, got: str) -> DataError:
    return DataError(
        where=str(file),
        got=got,
        allowed=f"an image with 8 bits per channel: {', '.join(FORMATS)}",
        do="repair it, convert it, or remove it from the class folder",
    )


def _checked_bytes(file: Path) -> bytes:
    """Bytes of an image file whose header is in order; a broken body shows when it is decoded."""
    try:
        size = file.stat().st_size
        if size > MAX_FILE_BYTES:
            raise _not_an_image(file, f"a file of {size} bytes, above {MAX_FILE_BYTES}")
        data = file.read_bytes()
    except OSError as exc:
        raise _not_an_image(file, f"cannot be read ({exc.strerror})") from exc
    with _opened(file, io.BytesIO(data)) as image:
        if image.mode not in EIGHT_BIT_MODES:
            raise _not_an_image(file, f"pixels of mode {image.mode}, not 8 bits per channel")
    return data


def _pixels(file: Path, how: Preprocessing) -> npt.NDArray[np.uint8]:
    """Pixels of one image as the network wants them, uint8 [H, W, C]."""
    height, width = how.size
    with _opened(file, file) as image:
        box = how.box(image.width, image.height)
        pixels = np.asarray(image.convert(how.colour).resize((width, height), BILINEAR, box=box))
    return pixels.reshape(height, width, how.channels)


@contextmanager
def _opened(file: Path, stream: Path | io.BytesIO) -> Iterator[Image]:
    """The image in `stream`; whatever goes wrong until it is closed is the fault of `file`."""
    pillow = _pillow(file)
    bombs = (pillow.DecompressionBombWarning, pillow.DecompressionBombError)
    try:
        with warnings.catch_warnings():
            # Odd metadata (EXIF, TIFF tags) is common in real sets and says nothing about the pixels.
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(stream, formats=FORMATS) as image:
                yield image
    except bombs as exc:
        raise _not_an_image(file, f"too many pixels ({exc})") from exc
    except pillow.UnidentifiedImageError as exc:
        raise _not_an_image(file, "not an image, or one of another format") from exc
    except _BROKEN as exc:
        raise _not_an_image(file, f"not readable as an image ({exc})") from exc
