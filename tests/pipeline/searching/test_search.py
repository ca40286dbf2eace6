"""A whole search on the bundled digits, and on networks whose best assignment is known."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bitswitch_deploy.catalogue import bundled_master, sample_set
from bitswitch_deploy.errors import BitswitchError, CheckFailedError, DataError, UsageError
from bitswitch_deploy.master import assemble_master, read_master, write_master
from bitswitch_deploy.pipeline.inputs import load_samples, read_mixed
from bitswitch_deploy.pipeline.progress import Silent
from bitswitch_deploy.pipeline.searching.data import STATISTICS, Sampling, SearchData, load_search_data
from bitswitch_deploy.pipeline.searching.problem import _is_named, layer_groups
from bitswitch_deploy.pipeline.searching.search import DEFAULT_MAX_DROP, SearchRequest, search
from bitswitch_deploy.report.json import to_json
from bitswitch_deploy.report.search_page import search_notes
from bitswitch_deploy.report.search_report import Assigned
from bitswitch_deploy.search import candidates
from bitswitch_deploy.search.budget import parse_budget
from bitswitch_deploy.search.costs import Cost, CostTable, GroupCosts, assignment_of
from bitswitch_deploy.search.evaluate import open_session, run_batches
from bitswitch_deploy.search.problem import Problem
from bitswitch_deploy.search.samples import sample_digests
from bitswitch_deploy.search.score import score_labelled
from bitswitch_deploy.search.solver import Solution, solve
from bitswitch_deploy.tensors import WidthAssignment
from tests.search.masters import every_operator
from tests.search.test_resources import table

FEW = 200
TESTED = "in the final test "


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def request(folder: Path, cache: Path, *budgets: str, **changes: object) -> SearchRequest:
    fields = {"master": bundled_master(), "output": folder / "widths.json", "cache": cache, "samples": FEW}
    return SearchRequest(**{**fields, "budgets": tuple(map(parse_budget, budgets)), **changes})  # type: ignore[arg-type]


def test_budgets_hold_and_the_file_is_what_export_reads(tmp_path: Path, cache: Path) -> None:
    report = search(request(tmp_path, cache, "avg_bits<=4", "bytes<=20k", "bops<=40M"))
    widths = dict(report.chosen.widths)
    assert sum(widths.values()) <= 4 * len(widths) == 28
    uses = dict(report.chosen.uses)
    assert uses["avg_bits"] == sum(widths.values()) / 7
    assert uses["bytes"] <= 20_000
    assert uses["bops"] <= 40e6
    assert [each.used <= each.limit for each in report.budgets] == [True] * 3
    sha256 = read_master(bundled_master()).sha256
    assignment = read_mixed(tmp_path / "widths.json", highest=8, master_sha256=sha256)
    assert dict(assignment.overrides) == widths
    assert report.samples.n_test == 600
    # by divergence, with labels as well: the highest width has none on either samples, and is not always right
    highest = report.uniform[0]
    assert report.method == "divergence"
    assert report.samples.labelled
    assert highest.test is not None
    assert highest.search.loss == highest.test.loss == 0
    assert highest.test.right_percent.value < 100
    assert report.samples.n_search == FEW
    feasible = [each for each in report.uniform if each.label in ("w4", "w2") and dict(each.uses)["bytes"] <= 20_000]
    assert report.chosen.search.loss <= min(each.search.loss for each in feasible)


def test_the_same_search_gives_the_same_file_from_the_cache_or_without_it(tmp_path: Path, cache: Path) -> None:
    texts = []
    for folder in (cache, cache, tmp_path / "new"):
        search(request(tmp_path, folder, "avg_bits<=3"))
        texts.append((tmp_path / "widths.json").read_bytes())
    assert len(set(texts)) == 1


def test_the_same_search_measures_nothing_again(tmp_path: Path, cache: Path) -> None:
    first, steps = search(request(tmp_path, cache, "avg_bits<=3", "bytes<=20k")), _Steps()
    again = search(request(tmp_path, cache, "avg_bits<=3", "bytes<=20k"), steps)
    assert replace(again, seconds=first.seconds) == first
    assert "final test" not in steps.begun
    other = _Steps()
    search(request(tmp_path, cache, "avg_bits<=3", "bytes<=20k", seed=1), other)
    assert "final test" in other.begun


def test_a_front_is_monotone_and_its_choice_within_the_drop(tmp_path: Path, cache: Path) -> None:
    report = search(request(tmp_path, cache, max_drop=1.0, pareto=True))
    bits = [dict(each.uses)["avg_bits"] for each in report.front]
    losses = [each.search.loss for each in report.front]
    assert bits == sorted(bits, reverse=True)
    assert losses == sorted(losses)
    assert len(set(bits)) == len(bits) >= 3
    assert _cautious_drop(report.chosen) <= 1.0
    cheaper = [each for each in report.front if dict(each.uses)["avg_bits"] < dict(report.chosen.uses)["avg_bits"]]
    assert all(_cautious_drop(each) > 1.0 for each in cheaper)


def _cautious_drop(each: Assigned) -> float:
    """Lost points and one standard error, from the 95 % interval around both."""
    points = each.search.against_reference.points
    return -(points.low + points.high) / 2 + (points.high - points.low) / 2 / 1.959964


def test_drops_count_from_the_highest_trained_width(tmp_path: Path, cache: Path) -> None:
    """Whether it is among the widths to choose from or not: 8 bits have no divergence from themselves, 4 have."""
    report = search(request(tmp_path, cache, widths=(4, 2), max_drop=100.0))
    four = report.uniform[0]
    assert four.label == "w4"
    assert four.search.against_reference.loss.value == four.search.loss > 0
    assert four.test is not None
    assert four.test.against_reference.loss.value == four.test.loss > 0


def test_a_drop_that_nobody_named_is_in_the_report(tmp_path: Path, cache: Path) -> None:
    report = search(request(tmp_path, cache))
    assert report.max_drop == DEFAULT_MAX_DROP == 1.0
    assert _cautious_drop(report.chosen) <= 1.0
    assert search(request(tmp_path, cache, "avg_bits<=4", pareto=True)).max_drop is None


def test_samples_that_the_network_was_trained_on_cannot_judge_a_drop(tmp_path: Path, cache: Path) -> None:
    warning = "the highest width is right on every sample of the search, as on samples that it was trained on"
    assert any(warning in note for note in search(request(tmp_path, cache, max_drop=0.5)).notes)
    assert not any(warning in note for note in search(request(tmp_path, cache, "avg_bits<=4")).notes)


def test_samples_that_are_too_few_for_the_limit_say_so(tmp_path: Path, cache: Path) -> None:
    """200 samples know a drop to 1.37 points at best, with one standard error to 0.70: no other width is within 0.5."""
    coarse = search(request(tmp_path, cache, max_drop=0.5))
    assert coarse.chosen.label == "w8"
    said = "200 samples know a drop to +-1.37 points, which is coarser than the 0.5 that may be lost"
    assert any(note.startswith(said) and note.endswith("; about 1,507 would tell") for note in coarse.notes)
    fine = search(request(tmp_path, cache, max_drop=8.0))
    assert not any("is coarser than" in note for note in fine.notes)


class _Steps(Silent):
    def __init__(self) -> None:
        self.begun: list[str] = []

    def start(self, description: str, total: int) -> None:
        self.begun.append(description)


@pytest.mark.parametrize("budgets", [("avg_bits<=1.5",), ("avg_bits<=2", "bytes<=10")])
def test_an_impossible_budget_is_refused_before_anything_is_measured(tmp_path: Path, budgets: tuple[str, ...]) -> None:
    steps = _Steps()
    with pytest.raises(UsageError, match="or more"):
        search(request(tmp_path, tmp_path / "cache", *budgets), steps)
    assert steps.begun == []


def test_fitted_statistics_are_exported_with_a_master_of_their_own(tmp_path: Path, cache: Path) -> None:
    report = search(request(tmp_path, cache, "avg_bits<=2.5", reestimate=True, criterion="cross_entropy"))
    assert report.method == "cross_entropy"
    adapted = read_master(tmp_path / "widths.safetensors")
    # the assignment goes with these statistics, not with the master that they were fitted in
    assert read_mixed(tmp_path / "widths.json", highest=8, master_sha256=adapted.sha256)
    with pytest.raises(UsageError, match=f"chose for the master with sha256 {adapted.sha256[:12]}"):
        read_mixed(tmp_path / "widths.json", highest=8, master_sha256=read_master(bundled_master()).sha256)
    assert report.master_path == str(tmp_path / "widths.safetensors")
    assert adapted.sha256 != report.master_sha256 == read_master(bundled_master()).sha256
    assert adapted.spec.accuracy == ()
    found = sample_set("digits")
    assert found is not None
    test = load_samples(adapted, found.test, limit=None)
    assert test is not None
    assert test.y is not None
    session = open_session(adapted, assignment_of(dict(report.chosen.widths)))
    scores = score_labelled(run_batches(session, test.source.read(0, 600)), test.y, where="")
    assert report.chosen.test is not None
    assert report.chosen.test.loss == pytest.approx(scores.mean_loss, rel=1e-6)
    assert report.samples.n_search + report.samples.n_test <= 1797
    with pytest.raises(UsageError, match=r"widths.safetensors: a copy that an earlier search fitted"):
        search(request(tmp_path, cache, "avg_bits<=2.5", master=tmp_path / "widths.safetensors"))
    # its own file is replaced
    search(request(tmp_path, cache, "avg_bits<=2.5", reestimate=True, criterion="cross_entropy"))
    assert read_master(tmp_path / "widths.safetensors").sha256 == adapted.sha256


@pytest.mark.parametrize("content", [b"notes", bundled_master().read_bytes()], ids=["no master", "a master"])
def test_a_file_that_no_search_wrote_is_not_overwritten(tmp_path: Path, cache: Path, content: bytes) -> None:
    (tmp_path / "widths.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match=r"widths.safetensors is there, .* it does not say that a search wrote it"):
        search(request(tmp_path, cache, "avg_bits<=4", reestimate=True))
    assert (tmp_path / "widths.safetensors").read_bytes() == content
    assert not (tmp_path / "widths.json").exists()


def test_the_assignment_does_not_take_the_place_of_its_master(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(UsageError, match="the name of the master that --reestimate writes"):
        search(request(tmp_path, cache, "avg_bits<=4", reestimate=True, output=tmp_path / "widths.safetensors"))


def test_ties_hold(tmp_path: Path, cache: Path) -> None:
    report = search(request(tmp_path, cache, "avg_bits<=3", ties=("blocks.1.*",)))
    widths = dict(report.chosen.widths)
    assert len({width for name, width in widths.items() if name.startswith("blocks.1.")}) == 1
    master = read_master(bundled_master())
    assert len(layer_groups(master, ("blocks.1.*",))) == 5
    assert _is_named("blocks[0].a?", "blocks[0].a?")
    assert _is_named("blocks[0].conv", "*[0].c*v")
    assert not _is_named("blocks0.conv", "blocks[0].conv")
    for ties, message in (
        (("nothing*",), r"no quantized layer is named 'nothing\*'"),
        (("blocks.0.*, blocks.1.conv",), "no quantized layer is named 'blocks.1.conv'"),
        (("blocks.0.conv1",), "1 quantized layers"),
        (("blocks.*", "blocks.1.*"), "is in another tie"),
    ):
        with pytest.raises(UsageError, match=message):
            layer_groups(master, ties)


def test_formats_that_a_target_does_not_speed_up_collapse_and_are_named(tmp_path: Path, cache: Path) -> None:
    """Costs by hand, since the digits lose nothing at 6 bits: each lower width costs more."""
    master = read_master(bundled_master())
    latency, costs = tmp_path / "table.json", tmp_path / "costs.json"
    times = table(master, overhead_ms=0.1, end_to_end_ms=((8, 2.9), (6, 2.9), (4, 2.2), (2, 2.2)))
    times.write(latency)
    names = [layer.name for layer in times.layers]
    values = tuple(Cost(width=w, value=v, standard_error=0) for w, v in ((8, 0.0), (6, 0.1), (4, 0.2), (2, 0.9)))
    groups = tuple(GroupCosts(layers=(name,), costs=values) for name in names)
    fields = {"master_sha256": master.sha256, "method": "hessian_trace", "samples_sha256": "", "n": 1, "groups": groups}
    CostTable(**fields).write(costs)  # type: ignore[arg-type]
    budget = "latency_p50_ms<=2.5@jetson-orin-nano"
    # `jetson` is the Orin Nano where this is no board
    report = search(request(tmp_path, cache, budget.removesuffix("-orin-nano"), tables=(latency,), costs=costs))
    assert report.budgets[0].name == budget
    assert "ms predicted for" in search_notes(report)[0]
    assert {(each.width, each.by) for each in report.dominated} == {(6, 8), (2, 4)}
    assert len(report.dominated) == 14
    assert report.budgets[0].used <= 2.5
    assert report.method == "hessian_trace"
    # without a budget of its own a table is counted all the same: overhead, seven layers, and what it was short of
    counted = search(request(tmp_path, cache, "avg_bits<=4", tables=(latency,), costs=costs))
    by_width = {8: 0.4, 6: 0.4, 4: 0.3, 2: 0.3}
    expected = 0.1 + sum(by_width[width] for _, width in counted.chosen.widths)
    assert dict(counted.chosen.uses)["latency_p50_ms@jetson-orin-nano"] == pytest.approx(expected, abs=1e-5)
    assert [name for name, _ in report.chosen.uses].count("latency_p50_ms@jetson-orin-nano") == 1
    with pytest.raises(UsageError, match="another table of target jetson-orin-nano"):
        search(request(tmp_path, cache, budget, tables=(latency, latency), costs=costs))


def test_costs_within_their_errors_and_proposals_without_proof_are_noted(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    master = read_master(bundled_master())
    names = [layer.name for layer in master.spec.layers if not layer.pinned]
    costs = tuple(Cost(width=w, value=v, standard_error=1.0) for w, v in ((8, 0.0), (6, 1.0), (4, 3.0), (2, 9.0)))
    CostTable(
        master_sha256=master.sha256,
        method="hessian_trace",
        samples_sha256="",
        n=1,
        groups=tuple(GroupCosts(layers=(name,), costs=costs) for name in names),
    ).write(tmp_path / "costs.json")

    def unproven(problem: Problem, **more: Any) -> Solution | None:
        found = solve(problem, **more)
        return found and replace(found, is_optimal=False)

    monkeypatch.setattr(candidates, "solve", unproven)
    report = search(request(tmp_path, cache, "avg_bits<=4", costs=tmp_path / "costs.json"))
    assert "14 of 28 costs of layers are within two standard errors of 0: more samples say more" in report.notes
    assert any("time was up before the solver had proved them" in note for note in report.notes)


def test_costs_that_mislead_are_fitted_and_the_user_is_told(tmp_path: Path, cache: Path) -> None:
    """Costs by hand that call the last layers the sensitive ones."""
    master = read_master(bundled_master())
    names = [layer.name for layer in master.spec.layers if not layer.pinned]
    groups = tuple(
        GroupCosts(
            layers=(name,),
            costs=tuple(
                Cost(width=w, value=2**place * v, standard_error=0) for w, v in ((8, 0), (6, 1), (4, 4), (2, 16))
            ),
        )
        for place, name in enumerate(names)
    )
    fields = {"master_sha256": master.sha256, "method": "hessian_trace", "samples_sha256": "", "n": 1, "groups": groups}
    CostTable(**fields).write(tmp_path / "costs.json")  # type: ignore[arg-type]
    report = search(request(tmp_path, cache, "avg_bits<=3", costs=tmp_path / "costs.json"))
    assert report.rank_correlation is not None
    assert report.rank_correlation < 0.7
    assert report.n_refits >= 1
    (note,) = [each for each in report.notes if "fitted to what was measured" in each]
    assert f"(correlation {report.rank_correlation:.2f})" in note
    assert f"{report.n_refit_candidates} more candidates came of it, {report.n_refit_taken or 'none'} of them" in note


def test_samples_that_the_search_has_seen_are_not_tested_on(tmp_path: Path, cache: Path) -> None:
    found = sample_set("digits")
    assert found is not None
    with np.load(found.train) as stored:
        x, y = stored["x"], stored["y"]
    np.savez(tmp_path / "all.npz", x=x[:400], y=y[:400])
    report = search(request(tmp_path, cache, "avg_bits<=4", data=tmp_path / "all.npz", samples=150))
    assert (report.samples.n_search, report.samples.n_test, report.samples.left_out) == (150, 250, 150)
    steps, fields = _Steps(), {"data": tmp_path / "all.npz", "test": tmp_path / "all.npz", "samples": 400}
    with pytest.raises(DataError, match=r"all\.npz: nothing but samples that the search sees"):
        search(request(tmp_path, cache, "avg_bits<=4", **fields), steps)
    assert steps.begun == []  # before anything is measured


def test_samples_of_search_statistics_and_final_test_are_disjoint(tmp_path: Path) -> None:
    sampling = Sampling(count=200, seed=1, reestimate=True)
    data = load_search_data(read_master(bundled_master()), data=None, test=None, sampling=sampling, folder=tmp_path)
    assert data.statistics is not None
    parts = [set(sample_digests(each.read(0, each.n)[0])) for each in (data.search, data.statistics)]
    tested = {digest for x, _, _ in data.test_blocks() for digest in sample_digests(x)}
    assert [len(part) for part in parts] == [200, STATISTICS]
    assert not parts[0] & parts[1]
    assert not tested & (parts[0] | parts[1])
    assert len(tested) >= 590  # of 600, some alike


def test_a_rare_class_is_in_the_final_test_and_one_that_it_lacks_is_said(tmp_path: Path) -> None:
    """Of class 9 there are 20 among 400, and of class 8 one, which the samples for statistics may take."""
    labels = np.concatenate([np.arange(379) % 8, [8], np.full(20, 9)])
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).integers(0, 17, (400, 8, 8)), y=labels)
    np.savez(tmp_path / "t.npz", x=np.zeros((80, 8, 8), np.uint8), y=np.arange(80) % 8)
    master = read_master(bundled_master())

    def load(test: Path | None, *, seed: int = 0, reestimate: bool = False) -> SearchData:
        drawn = Sampling(count=190, seed=seed, reestimate=reestimate)
        return load_search_data(master, data=tmp_path / "d.npz", test=test, sampling=drawn, folder=tmp_path)

    data = load(None)
    tested = np.concatenate([y for _, y, _ in data.test_blocks() if y is not None])
    assert np.bincount(tested)[8:].tolist() == [1, 10]
    not_searched, not_tested = (f"{place}no sample of 1 of 10 classes: 8" for place in ("", TESTED))
    few = "only one sample of 1 of 10 classes: 8"
    assert data.notes == (not_searched,)
    assert load(None, seed=0, reestimate=True).notes == (not_searched, not_tested)
    assert load(tmp_path / "t.npz").notes == (few, f"{TESTED}no sample of 2 of 10 classes: 8, 9")


def test_without_labels(tmp_path: Path, cache: Path) -> None:
    random = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=random.integers(0, 255, (200, 8, 8)))
    report = search(request(tmp_path, cache, "avg_bits<=4", data=tmp_path / "x.npz", samples=100))
    assert report.method == "divergence"
    assert not report.samples.labelled
    assert report.uniform[0].search.loss == 0
    assert report.uniform[0].test is not None
    assert report.uniform[0].test.right_percent.value == 100
    steps, fields = _Steps(), {"data": tmp_path / "x.npz", "samples": 100, "criterion": "cross_entropy"}
    with pytest.raises(UsageError, match="--criterion cross_entropy: samples without labels"):
        search(request(tmp_path, cache, "avg_bits<=4", **fields), steps)
    assert steps.begun == []


def _unsorted(n: int, classes: int, *, is_sorted: bool = False) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(2)
    return random.integers(0, 255, (n, 8, 8)), (np.arange(n) * classes // n if is_sorted else np.arange(n) % classes)


@pytest.mark.parametrize(
    ("n", "classes", "message"),
    [(60, 10, "30 samples to search on"), (400, 4, "4 of 10 classes among the samples")],
)
def test_data_that_cannot_be_searched_on(tmp_path: Path, cache: Path, n: int, classes: int, message: str) -> None:
    x, y = _unsorted(n, classes, is_sorted=True)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    with pytest.raises(DataError, match=message):
        search(request(tmp_path, cache, "avg_bits<=4", data=tmp_path / "d.npz"))


def test_labels_are_checked_against_what_a_network_computes_that_does_not_say_its_classes(
    tmp_path: Path, cache: Path
) -> None:
    """ONNX may leave the number of classes open."""
    master = read_master(bundled_master())
    open_classes = replace(master.spec.outputs[0], shape=("batch", "k"))
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(master.skeleton)
    skeleton.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "k"
    spec = replace(master.spec, outputs=(open_classes,), accuracy=())
    path = tmp_path / "open.safetensors"
    write_master(assemble_master(spec=spec, tensors=master.tensors, skeleton=skeleton), path)
    x, y = _unsorted(300, 10)
    np.savez(tmp_path / "d.npz", x=x, y=y + 1)
    with pytest.raises(DataError, match=r"d.npz: classes up to 10\n  allowed: 0 to 9, as the network computes"):
        search(request(tmp_path, cache, "avg_bits<=4", master=path, data=tmp_path / "d.npz"))


def test_data_without_a_class_is_searched_on_with_a_warning(tmp_path: Path, cache: Path) -> None:
    x, y = _unsorted(270, 9, is_sorted=True)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    report = search(request(tmp_path, cache, "avg_bits<=4", data=tmp_path / "d.npz"))
    assert "no sample of 1 of 10 classes: 9" in report.notes


@pytest.mark.parametrize(
    ("budgets", "changes", "message"),
    [
        (("avg_bits<=1.5",), {}, r"avg_bits<=1.5.*\n.*2 or more"),
        (("avg_bits<=4", "avg_bits<=3"), {}, "avg_bits twice"),
        (("bytes<=10",), {}, r"bytes<=10: less than any choice of widths needs\n.*\d or more"),
        (("bytes<=20k@nowhere",), {}, "nowhere"),
        (("latency_p50_ms<=1@x86-cpu",), {}, "no latency table of target 'x86-cpu'"),
        (("avg_bits<=4",), {"widths": (8, 3)}, None),
        (("avg_bits<=4",), {"output": bundled_master()}, "the master would be overwritten"),
        (("avg_bits<=4",), {"costs": Path("none.json")}, "cannot be read"),
        (("avg_bits<=4",), {"tables": (Path("none.json"),)}, "cannot be read"),
    ],
)
def test_bad_requests(
    tmp_path: Path, cache: Path, budgets: tuple[str, ...], changes: dict[str, object], message: str | None
) -> None:
    before = bundled_master().read_bytes()
    if message is None:
        assert {bits for _, bits in search(request(tmp_path, cache, *budgets, **changes)).chosen.widths} <= {8, 3}
        return
    with pytest.raises(BitswitchError, match=message):
        search(request(tmp_path, cache, *budgets, **changes))
    assert not (tmp_path / "widths.json").exists()
    assert bundled_master().read_bytes() == before


def noisy_digits(folder: Path, *, noise: int) -> Path:
    """300 digits with noise on them, labelled with what the highest width says of them."""
    found, master = sample_set("digits"), read_master(bundled_master())
    assert found is not None
    with np.load(found.train) as stored:
        x = np.clip(stored["x"][:300] + np.random.default_rng(3).integers(0, noise, (300, 8, 8)), 0, 16)
    np.savez(folder / "x.npz", x=x)
    samples = load_samples(master, folder / "x.npz", limit=None)
    assert samples is not None
    said = run_batches(open_session(master, WidthAssignment(default=8)), samples.source.read(0, 300)).argmax(axis=1)
    np.savez(folder / "d.npz", x=x, y=said)
    return folder / "d.npz"


def test_nothing_within_the_drop(tmp_path: Path, cache: Path) -> None:
    """Labels are what the highest width says of noisy digits; at the only width that is affordable it says others."""
    data = noisy_digits(tmp_path, noise=9)
    message = r"nothing that keeps the budgets is within 0 points .* the least drop that was found is \d+\.\d\d\n"
    with pytest.raises(CheckFailedError, match=message) as failed:
        search(request(tmp_path, cache, "avg_bits<=2", data=data, max_drop=0.0))
    least = re.search(r"allow (\d+\.\d\d),", failed.value.do)
    assert least is not None
    report = search(request(tmp_path, cache, "avg_bits<=2", data=data, max_drop=float(least[1])))
    assert float(least[1]) - 0.01 < _cautious_drop(report.chosen) <= float(least[1])


def test_a_front_is_refused_by_no_limit_that_nobody_gave(tmp_path: Path, cache: Path) -> None:
    """At 2 bits, the only width, more than a point is lost on such digits."""
    data = noisy_digits(tmp_path, noise=12)
    report = search(request(tmp_path, cache, data=data, widths=(2,), pareto=True))
    assert (report.max_drop, report.drop_exceeded) == (None, False)
    assert [each.label for each in report.front] == ["w2"]
    assert any("nothing is within 1 points of the highest width" in note for note in report.notes)
    with pytest.raises(CheckFailedError, match="--max-drop"):
        search(request(tmp_path, cache, data=data, widths=(2,), pareto=True, max_drop=1.0))


def test_a_final_test_of_few_samples_says_so(tmp_path: Path, cache: Path) -> None:
    found = sample_set("digits")
    assert found is not None
    with np.load(found.test) as stored:
        np.savez(tmp_path / "few.npz", x=stored["x"][:40], y=stored["y"][:40])
    report = search(request(tmp_path, cache, "avg_bits<=4", test=tmp_path / "few.npz", data=found.train))
    assert any("the final test had 40 samples" in note for note in report.notes)


def test_a_layer_that_runs_twice_is_one_choice() -> None:
    """Layers that share a weight are one layer of the master, so no assignment can tell them apart."""
    master = every_operator()
    assert layer_groups(master, ()) == (("conv",), ("up",), ("mat",), ("only",), ("fc",))
    assert replace(master.spec, accuracy=()).layers == master.spec.layers


def test_the_report_is_plain_data(tmp_path: Path, cache: Path) -> None:
    report = search(request(tmp_path, cache, "avg_bits<=4"))
    assert json.loads(to_json("bitswitch-search/1", report))["chosen"]["widths"] == [
        list(pair) for pair in report.chosen.widths
    ]
