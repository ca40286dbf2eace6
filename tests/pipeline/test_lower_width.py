"""The ladder of approximations: which sets are tried, which one stays, and what is said about the others."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.catalogue import bundled_file, bundled_master, load_target
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.lowering.approximation import EXACT, EXPORTED, Approximation
from bitswitch_deploy.lowering.lower import calibrated_tensors, lower
from bitswitch_deploy.master import Master, assemble_master, read_master
from bitswitch_deploy.pipeline import lower_width as module
from bitswitch_deploy.pipeline.approximation_limit import ApproximationLimit
from bitswitch_deploy.pipeline.inputs import ExportData, load_export_data
from bitswitch_deploy.pipeline.lower_width import LoweredWidth, lower_width
from bitswitch_deploy.pipeline.progress import Silent
from bitswitch_deploy.tensors import WidthAssignment

ROUNDED, RESIDUAL, ELEMENTWISE, HALF, PINNED, FULL, SIGNED, INT8_INPUTS = Approximation
# what the digits have a use for on a CPU: half layers belong to strongly typed engines, no layer has float inputs, and
# nothing lies between layers but residual Adds
ALL = frozenset(Approximation) - {HALF, INT8_INPUTS, ELEMENTWISE}
ON_CPU = EXPORTED - {HALF, ELEMENTWISE}
X86, JETSON = load_target("x86-cpu").target, load_target("jetson").target
Sets = list[frozenset[Approximation]]


@pytest.fixture(scope="module")
def master() -> Master:
    return read_master(bundled_master())


@pytest.fixture(scope="module")
def data(master: Master) -> ExportData:
    """Both sets of samples of the bundled master; so few predictions are quickly compared."""
    return load_export_data(master, data=None, calibration=None)


@contextmanager
def watched() -> Iterator[Sets]:
    """Inside, every set that the graph is lowered with is noted."""
    tried: Sets = []

    def noted(*args: Any, **options: Any) -> Any:
        tried.append(options["approximations"])
        return lower(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "lower", noted)
        yield tried


def lowered(
    master: Master,
    data: ExportData,
    wanted: frozenset[Approximation],
    *,
    bits: int = 8,
    target: Any = X86,
    least: float = 99.5,
    by_labels: bool = False,
) -> tuple[LoweredWidth, Sets]:
    with watched() as tried:
        width = lower_width(
            master,
            WidthAssignment(default=bits),
            target,
            data=data,
            wanted=wanted,
            limit=ApproximationLimit(min_agreement=least, by_labels=by_labels),
            progress=Silent(),
        )
    return width, tried


def said(width: LoweredWidth) -> list[tuple[str, bool]]:
    """Give what the choice had to say, and whether it is exact."""
    return [(change.what, change.exact) for change in width.changes if change.where == "approximations"]


def test_the_first_set_stays_where_it_agrees(master: Master, data: ExportData) -> None:
    width, tried = lowered(master, data, EXPORTED | {PINNED, FULL}, least=0)
    assert tried == [ALL - {SIGNED}]
    ((text, exact),) = said(width)
    assert text.startswith("full-resolution, pinned-layers, residual-codes, rounded-bias: ")
    assert "% agreement on 600 samples" in text
    assert not exact
    assert not width.exact
    assert width.result is not None


def test_from_the_widest_set_to_the_exact_graph(master: Master, data: ExportData) -> None:
    """Nobody reaches more than all samples, so each set is given up in turn and the last one is not judged.

    Signed activations there are none, so giving up what refines them would give the same graph again.
    """
    width, tried = lowered(master, data, ALL, least=100.001)
    assert tried == [ALL, ALL - {SIGNED, FULL}, ALL - {PINNED}, ON_CPU, {ROUNDED}, EXACT]
    assert width.exact
    assert len(said(width)) == 5
    assert not any("signed" in text for text, _ in said(width))
    for text, exact in said(width):
        assert text.startswith("without ")
        assert text.endswith("100.001 % is the limit (--min-agreement)")
        assert exact
    # the graph that stays is the one without any, and so are the numbers
    assert width.lowered.exact
    assert width.result is not None
    assert width.result.hops[2].agreement_percent == 100.0


def test_as_much_agreement_as_is_asked_for_is_enough(master: Master, data: ExportData) -> None:
    """The worst of the hops that ran counts."""
    width, _ = lowered(master, data, ALL, bits=2, least=0)
    assert width.result is not None
    measured = min(hop.agreement_percent or 0 for hop in width.result.hops[2:] if hop.n)
    assert 90 < measured < 100
    assert lowered(master, data, ALL, bits=2, least=measured)[1] == [ALL]
    assert len(lowered(master, data, ALL, bits=2, least=measured + 1e-6)[1]) > 1


@pytest.fixture(scope="module")
def many(master: Master, doubtful: Path) -> ExportData:
    return load_export_data(master, data=doubtful, calibration=bundled_file("calibration/digits/train.npz"))


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_an_accuracy_that_stays_is_enough_where_samples_have_labels(
    master: Master, many: ExportData, bits: int
) -> None:
    """More predictions change than are allowed, about as many to the right class as away from it."""
    width, tried = lowered(master, many, EXPORTED, bits=bits, by_labels=True)
    ((text, exact),) = said(width)
    assert (tried, exact) == ([ON_CPU], False)
    assert re.fullmatch(
        r"residual-codes(, rounded-bias)?: 9\d\.\d\d % agreement on 6,000 samples, "
        r"top-1 \d+\.\d\d -> \d+\.\d\d %, a drop of 0\.5 points is excluded",
        text,
    )
    # without labels the same graph is given up
    width, tried = lowered(master, many, EXPORTED, bits=bits)
    assert tried[:2] == [ON_CPU, {ROUNDED}]
    assert said(width)[0][0].startswith("without residual-codes")


def test_labels_that_cannot_exclude_a_drop_do_not_help(master: Master, many: ExportData) -> None:
    width, tried = lowered(master, many, EXPORTED, bits=2, by_labels=True)
    assert tried[:2] == [ON_CPU, {ROUNDED}]
    first, exact = said(width)[0]
    assert exact
    assert first.endswith("a drop of 0.5 points cannot be excluded")


def test_all_sets_that_may_be_judged_share_the_level(
    master: Master, data: ExportData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many turn out to be the same graph: the number is fixed before anything is measured."""
    looks = []
    judge = ApproximationLimit.judge

    def noted(*args: Any, **options: Any) -> Any:
        looks.append(options["looks"])
        return judge(*args, **options)

    monkeypatch.setattr(ApproximationLimit, "judge", noted)
    lowered(master, data, ALL, least=100.001)
    # ALL, less SIGNED, less both, less PINNED, the usual ones, rounded biases: six beside the exact graph
    assert looks == [6] * 5


def test_labels_of_another_network_do_not_count(master: Master, data: ExportData) -> None:
    """Each class called by the name of the next one: nothing is right, so nothing can be lost."""
    assert data.test is not None
    assert data.test.y is not None
    moved = replace(data, test=replace(data.test, y=(data.test.y + 1) % 10))
    width, _ = lowered(master, moved, ALL, bits=2, least=99, by_labels=True)
    first, exact = said(width)[0]
    assert "labels do not help" in first
    assert exact


def subsets(of: frozenset[Approximation]) -> list[frozenset[Approximation]]:
    each = sorted(of)
    return [frozenset(part) for size in range(len(each) + 1) for part in itertools.combinations(each, size)]


@pytest.mark.parametrize("container", ["int8", "uint8"])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_graph_names_what_it_makes_use_of(master: Master, data: ExportData, bits: int, container: str) -> None:
    """Leave out what it does not name, and it is the same; leave out what it does, and it is another one."""
    spec = replace(master.spec, activation_container=container)  # type: ignore[arg-type]
    changed = assemble_master(spec=spec, tensors=master.tensors, skeleton=master.skeleton)
    canonical = canonical_graph(changed, WidthAssignment(default=bits))
    assert data.calibration is not None
    names = {each for rung in subsets(ALL) for each in calibrated_tensors(canonical, X86, rung)}
    ranges = module.observe_ranges(canonical, tuple(sorted(names)), data.calibration)
    graphs = {}
    for allowed in subsets(ALL):
        graph = lower(canonical, X86, ranges=ranges, approximations=allowed)
        assert graph.approximations <= allowed
        graphs[allowed] = (graph.model.SerializeToString(deterministic=True), graph.approximations)
    for (allowed, (model, used)), (rung, (other, _)) in itertools.product(graphs.items(), repeat=2):
        if used <= rung <= allowed:
            assert model == other
        elif rung < allowed and len(allowed - rung) == 1:
            assert model != other


def test_labels_of_calibration_samples_do_not_count(master: Master, data: ExportData) -> None:
    """The network may have been trained with them."""
    calibrated = ExportData(test=None, calibration=data.test)
    width, _ = lowered(master, calibrated, ALL, bits=2, least=99, by_labels=True)
    first, exact = said(width)[0]
    assert first.endswith("99 % is the limit (--min-agreement)")
    assert exact
    assert not any("top-1" in text for text, _ in said(width))


def test_an_exact_set_that_the_target_cannot_keep_is_not_judged(master: Master, data: ExportData) -> None:
    """255 codes do not fit int8, whatever is left out: that is the lowering's to say."""
    spec = replace(master.spec, activation_container="uint8")
    uint8 = assemble_master(spec=spec, tensors=master.tensors, skeleton=master.skeleton)
    width, tried = lowered(uint8, data, EXACT, target=JETSON, least=100.001)
    assert (tried, said(width)) == ([EXACT], [])
    assert not width.exact


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_usual_sets(master: Master, data: ExportData, bits: int) -> None:
    width, tried = lowered(master, data, EXPORTED, bits=bits)
    assert tried in ([ON_CPU], [ON_CPU, {ROUNDED}], [ON_CPU, {ROUNDED}, EXACT])
    assert width.result is not None
    assert (width.result.hops[2].agreement_percent or 0) >= 99.5


@pytest.mark.parametrize("bits", [8, 7, 6, 5, 4, 3, 2])
def test_nothing_wanted_is_exact_and_agrees_everywhere(master: Master, data: ExportData, bits: int) -> None:
    width, tried = lowered(master, data, EXACT, bits=bits)
    assert tried == [EXACT]
    assert (width.exact, said(width)) == (True, [])
    assert width.result is not None
    for hop in width.result.hops[2:]:
        assert hop.agreement_percent == 100.0


def test_a_master_that_a_search_fitted_to_its_assignment_says_so(master: Master, data: ExportData) -> None:
    provenance = (*master.spec.provenance, ("BatchNorm statistics", "fitted by a search"))
    spec = replace(master.spec, provenance=provenance)
    fitted = assemble_master(spec=spec, tensors=master.tensors, skeleton=master.skeleton)
    for each, times in ((master, 0), (fitted, 1)):
        width, _ = lowered(each, data, EXACT)
        assert [change.where for change in width.changes].count("BatchNormalization") == times


def test_equal_sets_are_tried_once(master: Master, data: ExportData) -> None:
    assert lowered(master, data, frozenset({ROUNDED}), least=100.001)[1] == [{ROUNDED}, EXACT]
    assert lowered(master, data, frozenset({RESIDUAL}), least=100.001)[1] in ([{RESIDUAL}, EXACT], [{RESIDUAL}])
    # an exact lowering needs no verdict: nothing else is tried
    width, tried = lowered(master, data, frozenset({FULL}), target=JETSON, least=100.001)
    assert (tried, said(width)) == ([EXACT], [])


def test_a_target_has_no_use_for_what_none_of_its_passes_makes(master: Master, data: ExportData) -> None:
    width, tried = lowered(master, data, ALL | {HALF}, target=JETSON, least=100.001)
    assert all(each <= {RESIDUAL} for each in tried)
    assert width.lowered.passes


def test_half_layers_are_given_up_before_residual_codes(master: Master, data: ExportData) -> None:
    _, tried = lowered(master, data, EXPORTED, target=load_target("rtx").target, least=100.001)
    assert tried == [{RESIDUAL, HALF}, {RESIDUAL}, EXACT]


def test_without_calibration_samples(master: Master, data: ExportData) -> None:
    """What needs ranges is left out, and said to be; the rest is judged on the test samples."""
    width, tried = lowered(master, ExportData(test=data.test, calibration=None), ALL, least=0)
    assert tried == [{ROUNDED, FULL, SIGNED}]
    first, second = said(width)
    assert first[0].endswith("left out: no calibration samples")
    assert first[0].startswith("pinned-layers")
    assert first[1]
    assert second[1] is False


def test_without_any_samples_nothing_is_judged(master: Master) -> None:
    width, tried = lowered(master, ExportData(test=None, calibration=None), EXPORTED, least=100.001)
    assert tried == [{ROUNDED}]
    assert width.result is None
    assert said(width) == [
        ("residual-codes left out: no calibration samples", True),
        ("rounded-bias: no samples to judge by", False),
    ]


def test_without_a_limit_what_is_wanted_stays_unjudged(master: Master, data: ExportData) -> None:
    for bits, samples in ((8, data), (2, replace(data, test=None))):
        with watched() as tried:
            width = lower_width(
                master,
                WidthAssignment(default=bits),
                X86,
                data=samples,
                wanted=ALL,
                limit=None,
                progress=Silent(),
            )
        assert (tried, said(width), width.left_out) == ([ALL], [], ())
        assert (width.result is None) == (samples.test is None)


def test_without_test_samples_the_calibration_samples_decide(master: Master, data: ExportData) -> None:
    width, tried = lowered(master, ExportData(test=None, calibration=data.calibration), EXPORTED, least=100.001)
    assert tried[0] == ON_CPU
    assert tried[-1] == EXACT
    assert width.result is None
    assert data.calibration is not None
    assert any(f"agreement on {data.calibration.summary.n:,} samples" in text for text, _ in said(width))


def test_ranges_are_observed_once_for_all_sets(
    master: Master, data: ExportData, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []
    observe = module.observe_ranges

    def counted(canonical: Any, tensors: tuple[str, ...], samples: Any) -> Any:
        calls.append(tensors)
        return observe(canonical, tensors, samples)

    monkeypatch.setattr(module, "observe_ranges", counted)
    lowered(master, data, ALL, least=100.001)
    (tensors,) = calls
    assert len(set(tensors)) == len(tensors)
    network_input = master.spec.inputs[0].name
    assert network_input in tensors


def test_what_is_observed_of_an_input_and_an_output(master: Master, data: ExportData) -> None:
    canonical = canonical_graph(master, WidthAssignment(default=8))
    assert data.calibration is not None
    names = (master.spec.inputs[0].name, master.spec.outputs[0].name)
    ranges = module.observe_ranges(canonical, names, data.calibration)
    x = np.concatenate([batch for batch, _ in data.calibration.batches(64)])
    assert (ranges[names[0]].minimum, ranges[names[0]].maximum) == (float(x.min()), float(x.max()))
    assert ranges[names[1]].minimum < ranges[names[1]].maximum
