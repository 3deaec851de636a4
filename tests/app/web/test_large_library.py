"""A library of 10,000 adapters: what a page of it weighs, and what it costs. Run with -s for the figures."""

from __future__ import annotations

import base64
import json
import random
import time
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from atelier.adapters.core.base import Spec
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.services.library_list import PAGE, LibraryFilter
from atelier.app.store.home import open_home
from atelier.app.web.components.panel import template
from atelier.app.web.pages import library

COUNT = 10_000


def thumbnail() -> str:
    """A picture as large as those that trainings save."""
    buffer = BytesIO()
    Image.effect_noise((64, 64), 40).resize((256, 256)).convert("RGB").save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.slow
def test_ten_thousand_adapters_are_shown_a_page_at_a_time(own_home: Path) -> None:
    home, picture = open_home(own_home), thumbnail()
    adapters = create_adapters("lora", {"rank": 1}, [Spec("unet.a", (8, 6))])
    for parameter in adapters.parameters():
        torch.nn.init.ones_(parameter)
    save_adapter(home.adapters / "a.safetensors", adapters, {"modelspec.thumbnail": picture})
    content = (home.adapters / "a.safetensors").read_bytes()
    for number in range(COUNT - 1):
        (home.adapters / f"rex{number:05d}.safetensors").write_bytes(content)
    began = time.process_time()
    answer = library._show(home, LibraryFilter(), 0, "")[0]
    first, seconds = time.process_time() - began, list[float]()
    for _ in range(40):
        wanted = LibraryFilter(f"rex{random.randrange(999):03d}", sort=random.choice(["newest", "name", "largest"]))
        began = time.process_time()
        library._show(home, wanted, random.randrange(9), "")
        seconds.append(time.process_time() - began)
    card = template("adapter-cards").partition("{{#each value.cards}}")[2].partition("{{/each}}")[0]
    print(f"\n{COUNT:,} adapters: {len(json.dumps(answer)):,} bytes, of them {PAGE * len(picture):,} of pictures; "
          f"at most {PAGE * card.count('<')} nodes; CPU {first:.2f} s the first time, then median "
          f"{sorted(seconds)[20] * 1e3:.0f} ms, p95 {sorted(seconds)[38] * 1e3:.0f} ms")
    assert len(answer["cards"]) == PAGE and answer["range"] == f"1–{PAGE} of {COUNT:,}"
    assert len(json.dumps({**answer, "cards": [{**card, "picture": ""} for card in answer["cards"]]})) < 20_000
