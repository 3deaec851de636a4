"""The Library finds by words and tags, filters and sorts."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from atelier.app.services.library_list import LibraryFilter, filter_adapters
from atelier.app.store.adapter_notes import AdapterNotes
from atelier.app.store.library import AdapterCard


def card(name: str, day: int, size: int, kind: str = "lora", family: str = "sd1", subject: str = "dog") -> AdapterCard:
    return AdapterCard(name=name, path=Path(name), kind=kind, trigger=name, subject=subject, base="x", title="SD 1.5",
                       family=family, bytes=size, created=datetime(2026, 1, day, tzinfo=UTC), thumbnail="", pictures=5)


CARDS = [card("rex", 1, 30), card("Bello", 2, 10, subject="fox"), card("oil", 3, 20, "lorta", "sdxl", "style")]
NOTES = {"rex": AdapterNotes(star=True), "oil": AdapterNotes(tags=("Painting", "dog-like"))}


@pytest.mark.parametrize(("wanted", "names"), [
    (LibraryFilter(), ["oil", "Bello", "rex"]), (LibraryFilter(sort="oldest"), ["rex", "Bello", "oil"]),
    (LibraryFilter(sort="name"), ["Bello", "oil", "rex"]), (LibraryFilter(sort="largest"), ["rex", "oil", "Bello"]),
    (LibraryFilter(sort="?"), ["oil", "Bello", "rex"]), (LibraryFilter(starred=True), ["rex"]),
    (LibraryFilter(query="painting"), ["oil"]), (LibraryFilter(query="DOG sd"), ["oil", "rex"]),
    (LibraryFilter(query="dog rex"), ["rex"]), (LibraryFilter(kind="lorta"), ["oil"]),
    (LibraryFilter(base="sd1", query="fox"), ["Bello"]), (LibraryFilter(query="cat"), [])])   # fmt: skip
def test_what_is_wanted_is_found_in_order(wanted: LibraryFilter, names: list[str]) -> None:
    assert [found.name for found in filter_adapters(CARDS, NOTES, wanted)] == names
