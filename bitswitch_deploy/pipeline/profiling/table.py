"""The latency table of a profile, and how well it predicts what was measured as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bitswitch_deploy.errors import UnavailableError, UsageError
from bitswitch_deploy.latency_table import LatencyTable
from bitswitch_deploy.master import Master
from bitswitch_deploy.pipeline.profiling.bench import Width
from bitswitch_deploy.pipeline.profiling.steps import LayerProfiles
from bitswitch_deploy.profiling.board.state import BoardRecord, Span
from bitswitch_deploy.profiling.layer_table import layer_times, residuals
from bitswitch_deploy.profiling.layers import Ownership, Unsplit
from bitswitch_deploy.profiling.result import ProfileResult, Residual
from bitswitch_deploy.target import Target


def check_table_request(
    widths: Sequence[Width], batches: Sequence[int], *, engine: str, target: Target, master: Master | None
) -> None:
    """Refuse what no table can be made of, before anything is opened.

    Raises:
        UsageError: no master, several batch sizes, no uniform width, or an engine that is not the target's.
    """
    engines = (target.engine.name, *(["trtexec"] if target.engine.name == "tensorrt" else []))
    problems = {
        "no master at hand": ("the master of the package, for the names of its layers", "name it with --master FILE"),
        f"{len(batches)} batch sizes": ("one batch size for each table", "measure them one after the other"),
        "no uniform width": ("at least one uniform width", "export the package with --bits as well"),
        # the search takes a table for what its target does
        f"the engine {engine}, and {target.name} runs in {target.engine.name}": (
            f"times of {target.name}, in {' or '.join(engines)}",
            f"measure it there without --engine, or export a package for a target that runs in {engine}",
        ),
    }
    is_wrong = (master is None, len(batches) > 1, all(width.bits is None for width in widths), engine not in engines)
    for wrong, (got, (allowed, do)) in zip(is_wrong, problems.items()):
        if wrong:
            raise UsageError(where="--latency-table", got=got, allowed=allowed, do=do)


def check_layers(ownership: Mapping[str, Ownership], widths: Sequence[Width]) -> None:
    """Refuse an engine that computes several layers in one: no share of its time is the time of one of them.

    ownership: by label.

    Raises:
        UnavailableError: a quantized layer has no time of its own at a uniform width.
    """
    for width in widths:
        unsplit = ownership[width.label].unsplit if width.bits is not None else ()
        if unsplit:
            raise UnavailableError(
                where=f"--latency-table, {width.label}",
                got=f"no time of their own: {'; '.join(map(_said, _by_engine_layer(unsplit).items()))}",
                allowed="an engine that computes each quantized layer by itself",
                do="profile without --latency-table; for the search of widths budget bytes or bops instead,"
                " or measure the table in onnxruntime, with a package for its target",
            )


def _by_engine_layer(unsplit: Sequence[Unsplit]) -> dict[str | None, list[str]]:
    found: dict[str | None, list[str]] = {}
    for each in unsplit:
        found.setdefault(each.engine_layer, []).append(each.layer)
    return found


def _said(entry: tuple[str | None, list[str]]) -> str:
    engine_layer, layers = entry
    names = ", ".join(layers)
    return f"{names}, which no layer of the engine names" if engine_layer is None else f"{names} in {engine_layer}"


def latency_table(
    result: ProfileResult,
    profiles: LayerProfiles,
    widths: Sequence[Width],
    master: Master | None,
    about: Sequence[tuple[str, str]],
) -> LatencyTable:
    """The table of the first batch size, over the uniform widths.

    about: (name, value) facts about the device that do not change.

    Raises:
        UnavailableError: as `check_layers`.
    """
    check_layers(profiles.ownership, widths)
    layers = [each.name for each in master.spec.layers if not each.pinned] if master is not None else []
    bits_of = {width.label: width.bits for width in widths if width.bits is not None}
    p50_ms = {each.label: each.statistics.p50_ms for each in result.candidates}
    end_to_end_ms = {bits: p50_ms[label] for label, bits in bits_of.items()}
    times = layer_times({bits: profiles.times[label] for label, bits in bits_of.items()}, end_to_end_ms, layers)
    facts = (*about, *_state(result.board))
    return LatencyTable(
        master_sha256=result.master_sha256,
        target=result.target,
        engine=result.engine,
        engine_version=result.engine_version,
        device=tuple((name, value) for name, value in facts if value),
        batch_size=result.candidates[0].batch_size,
        threads=result.threads,
        overhead_ms=max(ms for _, ms in times.overheads_ms),
        end_to_end_ms=tuple(end_to_end_ms.items()),
        layers=times.layers,
        unstable=result.unstable,
    )


def _state(board: BoardRecord) -> list[tuple[str, str]]:
    """What the machine was set to, and the clocks that it had meanwhile."""
    state = board.after
    # nvidia-smi does not tell whether the clocks of a GPU are locked; on a board the kernel does
    is_known = not state.gpus or any(not clock.name.startswith("cpu") for clock in state.clocks)
    readings = [f"{span.name} {_span_mhz(span)}" for span in board.clocks_mhz]
    return [
        ("driver", ", ".join(dict.fromkeys(gpu.driver for gpu in state.gpus))),
        ("power mode", state.power_mode or ""),
        ("governor", " ".join(state.governors)),
        ("clocks", {True: "locked", False: "not locked", None: ""}[state.clocks_locked if is_known else None]),
        ("MHz", ", ".join(readings)),
    ]


def _span_mhz(span: Span) -> str:
    low, high = round(span.lowest), round(span.highest)
    return str(low) if low == high else f"{low} to {high}"


def table_residuals(table: LatencyTable, result: ProfileResult, widths: Sequence[Width]) -> tuple[Residual, ...]:
    """Predictions beside every width, mixed ones included, that the table has all the widths of."""
    p50_ms = {each.label: each.statistics.p50_ms for each in result.candidates}
    measured = {
        width.label: ({layer.name: width.assignment.bits_of(layer.name) for layer in table.layers}, p50_ms[width.label])
        for width in widths
    }
    return residuals(table, measured)
