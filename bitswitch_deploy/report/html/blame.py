"""`blame --report`: what each layer costs, what is suspect, and how codes are distributed."""

from __future__ import annotations

from pathlib import Path

from bitswitch_deploy.diagnosis.blame_result import BlameResult
from bitswitch_deploy.report.html.document import Cell, render_page
from bitswitch_deploy.report.html.layers import codes_section, layers_section, subject_facts


def blame_html(result: BlameResult, command: tuple[str, ...] = ()) -> str:
    """The page about a diagnosis; equal results give equal text."""
    target, master, data = subject_facts(result.target, result.master_sha256, result.dataset)
    changed = (("not as exported", Cell(text=", ".join(result.changed), bad=True)),) if result.changed else ()
    return render_page(
        title=f"Layers of {Path(result.subject).name} for {result.target}",
        about=(target, master, *changed, data),
        sections=(
            layers_section(result.widths),
            codes_section((each.label, each.statistics) for each in result.widths),
        ),
        command=command,
    )
