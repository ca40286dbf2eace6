"""Costs of each layer at each width from the trace of its Hessian, for `bitswitch-deploy search --costs FILE`.

    cost[l][b] = tr(H_l) / n_l * ||W_8 - W_b||^2                       (HAWQ-V2, arXiv 1911.03852)

at the weights of the master at its own width, activations in float: the network is that of a bundled recipe.

python tools/hessian_costs.py --master resnet20.safetensors --recipe cifar10-resnet20 --data train.npz -o costs.json
python tools/hessian_costs.py --bits 8,7,6,5,4,3,2 -o costs.json     # for `search` with the same --bits
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from bitswitch_deploy.catalogue import bundled_master, sample_set
from bitswitch_deploy.cli.options import progress_bar
from bitswitch_deploy.errors import BitswitchError, UsageError
from bitswitch_deploy.master import Master, read_master
from bitswitch_deploy.master.spec import LayerSpec
from bitswitch_deploy.pipeline.inputs import load_samples, parse_bits
from bitswitch_deploy.pipeline.searching.problem import widths_to_choose
from bitswitch_deploy.quantization import dequantize, derive_codes
from bitswitch_deploy.search.costs import Cost, CostTable, GroupCosts
from bitswitch_deploy.search.samples import draw_samples
from bitswitch_deploy.training.hessian import MAX_VECTORS, Trace, hessian_traces
from bitswitch_deploy.training.networks import build_network
from bitswitch_deploy.training.recipe import load_recipe
from bitswitch_deploy.validation.arrays import content_sha256

PATH = click.Path(path_type=Path)
_BATCH = 128


@click.command()
@click.option("--master", type=PATH, help="[default: the bundled digits network]")
@click.option("--recipe", default="digits", show_default=True, help="Whose network it is.")
@click.option("--data", type=PATH, help="Labelled samples.  [default: the bundled ones]")
@click.option("--samples", type=click.IntRange(min=1), default=1024, show_default=True)
@click.option("--vectors", type=click.IntRange(min=2), default=MAX_VECTORS, show_default=True, help="At most.")
@click.option("--bits", metavar="LIST", help="Widths to write costs of, each in 2..8.  [default: the trained ones]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("-o", "--output", type=PATH, required=True)
def main(master: Path | None, output: Path, **options: Any) -> None:
    """Write costs by Hessian traces, and beside them the traces with their standard errors."""
    try:
        write_costs(read_master(master or bundled_master()), output, **options)
    except BitswitchError as exc:
        click.echo(f"error: {exc}", err=True)
        sys.exit(exc.exit_code)


def write_costs(
    loaded: Master, output: Path, *, recipe: str, data: Path | None, bits: str | None, **options: int
) -> None:
    widths = widths_to_choose(loaded, None if bits is None else [each.default for each in parse_bits(bits)])
    bundled = sample_set("digits")
    pool = load_samples(loaded, data or (bundled.train if bundled else None), limit=None)
    if pool is None or pool.y is None:
        raise click.UsageError("--data: labelled samples are needed")
    chosen = draw_samples(pool.y, pool.n, n_search=options["samples"], seed=options["seed"]).search
    x = np.concatenate([pool.source.read(int(i), int(i) + 1) for i in chosen])
    y = pool.y[chosen]
    model = network_of(loaded, build_network(load_recipe(recipe).network))
    layers = {layer.name: layer for layer in loaded.spec.layers if not layer.pinned}
    batches = [
        (torch.from_numpy(x[i : i + _BATCH]), torch.from_numpy(y[i : i + _BATCH])) for i in range(0, len(x), _BATCH)
    ]
    parameters = {name: model.get_parameter(layer.weight) for name, layer in layers.items()}

    def loss(inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs), labels)

    with progress_bar() as progress:
        progress.start("Hessian times vector, at most", options["vectors"] * len(batches))
        traces = hessian_traces(
            loss,
            parameters,
            batches,
            seed=options["seed"],
            max_vectors=options["vectors"],
            computed=progress.advance,
        )
    table = CostTable(
        master_sha256=loaded.sha256,
        method="hessian_trace",
        samples_sha256=content_sha256(x, y),
        n=len(x),
        groups=tuple(costs_of(loaded, layer, traces[name], widths) for name, layer in layers.items()),
    )
    table.write(output)
    output.with_suffix(".traces.json").write_text(json.dumps({n: t.mean for n, t in traces.items()}, indent=1) + "\n")
    for name, trace in traces.items():
        doubt = "" if trace.is_determined else "  undetermined: within two standard errors of 0"
        click.echo(f"{name:28} {trace.trace:12.5g} +- {trace.standard_error:.2g}  ({trace.n_vectors} vectors){doubt}")


def network_of(master: Master, model: nn.Module) -> nn.Module:
    """The float network with the weights of the master at its own width, and the BatchNorm of its highest one.

    Raises:
        UsageError: it is another network than that of the master.
    """
    floats = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in floats.items():
        stored = master.tensors.get(name)
        shape = None if stored is None else stored.shape[1:] if name in master.spec.switchable else stored.shape
        if not name.endswith("num_batches_tracked") and shape != tensor.shape:
            raise UsageError(
                where=f"--recipe: {name}",
                got=f"shape {tuple(tensor.shape)}",
                allowed=f"{'no such tensor' if shape is None else tuple(shape)}, as in the master",
                do="name the recipe that the master was trained by",
            )
    quantized = {layer.weight: layer for layer in master.spec.layers if not layer.pinned}
    with torch.no_grad():
        for name, tensor in floats.items():
            if name.endswith("num_batches_tracked"):
                continue
            stored = np.asarray(master.tensors[name])
            if name in quantized:
                stored = weights(master, quantized[name], master.spec.bits)
            elif name in master.spec.switchable:
                stored = stored[0]
            tensor.copy_(torch.from_numpy(np.array(stored, np.float32)))
    return model.eval()


def weights(master: Master, layer: LayerSpec, bits: int) -> np.ndarray:
    """What the network computes with at `bits`, float32 in the layout of the master."""
    spec = master.spec
    codes = derive_codes(
        np.asarray(master.tensors[layer.weight]), from_bits=spec.bits, to_bits=bits, rounding=spec.rounding
    )
    scale = np.asarray(master.tensors[layer.weight_scale]) * np.float32(2.0 ** (spec.bits - bits))
    return dequantize(codes, scale, granularity=layer.granularity)


def costs_of(master: Master, layer: LayerSpec, trace: Trace, widths: Sequence[int]) -> GroupCosts:
    """Cost of a layer at each width: what switching loses against the stored codes."""
    exact = weights(master, layer, master.spec.bits).astype(np.float64)
    errors = {bits: float(((exact - weights(master, layer, bits)) ** 2).sum()) for bits in widths}
    per_weight = trace.standard_error / trace.n_weights
    costs = tuple(
        Cost(width=bits, value=trace.mean * error, standard_error=per_weight * error) for bits, error in errors.items()
    )
    return GroupCosts(layers=(layer.name,), costs=costs)


if __name__ == "__main__":
    main()
