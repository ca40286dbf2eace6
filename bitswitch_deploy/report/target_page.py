"""Targets for people."""

from __future__ import annotations

from collections.abc import Sequence

from bitswitch_deploy.report.page import Page
from bitswitch_deploy.target import Target


def print_targets(targets: Sequence[Target], aliases: Sequence[str], page: Page) -> None:
    """Print one line for each target.

    Args:
        targets: what to print. aliases: other names.
    """
    rows = []
    for target in targets:
        stacks = ", ".join(f"{stack.name}*" if stack == target.stack else stack.name for stack in target.stacks)
        rows.append([(cell, "") for cell in (target.name, target.engine.name, target.engine.build, stacks)])
    page.table((("target", False), ("engine", False), ("built", False), ("stacks (* default)", False)), rows)
    page.gap()
    page.paragraph(f"aliases: {', '.join(aliases)}; another stack: NAME@STACK; your own: the path of a YAML file")


def print_target(target: Target, note: str | None, page: Page) -> None:
    """Print one target with the stack that is selected.

    Args:
        target: what to print. note: how it was found.
    """
    page.title(f"{target.name}: {target.title}")
    quantization, stack = target.quantization, target.stack
    containers = ", ".join(f"{operator} {_container(value)}" for operator, value in quantization.weight_containers)
    page.pairs(
        (
            *((("chosen", note),) if note else ()),
            ("stack", f"{stack.name}: {target.engine.name} {stack.engine_version}, opset {stack.opset}"),
            ("other stacks", ", ".join(each.name for each in target.stacks if each is not stack) or "none"),
            ("engine built", target.engine.build),
            (
                "activations",
                f"{quantization.activation.dtype}, unsigned zero-point {quantization.activation.zero_point}",
            ),
            ("weights", containers),
            (
                "residual branches",
                f"{quantization.residual}, least agreement {quantization.min_agreement:g} %",
            ),
            ("lowering", " -> ".join(target.lowering)),
            ("device", _device(target)),
        )
    )
    if target.unverified:
        page.section("Not verified")
        for text in target.unverified:
            page.paragraph(f"- {text}")


def _container(value: object) -> str:
    return value if isinstance(value, str) else " ".join(f"<={bits}:{name}" for bits, name in value)  # type: ignore[attr-defined]


def _device(target: Target) -> str:
    """What is known of the board and its software."""
    device, stack = target.device, target.stack
    facts = (
        device.sm and f"compute capability {device.sm}",
        device.gpu_int8_tops_dense and f"{device.gpu_int8_tops_dense:g} int8 TOPS without sparsity",
        device.memory_gb and f"{device.memory_gb:g} GB",
        device.memory_bandwidth_gbs and f"{device.memory_bandwidth_gbs:g} GB/s",
        device.dla_cores and f"{device.dla_cores} DLA cores",
        stack.cuda and f"CUDA {stack.cuda}",
        f"Python {stack.python}",
        target.measure.power_modes and f"power modes {', '.join(target.measure.power_modes)}",
        target.measure.rails and f"power rails {', '.join(target.measure.rails)}",
    )
    return ", ".join(fact for fact in facts if fact)
