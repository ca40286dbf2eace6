"""The digits network, trained for a moment: its canonical graphs compute what it computes, on the whole test split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.master import read_master
from bitswitch_deploy.runtime import RuntimeOptions, load
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.training.batches import preprocess
from bitswitch_deploy.training.checkpoint import load_checkpoint, load_state
from bitswitch_deploy.training.datasets import ImageSet, load_npz_dataset
from bitswitch_deploy.training.networks import build_network
from bitswitch_deploy.training.prepare import prepare, set_width
from bitswitch_deploy.training.recipe import RECIPES, load_recipe
from bitswitch_deploy.training.run_session import TrainedNetwork, run_session
from bitswitch_deploy.training.session import Session
from tests.networks.comparing import relative_errors
from tests.networks.forced_codes import TIE, canonical_run, forced_torch
from tests.pipeline.conftest import export_to
from tools.train_master import main

RECIPE = load_recipe("digits")
SAME = 1e-4
CALIBRATION = Path(__file__).parents[2] / "calibration"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedNetwork:
    recipe = replace(RECIPE, pretrain=replace(RECIPE.pretrain, epochs=4))
    state = tmp_path_factory.mktemp("digits") / "state"
    return run_session(Session(recipe=recipe, data=CALIBRATION, state=state, joint_steps=20))


@pytest.fixture(scope="module")
def test_split() -> ImageSet:
    return load_npz_dataset(CALIBRATION / "digits").test


def test_the_recipe_ends_in_a_package_that_predicts_as_the_network_does(tmp_path: Path, test_split: ImageSet) -> None:
    """From the command line of training, both stages cut short, to the runtime."""
    recipe, output = tmp_path / "short.yaml", tmp_path / "digits.safetensors"
    text = (RECIPES / "digits.yaml").read_text(encoding="utf-8")
    recipe.write_text(text.replace("epochs: 40", "epochs: 4"), encoding="utf-8")
    words = ["--recipe", str(recipe), "--steps", "40", "--keep-state", "-o", str(output)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.stderr
    x = preprocess(test_split.images, RECIPE.preprocessing)
    network = prepare(build_network(RECIPE.network), (x[:2],), RECIPE.quantization, check_export=False)
    load_state(load_checkpoint(tmp_path / f"{output.name}.state")["model"], network.model.eval(), "state")
    package = export_to(tmp_path / "package", "x86-cpu", master=output).package
    with load(package, options=RuntimeOptions(threads=1)) as switcher:
        assert switcher.preprocessing is not None
        inputs = switcher.preprocessing.apply(test_split.images)
        for entry in read_master(output).spec.accuracy:
            set_width(network.model, entry.bits)
            switcher.switch(entry.bits)
            with torch.no_grad():
                live = network.model(x).argmax(1).numpy()
            assert 100 * np.mean(live == test_split.labels) == pytest.approx(entry.value)
            assert entry.value > 60
            assert np.count_nonzero(switcher.run(inputs).argmax(1) != live) <= 3  # those that a rounding tie tips


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_the_canonical_graph_is_the_network(trained: TrainedNetwork, test_split: ImageSet, bits: int) -> None:
    """Contract 2: logits to 1e-4, but for images that meet a rounding tie, and each of these is traced to its tie."""
    x = preprocess(test_split.images, RECIPE.preprocessing)
    run = canonical_run(canonical_graph(trained.master, WidthAssignment(default=bits)).model, x.numpy())
    model = trained.network.model.eval()
    set_width(model, bits)
    with torch.no_grad():
        with forced_torch(trained.network, run) as ties:
            forced = model(x).numpy()
        free = model(x).numpy()
    assert len(free) == 600
    assert relative_errors(run.output, forced).max() < SAME
    assert ties.farthest < TIE
    apart = np.flatnonzero(relative_errors(run.output, free) > SAME)
    assert set(apart.tolist()) <= ties.samples
    assert len(apart) <= 0.01 * len(free)
