"""Create, Jobs and Library in a real browser: a newcomer's way, another step kept, the keyboard alone, a phone.

The tests of this file share one home, which is empty at first, and run in order. With AXE, the path of axe-core's
``axe.min.js``, every page and what opens on it is checked for accessibility in both themes.
"""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import pytest
from e2e.browsing import PATIENT, PICTURES, Server, needs_axe, serious_violations, visit
from playwright.sync_api import Browser, Locator, Page, expect

from atelier.adapters.core.base import Spec
from atelier.adapters.formats.native import data_hash, save_adapter
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.store.home import Home
from atelier.app.store.library import find_adapter, list_adapters

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1500)]
expect.set_options(timeout=60_000)   # milliseconds, on a busy machine
CLICKS = """window.addEventListener('click', event => { if (event.isTrusted && event.detail)
    sessionStorage.clicks = +(sessionStorage.clicks || 0) + 1 }, true)"""

DROP = """contents => { for (const [name, content] of Object.entries(contents)) {
    const files = new DataTransfer(), bytes = Uint8Array.from(atob(content), one => one.charCodeAt(0));
    files.items.add(new File([bytes], `${name}.safetensors`));
    document.querySelector('#content').dispatchEvent(
        new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: files})); } }"""


def test_a_newcomer_decides_three_things_and_looks_at_a_picture_of_the_own_subject(page: Page) -> None:
    page.add_init_script(CLICKS)
    visit(page, "/")
    page.set_input_files("#add-pictures input[type=file]", list(PICTURES))                  # 1: which pictures
    expect(page.locator("#training-pictures .picture-count")).to_have_attribute("data-usable", "5")
    page.locator("#name :is(textarea, input)").first.click()
    page.keyboard.type("rexo")                                                              # 2: what it is called
    page.locator("#preset label").first.click()                                             # 3: how long
    expect(page.get_by_label("Quick")).to_be_checked()
    page.wait_for_timeout(1500)
    page.click("#start-training")
    page.wait_for_url("**/jobs?run=*")
    page.get_by_role("link", name="Open in Studio").click(timeout=PATIENT)
    page.wait_for_url("**/studio?adapter=rexo")
    picture = page.locator("#drawn-pictures a[download]").first
    if page.locator("#drawn-pictures a[download]").count() == 0:
        page.wait_for_timeout(3000)   # the first pictures may come by themselves
    picture.wait_for(timeout=PATIENT)
    assert int(page.evaluate("sessionStorage.clicks")) <= 5, "and one to choose the pictures makes six"


def test_another_step_is_kept_by_the_grid(page: Page, home: Home) -> None:
    run = next(home.runs.iterdir()).name
    visit(page, f"/jobs?run={run}")
    page.locator("#compare-steps").click()
    cells = page.locator("#step-grid img")
    cells.first.wait_for(timeout=PATIENT)
    page.locator("#step-grid [data-action=keep]").first.click(timeout=PATIENT)
    expect(page.get_by_text("rexo-step-").first).to_be_visible(timeout=PATIENT)
    assert any(card.name.startswith("rexo-step-") for card in list_adapters(home))


def focus_by_tab(page: Page, wanted: Locator, most: int = 80) -> None:
    """Press Tab until an element has the focus."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if wanted.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"{wanted} is not reached by keyboard")


def test_the_library_is_used_by_keyboard_alone(page: Page, home: Home) -> None:
    visit(page, "/library")
    card = page.locator(".card").first
    card.wait_for()
    name = card.get_attribute("data-id") or ""
    focus_by_tab(page, card)
    page.keyboard.press("Enter")
    details = page.locator(f".detail[data-name='{name}']")
    details.wait_for()
    star = details.locator("[data-action=star]")
    focus_by_tab(page, star)
    page.keyboard.press("Enter")
    expect(star).to_have_attribute("aria-pressed", "true")
    delete = details.locator("[data-action=delete]")
    focus_by_tab(page, delete)
    page.keyboard.press("Enter")
    expect(page.locator(f".card[data-id='{name}']")).to_have_count(0)
    assert name not in [other.name for other in list_adapters(home)]
    visit(page, "/library")   # the trash outlives the page
    summary = page.locator("#trash > button")
    focus_by_tab(page, summary)
    page.keyboard.press("Enter")
    restore = page.locator("#trash [data-action]").first
    restore.wait_for()
    focus_by_tab(page, restore)
    page.keyboard.press("Enter")
    expect(page.locator(f".card[data-id='{name}']")).to_have_count(1)


def test_a_training_continues_an_adapter_on_a_phone(page: Page, home: Home) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    visit(page, "/library?adapter=rexo")
    page.get_by_role("link", name="Continue training").click()
    page.wait_for_url("**/?continue=rexo")
    expect(page.locator(".continue-note")).to_contain_text("continues “rexo”")
    for path in ("/", "/jobs", f"/jobs?run={next(home.runs.iterdir()).name}", "/library", "/library?adapter=rexo"):
        visit(page, path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
    visit(page, "/")
    page.locator(".continue-note button").click()
    expect(page.locator(".continue-note")).to_have_count(0)


def test_files_dropped_at_once_anywhere_on_the_library_are_imported(page: Page, home: Home, tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.safetensors" for name in ("dropped", "second", "third")}
    for rank, file in enumerate(files.values(), 1):
        adapters = create_adapters("lora", {"rank": rank}, [Spec("unet.a", (8, 6))])
        save_adapter(file, adapters, {"atelier.family": "embedded"})
    visit(page, "/library")
    page.evaluate(DROP, {name: b64encode(file.read_bytes()).decode() for name, file in files.items()})
    for name in files:   # they are imported beside each other, and none hides what was said of another
        expect(page.locator("#import-results")).to_contain_text(f"{name} was added to your library.", timeout=60_000)
    assert [find_adapter(home, name).hash for name in files] == [data_hash(file) for file in files.values()]


@needs_axe
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_page_has_a_serious_violation(browser: Browser, server: Server, home: Home, theme: str) -> None:
    context = browser.new_context(base_url=server.url, color_scheme=theme, bypass_csp=True)   # type: ignore[arg-type]
    page = context.new_page()
    run = next(home.runs.iterdir()).name
    opened = {"/": "#expert", "/jobs": "", f"/jobs?run={run}": "", "/library": "#import",
              "/library?adapter=rexo": "#export"}   # fmt: skip
    for path, accordion in opened.items():
        visit(page, path)
        if accordion:
            page.locator(f"{accordion} > button").first.click()
        assert serious_violations(page) == [], path
    context.close()
