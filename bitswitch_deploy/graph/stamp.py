"""What an emitted graph says about itself, in its ONNX metadata: master, target and widths."""

from __future__ import annotations

import json
from dataclasses import dataclass

import onnx

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.tensors import WidthAssignment

_PREFIX = "bitswitch."


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeFrom:
    """Where a graph comes from."""

    master_sha256: str
    target: str
    assignment: WidthAssignment


def stamp(model: onnx.ModelProto, made_from: MadeFrom) -> onnx.ModelProto:
    """Write `made_from` into the model, and return it."""
    widths = {"default": made_from.assignment.default, "layers": dict(made_from.assignment.overrides)}
    values = {
        "master_sha256": made_from.master_sha256,
        "target": made_from.target,
        "widths": json.dumps(widths, sort_keys=True),
    }
    onnx.helper.set_model_props(model, {f"{_PREFIX}{key}": value for key, value in values.items()})
    return model


def read_stamp(model: onnx.ModelProto, *, where: str) -> MadeFrom:
    """What `stamp` wrote.

    Raises:
        GraphError: the model has no such metadata, or not in this form.
    """
    values = {entry.key: entry.value for entry in model.metadata_props}
    try:
        widths = json.loads(values[f"{_PREFIX}widths"], parse_float=int)  # refuses 4.0
        assignment = WidthAssignment(default=widths["default"], overrides=tuple(sorted(widths["layers"].items())))
        return MadeFrom(
            master_sha256=values[f"{_PREFIX}master_sha256"], target=values[f"{_PREFIX}target"], assignment=assignment
        )
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as exc:
        raise GraphError(
            where=where,
            got=f"no readable {_PREFIX}* metadata: {exc!r}",
            allowed="a graph that `bitswitch-deploy export` wrote",
            do="export it again",
        ) from exc
