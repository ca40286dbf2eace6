"""Reports as JSON for machines, schema `bitswitch-report/1`.

Keys are the field names of the report's dataclasses, in their order, after `schema`. A number that is not finite
has no JSON form and becomes null: an infinite `sqnr_db` is the null one whose `max_abs_error` is 0.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bitswitch_deploy.errors import PackageError
from bitswitch_deploy.records import Reader
from bitswitch_deploy.report.export_report import ExportReport

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SCHEMA = "bitswitch-report/1"
_READER = Reader(error=PackageError, do="export the package again with this release", plain_text=False)


def report_to_json(report: ExportReport) -> str:
    """Render `report`; equal reports give equal texts, ASCII only, with a final newline."""
    return to_json(SCHEMA, report)


def report_from_json(text: str, *, where: str) -> ExportReport:
    """The report in `text`; what was not finite is None.

    Raises:
        PackageError: it is not JSON, or not what the schema says.
    """
    document = _READER.load_json(text, where=where)
    schema = document.pop("schema", None)
    if schema != SCHEMA:
        raise _READER.refusal(f"{where}: schema", schema, SCHEMA)
    return _READER.decode(ExportReport, document, where=where)


def to_json(schema: str, result: DataclassInstance) -> str:
    """Render any result dataclass under the name of its schema, by the same rules."""
    tree = {"schema": schema, **asdict(result)}
    return json.dumps(_finite(tree), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
