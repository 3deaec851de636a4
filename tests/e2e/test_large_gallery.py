"""A gallery of 100,000 pictures in a browser: searched, narrowed, starred, scrolled, and what looks alike found."""

from __future__ import annotations

from pathlib import Path

import pytest
from e2e.browsing import fill, visit
from playwright.sync_api import Page, expect

from atelier.app.store.gallery_index import describe_pictures, update_index
from atelier.app.store.home import Home, open_home
from atelier.app.store.picture_marks import read_marks
from benchmarks.pages.studio import make_pictures

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3000)]
PICTURES = 100_000
expect.set_options(timeout=60_000)   # milliseconds, on a busy machine


@pytest.fixture(scope="module")
def home_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = open_home(tmp_path_factory.mktemp("large") / "home")
    make_pictures(home, PICTURES)
    while update_index(home, seconds=60.0) or describe_pictures(home, seconds=60.0):
        pass
    return home.path


def test_a_picture_is_found_starred_and_followed_among_100_000(page: Page, home: Home) -> None:
    visit(page, "/gallery")
    tiles, count = page.locator("#gallery-pictures [data-action=open]"), page.locator(".gallery-count")
    expect(count).to_have_text("100,000 pictures")
    first = tiles.count()
    assert first < 500, "a page of the list, not all of it"
    page.mouse.wheel(0, 20_000)
    expect(tiles.nth(first)).to_be_attached()   # the list has grown at its end

    fill(page, "search-pictures", "number 12345")
    expect(tiles).to_have_count(1)
    tiles.first.click()
    dialog = page.locator("dialog[open]")
    expect(dialog).to_contain_text("number 12345")
    dialog.get_by_role("button", name="Star").click()
    expect(dialog.get_by_role("button", name="Remove the star")).to_be_visible()
    starred = dialog.get_attribute("data-id")
    assert read_marks(home).stars == {starred}
    dialog.get_by_role("button", name="Similar pictures").click()
    expect(page.get_by_text("Pictures that look most like the first one.")).to_be_visible()
    expect(tiles.first).to_have_attribute("data-id", starred or "")

    page.get_by_role("button", name="Show all").click()
    fill(page, "search-pictures", "")
    expect(count).to_have_text("100,000 pictures")
    page.locator("#only-starred input").check()
    expect(tiles).to_have_count(1)
    expect(tiles.first).to_have_attribute("data-id", starred or "")
