"""The page in Debian's Chromium, with the network out of reach."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.report import save_page

from .curves import some_curve

CHROMIUM = shutil.which("chromium")
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def requests() -> list[str]:
    """What a page asked for beyond its own file."""
    return []


@pytest.fixture
def complaints() -> list[str]:
    """Errors on a page's console, and exceptions that nothing caught."""
    return []


@pytest.fixture
def page(browser: Any, tmp_path: Path, requests: list[str], complaints: list[str]) -> Iterator[Any]:
    """The page of a curve, drawn."""
    file = tmp_path / "curve.html"
    save_page(some_curve(f"Model {HOSTILE}"), file)
    page = browser.new_page(viewport={"width": 1200, "height": 800})

    def route(request: Any) -> None:
        if request.request.url == file.as_uri():
            request.continue_()
        else:
            requests.append(request.request.url)
            request.abort()

    page.route("**/*", route)
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(file.as_uri())
    page.wait_for_selector(".legend .traces")
    page.clock.install()  # it stands still but for what a test lets pass
    yield page
    page.close()


def names(page: Any) -> list[str]:
    return list(page.evaluate("document.getElementById('chart').data.map(trace => trace.name)"))


def test_it_needs_no_network_and_complains_of_nothing(page: Any, requests: list[str], complaints: list[str]) -> None:
    assert names(page)
    assert requests == []
    assert complaints == []


def test_it_has_one_line_for_each_strategy_and_names_the_model_as_it_is(page: Any) -> None:
    assert names(page) == ["lower bound", "optimal", "sequential", "measured"]
    assert page.locator(".legend .traces").count() == 4
    assert page.title() == f"Model {HOSTILE}: delay by budget"
    assert page.locator("h1").inner_text() == page.title()
    assert page.locator("img").count() == 0


def test_a_click_in_the_legend_hides_a_line_and_another_shows_it(page: Any) -> None:
    def click(visible: str) -> None:
        entry = page.locator(".legend .traces").filter(has_text="sequential")
        entry.locator(".legendtoggle").click()
        page.wait_for_function(
            f"(document.getElementById('chart').data[2].visible ?? true) === {visible} && "
            f"document.querySelectorAll('.scatterlayer .trace').length === {3 if 'only' in visible else 4}"
        )

    click("'legendonly'")
    page.clock.run_for(1000)  # two clicks that are closer are a double click
    click("true")


def test_pointing_at_a_point_shows_budget_prediction_bound_and_overhead(page: Any) -> None:
    x, y = page.evaluate(
        """() => {
            const chart = document.getElementById('chart'), layout = chart._fullLayout, trace = chart.data[1];
            const box = chart.getBoundingClientRect();
            return [box.x + layout.xaxis._offset + layout.xaxis.d2p(trace.x[2]),
                    box.y + layout.yaxis._offset + layout.yaxis.d2p(trace.y[2])];
        }"""
    )
    page.mouse.move(x - 3, y - 3)
    page.mouse.move(x, y)
    page.wait_for_selector(".hoverlayer .hovertext")
    told = page.locator(".hoverlayer .hovertext").text_content()
    assert "optimal" in told
    assert "budget 64.0 MiB (53% of the weights)" in told
    assert "predicted 73.5 ms" in told
    assert "lower bound 70.0 ms" in told
    assert "overhead 83.8%" in told
