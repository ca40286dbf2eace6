"""What an export reads: the master, the data to validate on, the samples to calibrate on, the widths."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from bitswitch_deploy.catalogue import SampleSet, sample_set
from bitswitch_deploy.errors import DataError, InputFileError, UsageError
from bitswitch_deploy.master import Master
from bitswitch_deploy.package.files import hash_file
from bitswitch_deploy.tensors import MAX_BITS, MIN_BITS, WidthAssignment
from bitswitch_deploy.validation.dataset import Dataset, load_dataset

CALIBRATION_SAMPLES = 512
DEFAULT_KEY = "*"
# In a file of widths, where a search wrote it: a text, so that it is no layer.
MASTER_KEY = "master_sha256"
# A thousand times what the largest networks have in layers.
_MAX_MIXED_CHARACTERS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportData:
    """Data sets of one export, None where there are none; calibrates_on_test: they are the same samples."""

    test: Dataset | None
    calibration: Dataset | None
    calibrates_on_test: bool = False


def load_export_data(
    master: Master, *, data: Path | None, calibration: Path | None, samples: int | None = None
) -> ExportData:
    """The data that was asked for, else the bundled sample set that the master's accuracies name.

    samples: to validate on, evenly spaced over the data set; None takes all.

    Raises:
        DataError: a data set is damaged or does not fit the master.
    """
    bundled = bundled_samples(master)[1]
    calibrates_on_test = calibration is None and bundled is None and data is not None
    train = data if calibrates_on_test else bundled.train if bundled else None
    return ExportData(
        test=load_test_samples(master, data, limit=samples),
        calibration=load_samples(master, calibration or train, limit=CALIBRATION_SAMPLES),
        calibrates_on_test=calibrates_on_test,
    )


def load_test_samples(master: Master, data: Path | None, *, limit: int | None = None) -> Dataset | None:
    """The samples at `data` to validate on, else the bundled ones that the master's accuracies name.

    limit: how many, evenly spaced over the data set; None takes all.

    Raises:
        DataError: the data set is damaged or does not fit the master.
    """
    name, bundled = bundled_samples(master)
    test = load_samples(master, data or (bundled.test if bundled else None), limit=limit)
    return replace(test, name=f"{name} test split") if test is not None and data is None else test


def bundled_samples(master: Master) -> tuple[str, SampleSet | None]:
    """The bundled sample set that the master was measured on, with its name; None where it was on none."""
    for accuracy in master.spec.accuracy:
        found = sample_set(accuracy.dataset)
        # a name alone may be that of a data set of the user's own
        if found is not None and hash_file(found.test)[0] == accuracy.dataset_sha256:
            return accuracy.dataset, found
    return "", None


def number_of_classes(master: Master) -> int | None:
    """Classes of the network; None when its output is no row of class scores."""
    shape = master.spec.outputs[0].shape
    return shape[1] if len(shape) == 2 and isinstance(shape[1], int) else None


def load_samples(master: Master, path: Path | None, *, limit: int | None) -> Dataset | None:
    """The samples at `path` as the master's network takes them, `limit` of them; None where there is no path.

    Raises:
        DataError: the data set is damaged or does not fit the master.
    """
    if path is None:
        return None
    spec = master.spec
    if len(spec.inputs) != 1:
        raise DataError(
            where=str(path),
            got=f"data for a network with {len(spec.inputs)} inputs",
            allowed="networks with one input",
            do="leave out --data: the graphs are exported, and the report says that nothing was validated",
        )
    classes = number_of_classes(master)
    return load_dataset(path, preprocessing=spec.preprocessing, input_spec=spec.inputs[0], classes=classes, limit=limit)


def parse_bits(text: str) -> tuple[WidthAssignment, ...]:
    """`8,6,4,2` as uniform assignments, in this order.

    Raises:
        UsageError: not a list of different widths in 2..8.
    """
    words = [word.strip() for word in text.split(",")]
    widths = [int(word) for word in words if word.isdecimal() and len(word) == 1]
    if (
        len(widths) != len(words)
        or len(set(widths)) != len(widths)
        or not all(MIN_BITS <= b <= MAX_BITS for b in widths)
    ):
        raise UsageError(
            where="--bits",
            got=repr(text),
            allowed=f"different widths in {MIN_BITS}..{MAX_BITS}, separated by commas",
            do="write for example --bits 8,6,4,2",
        )
    return tuple(WidthAssignment(default=bits) for bits in widths)


def read_mixed(path: Path, *, highest: int, master_sha256: str) -> WidthAssignment:
    """A JSON object of layer -> width; `*` names the width of all layers that are not in it, else it is `highest`.

    highest: the master's own width; none may be above it. master_sha256: of the master that the widths are for; a file
    that a search wrote names its own.

    Raises:
        InputFileError: the file cannot be read or is not such an object.
        UsageError: a search chose these widths for another master.
    """

    def refusal(got: str) -> InputFileError:
        allowed = (
            f'an object such as {{"layer1.0.conv1": 2, "{DEFAULT_KEY}": {highest}}} with widths {MIN_BITS}..{highest}'
        )
        return InputFileError(where=str(path), got=got, allowed=allowed, do="correct the file")

    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_MIXED_CHARACTERS + 1)
        if len(text) > _MAX_MIXED_CHARACTERS:
            raise ValueError(f"more than {_MAX_MIXED_CHARACTERS:,} characters")
        widths = json.loads(text, object_pairs_hook=_unique)
    except (OSError, ValueError, RecursionError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise refusal(f"cannot be read: {reason}") from exc
    if not isinstance(widths, dict) or not widths:
        raise refusal(f"{type(widths).__name__}, empty or not an object")
    if isinstance(widths.get(MASTER_KEY), str):
        _check_master(path, widths.pop(MASTER_KEY), master_sha256)
    for name, bits in widths.items():
        if type(bits) is not int or not MIN_BITS <= bits <= highest:
            raise refusal(f"{name!r}: {bits!r}")
    default = widths.pop(DEFAULT_KEY, highest)
    return WidthAssignment(default=default, overrides=tuple(sorted(widths.items())))


def _check_master(path: Path, searched: str, sha256: str) -> None:
    if searched != sha256:
        raise UsageError(
            where=str(path),
            got=f"widths that a search chose for the master with sha256 {searched[:12]}",
            allowed=f"this master, sha256 {sha256[:12]}",
            do=f"hand in that master, or search this one; without {MASTER_KEY!r} the widths count for any master",
        )


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a layer is named twice")
    return result
