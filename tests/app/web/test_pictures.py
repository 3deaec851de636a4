"""Small pictures of adapters: made when a page first asks for them, from the adapters' files and nothing else."""

from __future__ import annotations

from io import BytesIO

import pytest
from PIL import Image
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from atelier.adapters.core.base import Spec
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.services.library_list import LibraryFilter
from atelier.app.store.home import Home
from atelier.app.store.library import find_adapter
from atelier.app.web.components.urls import thumbnail_url
from atelier.app.web.pages import library
from atelier.app.web.pages.studio_picker import adapter_picker
from atelier.app.web.pictures import Pictures
from atelier.training.runs.save_adapter import thumbnail


@pytest.fixture
def web(home: Home) -> TestClient:
    """A home with one adapter that has a picture, and the door to its files."""
    adapters = create_adapters("lora", {"rank": 1}, [Spec("unet.a", (8, 6))])
    picture = Image.effect_noise((300, 200), 90).convert("RGB")
    save_adapter(home.adapters / "rex.safetensors", adapters, {"modelspec.thumbnail": thumbnail(picture)})
    return TestClient(Pictures(JSONResponse("passed on"), home, []))


def test_lists_have_addresses_of_small_pictures_that_are_made_once(web: TestClient, home: Home) -> None:
    [card] = library._show(home, LibraryFilter(), 0, "")[0]["cards"]
    [choice] = adapter_picker(home, [])["cards"]
    assert not home.thumbnails.exists()
    for address, side in ((card["picture"], 256), (choice["picture"], 96)):
        answer = web.get(address)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp")
        assert len(answer.content) < 50_000 and max(Image.open(BytesIO(answer.content)).size) == side
    files = {file: file.stat().st_mtime_ns for file in home.thumbnails.iterdir()}
    (home.adapters / "rex.safetensors").unlink()
    assert web.get(card["picture"]).status_code == 200 and len(files) == 2
    assert {file: file.stat().st_mtime_ns for file in home.thumbnails.iterdir()} == files


def test_no_other_picture_is_made(web: TestClient, home: Home) -> None:
    address = thumbnail_url(find_adapter(home, "rex"), 256)
    for old, new in (("-256", "-4096"), (".webp", ".png"), ("thumbnails/", ""), ("thumbnails/", "thumbnails/x/"),
                     ("state/", ""), (address[-20:-9], "0" * 11)):   # fmt: skip
        wrong = address.replace(old, new)
        assert web.get(wrong).status_code == 403, wrong
    assert web.post(address).status_code == 403
    assert not home.thumbnails.exists()
