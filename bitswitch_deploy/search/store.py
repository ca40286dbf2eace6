"""Scores on disk under the hash of everything that they depend on: a search that was interrupted goes on from there.

One small .npz for each assignment and piece of the samples. A file that cannot be read counts as not there. Nothing in
it is ever unpickled.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitswitch_deploy.atomic_file import replace_file
from bitswitch_deploy.errors import OutputError
from bitswitch_deploy.search.score import Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreStore:
    """A folder of scores."""

    folder: Path

    def load(self, key: str, n: int | None = None) -> Scores | None:
        """The scores under `key`, None when they are not there in good order. n: how many; None takes any number."""
        try:
            with np.load(self._path(key), allow_pickle=False) as stored:
                loss, right = stored["loss"], stored["right"]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return None
        shape = (len(loss) if n is None else n,)
        if (loss.dtype, right.dtype, loss.shape, right.shape) != (np.float64, np.bool_, shape, shape):
            return None
        return Scores(loss=loss, right=right) if np.isfinite(loss).all() else None

    def save(self, key: str, scores: Scores) -> None:
        """Keep scores under `key`.

        Raises:
            OutputError: the folder does not accept a file.
        """
        buffer = io.BytesIO()
        np.savez(buffer, loss=scores.loss, right=scores.right)
        path = self._path(key)
        make_folder(path.parent)
        replace_file(path, buffer.getvalue())

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key[2:]}.npz"


def key_of(*parts: object) -> str:
    """SHA-256 of the parts' text, each on a line of its own."""
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(
            where=str(path),
            got=f"cannot be made: {exc.strerror}",
            allowed="a folder that can be written",
            do="name another one with --cache",
        ) from exc
