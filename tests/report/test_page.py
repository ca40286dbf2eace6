from __future__ import annotations

import io

import pytest

from bitswitch_deploy.report.page import PLAIN_WIDTH, Page


@pytest.fixture(autouse=True)
def _no_colour_wishes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _ascii() -> tuple[io.BytesIO, io.TextIOWrapper]:
    raw = io.BytesIO()
    return raw, io.TextIOWrapper(raw, encoding="ascii", write_through=True)


def test_a_stream_that_is_no_terminal_is_plain_and_80_wide() -> None:
    stream = io.StringIO()
    page = Page(stream)
    page.section("Widths")
    page.paragraph("word " * 30, "bold red")
    page.command("run it")
    assert page.width == PLAIN_WIDTH == 80
    assert "\x1b" not in stream.getvalue()
    assert max(map(len, stream.getvalue().splitlines())) <= 80


def test_a_terminal_has_colours_and_its_own_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "133")
    stream = Terminal()
    page = Page(stream)
    page.title("Widths")
    assert page.width == 133
    assert "\x1b[1mWidths" in stream.getvalue()


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    Page(stream).command("run it")
    assert "\x1b[36m" not in stream.getvalue()


def test_a_command_is_never_broken() -> None:
    stream = io.StringIO()
    command = "tool " + "--option=value " * 20 + "'a  b'"
    Page(stream, 40).command(command)
    assert stream.getvalue() == f"      {command}\n"


def test_pairs_wrap_the_second_column_only() -> None:
    stream = io.StringIO()
    Page(stream, 20).pairs([("w8", "one two three four"), ("w2", "five")])
    assert stream.getvalue().splitlines() == ["  w8  one two three", "      four", "  w2  five"]


def test_numbers_stand_to_the_right_under_a_line() -> None:
    stream = io.StringIO()
    Page(stream, 40).table([("width", False), ("size", True)], [[("w8", ""), ("1", "")], [("w2", ""), ("12345", "")]])
    lines = ["  width   size", "  ────────────", "  w8         1", "  w2     12345"]
    assert stream.getvalue().splitlines() == lines


def test_ascii_where_the_encoding_is_not_utf8() -> None:
    raw, stream = _ascii()
    page = Page(stream, 40)
    page.table([("width", False), ("größe", True)], [[("w8", ""), ("1", "")]])
    page.command("run läufe")
    assert raw.getvalue().decode("ascii").splitlines() == [
        "  width  gr??e",
        "  ------------",
        "  w8         1",
        "      run l?ufe",
    ]


def test_control_characters_and_markup_do_nothing() -> None:
    stream = io.StringIO()
    Page(stream, 80).paragraph("a\x1b[31mb\x07 [bold]c[/bold] :smile: \udcff")
    assert stream.getvalue() == "  a?[31mb? [bold]c[/bold] :smile: ?\n"


def test_no_line_ends_in_blanks() -> None:
    stream = io.StringIO()
    page = Page(stream, 60)
    page.pairs([("w8", "short"), ("w2", "word " * 20)])
    page.table([("width", False), ("graph", False)], [[("w8", ""), ("approx", "")], [("w2", ""), ("x", "")]])
    assert not [line for line in stream.getvalue().splitlines() if line.endswith(" ")]
