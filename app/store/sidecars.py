"""The small files that A1111 and Forge read next to an adapter: its trigger words and its preview."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from atelier.adapters.core.family import FAMILIES
from atelier.app.store.foreign_hashes import civitai_hashes
from atelier.app.store.home import write_home_file
from atelier.app.store.library import AdapterCard, read_thumbnail
from atelier.app.store.previews import preview_png


def write_sidecars(parts: Sequence[tuple[AdapterCard, float]], path: Path) -> list[Path]:
    """Write ``NAME.json``, and ``NAME.preview.png`` where there is a picture, beside the exported file ``path``.

    Returns:
        The files that were written.

    Raises:
        HomeError: they can't be written.
    """
    cards = [card for card, _ in parts]
    triggers = ", ".join(dict.fromkeys(card.trigger for card in cards if card.trigger))
    facts = {"description": f"Made with Atelier: {', '.join(card.name for card in cards)}",
             "sd version": _sd_version(cards[0].family), "activation text": triggers,
             "preferred weight": 1.0, "negative text": "", "notes": "", "hashes": civitai_hashes(path)}   # fmt: skip
    written = [path.with_suffix(".json")]
    write_home_file(written[0], json.dumps(facts, indent=4, ensure_ascii=False).encode())
    if preview := preview_png(read_thumbnail(cards[0])):
        written.append(path.with_suffix(".preview.png"))
        write_home_file(written[1], preview)
    return written


def _sd_version(family: str) -> str:
    """What A1111's field "sd version" calls a family."""
    return FAMILIES[family].a1111_version if family in FAMILIES else "Unknown"
