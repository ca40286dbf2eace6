"""Quantizers of the trainer: codes in the forward pass, straight-through and LSQ gradients in the backward pass.

Weights (Double Rounding, reference: Huang et al., arXiv 2502.01199). h = highest width, l = width in use, D = h - l:

    W_h  = clip(round_half_even(W / s_h), -2^(h-1), 2^(h-1) - 1)
    W_l  = clip(round(W_h / 2^D), -2^(l-1), 2^(l-1) - 1)            ties by the rule of the master
    Wq_l = W_l * step,   step = s_h * 2^D

Activations (LSQ, Esser et al., arXiv 1902.08153): X_b = clip(round_half_even(X / s_b), n, p), Xq_b = X_b * s_b.

Gradients of both, with x = value / step, codes c, range n..p, and G the incoming gradient:

    dL/dvalue = G inside n <= x <= p, 0 outside
    dL/dstep  = sum over the elements of one step of G * (c - x) inside, G * c outside (there c is n or p),
                multiplied by 1 / sqrt(elements of one step * p)
    dL/ds_h   = 2^D * dL/dstep                                      chain rule, left to autograd

A scale stays positive because every use reads |parameter|, never below MIN_SCALE (`positive`); that value is exported.

Of several replicas (replicas.py) the elements of an activation step are those of all. Everything is float32, also where
autocast computes convolutions in less. torch.compile traces both quantizers whole: what `forward` branches on are plain
Python values, never tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.master.spec import Container
from bitswitch_deploy.tensors import CodeRange, Granularity, Rounding, code_range
from bitswitch_deploy.training.replicas import averaged, replica_count, smallest

MIN_SCALE = 1e-8

_INT8_CONTAINER_HIGH = 127
_UNDECIDED, _UNSIGNED, _SIGNED = -1, 0, 1


def positive(raw: Tensor) -> Tensor:
    """The scale that a raw parameter stands for, same shape: max(|raw|, MIN_SCALE)."""
    return raw.abs().clamp_min(MIN_SCALE)


def activation_range(bits: int, *, signed: bool, container: Container) -> CodeRange:
    """Codes of an activation: 0..127 for unsigned 8 bits in an int8 container, else `code_range`."""
    codes = code_range(bits, signed=signed)
    if container == "int8" and not signed:
        return CodeRange(low=0, high=min(codes.high, _INT8_CONTAINER_HIGH))
    return codes


def round_codes(values: Tensor, rounding: Rounding) -> Tensor:
    """Nearest integers as floats, same shape; a tie goes up or to the even neighbour."""
    if rounding is Rounding.HALF_UP:
        return torch.floor(values + 0.5)
    return torch.round(values)


def nearest_codes(values: Tensor, scale: Tensor, codes: CodeRange) -> Tensor:
    """clip(round_half_even(values / scale)) as float32; `scale` broadcasts against `values`."""
    return torch.round(values / scale).clamp_(codes.low, codes.high)


def derived_codes(codes: Tensor, *, from_bits: int, to_bits: int, rounding: Rounding) -> Tensor:
    """Codes of `to_bits` bits derived from float-valued codes of `from_bits` bits, same shape (exact in float32)."""
    target = code_range(to_bits, signed=True)
    return round_codes(codes * 2.0 ** (to_bits - from_bits), rounding).clamp_(target.low, target.high)


class _Dequantize(torch.autograd.Function):
    """codes * step, with the gradients of the module docstring; value, codes [...], step broadcasts.

    low, high: n and p, numbers or scalars on the device. elements: how many share one step, over all replicas.
    """

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, step: Tensor, codes: Tensor, low: int | Tensor, high: int | Tensor, elements: int
    ) -> Tensor:
        limits = [limit for limit in (low, high) if isinstance(limit, Tensor)]
        ctx.save_for_backward(value, step, codes, *limits)
        ctx.low, ctx.high, ctx.elements = (None, None, elements) if limits else (low, high, elements)
        return codes * step

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        (grad,) = grad_outputs
        value, step, codes, *limits = ctx.saved_tensors
        low, high = limits or (ctx.low, ctx.high)
        x = value / step
        inside = (x >= low) & (x <= high)
        grad_value = grad * inside if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_value, None, None, None, None, None
        per_element = grad * (codes - torch.where(inside, x, torch.zeros_like(x)))
        damping = _damping(ctx.elements, high)
        return grad_value, per_element.sum_to_size(step.shape) * damping, None, None, None, None


def _damping(elements: int, high: int | Tensor) -> float | Tensor:
    """1 / sqrt(elements * p)."""
    if isinstance(high, Tensor):
        return (1.0 / torch.sqrt(high.double() * elements)).float()  # as Python has it, rounded once
    return 1.0 / math.sqrt(elements * high)


def dequantize(
    value: Tensor, step: Tensor, codes: Tensor, low: int | Tensor, high: int | Tensor, *, replicas: int = 1
) -> Tensor:
    """The numbers that codes stand for, in the shape of `value`; the gradients are in the module docstring."""
    elements = replicas * value.numel() // step.numel()
    result = _Dequantize.apply(value, step, codes, low, high, elements)  # type: ignore[no-untyped-call]
    return cast(Tensor, result)


def quantize_activations(x: Tensor, raw_scale: Tensor, low: int, high: int, replicas: int) -> Tensor:
    """Dequantized codes low..high of `x`, float32 in its shape. raw_scale: parameter of the scale, a scalar."""
    x = x.float()
    scale = positive(raw_scale)
    with torch.no_grad():
        codes = nearest_codes(x, scale, CodeRange(low=low, high=high))
    return dequantize(x, scale, codes, low, high, replicas=replicas)


@cache
def _compiled_activations() -> Callable[[Tensor, Tensor, int, int, int], Tensor]:
    # limits and sizes are variables of the compiled code, so that neither a width nor a layer needs code of its own
    return torch.compile(quantize_activations, dynamic=True)


class WeightQuantizer(nn.Module):
    """Double Rounding of one weight; the state is `scale`, of `granularity.scale_shape(weight.shape)`.

    Args:
        weight: float weights that the scale is initialised from, any shape.
        bits: the highest width h. granularity: per tensor or per channel. rounding: tie rule of the derivation.
    """

    def __init__(self, weight: Tensor, *, bits: int, granularity: Granularity, rounding: Rounding) -> None:
        super().__init__()
        self.bits = bits
        self.granularity = granularity
        self.rounding = Rounding(rounding)  # a text that equals a member is none
        self.scale = nn.Parameter(_initial_weight_scale(weight.detach(), bits, granularity))

    def forward(self, weight: Tensor, bits: int) -> Tensor:
        """Dequantized weights at `bits` bits, shape of `weight`."""
        scale, limits = self.in_shape_of(weight, positive(self.scale)), code_range(bits, signed=True)
        with torch.no_grad():
            codes = self._codes(weight, scale, bits)
        return dequantize(weight, scale * 2.0 ** (self.bits - bits), codes, limits.low, limits.high)

    @torch.no_grad()
    def codes(self, weight: Tensor, bits: int) -> Tensor:
        """The int8 codes that `forward` computes with, shape of `weight`."""
        return self._codes(weight, self.in_shape_of(weight, positive(self.scale)), bits).to(torch.int8)

    def broadcast_scale(self, weight: Tensor) -> Tensor:
        """The scale of the highest width, in a shape that broadcasts against `weight`; no gradient flows."""
        return self.in_shape_of(weight, self.exported_scale())

    def exported_scale(self) -> Tensor:
        """The scale of the highest width that `forward` divides by, shape of `scale`."""
        return positive(self.scale.detach())

    def _codes(self, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
        highest = nearest_codes(weight, scale, code_range(self.bits, signed=True))
        if bits == self.bits:
            return highest
        return derived_codes(highest, from_bits=self.bits, to_bits=bits, rounding=self.rounding)

    def in_shape_of(self, weight: Tensor, scale: Tensor) -> Tensor:
        """A scale, of the shape of `self.scale`, in one that broadcasts against `weight`."""
        axis = self.granularity.axis
        if axis is None:
            return scale
        shape = [1] * weight.dim()
        shape[axis] = -1
        return scale.reshape(shape)


def _initial_weight_scale(weight: Tensor, bits: int, granularity: Granularity) -> Tensor:
    """max(|mean - 3 std|, |mean + 3 std|) / 2^(h-1) over the elements of one scale (the authors' scripts)."""
    axis = granularity.axis
    rows = weight.reshape(1, -1) if axis is None else weight.movedim(axis, 0).flatten(1)
    mean, spread = rows.mean(1), 3 * rows.std(1, correction=0)
    scale = torch.maximum((mean - spread).abs(), (mean + spread).abs()) / 2 ** (bits - 1)
    result: Tensor = scale.clamp_min(MIN_SCALE).reshape(granularity.scale_shape(tuple(weight.shape)))
    return result


class ActivationQuantizer(nn.Module):
    """LSQ of one layer's input, one learned scale for each width.

    State: `scales.<i>`, one scalar parameter for each of `widths` (separate, so that Adam's momentum moves only the
    scale that was used); `initialised` [len(widths)], True once the first training batch of that width has set its
    scale to 2 * mean|x| / sqrt(p); `signed`, a scalar of -1 (first batch decides: signed when the input of its first
    call holds a negative number), 0 or 1. An input of zeros, or with NaN, decides nothing and passes as it is; of
    zeros at one width the scale of another says how large it is. A
    negative number in a further call of that batch is refused where the first call had none; in later batches it is
    clipped to 0, as the network is trained to.

    Args:
        name: module path of the layer, for messages. widths: trained widths, highest first.
        container: how far unsigned 8-bit codes reach. signed: None lets the first batch decide.
        calls: how often a run of the network calls the layer; the first batch makes so many calls at each width.

    is_compiled: set it to compile this step alone, for a network that is not compiled as a whole.
    """

    initialised: Tensor
    signed: Tensor

    def __init__(
        self,
        *,
        name: str,
        widths: Sequence[int],
        container: Container,
        signed: bool | None = None,
        calls: int = 1,
    ) -> None:
        super().__init__()
        self.name = name
        self.widths = tuple(widths)
        self.container = container
        self.is_compiled = False
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(())) for _ in self.widths])
        self.register_buffer("initialised", torch.zeros(len(self.widths), dtype=torch.bool))
        state = _UNDECIDED if signed is None else int(signed)
        self.register_buffer("signed", torch.tensor(state, dtype=torch.int8))
        self._calls_to_watch = calls * len(self.widths) if signed is None else 0
        self._remember_state()

    @property
    def is_signed(self) -> bool:
        """Whether codes are signed.

        Raises:
            UsageError: no batch has decided it yet.
        """
        if not self.has_sign:
            raise self._unseen("no width has seen a")
        return self._sign == _SIGNED

    @property
    def has_sign(self) -> bool:
        """Whether a batch or `prepare` has decided whether codes are signed."""
        if self._sign == _UNDECIDED:
            self._take_over_state()
        return self._sign != _UNDECIDED

    @property
    def codes_kind(self) -> Literal["signed", "unsigned"]:
        """What a master calls the codes.

        Raises:
            UsageError: no batch has decided it yet.
        """
        return "signed" if self.is_signed else "unsigned"

    @property
    def seen(self) -> tuple[bool, ...]:
        """Whether each of `widths` has seen a training batch."""
        if not all(self._seen):
            self._take_over_state()
        return self._seen

    @property
    def is_initialised(self) -> bool:
        """Whether every width has seen a training batch."""
        return all(self.seen)

    def forward(self, x: Tensor, bits: int) -> Tensor:
        """Dequantized activations at `bits` bits, float32 in the shape of `x`, whatever the precision of `x`.

        Raises:
            UsageError: in evaluation mode, before any training batch at this width; in training mode, the first batch
                has negative numbers after its first call had none.
        """
        index = self.widths.index(bits)
        if not (self._seen[index] or self.seen[index]) and not self._initialise(x.detach().float(), index):
            return x.float()
        if self._calls_to_watch and self.training:
            self._watch_sign(x.detach())
        limits = activation_range(bits, signed=self.is_signed, container=self.container)
        quantize = _compiled_activations() if self.is_compiled else quantize_activations
        return quantize(x, self.scales[index], limits.low, limits.high, replica_count())

    def exported_scales(self) -> Tensor:
        """The scales that `forward` divides by, float32 [len(widths)], order of `widths`.

        Raises:
            UsageError: a width has seen no training batch.
        """
        for bits, done in zip(self.widths, self.seen, strict=True):
            if not done:
                raise self._unseen(f"{bits} bits have seen no")
        return positive(torch.stack([scale.detach() for scale in self.scales]))

    @torch.no_grad()
    def _initialise(self, x: Tensor, index: int) -> bool:
        """Let a batch set the scale of a width; False where it cannot, and the input passes as it is.

        Zeros, as in a dry run or behind a BatchNorm that begins at 0, have the same codes at any scale and sign. Where
        a layer before has lost all its codes at this width alone, the numbers of another width stand for them. Of a
        batch with NaN whoever reads its loss says so.
        """
        bits = self.widths[index]
        if not self.training:
            raise self._unseen(f"{bits} bits have seen no")
        size = averaged(x.abs().mean())
        if float(size) == 0.0 and any(self._seen):
            size = self._mean_of_seen(index)
        if not 0.0 < float(size) < math.inf:
            return False
        if self._sign == _UNDECIDED:
            self.signed.fill_(_SIGNED if float(smallest(x.min())) < 0 else _UNSIGNED)
            self._remember_state()
        limits = activation_range(bits, signed=self.is_signed, container=self.container)
        self.scales[index].copy_((2 * size / math.sqrt(limits.high)).clamp_min(MIN_SCALE))
        self.initialised[index] = True
        self._remember_state()
        return True

    def _mean_of_seen(self, index: int) -> Tensor:
        """Mean|x| by the scale of the nearest width above that is set, or of the highest one that is."""
        seen = [place for place, done in enumerate(self._seen) if done]
        nearest = max((place for place in seen if place < index), default=seen[0])
        limits = activation_range(self.widths[nearest], signed=self.is_signed, container=self.container)
        return positive(self.scales[nearest].detach()) * math.sqrt(limits.high) / 2

    def _watch_sign(self, x: Tensor) -> None:
        """See that a call of the first batch fits the sign that its first call decided."""
        self._calls_to_watch -= 1
        if not self.is_signed and float(smallest(x.min())) < 0:
            raise UsageError(
                where=f"input of layer {self.name}",
                got="negative numbers, where the first call in the first batch had none and made its codes unsigned",
                allowed="inputs of one sign in all calls of a layer",
                do=f"say that they are signed: signed=(({self.name!r}, True),) in PrepareOptions, or pin the layer",
            )

    def _remember_state(self) -> None:
        """Copy the two buffers to Python, so that `forward` neither waits for a device nor breaks a traced graph."""
        self._seen: tuple[bool, ...] = tuple(self.initialised.tolist())
        self._sign = int(self.signed)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._take_over_state()
        if self._sign != _UNDECIDED:
            self._calls_to_watch = 0  # the batch that decided was another's, though a width may be new

    def _take_over_state(self) -> None:
        """Follow buffers that others wrote: whoever loads a state or averages a network."""
        self._remember_state()
        if all(self._seen):
            self._calls_to_watch = 0  # the first batch was another's

    def _unseen(self, what: str) -> UsageError:
        return UsageError(
            where=f"input scales of layer {self.name}",
            got=f"{what} training batch with numbers other than 0",
            allowed="scales that every trained width has initialised",
            do="run one batch in training mode at each width, or load a checkpoint; a layer that is never called, or "
            "that only zeros reach, cannot be quantized: pin it",
        )


class FloatInput(nn.Module):
    """The input of a layer of which only the weights are quantized: passed on as it is."""

    codes_kind: Literal["none"] = "none"  # what a master calls it

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.scales: tuple[nn.Parameter, ...] = ()

    def forward(self, x: Tensor, bits: int) -> Tensor:
        """`x` itself, at every width."""
        return x
