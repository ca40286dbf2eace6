"""The digits network, trained for a moment: its canonical graphs compute what it computes, on the whole test split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.training.batches import preprocess
from bitswitch_deploy.training.datasets import ImageSet, load_npz_dataset
from bitswitch_deploy.training.prepare import set_width
from bitswitch_deploy.training.recipe import load_recipe
from bitswitch_deploy.training.run_session import TrainedNetwork, run_session
from bitswitch_deploy.training.session import Session
from tests.networks.comparing import relative_errors
from tests.networks.forced_codes import TIE, canonical_run, forced_torch

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
