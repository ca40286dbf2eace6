"""What the user writes behind --budget: `avg_bits<=4`, `bytes<=200k@rtx`, `latency_p50_ms<=0.9@jetson-orin-nano`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, cast, get_args

from bitswitch_deploy.errors import UsageError

Resource = Literal["avg_bits", "avg_weight_bits", "bytes", "bops", "latency_p50_ms"]
RESOURCES: tuple[Resource, ...] = get_args(Resource)
OF_A_TARGET = ("bytes", "latency_p50_ms")

_SUFFIX = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_TEXT = re.compile(r"\s*(\w+)\s*<=\s*(\d{1,18}(?:\.\d{1,12})?)([kMGT]?)\s*(?:@(\S+))?\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """At most `limit` of a resource, on `target` where it depends on one. limit: exact, in the resource's unit."""

    resource: Resource
    limit: Fraction
    target: str | None
    text: str


def parse_budget(text: str) -> Budget:
    """Read one budget.

    Raises:
        UsageError: another form, an unknown resource, a target where it has no meaning or none where it is needed.
    """
    match = _TEXT.fullmatch(text)
    if match is None or match[1] not in RESOURCES:
        raise _refusal(text, "not a budget", f"RESOURCE<=NUMBER[@TARGET] with {', '.join(RESOURCES)}")
    resource, number, suffix, target = cast(Resource, match[1]), match[2], match[3], match[4]
    if target is not None and resource not in OF_A_TARGET:
        raise _refusal(text, f"{resource} is the same on every target", f"@TARGET behind {' or '.join(OF_A_TARGET)}")
    if target is None and resource == "latency_p50_ms":
        raise _refusal(text, "a latency without its target", f"{text.strip()}@TARGET")
    limit = Fraction(number) * _SUFFIX[suffix]
    return Budget(resource=resource, limit=limit, target=target, text="".join(text.split()))


def _refusal(text: str, got: str, allowed: str) -> UsageError:
    do = 'write for example --budget "avg_bits<=4" --budget "bytes<=200k"'
    return UsageError(where=f"--budget {text!r}", got=got, allowed=allowed, do=do)
