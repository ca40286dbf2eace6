"""A page as data: sections of blocks, and each block is one of few kinds that the template knows how to draw.

Who makes a page puts values in here and writes no HTML; `page.html.j2` is the only page there is, and `blocks.html.j2`
has one macro for each `kind`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Protocol

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup


class Block(Protocol):
    """Something that a section holds. kind: the macro that draws it."""

    kind: ClassVar[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell of a table, or the value of a fact.

    value: what the column is sorted by, where that is not the text. code: after the text, in the type of code.
    bar: an SVG that stands in place of the text.
    """

    text: str
    value: float | None = None
    bad: bool = False
    code: str = ""
    bar: Markup | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """Head of a column."""

    name: str
    is_number: bool = False
    sorts: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Sorts by every column that says so; the first cell of a row is its head. label: for who hears the page.

    Raises:
        ValueError: a row has more or fewer cells than there are columns.
    """

    kind: ClassVar[str] = "table"
    label: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"{self.label}: a row that has not {len(self.columns)} cells")


@dataclass(frozen=True, slots=True, kw_only=True)
class Paragraph:
    """One paragraph. strong: in front of the text."""

    kind: ClassVar[str] = "paragraph"
    text: str
    strong: str = ""
    bad: bool = False
    dim: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One line of a list. command: below it, to be copied."""

    text: str
    strong: str = ""
    bad: bool = False
    command: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """A list."""

    kind: ClassVar[str] = "items"
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Names and their values."""

    kind: ClassVar[str] = "facts"
    rows: tuple[tuple[str, Cell], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """A heading inside a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Text to be copied into a shell."""

    kind: ClassVar[str] = "command"
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Histograms:
    """Figures side by side: (caption, SVGs of the histograms below each other)."""

    kind: ClassVar[str] = "histograms"
    figures: tuple[tuple[str, tuple[Markup, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading and what stands below it; one without blocks is left out. name: unique on the page, a plain word."""

    name: str
    title: str
    blocks: tuple[Block, ...]


def render_page(
    *,
    title: str,
    about: Sequence[tuple[str, Cell]],
    sections: Sequence[Section],
    command: tuple[str, ...] = (),
    tools: Sequence[tuple[str, str]] = (),
) -> str:
    """The HTML; equal arguments give equal text.

    about: facts below the title. command: what makes the page again. tools: (name, version).
    """
    shown = [section for section in sections if section.blocks]
    if command:
        blocks: list[Block] = [Command(text=shlex.join(command))]
        if tools:
            blocks.append(Paragraph(text=", ".join(f"{name} {version}" for name, version in tools), dim=True))
        shown.append(Section(name="again", title="Make it again", blocks=tuple(blocks)))
    text = _template().render(title=title, facts=Facts(rows=tuple(about)), sections=shown)
    # the name of a file may hold bytes that are no text
    return text.encode("utf-8", "replace").decode("utf-8")


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("bitswitch_deploy.report.html", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


def words(text: str) -> tuple[Column, ...]:
    """Columns of text, by their names with commas between."""
    return tuple(Column(name=name) for name in text.split(", "))


def numbers(text: str) -> tuple[Column, ...]:
    """Columns of numbers, likewise."""
    return tuple(Column(name=name, is_number=True) for name in text.split(", "))


def number_columns(names: Iterable[str]) -> tuple[Column, ...]:
    """Columns of numbers by names that may hold anything."""
    return tuple(Column(name=name, is_number=True) for name in names)


def row(*cells: str | Cell) -> tuple[Cell, ...]:
    """A row of a table: text becomes a cell."""
    return tuple(Cell(text=cell) if isinstance(cell, str) else cell for cell in cells)


def listed(*items: Item) -> tuple[Items, ...]:
    """A list, or nothing where there is nothing to list."""
    return (Items(items=items),) if items else ()


def facts(rows: Sequence[tuple[str, str]]) -> tuple[tuple[str, Cell], ...]:
    """Facts of plain text."""
    return tuple((name, Cell(text=text)) for name, text in rows)


def number(value: float | None, form: str = ".2f") -> Cell:
    """A number in a table; `-` where there is none."""
    # + 0.0: no sign in front of a zero that was negated
    return Cell(text="-" if value is None else format(value + 0.0, form))
