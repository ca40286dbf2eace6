"""A page of text on one stream: sections, pairs, tables and commands, within what the stream can show."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

# The width of a log, where the output is no terminal.
PLAIN_WIDTH = 80
TRAILING_BLANKS = re.compile(r" +$", re.MULTILINE)
ASCII_HEAD = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


class Page:
    """Writes to `stream`: with colours on a terminal, without elsewhere, in ASCII where the encoding is not UTF-8.

    Args:
        stream: where to; characters that its encoding cannot say become `?`.
        width: columns; None takes those of the terminal, or 80 where there is none.
    """

    def __init__(self, stream: TextIO, width: int | None = None) -> None:
        if width is None and not stream.isatty():
            width = PLAIN_WIDTH
        self._stream = stream
        self._console = Console(file=stream, width=width)

    @property
    def width(self) -> int:
        """Columns of the page."""
        return self._console.width

    def title(self, content: str) -> None:
        """Print the first line."""
        self._print(self._text(content, "bold"))

    def gap(self) -> None:
        """Print an empty line."""
        self._print("")

    def section(self, content: str) -> None:
        """Print an empty line and a heading."""
        self.gap()
        self.title(content)

    def paragraph(self, content: str, style: str = "") -> None:
        """Print wrapped text, indented."""
        self._print(Padding(self._text(content, style), (0, 0, 0, 2)))

    def pairs(self, rows: Iterable[tuple[str, str]], style: str = "") -> None:
        """Print two columns, the second one wrapped."""
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(max_width=24)
        grid.add_column()
        for key, value in rows:
            grid.add_row(self._text(key, style), self._text(value, style))
        self._print(Padding(grid, (0, 0, 0, 2)))

    def line(self, content: str) -> None:
        """Print one line, whatever the width."""
        self._print(self._text(content), unbroken=True)

    def command(self, content: str) -> None:
        """Print a command on one line, whatever the width: a broken one cannot be copied."""
        self._print(self._text(f"      {content}", "cyan"), unbroken=True)

    def table(self, columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[tuple[str, str]]]) -> None:
        """Print a table; columns are (name, is_number), cells (text, style).

        Numbers stand to the right and never wrap.
        """
        unicode = self._console.encoding.startswith("utf")
        table = Table(box=SIMPLE_HEAD if unicode else ASCII_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for name, is_number in columns:
            table.add_column(self._text(name), justify="right" if is_number else "left", no_wrap=is_number)
        for row in rows:
            table.add_row(*(self._text(content, style) for content, style in row))
        self._print(Padding(table, (0, 0, 0, 2)))

    def _print(self, content: RenderableType, *, unbroken: bool = False) -> None:
        """Print without the blanks that rich fills lines up with."""
        with self._console.capture() as captured:
            self._console.print(content, soft_wrap=unbroken)
        self._stream.write(TRAILING_BLANKS.sub("", captured.get()))

    def _text(self, content: str, style: str = "") -> Text:
        """Drop control characters, which a name inside a file could smuggle in, and what the encoding cannot say.

        A Text also keeps rich from reading markup out of a name such as "[w4].onnx".
        """
        shown = "".join(char if char.isprintable() else "?" for char in content)
        encoding = self._console.encoding
        return Text(shown.encode(encoding, "replace").decode(encoding), style=style, overflow="fold")
