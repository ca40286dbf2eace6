from __future__ import annotations

import contextlib
import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bitswitch_deploy.errors import CheckpointError, OutputError
from bitswitch_deploy.tensors import Rounding
from bitswitch_deploy.training.checkpoint import import_checkpoint, load_checkpoint, save_checkpoint
from tests.training.tiny_network import OPTIONS, seen_network, tiny_model, tiny_network


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.write_text, (Path("exploded"), "x"))


def saved(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path)
    return path


class TestImport:
    @pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
    def test_a_prepared_network_comes_back(self, tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
        network, other = seen_network(), tiny_network()
        import_checkpoint(saved(tmp_path, wrap(network.model.state_dict())), other.model)
        expected = network.model.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in other.model.state_dict().items())

    def test_a_prefix_of_parallel_training_is_dropped(self, tmp_path: Path) -> None:
        model, other = tiny_model(1), tiny_model(2)
        state = {f"module.{key}": value for key, value in model.state_dict().items()}
        import_checkpoint(saved(tmp_path, state), other)
        assert torch.equal(other.get_parameter("0.weight"), model.get_parameter("0.weight"))

    def test_what_compiling_puts_into_names_is_dropped(self, tmp_path: Path) -> None:
        model, other = tiny_model(1), tiny_model(2)
        state = {f"module._orig_mod.{key}": value for key, value in model.state_dict().items()}
        import_checkpoint(saved(tmp_path, state), other)
        assert torch.equal(other.get_parameter("0.weight"), model.get_parameter("0.weight"))

    def test_a_network_whose_only_child_is_called_module_takes_its_own_state(self, tmp_path: Path) -> None:
        model, other = (nn.ModuleDict({"module": tiny_model(seed)}) for seed in (1, 2))
        import_checkpoint(saved(tmp_path, model.state_dict()), other)
        for actual, expected in zip(other.parameters(), model.parameters(), strict=True):
            assert torch.equal(actual, expected)

    def test_batch_counters_may_be_missing(self, tmp_path: Path) -> None:
        state = {key: value for key, value in tiny_model().state_dict().items() if "num_batches" not in key}
        import_checkpoint(saved(tmp_path, state), tiny_model(1))

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("3.weight", None, "missing 3.weight; unknown nothing"),
            ("surplus", torch.zeros(1), "missing nothing; unknown surplus"),
            ("3.weight", torch.zeros(4, 4, 1, 1), r"3\.weight: torch.float32 \(4, 4, 1, 1\)\n  allowed: torch.float32"),
            ("3.weight", torch.zeros(4, 4, 3, 3, dtype=torch.float64), "3.weight: torch.float64"),
            ("3.weight", torch.full((4, 4, 3, 3), float("nan")), "3.weight: NaN or infinity"),
            ("3.weight", 5, "3.weight: int"),
            ("3.weight", torch.zeros(4, 4, 3, 3).to_sparse(), "3.weight: a tensor without plain values"),
            ("3.weight", torch.zeros(4, 4, 3, 3, device="meta"), "3.weight: a tensor without plain values"),
            ("3.input_quantizer.scales.1", torch.tensor(float("inf")), "scales.1: NaN or infinity"),
            ("3.input_quantizer.signed", torch.tensor(7, dtype=torch.int8), "signed = 7"),
        ],
    )
    def test_what_does_not_fit_is_refused_and_nothing_is_loaded(
        self, tmp_path: Path, key: str, value: Any, message: str
    ) -> None:
        state = dict(seen_network().model.state_dict())
        state[key] = value
        if value is None:
            del state[key]
        other = tiny_network()
        before = {name: tensor.clone() for name, tensor in other.model.state_dict().items()}
        with pytest.raises(CheckpointError, match=message):
            import_checkpoint(saved(tmp_path, state), other.model)
        assert all(torch.equal(tensor, before[name]) for name, tensor in other.model.state_dict().items())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"widths": (8, 3, 2)}, r"3: trained at widths 8, 4, 2, .*\n  allowed: widths 8, 3, 2,"),
            ({"rounding": Rounding.HALF_EVEN}, r"trained at .* rounding half_up.*\n  allowed: .* rounding half_even"),
            ({"activation_container": "uint8"}, r"trained at .* codes to 127\n  allowed: .* codes to 255"),
        ],
    )
    def test_weights_that_were_trained_as_something_else(
        self, tmp_path: Path, options: dict[str, Any], message: str
    ) -> None:
        other = tiny_network(replace(OPTIONS, **options))
        with pytest.raises(CheckpointError, match=message):
            import_checkpoint(saved(tmp_path, seen_network().model.state_dict()), other.model)

    def test_a_state_of_an_older_version_does_not_tell_and_is_taken(self, tmp_path: Path) -> None:
        network, other = seen_network(), tiny_network()
        state = {key: value for key, value in network.model.state_dict().items() if "trained_as" not in key}
        import_checkpoint(saved(tmp_path, state), other.model)
        assert torch.equal(other.model.get_parameter("3.weight"), network.model.get_parameter("3.weight"))
        tiny_network().model.load_state_dict(state)

    def test_a_float_checkpoint_does_not_fit_a_prepared_network(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"missing 1\.copies\.0\.weight.* and \d+ more; unknown 1\.weight"):
            import_checkpoint(saved(tmp_path, tiny_model().state_dict()), tiny_network().model)


class TestLoad:
    def test_code_is_not_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(CheckpointError, match="holds more than tensors or is damaged"):
            load_checkpoint(saved(tmp_path, {"state_dict": Bomb()}))
        assert not Path("exploded").exists()

    def test_a_whole_pickled_module_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="holds more than tensors"):
            load_checkpoint(saved(tmp_path, tiny_model()))

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"absent\.pt: cannot be read: No such file"):
            load_checkpoint(tmp_path / "absent.pt")

    @pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04broken", b"\x80\x05", pickle.dumps({"a": 1})])
    def test_bytes_that_are_no_checkpoint(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "broken.pt"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"broken\.pt: "):
            load_checkpoint(path)

    def test_a_cut_file(self, tmp_path: Path) -> None:
        path = saved(tmp_path, tiny_model().state_dict())
        path.write_bytes(path.read_bytes()[:-500])
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt: "):
            load_checkpoint(path)

    @pytest.mark.parametrize("legacy", [False, True])
    def test_flipped_bytes_are_read_or_refused(self, tmp_path: Path, legacy: bool) -> None:
        path = tmp_path / "flipped.pt"
        content = {"a": torch.zeros(3), "b": [1, 2.0, "x"]}
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        sound = path.read_bytes()
        generator = random.Random(0)
        for _ in range(150):
            flipped = bytearray(sound)
            flipped[generator.randrange(len(sound))] = generator.randrange(256)
            path.write_bytes(flipped)
            with contextlib.suppress(CheckpointError):
                load_checkpoint(path)

    def test_no_mapping(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="a Tensor\n  allowed: a mapping"):
            load_checkpoint(saved(tmp_path, torch.zeros(3)))


class TestSave:
    def test_replaces_a_file_and_leaves_no_other(self, tmp_path: Path) -> None:
        path = tmp_path / "state"
        save_checkpoint({"step": 1}, path)
        save_checkpoint({"step": 2}, path)
        assert load_checkpoint(path) == {"step": 2}
        assert [entry.name for entry in tmp_path.iterdir()] == ["state"]

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="cannot be written: No such file"):
            save_checkpoint({"step": 1}, tmp_path / "nowhere" / "state")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_told_as_one() -> None:
    with pytest.raises(OutputError, match="No space left on device"):
        save_checkpoint({"weights": torch.zeros(100_000)}, Path("/dev/full"))
