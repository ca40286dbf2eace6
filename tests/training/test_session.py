"""A whole run, from a recipe to a master file, on very little data."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from click.testing import CliRunner

from bitswitch_deploy.atomic_file import atomic_writer
from bitswitch_deploy.errors import CheckFailedError, CheckpointError, InputFileError, OutputError, UsageError
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.master import assemble_master, read_master, write_master
from bitswitch_deploy.tensors import Rounding, WidthAssignment
from bitswitch_deploy.training.batches import BatchSource
from bitswitch_deploy.training.checkpoint import load_checkpoint, save_checkpoint
from bitswitch_deploy.training.metrics_log import read_log
from bitswitch_deploy.training.networks import build_network
from bitswitch_deploy.training.recipe import RECIPES, Recipe, SupernetSettings, load_recipe
from bitswitch_deploy.training.run_session import TrainedNetwork, run_session
from bitswitch_deploy.training.session import Session
from bitswitch_deploy.training.stages import Stage
from bitswitch_deploy.training.trainer import Milestone, RunPlan, divergence_limit, run_stage
from tools.train_master import main

ROOT = Path(__file__).resolve().parents[2]
DIGITS = load_recipe("digits")
SHORT = replace(DIGITS, pretrain=replace(DIGITS.pretrain, epochs=30), joint=replace(DIGITS.joint, epochs=3))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose `digits` are every eighth of the bundled ones."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    folder.mkdir()
    listing: dict[str, object] = {"name": "digits"}
    splits = {}
    for split in ("train", "test"):
        with np.load(ROOT / "calibration" / "digits" / f"{split}.npz") as arrays:
            np.savez(folder / f"{split}.npz", x=arrays["x"][::8], y=arrays["y"][::8])
            n = len(arrays["y"][::8])
        digest = hashlib.sha256((folder / f"{split}.npz").read_bytes()).hexdigest()
        splits[split] = {"file": f"{split}.npz", "n": n, "sha256": digest}
    listing["splits"] = splits
    (folder / "dataset.yaml").write_text(yaml.safe_dump(listing), encoding="utf-8")
    return folder.parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> TrainedNetwork:
    """The run that nothing interrupted."""
    return run_session(Session(recipe=SHORT, data=data, state=tmp_path_factory.mktemp("whole") / "state"))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The state of a run with one step of the joint stage."""
    folder = tmp_path_factory.mktemp("begun")
    save_checkpoint(build_network("digits-resnet").state_dict(), folder / "float.pt")
    session = Session(recipe=SHORT, data=data, state=folder / "state", checkpoint=folder / "float.pt", joint_steps=1)
    run_session(session)
    return session.state


class Killed(Exception):
    pass


def test_a_run_from_nothing_to_a_master(tmp_path: Path, whole: TrainedNetwork) -> None:
    write_master(whole.master, tmp_path / "tiny.safetensors")
    spec = read_master(tmp_path / "tiny.safetensors").spec
    assert [entry.bits for entry in spec.accuracy] == [8, 6, 4, 2]
    assert {(entry.dataset, entry.n) for entry in spec.accuracy} == {("digits", 75)}
    assert spec.preprocessing == SHORT.preprocessing
    assert whole.float_top1 > 60
    assert spec.accuracy[0].value > 60
    provenance = dict(spec.provenance)
    assert (provenance["recipe"], provenance["seed"]) == ("digits", "1")
    assert provenance["float_top1"] == f"{whole.float_top1:.2f}"


def test_the_same_run_gives_the_same_file_and_logs_each_epoch(
    tmp_path: Path, data: Path, whole: TrainedNetwork
) -> None:
    session = Session(recipe=SHORT, data=data, state=tmp_path / "state", log=tmp_path / "log.jsonl")
    assert run_session(session).master.sha256 == whole.master.sha256
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["event"] for line in lines] == ["start", *["epoch"] * 30, "prepared", *["epoch"] * 3, "end"]
    assert (lines[0]["recipe"], lines[0]["seed"], lines[0]["step"]) == ("digits", 1, 0)
    assert [line["step"] for line in lines if line.get("stage") == "joint"] == [2, 4, 6]
    assert lines[-2]["top1"] == lines[-1]["top1"] == {f"w{e.bits}": e.value for e in whole.master.spec.accuracy}
    assert lines[31]["layers"]["conv1"] == "pinned: first layer"
    assert lines[30]["top1"]["float"] == lines[-1]["float_top1"] == whole.float_top1
    assert lines[-1]["master_sha256"] == whole.master.sha256
    assert set(lines[-2]["losses"]) == {"w8", "w6", "w4", "w2"}


def test_fewer_lines_and_states_change_nothing_else(tmp_path: Path, data: Path, whole: TrainedNetwork) -> None:
    log = tmp_path / "log.jsonl"
    trained = run_session(Session(recipe=SHORT, data=data, state=tmp_path / "state", log=log, save_every=2))
    lines = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    assert [line["step"] for line in lines if line.get("stage") == "joint"] == [4, 6]  # an epoch has two
    assert trained.master.sha256 == whole.master.sha256


def test_a_stage_is_gone_when_the_next_one_runs(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[weakref.ref[Stage]] = []
    alive: list[int] = []

    def noted(stage: Stage, *args: Any) -> None:
        stages.append(weakref.ref(stage))
        alive.append(sum(each() is not None for each in stages))
        run_stage(stage, *args)

    monkeypatch.setattr("bitswitch_deploy.training.run_session.run_stage", noted)
    recipe = replace(SHORT, pretrain=replace(SHORT.pretrain, epochs=1))
    gc.disable()  # as if it had not come round in time
    try:
        run_session(Session(recipe=recipe, data=data, state=tmp_path / "state", joint_steps=1))
    finally:
        gc.enable()
    assert alive == [1, 1]


@pytest.mark.parametrize(("stage", "stop"), [("float", 4), ("float", 60), ("joint", 2), ("joint", 6)])
def test_a_killed_run_goes_on_to_the_same_master(
    tmp_path: Path, data: Path, whole: TrainedNetwork, monkeypatch: pytest.MonkeyPatch, stage: str, stop: int
) -> None:
    def killed(current: Stage, batches: BatchSource, plan: RunPlan, reached: Callable[[Milestone], Any]) -> None:
        if current.name != stage:
            run_stage(current, batches, plan, reached)
            return
        run_stage(current, batches, replace(plan, stop=stop), reached)
        raise Killed("as planned")

    session = Session(recipe=SHORT, data=data, state=tmp_path / "state", resume=True)
    with monkeypatch.context() as patch:
        patch.setattr("bitswitch_deploy.training.run_session.run_stage", killed)
        with pytest.raises(Killed, match="as planned"):
            run_session(session)
    resumed = run_session(session)
    assert resumed.float_top1 == whole.float_top1
    assert resumed.master.sha256 == whole.master.sha256


def test_with_everything_on_a_killed_run_goes_on_to_the_same_master(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joint = replace(SHORT.joint, alrs="bracket", distillation="ps_kd", average_decay=0.9)
    save_checkpoint(build_network("digits-resnet").state_dict(), tmp_path / "float.pt")
    recipe = replace(SHORT, joint=joint)
    session = Session(recipe=recipe, data=data, state=tmp_path / "state", checkpoint=tmp_path / "float.pt")
    expected = run_session(replace(session, state=tmp_path / "other"))

    def killed(current: Stage, batches: BatchSource, plan: RunPlan, reached: Callable[[Milestone], Any]) -> None:
        run_stage(current, batches, replace(plan, stop=4), reached)
        raise Killed("as planned")

    with monkeypatch.context() as patch:
        patch.setattr("bitswitch_deploy.training.run_session.run_stage", killed)
        with pytest.raises(Killed, match="as planned"):
            run_session(session)
    resumed = run_session(replace(session, resume=True))
    assert resumed.master.sha256 == expected.master.sha256
    average = load_checkpoint(tmp_path / "state")["average"]
    np.testing.assert_array_equal(resumed.master.tensors["conv1.weight"], average["conv1.weight"].numpy())
    live = load_checkpoint(tmp_path / "state")["model"]
    assert not torch.equal(live["conv1.weight"], average["conv1.weight"])


@pytest.mark.parametrize("measuring", ["top1", "measure_widths"])
def test_a_run_that_is_killed_while_it_measures_loses_no_line_of_the_log(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, measuring: str
) -> None:
    def killed(*_: Any) -> None:
        raise Killed("as planned")

    recipe = replace(SHORT, pretrain=replace(SHORT.pretrain, epochs=2), joint=replace(SHORT.joint, epochs=2))
    log = tmp_path / "log.jsonl"
    session = Session(recipe=recipe, data=data, state=tmp_path / "state", log=log, resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(f"bitswitch_deploy.training.run_session.{measuring}", killed)
        with pytest.raises(Killed, match="as planned"):
            run_session(session)
    run_session(session)
    epochs = [line for line in read_log(log) if line["event"] == "epoch"]
    assert [(line["stage"], line["step"]) for line in epochs] == [
        ("float", 2),
        ("float", 4),
        ("joint", 2),
        ("joint", 4),
    ]
    assert all(line["images_per_s"] > 0 and line["losses"].keys() == line["top1"].keys() for line in epochs)


def supernet_recipe(**changes: Any) -> Recipe:
    rates = {name: getattr(SHORT.joint, name) for name in ("batch_size", "learning_rate", "weight_decay")}
    settings = SupernetSettings(epochs=2, warmup_epochs=0, threshold=1.0, **rates, **changes)
    return replace(SHORT, pretrain=replace(SHORT.pretrain, epochs=2), supernet=settings)


def test_a_killed_supernet_goes_on_to_the_same_master(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitswitch_deploy.training.sensitivity.MAX_VECTORS", 8)
    monkeypatch.setattr("bitswitch_deploy.training.run_session._MEASURED_SUBNETS", 2)
    recipe = supernet_recipe(batchnorm="transitional")
    log = tmp_path / "log.jsonl"
    expected = run_session(Session(recipe=recipe, data=data, state=tmp_path / "other", log=log))

    def killed_in(stage: str) -> Callable[..., None]:
        def killed(current: Stage, batches: BatchSource, plan: RunPlan, reached: Callable[[Milestone], Any]) -> None:
            run_stage(current, batches, replace(plan, stop=2) if current.name == stage else plan, reached)
            if current.name == stage:
                raise Killed("as planned")

        return killed

    session = Session(recipe=recipe, data=data, state=tmp_path / "state", resume=True)
    for stage in ("joint", "supernet"):
        with monkeypatch.context() as patch:
            patch.setattr("bitswitch_deploy.training.run_session.run_stage", killed_in(stage))
            with pytest.raises(Killed, match="as planned"):
                run_session(session)
    resumed = run_session(session)
    assert resumed.master.sha256 == expected.master.sha256
    assert resumed.mixed == expected.mixed
    assert dict(resumed.master.spec.provenance)["supernet"] == "hasb, transitional"
    assert [entry.bits for entry in resumed.master.spec.accuracy] == [8, 6, 4, 2]
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [line["stage"] for line in lines if line["event"] == "epoch"][-3:] == ["joint", "supernet", "supernet"]
    (found,) = (line["traces_per_weight"] for line in lines if line["event"] == "sensitivities")
    assert set(found) == {layer.name for layer in expected.master.spec.layers if not layer.pinned}
    assert expected.mixed is not None
    assert lines[-1]["top1"]["mixed"] == expected.mixed.as_trained
    write_master(resumed.master, tmp_path / "mixed.safetensors")
    assignment = WidthAssignment(default=8, overrides=(("blocks.0.conv1", 2), ("blocks.1.conv2", 4)))
    onnx.checker.check_model(canonical_graph(read_master(tmp_path / "mixed.safetensors"), assignment).model)


def test_a_supernet_takes_sensitivities_from_a_file(tmp_path: Path, data: Path) -> None:
    checkpoint = tmp_path / "float.pt"
    save_checkpoint(build_network("digits-resnet").state_dict(), checkpoint)
    recipe = supernet_recipe(sensitivities=str(tmp_path / "traces.json"))
    session = Session(recipe=recipe, data=data, state=tmp_path / "state", checkpoint=checkpoint, joint_steps=1)
    with pytest.raises(InputFileError, match=r"traces\.json: cannot be read"):
        run_session(session)
    assert not session.state.exists()
    layers = ("0.conv1", "0.conv2", "1.conv1", "1.conv2", "1.shortcut.conv", "2.conv1", "2.conv2")
    traces = {f"blocks.{layer}": float(index) for index, layer in enumerate(layers)}
    (tmp_path / "traces.json").write_text(json.dumps(traces), encoding="utf-8")
    run_session(session)
    favoured = [f"blocks.{layer}" for layer in layers[3:]]
    assert load_checkpoint(tmp_path / "state")["sensitive"] == favoured


def test_a_given_checkpoint_replaces_the_float_stage(tmp_path: Path, data: Path) -> None:
    torch.manual_seed(5)
    network = build_network("digits-resnet")
    save_checkpoint({"state_dict": network.state_dict()}, tmp_path / "float.pt")
    session = Session(recipe=SHORT, data=data, state=tmp_path / "s", checkpoint=tmp_path / "float.pt", joint_steps=1)
    trained = run_session(session)
    stem = network.state_dict()["conv1.weight"].numpy()
    # four widths, each of one step of Adam at 5e-4
    assert 0 < np.abs(trained.master.tensors["conv1.weight"] - stem).max() < 4 * 6e-4
    assert load_checkpoint(tmp_path / "s")["total"] == 1


def test_a_state_of_another_schedule_is_refused(tmp_path: Path, data: Path) -> None:
    session = Session(recipe=SHORT, data=data, state=tmp_path / "state", resume=True)
    run_session(replace(session, joint_steps=1))
    with pytest.raises(CheckpointError, match="step 1 of 1\n  allowed: stage joint, a schedule of 6 steps"):
        run_session(session)


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("", {"seed": 2}, r"a run with seed 1\n  allowed: seed 2, as recipe and data of this run say"),
        ("quantization", {"rounding": Rounding.HALF_EVEN}, r'quantization\.rounding "half_up"'),
        ("quantization", {"activation_container": "uint8"}, r'quantization\.activation_container "int8"'),
        ("augmentation", {"shift": 0}, r"augmentation\.shift 1"),
        ("joint", {"alrs": "none", "distillation": "ps_kd"}, r'alrs "eta", distillation "none"'),
    ],
)
def test_a_state_of_another_recipe_is_refused(
    tmp_path: Path, data: Path, begun: Path, part: str, changes: dict[str, Any], words: str
) -> None:
    shutil.copy(begun, tmp_path / "state")
    recipe = replace(SHORT, **({part: replace(getattr(SHORT, part), **changes)} if part else changes))
    session = Session(recipe=recipe, data=data, state=tmp_path / "state", joint_steps=1, resume=True)
    with pytest.raises(CheckpointError, match=words):
        run_session(session)
    assert (tmp_path / "state").read_bytes() == begun.read_bytes()


def test_a_float_network_in_training_knows_of_no_quantization(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(current: Stage, batches: BatchSource, plan: RunPlan, reached: Callable[[Milestone], Any]) -> None:
        run_stage(current, batches, replace(plan, stop=2), reached)
        raise Killed("as planned")

    short = replace(SHORT, pretrain=replace(SHORT.pretrain, epochs=2))
    session = Session(recipe=short, data=data, state=tmp_path / "state", joint_steps=1, resume=True)
    with monkeypatch.context() as patch:
        patch.setattr("bitswitch_deploy.training.run_session.run_stage", killed)
        with pytest.raises(Killed, match="as planned"):
            run_session(session)
    other = replace(short, quantization=replace(short.quantization, widths=(4, 2), pin=("blocks.0.conv1",)))
    assert run_session(replace(session, recipe=other)).master.spec.widths == (4, 2)
    with pytest.raises(CheckpointError, match=r"quantization\.widths \[4, 2\]"):
        run_session(session)


def test_a_run_may_go_on_at_a_lower_rate(tmp_path: Path, data: Path, begun: Path) -> None:
    shutil.copy(begun, tmp_path / "state")
    recipe = replace(SHORT, joint=replace(SHORT.joint, learning_rate=1e-5))
    run_session(Session(recipe=recipe, data=data, state=tmp_path / "state", joint_steps=1, resume=True))


def test_a_state_that_tells_no_recipe_is_taken(tmp_path: Path, data: Path, begun: Path) -> None:
    state = load_checkpoint(begun)
    del state["decisions"]
    save_checkpoint(state, tmp_path / "state")
    run_session(Session(recipe=SHORT, data=data, state=tmp_path / "state", joint_steps=1, resume=True))


def start_lines(log: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == "start"]


def test_a_log_names_the_run_whose_state_it_went_on_from(
    tmp_path: Path, data: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitswitch_deploy.training.run_session._MEASURED_SUBNETS", 1)
    state, log = tmp_path / "state", tmp_path / "log.jsonl"
    shutil.copy(begun, state)
    mixed = replace(supernet_recipe(draw="uniform"), name="mixed")
    session = Session(recipe=mixed, data=data, state=state, joint_steps=1, resume=True, log=log)
    run_session(session)
    run_session(session)  # to see what it left in its own state
    inherited, resumed = start_lines(log)
    (first,) = inherited["parent"]["runs"]
    assert (inherited["step"], inherited["parent"]["stage"]) == (1, "joint")
    assert (first["recipe"], first["seed"], first["precision"], first["threads"]) == ("digits", 1, "float32", 1)
    weights = begun.with_name("float.pt")
    assert first["float_checkpoint"] == "float.pt"
    assert first["float_checkpoint_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert inherited["float_checkpoint"] is None  # it was not read
    assert (resumed["step"], resumed["parent"]["stage"]) == (4, "supernet")
    assert resumed["parent"]["runs"][0] == first
    assert [run["recipe"] for run in resumed["parent"]["runs"]] == ["digits", "mixed"]
    # the same run, interrupted and resumed, is one
    assert load_checkpoint(state)["runs"] == resumed["parent"]["runs"]


def test_a_master_tells_of_all_runs_that_its_state_comes_from(tmp_path: Path, data: Path, begun: Path) -> None:
    state = load_checkpoint(begun)
    (run,) = state["runs"]
    older = {**run["versions"], "torch": "1.2.3"}
    before = {**run, "recipe": "short", "precision": "bfloat16", "device": "Some GPU", "versions": older}
    save_checkpoint({**state, "runs": [{}, before, {**run, "replicas": 2}]}, tmp_path / "state")
    session = Session(recipe=SHORT, data=data, state=tmp_path / "state", joint_steps=1, resume=True)
    made = dict(run_session(session).master.spec.provenance)
    assert made["recipe"] == "unknown, then short, then digits"
    assert made["precision"] == "unknown, then bfloat16, then float32"
    assert made["device"] == "unknown, then Some GPU, then cpu"
    assert made["replicas"] == "unknown, then 1, then 2, then 1"
    assert made["torch"] == f"unknown, then 1.2.3, then {torch.__version__}"
    assert (made["seed"], made["joint_steps"]) == ("1", "1")


def test_a_master_of_one_run_tells_of_it_alone(tmp_path: Path, data: Path, begun: Path) -> None:
    shutil.copy(begun, tmp_path / "state")
    session = Session(recipe=SHORT, data=data, state=tmp_path / "state", joint_steps=1, resume=True)
    keys = [key for key, _ in run_session(session).master.spec.provenance]
    assert keys == ["recipe", "seed", "joint_steps", "float_top1", "python", "torch", "numpy"]


def test_a_state_of_an_older_version_is_of_an_unknown_run(tmp_path: Path, data: Path, begun: Path) -> None:
    state = load_checkpoint(begun)
    del state["runs"]
    save_checkpoint(state, tmp_path / "state")
    log = tmp_path / "log.jsonl"
    run_session(Session(recipe=SHORT, data=data, state=tmp_path / "state", joint_steps=1, resume=True, log=log))
    assert start_lines(log)[0]["parent"] == {"stage": "joint", "runs": [{}]}


def lower(widths: tuple[int, ...] = (4, 3, 2)) -> Recipe:
    return replace(SHORT, name="lower", quantization=replace(SHORT.quantization, widths=widths))


def test_a_run_begins_with_the_weights_of_another_at_other_widths(tmp_path: Path, data: Path, begun: Path) -> None:
    log = tmp_path / "log.jsonl"
    session = Session(
        recipe=replace(lower(), seed=7),
        data=data,
        state=tmp_path / "state",
        start_from=begun,
        log=log,
        joint_steps=2,
        resume=True,
    )
    trained = run_session(session)
    assert [entry.bits for entry in trained.master.spec.accuracy] == [4, 3, 2]
    (line,) = start_lines(log)
    (first,) = line["started_from"]["runs"]
    assert (line["step"], line["started_from"]["stage"], line["started_from"]["step"]) == (0, "joint", 1)
    assert (first["recipe"], line["recipe"], line["float_checkpoint"]) == ("digits", "lower", None)
    made = dict(trained.master.spec.provenance)
    assert (made["recipe"], made["joint_steps"], made["seed"]) == ("digits, then lower", "1, then 2", "1, then 7")
    assert trained.float_top1 == load_checkpoint(begun)["float_top1"]
    # two steps of Adam are no way from these weights: they were taken over
    weights, before = trained.network.model.state_dict(), load_checkpoint(begun)["model"]
    name = "blocks.0.conv1.weight"
    assert float((weights[name] - before[name]).abs().max()) <= 3 * 2 * 2 * SHORT.joint.learning_rate


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path, begun: Path) -> tuple[Path, TrainedNetwork]:
    """The master of a short run, and its network."""
    path = tmp_path_factory.mktemp("finished") / "short.safetensors"
    session = Session(recipe=SHORT, data=data, state=path.with_name("state"), checkpoint=begun.with_name("float.pt"))
    trained = run_session(replace(session, joint_steps=4))
    write_master(trained.master, path)
    return path, trained


def test_a_run_begins_with_a_master(tmp_path: Path, data: Path, finished: tuple[Path, TrainedNetwork]) -> None:
    path, before = finished
    log = tmp_path / "log.jsonl"
    recipe = replace(SHORT, name="again", seed=7)
    session = Session(recipe=recipe, data=data, state=tmp_path / "state", start_from=path, log=log, joint_steps=2)
    trained = run_session(session)
    assert trained.float_top1 == pytest.approx(before.float_top1, abs=0.005)
    (line,) = start_lines(log)
    began = line["started_from"]
    assert (began["stage"], began["master"], began["master_sha256"]) == ("master", path.name, before.master.sha256)
    made = dict(trained.master.spec.provenance)
    assert (made["recipe"], made["joint_steps"], made["seed"]) == ("digits, then again", "4, then 2", "1, then 7")
    assert made["torch"] == str(torch.__version__)
    codes = [each.master.tensors["blocks.0.conv1.weight"].astype(int) for each in (before, trained)]
    assert 0 < np.median(abs(codes[0] - codes[1])) <= 4  # two steps lead nowhere else
    # and once more, from what that one wrote: each run is told once
    write_master(trained.master, tmp_path / "again.safetensors")
    third = run_session(
        replace(session, state=tmp_path / "third", start_from=tmp_path / "again.safetensors", recipe=lower())
    )
    made = dict(third.master.spec.provenance)
    assert (made["recipe"], made["seed"]) == ("digits, then again, then lower", "1, then 7, then 1")


def test_a_run_does_not_begin_with_a_master_that_does_not_fit(
    tmp_path: Path, data: Path, finished: tuple[Path, TrainedNetwork]
) -> None:
    path, before = finished
    session = Session(recipe=SHORT, data=data, state=tmp_path / "state", start_from=path)
    uint8 = replace(SHORT, quantization=replace(SHORT.quantization, activation_container="uint8"))
    with pytest.raises(CheckpointError, match="activation_container: int8"):
        run_session(replace(session, recipe=uint8))
    shifted = replace(SHORT, preprocessing=replace(SHORT.preprocessing, divide_by=255.0))
    with pytest.raises(CheckpointError, match=r"divide_by=16\.0.*\n?.*divide_by=255\.0"):
        run_session(replace(session, recipe=shifted))
    for told, message in (((), "float_top1 not told"), ((("float_top1", "nan"),), "float_top1 nan")):
        spec = replace(before.master.spec, provenance=told)
        untold = assemble_master(spec=spec, tensors=before.master.tensors, skeleton=before.master.skeleton)
        write_master(untold, tmp_path / "untold.safetensors")
        with pytest.raises(CheckpointError, match=message):
            run_session(replace(session, start_from=tmp_path / "untold.safetensors"))
    assert not session.state.exists()


def test_a_killed_run_that_began_with_another_goes_on_to_the_same_master(
    tmp_path: Path, data: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(recipe=lower(), data=data, state=tmp_path / "whole", start_from=begun, resume=True)
    whole = run_session(session)
    session = replace(session, state=tmp_path / "state", log=tmp_path / "log.jsonl")

    def killed(current: Stage, batches: BatchSource, plan: RunPlan, reached: Callable[[Milestone], Any]) -> None:
        run_stage(current, batches, replace(plan, stop=4), reached)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("bitswitch_deploy.training.run_session.run_stage", killed)
        with pytest.raises(Killed):
            run_session(session)
    assert run_session(session).master.sha256 == whole.master.sha256
    began, resumed = start_lines(tmp_path / "log.jsonl")
    assert "parent" not in began
    assert "started_from" not in resumed
    assert [run["recipe"] for run in resumed["parent"]["runs"]] == ["digits", "lower"]


def test_a_run_does_not_begin_with_two_things(tmp_path: Path, data: Path, begun: Path) -> None:
    float_weights = begun.with_name("float.pt")
    session = Session(recipe=lower(), data=data, state=tmp_path / "state", start_from=begun, checkpoint=float_weights)
    with pytest.raises(UsageError, match=r"--checkpoint .*float\.pt"):
        run_session(session)


def test_a_run_does_not_begin_with_its_own_state(tmp_path: Path, data: Path, begun: Path) -> None:
    shutil.copy(begun, tmp_path / "state")
    session = Session(
        recipe=SHORT, data=data, state=tmp_path / "state", start_from=tmp_path / "state", joint_steps=1, resume=True
    )
    with pytest.raises(UsageError, match="the state of this run itself"):
        run_session(session)


def test_a_run_does_not_begin_with_a_float_state(tmp_path: Path, data: Path, begun: Path) -> None:
    state = {**load_checkpoint(begun), "stage": "float"}
    del state["float_top1"]  # which is known when that stage has ended
    save_checkpoint(state, tmp_path / "float.state")
    session = Session(recipe=lower(), data=data, state=tmp_path / "state", start_from=tmp_path / "float.state")
    with pytest.raises(CheckpointError, match="stage 'float', widths"):
        run_session(session)
    # nor does it drop one of its own for another's weights
    shutil.copy(tmp_path / "float.state", tmp_path / "state")
    with pytest.raises(CheckpointError, match="a float network in training, beside the trained one"):
        run_session(replace(session, start_from=begun, resume=True))


def test_a_log_names_the_float_weights_that_were_read(tmp_path: Path, data: Path) -> None:
    checkpoint, log = tmp_path / "float.pt", tmp_path / "log.jsonl"
    save_checkpoint(build_network("digits-resnet").state_dict(), checkpoint)
    session = Session(recipe=SHORT, data=data, state=tmp_path / "s", checkpoint=checkpoint, joint_steps=1, log=log)
    run_session(session)
    (started,) = start_lines(log)
    assert (started["float_checkpoint"], started["dataset"]) == ("float.pt", "digits")
    assert started["float_checkpoint_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert "parent" not in started
    with pytest.raises(CheckpointError, match=r"none\.pt: cannot be read"):
        run_session(replace(session, checkpoint=tmp_path / "none.pt", state=tmp_path / "t"))


def test_a_state_is_not_overwritten(tmp_path: Path, data: Path) -> None:
    save_checkpoint({"stage": "joint"}, tmp_path / "state")
    with pytest.raises(UsageError, match=r"an earlier run left its state here[\s\S]*--resume"):
        run_session(Session(recipe=SHORT, data=data, state=tmp_path / "state"))
    assert load_checkpoint(tmp_path / "state") == {"stage": "joint"}


def test_a_foreign_state_is_refused(tmp_path: Path, data: Path) -> None:
    save_checkpoint({"stage": "joint", "step": 0, "total": 6}, tmp_path / "state")
    with pytest.raises(CheckpointError, match="float_top1 = None"):
        run_session(Session(recipe=SHORT, data=data, state=tmp_path / "state", resume=True))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "stage None, step None of None"),
        ({"stage": "other", "step": 1, "total": 2}, "stage 'other', step 1 of 2"),
        ({"stage": ["float"], "step": 1, "total": 2}, r"stage \['float'\], step 1 of 2"),
        ({"stage": "float", "total": 2}, "stage 'float', step None of 2"),
        ({"stage": "float", "step": 1, "total": "2"}, "stage 'float', step 1 of '2'"),
    ],
)
def test_a_file_that_is_no_state_is_not_overwritten(
    tmp_path: Path, data: Path, content: dict[str, Any], words: str
) -> None:
    state, log = tmp_path / "state", tmp_path / "log.jsonl"
    save_checkpoint({**content, "weight": torch.ones(2)}, state)
    before = state.read_bytes()
    with pytest.raises(CheckpointError, match=f"no state of a run: {words}"):
        run_session(Session(recipe=SHORT, data=data, state=state, resume=True, joint_steps=1, log=log))
    assert state.read_bytes() == before
    assert not log.exists()


def test_a_state_of_a_supernet_needs_a_recipe_with_one(tmp_path: Path, data: Path, begun: Path) -> None:
    state = {**load_checkpoint(begun), "stage": "supernet"}
    save_checkpoint(state, tmp_path / "state")
    session = Session(recipe=SHORT, data=data, state=tmp_path / "state", joint_steps=1, resume=True)
    with pytest.raises(CheckpointError, match=r"the state of stage supernet[\s\S]*resume with the recipe that the run"):
        run_session(session)
    assert load_checkpoint(tmp_path / "state")["stage"] == "supernet"


@pytest.mark.parametrize("of_the_recipe", [True, False])
def test_a_float_network_in_training_is_not_dropped_for_a_checkpoint(
    tmp_path: Path, data: Path, of_the_recipe: bool
) -> None:
    state, checkpoint = tmp_path / "state", tmp_path / "float.pt"
    save_checkpoint({"stage": "float", "step": 2, "total": 60}, state)
    save_checkpoint(build_network("digits-resnet").state_dict(), checkpoint)
    session = Session(recipe=SHORT, data=data, state=state, resume=True, checkpoint=checkpoint)
    if of_the_recipe:
        session = replace(session, checkpoint=None, recipe=replace(SHORT, float_checkpoint=str(checkpoint)))
    with pytest.raises(CheckpointError, match=r"a float network in training, beside the trained one in \S+float\.pt"):
        run_session(session)
    assert load_checkpoint(state)["step"] == 2


def test_a_network_for_other_images_is_refused_before_anything_is_written(tmp_path: Path, data: Path) -> None:
    session = Session(recipe=replace(SHORT, network="cifar10-resnet20"), data=data, state=tmp_path / "state")
    with pytest.raises(UsageError, match=r"network cifar10-resnet20: inputs \[2, 1, 8, 8\]: Given groups=1"):
        run_session(session)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_network_is_refused_before_anything_is_written(tmp_path: Path, data: Path) -> None:
    checkpoint = tmp_path / "float.pt"
    save_checkpoint(build_network("cifar10-resnet20").state_dict(), checkpoint)
    with pytest.raises(CheckpointError, match=r"float\.pt: missing blocks\.0\.conv1\.weight"):
        run_session(Session(recipe=SHORT, data=data, state=tmp_path / "state", checkpoint=checkpoint))
    assert list(tmp_path.iterdir()) == [checkpoint]


@pytest.mark.parametrize(("stage", "words"), [("pretrain", "of the float network"), ("joint", r"at \d bits")])
def test_a_loss_that_is_far_above_guessing_stops_the_run(tmp_path: Path, data: Path, stage: str, words: str) -> None:
    short = replace(SHORT, pretrain=replace(SHORT.pretrain, epochs=2), joint=replace(SHORT.joint, alrs="none"))
    recipe = replace(short, **{stage: replace(getattr(short, stage), learning_rate=200.0)})
    with pytest.raises(CheckFailedError, match=rf"training {words}: a mean loss of \S+, behind mini-batch"):
        run_session(Session(recipe=recipe, data=data, state=tmp_path / "state"))


def test_a_mini_batch_has_no_more_images_than_there_are(tmp_path: Path, data: Path) -> None:
    save_checkpoint(build_network("digits-resnet").state_dict(), tmp_path / "float.pt")
    recipe = replace(SHORT, joint=replace(SHORT.joint, batch_size=10_000))
    log = tmp_path / "log.jsonl"
    state = tmp_path / "state"
    run_session(
        Session(recipe=recipe, data=data, state=state, checkpoint=tmp_path / "float.pt", joint_steps=1, log=log)
    )
    (line,) = (line for line in read_log(log) if line["event"] == "epoch")
    assert line["images_per_s"] * line["seconds"] == pytest.approx(150, rel=0.2)


def relabelled(data: Path, folder: Path) -> Path:
    """The same images with other labels."""
    shutil.copytree(data / "digits", folder / "digits")
    listing = yaml.safe_load((folder / "digits" / "dataset.yaml").read_text(encoding="utf-8"))
    path = folder / "digits" / listing["splits"]["train"]["file"]
    with np.load(path) as arrays:
        x, y = arrays["x"], 9 - arrays["y"]
    np.savez(path, x=x, y=y)
    listing["splits"]["train"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "digits" / "dataset.yaml").write_text(yaml.safe_dump(listing), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["state", "log.csv", "log.jsonl"])
def test_what_cannot_be_written_is_said_before_the_training(tmp_path: Path, data: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    session = Session(recipe=SHORT, data=data, state=tmp_path / "state", log=tmp_path / "log.jsonl")
    with pytest.raises(OutputError, match=f"{name}: cannot be written: Is a directory"):
        run_session(session)
    assert not session.state.is_file()


def test_other_data_of_the_same_name_is_refused(tmp_path: Path, data: Path, begun: Path) -> None:
    other = relabelled(data, tmp_path)
    shutil.copy(begun, tmp_path / "state")
    session = Session(recipe=SHORT, data=other, state=tmp_path / "state", joint_steps=1, resume=True)
    with pytest.raises(CheckpointError, match=r"a run with dataset_sha256\.train "):
        run_session(session)
    with pytest.raises(CheckpointError, match=r"a run with dataset_sha256\.train "):
        run_session(replace(session, state=tmp_path / "new", start_from=begun))


def test_a_loss_with_a_penalty_beside_it_has_no_limit(
    tmp_path: Path, data: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: dict[str, float | None] = {}

    def seen(stage: Stage, batches: BatchSource, plan: RunPlan, reached: Callable[[Milestone], Any]) -> None:
        limits[stage.name] = plan.loss_limit

    monkeypatch.setattr("bitswitch_deploy.training.run_session.run_stage", seen)
    monkeypatch.setattr("bitswitch_deploy.training.run_session._MEASURED_SUBNETS", 1)
    rfquant = supernet_recipe(draw="random", update="accumulated", distortion=0.01)
    for recipe, supernet_limit in ((rfquant, None), (supernet_recipe(draw="uniform"), divergence_limit(10))):
        shutil.copy(begun, tmp_path / "state")
        run_session(Session(recipe=recipe, data=data, state=tmp_path / "state", joint_steps=1, resume=True))
        assert limits == {"joint": divergence_limit(10), "supernet": supernet_limit}


class TestTool:
    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "tools" / "train_master.py"), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    def test_writes_a_master_and_no_state(self, tmp_path: Path, data: Path) -> None:
        torch.manual_seed(5)
        save_checkpoint(build_network("digits-resnet").state_dict(), tmp_path / "float.pt")
        output = tmp_path / "out.safetensors"
        done = self.run(
            *("--recipe", "digits", "--data", str(data), "--checkpoint", str(tmp_path / "float.pt")),
            *("--steps", "1", "--seed", "7", "-o", str(output)),
        )
        assert done.returncode == 0, done.stderr
        assert "8 bits" in done.stdout
        assert dict(read_master(output).spec.provenance)["seed"] == "7"
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "float.pt",
            "out.safetensors",
            "out.safetensors.log.csv",
            "out.safetensors.log.jsonl",
        ]

    def test_leaves_the_state_on_demand(self, tmp_path: Path, data: Path, begun: Path) -> None:
        output = tmp_path / "out.safetensors"
        shutil.copy(begun, tmp_path / "out.safetensors.state")
        words = ("--recipe", "digits", "--data", str(data), "--steps", "1", "-o", str(output))
        done = self.run(*words, "--resume", "--keep-state")
        assert done.returncode == 0, done.stderr
        assert output.is_file()
        assert (tmp_path / "out.safetensors.state").read_bytes() == begun.read_bytes()
        again = self.run(*words)
        assert again.returncode == 2
        assert f"--output: {output} exists\n  allowed: a new file" in again.stderr
        again = self.run(*words, "--force")
        assert again.returncode == 2
        assert "an earlier run left its state here" in again.stderr

    @pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
    def test_a_killed_process_goes_on_to_the_same_master(
        self, tmp_path: Path, data: Path, whole: TrainedNetwork, signal_number: signal.Signals
    ) -> None:
        recipe, output = tmp_path / "short.yaml", tmp_path / "out.safetensors"
        text = (RECIPES / "digits.yaml").read_text(encoding="utf-8")
        recipe.write_text(text.replace("epochs: 40", "epochs: 30").replace("epochs: 60", "epochs: 3"), "utf-8")
        command = [sys.executable, str(ROOT / "tools" / "train_master.py"), "--recipe", str(recipe)]
        command += ["--data", str(data), "-o", str(output)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
            for _ in range(600):
                if (tmp_path / "out.safetensors.state").exists():
                    break
                time.sleep(0.05)
            process.send_signal(signal_number)
            _, messages = process.communicate(timeout=60)
        assert not output.exists()
        cut = [atomic_writer(tmp_path / name) for name in ("out.safetensors", "out.safetensors.state")]
        for writer in cut:
            writer.__enter__().close()  # as if the signal had come while a file was written
        if signal_number == signal.SIGINT:
            assert process.returncode == 130
            assert "interrupted; the same command with --resume" in messages
        done = self.run("--recipe", str(recipe), "--data", str(data), "--resume", "-o", str(output))
        assert done.returncode == 0, done.stderr
        assert read_master(output).tensors.keys() == whole.master.tensors.keys()
        for name, tensor in read_master(output).tensors.items():
            np.testing.assert_array_equal(tensor, whole.master.tensors[name], err_msg=name)
        assert not list(tmp_path.glob(".*.partial"))

    def test_an_error_is_one_message(self, tmp_path: Path) -> None:
        done = self.run("--recipe", "nothing", "-o", str(tmp_path / "x"))
        assert done.returncode == 2
        assert done.stderr.startswith("error: --recipe: nothing\n  allowed: cifar10-resnet20, ")
        assert "Traceback" not in done.stderr

    def test_what_cannot_be_written_is_refused_before_the_training(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        done = self.run("--recipe", "digits", "-o", str(tmp_path / "folder"))
        assert done.returncode == 3
        assert "folder: cannot be written: Is a directory" in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]

    @pytest.mark.parametrize("seed", ["-1", str(2**70)])
    def test_a_seed_that_no_generator_takes(self, tmp_path: Path, seed: str) -> None:
        done = self.run("--recipe", "digits", "--seed", seed, "-o", str(tmp_path / "x"))
        assert done.returncode == 2
        assert "is not in the range" in done.stderr


def test_a_divergence_is_a_line_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverged(session: Session) -> TrainedNetwork:
        raise CheckFailedError(where="training of conv1 at 2 bits", got="loss nan", allowed="", do="")

    monkeypatch.setattr("tools.train_master.run_session", diverged)
    done = CliRunner().invoke(main, ["--recipe", "digits", "-o", str(tmp_path / "x")])
    assert done.exit_code == 1
    (line,) = (tmp_path / "x.log.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"event": "failed", "reason": "training of conv1 at 2 bits: loss nan"}


@pytest.mark.parametrize(
    ("words", "has_state", "message"),
    [
        ("--resume", False, r"note: --resume: no state in out\.state, so the run begins anew"),
        ("--resume", True, ""),
        ("--resume --checkpoint a.pt", True, r"note: --checkpoint is not read: the weights in out\.state go on"),
        ("--resume --start-from a.state", True, r"note: --start-from is not read: the weights in"),
        ("--checkpoint a.pt", False, ""),
        ("--force --start-from ./out", False, r"error: --output: out, as --start-from\n  allowed: another file"),
    ],
)
def test_an_option_without_effect_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, has_state: bool, message: str
) -> None:
    def ended(session: Session) -> TrainedNetwork:
        raise KeyboardInterrupt

    monkeypatch.setattr("tools.train_master.run_session", ended)
    monkeypatch.chdir(tmp_path)
    if has_state:
        Path("out.state").touch()
    done = CliRunner().invoke(main, ["--recipe", "digits", *words.split(), "-o", "out"])
    said = done.stderr.partition("interrupted")[0]
    assert re.fullmatch(f"{message}[^\n]*\n.*" if message else "", said, re.DOTALL), done.stderr


@pytest.mark.parametrize("option", ["pin", "weight_only"])
def test_a_layer_that_is_not_there_is_said_before_the_float_network_is_trained(
    option: str, tmp_path: Path, data: Path
) -> None:
    changes: dict[str, Any] = {option: ("nowhere",)}
    quantization = replace(SHORT.quantization, **changes)
    session = Session(recipe=replace(SHORT, quantization=quantization), data=data, state=tmp_path / "state")
    with pytest.raises(UsageError, match="nowhere"):
        run_session(session)
    assert not session.state.exists()
