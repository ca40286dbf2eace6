"""Transitional BatchNorm: a copy for each pair of widths, that of the layer before and that of the layer itself.

Source: Bit-Mixer and HASB (Huang et al., arXiv 2502.01199). Which layer comes before is read from the graph, not from
the order of execution (`SwitchableBatchNorm.previous`); a layer that none comes before has one copy for each own width.

A master names one layer for each BatchNorm (`partners`), so it has a row for each own width and none for pairs. The
pairs of equal widths are the ordinary `copies`, and those are exported: every uniform width is as it was trained,
a mixed one goes by its own widths and wants its statistics re-estimated, as `search` does. Hence own-width BatchNorm
is the default, and this is there to compare with.
"""

from __future__ import annotations

import copy

from torch import nn

from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.training.layers import SwitchableBatchNorm, replace_modules


class TransitionalBatchNorm(SwitchableBatchNorm):
    """BatchNorm of each (previous width, own width), starting as the copies of the own width.

    State names beside those of SwitchableBatchNorm: `transitions.<previous>-<own>.weight`, ...
    """

    def __init__(self, norm: SwitchableBatchNorm) -> None:
        nn.Module.__init__(self)
        self.widths, self.partner, self.previous = norm.widths, norm.partner, norm.previous
        self.reads_partner, self.bits, self.previous_bits = norm.reads_partner, norm.bits, norm.bits
        self.copies = norm.copies
        self.transitions = nn.ModuleDict(
            {
                f"{before}-{own}": copy.deepcopy(norm.copies[self.widths.index(own)])
                for before in self.widths
                for own in self.widths
                if before != own
            }
        )
        self.train(norm.training)

    def follow(self, assignment: WidthAssignment) -> None:
        """Use the copy of this assignment."""
        super().follow(assignment)
        self.previous_bits = self.bits if self.previous is None else assignment.bits_of(self.previous)

    def current(self) -> nn.Module:
        """The BatchNorm of the transition in use."""
        if self.previous_bits == self.bits:
            return super().current()
        return self.transitions[f"{self.previous_bits}-{self.bits}"]


def with_transitions(model: nn.Module) -> nn.Module:
    """Let every switchable BatchNorm of a prepared network that has a layer before it be transitional, in place."""

    def transitional(_: str, module: nn.Module) -> nn.Module | None:
        has_previous = isinstance(module, SwitchableBatchNorm) and module.previous is not None
        return TransitionalBatchNorm(module) if has_previous and isinstance(module, SwitchableBatchNorm) else None

    return replace_modules(model, transitional)
