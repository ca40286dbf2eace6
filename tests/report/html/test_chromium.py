"""The page as people see it: a real Chromium on a phone and on a desk, axe-core, and no word to the network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bitswitch_deploy.report.export_report import ExportReport
from bitswitch_deploy.report.html.check import check_html
from bitswitch_deploy.report.html.profile import profile_html
from bitswitch_deploy.report.html.search import search_html
from tests.conftest import Run
from tests.profiling.results import candidate
from tests.report.check_results import check_result
from tests.report.profile_results import RESULT
from tests.report.search_results import report as search_report

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")

PHONE, DESK = (390, 844), (1280, 800)
NAMES = ("export", "blame", "check", "profile", "search")
# a drawing is scaled to the screen, and its text with it
SMALLEST_TEXT = (
    "Math.min(...[...document.querySelectorAll('body *')].filter(e => e.innerText || e.tagName === 'text')"
    ".filter(e => e.getClientRects().length)"
    ".map(e => parseFloat(getComputedStyle(e).fontSize) * (e.tagName === 'text' ? e.getScreenCTM().a : 1)))"
)
OUTSIDE = (
    "width => [...document.querySelectorAll('svg text')].filter(e => {"
    "const box = e.getBoundingClientRect(); return box.left < 0 || box.right > width; }).map(e => e.textContent)"
)
COVERED = (
    "() => [...document.querySelectorAll('svg.chart')].flatMap(svg => {"
    "const shown = name => [...svg.querySelectorAll(name)].filter(e => e.getClientRects().length);"
    "const box = e => e.getBoundingClientRect(), texts = shown('text'), dots = shown('circle').map(box);"
    "const over = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;"
    "return texts.filter((text, i) => [...dots, ...texts.slice(0, i).map(box)].some(other => over(other, box(text))))"
    ".map(text => text.textContent); })"
)
SHOWN = (
    "() => [...document.querySelectorAll('figure > svg')].filter(e => e.getClientRects().length)"
    ".map(e => e.classList[1])"
)
COLOURS = (
    "() => { const colour = (name, kind) => getComputedStyle(document.querySelector(`.wide ${name}`))[kind];"
    "return [colour('.dot circle', 'fill'), colour('.off circle', 'fill'), colour('.off circle', 'stroke'),"
    "colour('.interval path', 'stroke'), colour('.axis path', 'stroke'), colour('.axis text', 'fill')]; }"
)


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture
def pages(run: Run, folder: Path, report: ExportReport) -> dict[str, Path]:
    """report.html of an export with work left to do, that of a damaged graph's blame, and those of results made up."""
    package, blamed = folder / "package", folder / "blame.html"
    if not blamed.exists():
        assert run("export", "--target", "jetson", "--bits", "8,2", "--output", package).code == 0
        assert run("blame", package, "--samples", 16, "--report", blamed).code == 0
        for name, text in made_up(report).items():
            (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {"export": package / "report.html"} | {name: folder / f"{name}.html" for name in NAMES[1:]}


def made_up(report: ExportReport) -> dict[str, str]:
    """Pages with long names, many columns and every section."""
    slow = candidate("w2", p50_ms=3.0, verdict=f"no faster than float32, because {'of a reason ' * 20}")
    profile = replace(RESULT, candidates=(*RESULT.candidates, slow), unstable=("temperature tj moved",))
    command = ("bitswitch-deploy", "a" * 200)
    return {
        "check": check_html(check_result(), command),
        "profile": profile_html(profile, report, command),
        "search": search_html(search_report(), command),
    }


@pytest.mark.parametrize("name", NAMES)
def test_clean_readable_and_silent(browser: object, pages: dict[str, Path], name: str) -> None:
    page, said, asked = browser.new_page(), [], []  # type: ignore[attr-defined]
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[name].as_uri())
    for size, scheme in ((PHONE, "light"), (DESK, "dark")):
        page.set_viewport_size({"width": size[0], "height": size[1]})
        page.emulate_media(color_scheme=scheme)
        # nothing is wider than the screen but tables, which scroll by themselves
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert page.evaluate(SMALLEST_TEXT) >= 11
        # what is written in a chart is on the screen
        assert page.evaluate(OUTSIDE, size[0]) == []
        # and covers neither a dot nor other text
        assert page.evaluate(COVERED) == []
        assert set(page.evaluate(SHOWN)) <= {"histogram", "narrow" if size == PHONE else "wide"}
        found = axe.Axe().run(page).response["violations"]
        assert [each["id"] for each in found if each["impact"] in ("serious", "critical", "moderate")] == []
    assert said == []
    assert asked == [pages[name].as_uri()]
    page.close()


def test_tables_sort_by_number_and_by_name(browser: object, pages: dict[str, Path]) -> None:
    page = browser.new_page()  # type: ignore[attr-defined]
    page.goto(pages["blame"].as_uri())
    table = page.locator("table").first
    head = table.get_by_role("columnheader").filter(has_text="layer")

    def column(index: int) -> list[str]:
        return [str(text) for text in table.locator(f"tbody tr > *:nth-child({index})").all_inner_texts()]

    running_order = column(1)
    table.get_by_role("button", name="layer").click()
    assert column(1) == sorted(running_order)
    assert head.get_attribute("aria-sort") == "ascending"
    button = table.get_by_role("button", name="alone")
    button.click()
    assert head.get_attribute("aria-sort") == "none"
    numbers = [float(text) for text in column(3)]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 5
    button.focus()
    page.keyboard.press("Enter")
    assert [float(text) for text in column(3)] == sorted(numbers, reverse=True)
    # "same" in the place of a number is the largest one
    table.get_by_role("button", name="lowered").click()
    assert column(9)[-1] == "same"
    assert column(9)[0] != "same"
    page.close()


def test_numbers_with_signs_sort_on_every_page(browser: object, pages: dict[str, Path]) -> None:
    page = browser.new_page()  # type: ignore[attr-defined]
    for name, table, column, expected in (
        ("check", "Verdict table", "drop", ["+0.10", "+0.30", "+2.50"]),
        ("profile", "Latencies, batch 1", "p50", ["1.500", "2.000", "3.000"]),
        ("search", "Table of the final test", "against w8", ["-3.75", "-1.25", "+0.00"]),
    ):
        page.goto(pages[name].as_uri())
        region = page.get_by_role("region", name=table, exact=True)
        index = region.locator("thead th").all_inner_texts().index(column)
        button = region.locator("thead th").nth(index).get_by_role("button")
        cells = region.locator(f"tbody tr > *:nth-child({index + 1})")
        button.click()
        assert cells.all_inner_texts() == expected
        button.click()
        assert cells.all_inner_texts() == expected[::-1]
    page.close()


def test_printed_it_is_dark_on_white(browser: object, pages: dict[str, Path]) -> None:
    context = browser.new_context(color_scheme="dark")  # type: ignore[attr-defined]
    page = context.new_page()
    page.goto(pages["export"].as_uri())
    page.emulate_media(media="print")
    colours = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    assert colours == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
    assert len(page.pdf()) > 10_000
    context.close()


def test_charts_take_the_colours_of_the_page(browser: object, pages: dict[str, Path]) -> None:
    page = browser.new_page()  # type: ignore[attr-defined]
    page.goto(pages["profile"].as_uri())
    seen = {}
    for media, scheme in (("screen", "light"), ("screen", "dark"), ("print", "dark")):
        page.emulate_media(media=media, color_scheme=scheme)
        seen[media, scheme] = page.evaluate(COLOURS)
    mark, back, line, text = "rgb(10, 88, 168)", "rgb(255, 255, 255)", "rgb(208, 215, 222)", "rgb(27, 31, 36)"
    assert seen["screen", "light"] == [mark, back, mark, mark, line, text]
    mark, back, line, text = "rgb(121, 184, 255)", "rgb(13, 17, 23)", "rgb(48, 54, 61)", "rgb(230, 237, 243)"
    assert seen["screen", "dark"] == [mark, back, mark, mark, line, text]
    mark, back, line, text = "rgb(10, 88, 168)", "rgb(255, 255, 255)", "rgb(153, 153, 153)", "rgb(0, 0, 0)"
    assert seen["print", "dark"] == [mark, back, mark, mark, line, text]
    page.close()
