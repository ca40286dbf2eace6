"""Write calibration/digits from the copy of the data set that scikit-learn ships (pip install scikit-learn first).

The split is drawn once with a fixed seed, class by class, and the files come out byte for byte the same each time:
    python tools/make_digits.py [FOLDER]
"""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

SEED = 20250217
TEST_IMAGES = 600
CLASSES = 10
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
FOLDER = Path(__file__).resolve().parent.parent / "calibration" / "digits"


def stratified_split(labels: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Sorted indices of train and test; every class has its share of TEST_IMAGES, largest remainders first."""
    generator = np.random.RandomState(SEED)  # its streams are frozen, unlike those of numpy's newer generators
    counts = np.bincount(labels, minlength=CLASSES)
    shares = counts * TEST_IMAGES / len(labels)
    sizes = np.floor(shares).astype(int)
    for extra in np.argsort(sizes - shares, kind="stable")[: TEST_IMAGES - sizes.sum()]:
        sizes[extra] += 1
    test = np.concatenate([generator.permutation(np.flatnonzero(labels == c))[: sizes[c]] for c in range(CLASSES)])
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[test] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def write_npz(path: Path, arrays: dict[str, npt.NDArray[np.generic]]) -> str:
    """An .npz file without dates or compression (zlib versions differ); returns its sha256."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=ZIP_EPOCH)
            entry.create_system = 3  # Unix, also when written on Windows
            archive.writestr(entry, content.getvalue())
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Write both splits and dataset.yaml."""
    from sklearn.datasets import load_digits  # type: ignore[import-not-found,import-untyped,unused-ignore]

    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    images = digits.images.astype(np.uint8)  # whole numbers 0..16
    labels = digits.target.astype(np.int64)
    lines = ["# Written by tools/make_digits.py; see README.md.", "name: digits", "splits:"]
    for split, indices in zip(("train", "test"), stratified_split(labels), strict=True):
        digest = write_npz(folder / f"{split}.npz", {"x": images[indices], "y": labels[indices]})
        lines.append(f"  {split}: {{file: {split}.npz, n: {len(indices)}, sha256: {digest}}}")
    (folder / "dataset.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
