"""The latency table of a profile, and how well it predicts what was measured as a whole."""

from __future__ import annotations

from collections.abc import Sequence

from bitswitch_deploy.engines.cpu_features import cpu_features
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.latency_table import LatencyTable
from bitswitch_deploy.master import Master
from bitswitch_deploy.pipeline.profiling.bench import Width
from bitswitch_deploy.pipeline.profiling.steps import LayerProfiles
from bitswitch_deploy.profiling.board.host import Host
from bitswitch_deploy.profiling.board.sensors import device_name
from bitswitch_deploy.profiling.layer_table import layer_times, residuals
from bitswitch_deploy.profiling.result import ProfileResult, Residual


def check_table_request(widths: Sequence[Width], batches: Sequence[int], *, engine: str, master: Master | None) -> None:
    """Refuse what no table can be made of, before anything is measured.

    Raises:
        UsageError: no master, several batch sizes, no uniform width, or an engine whose layers are not the master's.
    """
    problems = {
        "no master at hand": ("the master of the package, for the names of its layers", "name it with --master FILE"),
        f"{len(batches)} batch sizes": ("one batch size for each table", "measure them one after the other"),
        "no uniform width": ("at least one uniform width", "export the package with --bits as well"),
        f"the engine {engine}": (
            "onnxruntime: TensorRT fuses layers, under names of its own",
            "use --engine onnxruntime",
        ),
    }
    is_wrong = (master is None, len(batches) > 1, all(width.bits is None for width in widths), engine != "onnxruntime")
    for wrong, (got, (allowed, do)) in zip(is_wrong, problems.items()):
        if wrong:
            raise UsageError(where="--latency-table", got=got, allowed=allowed, do=do)


def latency_table(
    result: ProfileResult, profiles: LayerProfiles, widths: Sequence[Width], master: Master | None, host: Host
) -> LatencyTable:
    """The table of the first batch size, over the uniform widths."""
    layers = [each.name for each in master.spec.layers if not each.pinned] if master is not None else []
    bits_of = {width.label: width.bits for width in widths if width.bits is not None}
    p50_ms = {each.label: each.statistics.p50_ms for each in result.candidates}
    end_to_end_ms = {bits: p50_ms[label] for label, bits in bits_of.items()}
    times = layer_times({bits: profiles.times[label] for label, bits in bits_of.items()}, end_to_end_ms, layers)
    board = result.board.after
    facts = {
        "processor": device_name(host) or "unknown",
        "cpu features": " ".join(cpu_features()),
        "power mode": board.power_mode or "",
        "governor": " ".join(board.governors),
        "clocks": {True: "locked", False: "not locked", None: ""}[board.clocks_locked],
        "unstable": "; ".join(result.unstable),
    }
    return LatencyTable(
        master_sha256=result.master_sha256,
        target=result.target,
        engine=result.engine,
        engine_version=result.engine_version,
        device=tuple((name, value) for name, value in facts.items() if value),
        batch_size=result.candidates[0].batch_size,
        threads=result.threads,
        overhead_ms=max(ms for _, ms in times.overheads_ms),
        end_to_end_ms=tuple(end_to_end_ms.items()),
        layers=times.layers,
    )


def table_residuals(table: LatencyTable, result: ProfileResult, widths: Sequence[Width]) -> tuple[Residual, ...]:
    """Predictions beside every width, mixed ones included, that the table has all the widths of."""
    p50_ms = {each.label: each.statistics.p50_ms for each in result.candidates}
    measured = {
        width.label: ({layer.name: width.assignment.bits_of(layer.name) for layer in table.layers}, p50_ms[width.label])
        for width in widths
    }
    return residuals(table, measured)
