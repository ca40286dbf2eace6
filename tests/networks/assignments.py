"""Which widths are tested, and the forms that graphs take over all targets."""

from __future__ import annotations

from bitswitch_deploy.catalogue import load_target, target_names
from bitswitch_deploy.master import Master
from bitswitch_deploy.target import Target
from bitswitch_deploy.tensors import WidthAssignment

MIXED = 0


def assignment(master: Master, bits: int) -> WidthAssignment:
    """One width for all layers; for `MIXED` neighbours differ, from all widths of the master."""
    if bits != MIXED:
        return WidthAssignment(default=bits)
    widths = master.spec.widths
    layers = [layer.name for layer in master.spec.layers if not layer.pinned]
    chosen = [(name, widths[(3 * index + 1) % len(widths)]) for index, name in enumerate(layers)]
    return WidthAssignment(default=widths[0], overrides=tuple(chosen))


def all_targets() -> tuple[Target, ...]:
    """Every bundled target with each of its stacks."""
    targets = [load_target(name).target for name in target_names()]
    return tuple(target.with_stack(stack.name) for target in targets for stack in target.stacks)


def graph_forms() -> dict[str, Target]:
    """One target for each way in which a graph can be lowered, by its full name: the others get the same graphs."""
    forms: dict[object, Target] = {}
    for target in all_targets():
        stack, engine = target.stack, target.engine
        lowered_by = (stack.opset, stack.ir_version, stack.weight_form, engine.name, engine.session)
        forms.setdefault((target.lowering, target.quantization, *lowered_by), target)
    return {f"{target.name}@{target.stack.name}": target for target in forms.values()}
