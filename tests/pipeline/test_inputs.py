from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bitswitch_deploy.catalogue import bundled_master, sample_set
from bitswitch_deploy.errors import InputFileError, UsageError
from bitswitch_deploy.master import assemble_master, read_master
from bitswitch_deploy.pipeline.inputs import bundled_samples, parse_bits, read_mixed
from bitswitch_deploy.tensors import WidthAssignment

SHA256 = "a" * 64


def test_bits_keep_their_order() -> None:
    assert [assignment.default for assignment in parse_bits("8, 2,5")] == [8, 2, 5]


@pytest.mark.parametrize("text", ["", "9", "1", "8,8", "8,,4", "8;4", "-4", "4.0", "eight", "9" * 5000, "08"])
def test_bits_that_are_no_list_of_widths_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"different widths in 2\.\.8"):
        parse_bits(text)


def test_mixed_takes_the_star_for_all_other_layers(tmp_path: Path) -> None:
    path = tmp_path / "mixed.json"
    path.write_text('{"b": 2, "a": 4, "*": 6}')
    assert read_mixed(path, highest=8, master_sha256=SHA256) == WidthAssignment(
        default=6, overrides=(("a", 4), ("b", 2))
    )


def test_mixed_without_a_star_leaves_the_rest_at_the_highest_width(tmp_path: Path) -> None:
    path = tmp_path / "mixed.json"
    path.write_text('{"a": 4}')
    assert read_mixed(path, highest=8, master_sha256=SHA256) == WidthAssignment(default=8, overrides=(("a", 4),))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "4",
        '{"a": 9}',
        '{"a": 1}',
        '{"a": true}',
        '{"a": 4.0}',
        '{"a": "4"}',
        '{"a": 4, "a": 2}',
        "{" * 5000,
    ],
)
def test_mixed_that_is_no_object_of_widths_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mixed.json"
    path.write_text(text)
    with pytest.raises(InputFileError, match="an object such as"):
        read_mixed(path, highest=8, master_sha256=SHA256)


@pytest.mark.parametrize("text", ['{"a": 8, "b": 2}', '{"a": 2, "*": 8}'])
def test_mixed_widths_above_those_of_the_master_are_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mixed.json"
    path.write_text(text)
    with pytest.raises(InputFileError, match=r"mixed\.json: '[a*]': 8\n  allowed: .*\"\*\": 4} with widths 2\.\.4\n"):
        read_mixed(path, highest=4, master_sha256=SHA256)


def test_mixed_that_a_search_chose_for_another_master_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps({"master_sha256": SHA256, "a": 4, "*": 8}))
    expected = WidthAssignment(default=8, overrides=(("a", 4),))
    assert read_mixed(path, highest=8, master_sha256=SHA256) == expected
    message = r"sha256 aaaaaaaaaaaa\n  allowed: this master, sha256 bbbbbbbbbbbb\n  do: hand in that master"
    with pytest.raises(UsageError, match=message):
        read_mixed(path, highest=8, master_sha256="b" * 64)
    # a layer may have that name
    path.write_text('{"master_sha256": 4}')
    named = WidthAssignment(default=8, overrides=(("master_sha256", 4),))
    assert read_mixed(path, highest=8, master_sha256=SHA256) == named


def test_mixed_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"no\.json: cannot be read: No such file or directory\n"):
        read_mixed(tmp_path / "no.json", highest=8, master_sha256=SHA256)


def test_mixed_that_is_too_long_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mixed.json").write_text('{"a": 4}' + " " * (1 << 20))
    with pytest.raises(InputFileError, match=r"cannot be read: more than 1,048,576 characters\n"):
        read_mixed(tmp_path / "mixed.json", highest=8, master_sha256=SHA256)


def test_the_bundled_samples_are_those_that_the_master_was_measured_on_not_any_of_their_name() -> None:
    bundled = read_master(bundled_master())
    assert bundled_samples(bundled) == ("digits", sample_set("digits"))
    strange = replace(bundled.spec.accuracy[0], dataset_sha256="0" * 64)
    for accuracy, expected in (((strange,), None), ((strange, bundled.spec.accuracy[0]), sample_set("digits"))):
        spec = replace(bundled.spec, accuracy=accuracy)
        master = assemble_master(spec=spec, tensors=bundled.tensors, skeleton=bundled.skeleton)
        assert bundled_samples(master)[1] == expected
