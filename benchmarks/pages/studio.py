"""What waits a person has on the pages that draw: the live slider of the Studio, and a gallery with many pictures.

    python -m benchmarks.pages.studio [--pictures 100000] [--home FOLDER] [--only slider gallery]

writes docs/studio.md.
Handlers and services are called as the pages call them; what the network and a browser add is not in these figures.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import statistics
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import torch

from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.adapter_info import AdapterInfo
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.services.draw import DrawJob, draw_preview
from atelier.app.services.engine import Engine
from atelier.app.store.gallery_index import (
    PictureQuery,
    count_pictures,
    describe_pictures,
    search_pictures,
    update_index,
)
from atelier.app.store.home import Home, open_home
from atelier.app.store.mixes import MixEntry
from atelier.app.web.pages import studio
from atelier.training.base_models.base_model import load
from atelier.training.sampling.sample import DrawRequest
from benchmarks.support.interleaved import ROOT
from benchmarks.support.machine import describe_machine, in_words

DOCUMENT, RESULTS = ROOT / "docs" / "studio.md", ROOT / "benchmarks" / "results" / "studio.json"
MOVES, MOVE_SECONDS, PREVIEWS = 12, 0.1, 20
THINGS = "fox owl cat rocket guitar penguin snowman astronaut umbrella strawberry".split()
PLACES = ("snow", "moon", "forest", "desert", "city at night", "kitchen", "sea")
SEARCHES = ("fox", "owl snow", "number 99", "nothing like this", "adapter 7", "a", "guitar city", "number 12345")
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def main() -> None:
    """Measure, store the figures and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages.studio")
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--home", type=Path, help="make the pictures here and leave them")
    parser.add_argument("--only", nargs="+", choices=("slider", "gallery"), default=("slider", "gallery"))
    options = parser.parse_args()
    path = options.home or Path(tempfile.mkdtemp(prefix="atelier-studio-"))
    figures = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    try:
        if "slider" in options.only:
            figures["slider"] = {"machine": describe_machine(), **measure_slider(open_home(path / "slider"))}
        if "gallery" in options.only:
            home = open_home(path / "gallery")
            make_pictures(home, options.pictures)
            figures["gallery"] = {"machine": describe_machine(), "pictures": options.pictures, **measure_gallery(home)}
    finally:
        if options.home is None:
            shutil.rmtree(path)
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    DOCUMENT.write_text(page(figures), encoding="utf-8")
    print(json.dumps(figures, indent=1))


def page(figures: dict[str, dict[str, Any]]) -> str:
    """The document: a table for each measurement."""
    titles = {"slider": "Live slider", "gallery": "Gallery"}
    parts = ["# Waits on the pages that draw\n\nMade by `python -m benchmarks.pages.studio`. Other programs ran on the "
             "machine:\ncompare processor times, not wall times.\n"]   # fmt: skip
    for name, found in figures.items():
        rows = [f"| {key} | {value:,} |" for key, value in found.items() if key != "machine"]
        head = f"## {titles[name]}\n\n{in_words(found['machine'])}\n\n| | |\n|---|---:|\n"
        parts.append(head + "\n".join(rows) + "\n")
    return "\n".join(parts)


def measure_slider(home: Home) -> dict[str, Any]:
    """Processor time of a preview, and what becomes of those that a newer value replaces."""
    model, name = load("embedded"), "random"
    adapters = create_adapters("lora", {"rank": 8}, find_targets(model.models(), "attention"))
    with torch.no_grad():
        for each in adapters:
            for parameter in each.parameters():
                parameter.normal_(std=0.02)
    info = AdapterInfo(name=name, trigger="zq", subject="fox", base="embedded", family=model.info.family)
    save_adapter(home.adapters / f"{name}.safetensors", adapters, info.to_metadata())
    engine, times = Engine(), []
    request = DrawRequest(prompt="an emoji of a zq fox", count=4)
    for move in range(PREVIEWS + 1):
        job = DrawJob(request=request, adapters=(MixEntry(name, 0.5 + move / 40),))
        _, cpu = _timed(lambda job=job: draw_preview(home, engine, job))
        times.append(cpu)
    begun, finished, stale = _drag(home, engine, name)
    median = round(statistics.median(times[1:]), 1)
    return {"preview (CPU ms, median)": median, "preview (CPU ms, p95)": _p95(times[1:]),
            "moves, 100 ms apart": MOVES, "drawings begun": begun, "drawings finished": finished,
            "stale drawings finished": stale, "pictures kept by a drag": len(list(home.gallery.glob("*.png"))) - 4}


def _drag(home: Home, engine: Engine, adapter: str) -> tuple[int, int, int]:
    """Move the slider as a page does: each value is told at once, and the newest is drawn when the last one is over."""
    usual = {f.name: f.default for f in fields(DrawRequest)}
    said = {**usual, "prompt": "an emoji of a zq fox", "count": 4, "names": adapter, "base": "", "keep_seed": True,
            "live": True, "details": (), "regions": (), "restored": None, "strength0": 0.0}   # fmt: skip
    events, page_of = studio._Events(home, engine, list(said)), cast(Any, SimpleNamespace(session_hash="drag"))
    latest, over, counts = [0.0], threading.Event(), [0, 0, 0]

    def draw() -> None:
        """Draw the newest value until nothing newer has come."""
        drawn = None
        while drawn != latest[0] or not over.is_set():
            if drawn == (drawn := latest[0]):
                time.sleep(0.01)
                continue
            counts[0] += 1
            values = {**said, "strength0": drawn}.values()
            for number, _ in enumerate(events.draw_live(page_of, *values, studio.Drawn(), None)):
                if number == 1:
                    counts[1] += 1
                    counts[2] += drawn != latest[0]

    worker = threading.Thread(target=draw)
    for move in range(1, MOVES + 1):
        latest[0] = move / 10
        events.want(page_of, True, (), (), latest[0])
        if move == 1:
            worker.start()
        time.sleep(MOVE_SECONDS)
    over.set()
    worker.join()
    return counts[0], counts[1], counts[2]


def make_pictures(home: Home, count: int) -> None:
    """Write the pictures that are missing, 37 seconds apart."""
    dice, first = random.Random(7), datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(count):
        prompt = f"a {dice.choice(THINGS)} in the {dice.choice(PLACES)}, number {number}"
        adapter = {"name": f"adapter {dice.randrange(200)}", "sha256": "0" * 64, "kind": "lora", "strength": 0.8}
        recipe = {"schema": 1, "version": "0", "prompt": prompt, "negative": "", "seed": number, "steps": 20,
                  "guidance": 3.0, "sampler": "dpm++", "base": "embedded", "family": "embedded", "width": 64,
                  "height": 64, "adapters": [adapter]}   # fmt: skip
        colour = bytes(dice.randrange(256) for _ in range(3))
        file = home.gallery / f"{first + timedelta(seconds=37 * number):%Y%m%d-%H%M%S-%f}-{number:06x}.png"
        if not file.exists():
            file.write_bytes(_png(recipe, colour))


def _png(recipe: dict[str, Any], colour: bytes) -> bytes:
    """A picture of one colour: written here, because an encoder would take most of the time."""
    header = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    text = b"atelier\0\0\0\0\0" + json.dumps(recipe).encode()
    pixels = zlib.compress((b"\0" + colour * 64) * 64, 1)
    chunks = ((b"IHDR", header), (b"iTXt", text), (b"IDAT", pixels), (b"IEND", b""))
    return SIGNATURE + b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
                                for kind, data in chunks)   # fmt: skip


def measure_gallery(home: Home) -> dict[str, Any]:
    """Wall and processor time in milliseconds, and memory in MB."""
    before = psutil.Process().memory_info().rss
    first, _ = _timed(lambda: update_index(home, seconds=1.0))
    whole = time.process_time()
    while update_index(home, seconds=60.0):
        pass
    whole = time.process_time() - whole
    everything = PictureQuery()
    page, page_cpu = _timed(lambda: (count_pictures(home, everything), search_pictures(home, everything)))
    deep = search_pictures(home, everything, limit=20_000)[-1].id
    more = [_timed(lambda: search_pictures(home, everything, before=deep)) for _ in range(20)]
    searches = [_timed(lambda text=text: (count_pictures(home, PictureQuery(text=text)),
                                          search_pictures(home, PictureQuery(text=text))))
                for text in SEARCHES for _ in range(5)]   # fmt: skip
    describing = time.process_time()
    while describe_pictures(home, seconds=60.0):
        pass
    describing = time.process_time() - describing
    red = PictureQuery(colour="red")
    colours = [_timed(lambda: (count_pictures(home, red), search_pictures(home, red))) for _ in range(20)]
    alike = PictureQuery(similar=deep)
    similar = [_timed(lambda: search_pictures(home, alike)) for _ in range(10)]
    unchanged, unchanged_cpu = _timed(lambda: update_index(home))
    grown = (psutil.Process().memory_info().rss - before) / 1e6
    return {
        "first look at a new folder (ms)": first, "whole index (CPU s)": round(whole, 1),
        "first page (ms)": page, "first page (CPU ms)": page_cpu,
        "more, after 20,000 (ms, p95)": _p95([wall for wall, _ in more]),
        "more, after 20,000 (CPU ms, p95)": _p95([cpu for _, cpu in more]),
        "search (ms, p95)": _p95([wall for wall, _ in searches]),
        "search (CPU ms, p95)": _p95([cpu for _, cpu in searches]),
        "search (CPU ms, median)": round(statistics.median(cpu for _, cpu in searches), 1),
        "describing in the background (CPU ms a picture)":
            round(1e3 * describing / max(1, count_pictures(home, everything)), 2),
        "one colour (CPU ms, p95)": _p95([cpu for _, cpu in colours]),
        "similar pictures (CPU ms, p95)": _p95([cpu for _, cpu in similar]),
        "nothing new (ms)": unchanged, "nothing new (CPU ms)": unchanged_cpu,
        "memory growth (MB)": round(grown, 1),
        "peak memory (MB)": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1),
    }   # fmt: skip


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and processor time of one call, in milliseconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return round(1e3 * (time.perf_counter() - wall), 1), round(1e3 * (time.process_time() - cpu), 1)


def _p95(values: list[float]) -> float:
    return sorted(values)[int(0.95 * (len(values) - 1))]


if __name__ == "__main__":
    main()
