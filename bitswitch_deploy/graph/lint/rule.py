"""What a rule of the linter is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from bitswitch_deploy.graph.lint.finding import Engine, Finding, Severity
from bitswitch_deploy.graph.lint.linted_graph import Node
from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """One node that breaks the rule: what is there, what would be right, and the mend."""

    node: Node
    got: str
    allowed: str
    do: str


class Rule(ABC):
    """One thing that can be wrong with a Q/DQ graph. The docstring of a rule is the list of its cases.

    id: its name in reports. severity, engines: see Finding.
    """

    id: ClassVar[str]
    severity: ClassVar[Severity]
    engines: ClassVar[tuple[Engine, ...]]

    @abstractmethod
    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        """Every node of `graph` that breaks the rule, in the order of the graph."""

    def findings(self, graph: QdqGraph) -> Iterator[Finding]:
        """The breaches as values for reports."""
        for breach in self.breaches(graph):
            yield Finding(
                rule=self.id,
                severity=self.severity,
                engines=self.engines,
                operator=breach.node.operator,
                node=breach.node.name,
                got=breach.got,
                allowed=breach.allowed,
                do=breach.do,
            )
