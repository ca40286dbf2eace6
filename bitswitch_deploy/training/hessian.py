"""Traces of the Hessian of a loss, layer by layer, by Hutchinson's estimator, with standard errors.

    tr(H_l) = E[ v_l^T (H v)_l ],  v with entries +-1 by chance     (M. F. Hutchinson, 1990)

One product of H with a vector over all layers gives a sample for every layer: terms across layers have mean zero. A
sample varies by 2 * (||H||_F^2 - sum of H_ii^2), so a handful of vectors says little. Estimation goes on until the
standard error of every layer is below a share of its trace; a mean that no longer moves is no measure of its error.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_VECTORS = 32
MAX_VECTORS = 512
TOLERANCE = 0.1
_CHUNK = 8

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Of one layer: estimate and its standard error, from `n_vectors` samples, over `n_weights` weights.

    One sample says nothing of its error, which is infinite then.
    """

    trace: float
    standard_error: float
    n_vectors: int
    n_weights: int

    @property
    def is_determined(self) -> bool:
        """Whether the estimate stands out of its error, two standard errors from 0."""
        return abs(self.trace) >= 2 * self.standard_error

    @property
    def mean(self) -> float:
        """Trace per weight, not below 0: at a minimum it is not, and the solver must not gain by an error."""
        return max(self.trace, 0.0) / self.n_weights


def hessian_traces(
    loss: Loss,
    parameters: Mapping[str, Tensor],
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    seed: int,
    max_vectors: int = MAX_VECTORS,
    tolerance: float = TOLERANCE,
    computed: Callable[[int], object] = lambda n: None,
) -> dict[str, Trace]:
    """Traces of the Hessian of the mean loss over all samples, for each parameter.

    Args:
        loss: mean loss over the samples of a batch (inputs [n, ...], labels [n]), twice differentiable in `parameters`.
        parameters: by name; those that require no gradient are refused by torch.
        batches: of any sizes; each counts by its number of samples.
        seed: of the vectors; each depends on the name of its parameter, not on the order.
        max_vectors: where it stops in any case. tolerance: standard error over trace where it stops.
        computed: called with the number of products of one batch that were computed just now, one for each vector.
    """
    samples: dict[str, list[float]] = {name: [] for name in parameters}
    n_vectors = 0
    while n_vectors < max_vectors and not (n_vectors >= MIN_VECTORS and _settled(samples, tolerance)):
        count = min(_CHUNK, max_vectors - n_vectors)
        vectors = [_rademacher(parameters, seed, n_vectors + index) for index in range(count)]
        for name, values in _quadratic_forms(loss, parameters, batches, vectors, computed).items():
            samples[name] += values
        n_vectors += count
    return {name: _estimate(values, parameters[name].numel()) for name, values in samples.items()}


def _quadratic_forms(
    loss: Loss,
    parameters: Mapping[str, Tensor],
    batches: Sequence[tuple[Tensor, Tensor]],
    vectors: Sequence[Mapping[str, Tensor]],
    computed: Callable[[int], object],
) -> dict[str, list[float]]:
    """v_l^T (H v)_l of every layer and vector; the graph of the gradients is built once for all vectors."""
    names, tensors = list(parameters), list(parameters.values())
    total = sum(len(x) for x, _ in batches)
    sums = {name: [0.0] * len(vectors) for name in names}
    for x, y in batches:
        gradients = torch.autograd.grad(loss(x, y), tensors, create_graph=True)
        for index, vector in enumerate(vectors):
            products = torch.autograd.grad(
                gradients, tensors, [vector[name] for name in names], retain_graph=index + 1 < len(vectors)
            )
            for name, product in zip(names, products):
                form = float((vector[name].double() * product.double()).sum())
                sums[name][index] += form * len(x) / total
        computed(len(vectors))
    return sums


def _rademacher(parameters: Mapping[str, Tensor], seed: int, index: int) -> dict[str, Tensor]:
    vectors = {}
    for name, tensor in parameters.items():
        digest = hashlib.sha256(f"{seed} {index} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        bits = torch.randint(0, 2, tensor.shape, generator=generator)
        vectors[name] = (2 * bits - 1).to(tensor)
    return vectors


def _settled(samples: Mapping[str, list[float]], tolerance: float) -> bool:
    # of a layer that the loss does not depend on, trace and error are both 0
    return all(
        each.standard_error <= tolerance * abs(each.trace) for each in (_estimate(s, 1) for s in samples.values())
    )


def _estimate(values: Sequence[float], n_weights: int) -> Trace:
    n = len(values)
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1) if n > 1 else math.inf
    return Trace(trace=mean, standard_error=math.sqrt(variance / n), n_vectors=n, n_weights=n_weights)
