"""The page as people see it: a real Chromium on a phone and on a desk, axe-core, and no word to the network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Run

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")

PHONE, DESK = (390, 844), (1280, 800)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture
def pages(run: Run, folder: Path) -> dict[str, Path]:
    """report.html of an export with work left to do, and that of a damaged graph's blame."""
    package, blamed = folder / "package", folder / "blame.html"
    if not blamed.exists():
        assert run("export", "--target", "jetson", "--bits", "8,2", "--output", package).code == 0
        assert run("blame", package, "--samples", 16, "--report", blamed).code == 0
    return {"export": package / "report.html", "blame": blamed}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("name", ["export", "blame"])
def test_clean_readable_and_silent(
    browser: object, pages: dict[str, Path], name: str, size: tuple[int, int], scheme: str
) -> None:
    context = browser.new_context(  # type: ignore[attr-defined]
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme
    )
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[name].as_uri())
    assert said == []
    assert asked == [pages[name].as_uri()]
    # nothing is wider than the screen but tables, which scroll by themselves
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('body *')].filter(e => e.innerText || e.tagName === 'text')"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 11
    found = axe.Axe().run(page).response["violations"]
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical", "moderate")] == []
    context.close()


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
    assert column(7)[-1] == "same"
    assert column(7)[0] != "same"
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
