"""What a library of thousands of adapters costs: its page, the Studio's choice of adapters, and Create.

    python -m benchmarks.pages.library [--adapters 2000 10000] [--home FOLDER]

writes docs/library.md. Handlers are called as the pages call them; what a browser gets and shows is measured in
Chromium, which has to be installed, with a server of its own. Other programs run on most machines: compare processor
times, not wall times.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from atelier.adapters.core.base import Spec
from atelier.adapters.formats.adapter_info import AdapterInfo
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.services.library_list import SORTS, LibraryFilter
from atelier.app.store.adapter_notes import save_notes
from atelier.app.store.home import Home, open_home
from atelier.app.store.library import list_adapters, make_thumbnail
from atelier.app.store.previews import LARGE
from atelier.app.web.listener import bind
from atelier.app.web.pages import library
from atelier.app.web.pages.studio_picker import adapter_picker
from atelier.training.runs.save_adapter import thumbnail
from benchmarks.support.interleaved import ROOT
from benchmarks.support.machine import describe_machine, in_words

DOCUMENT, RESULTS = ROOT / "docs" / "library.md", ROOT / "benchmarks" / "results" / "library.json"
THINGS = "fox owl cat rocket guitar penguin snowman astronaut umbrella strawberry".split()
CALLS = 200
PAGES = {"library": ".card", "studio": "#adapter-picker li", "": "#page-header nav"}   # and what is waited for


def main() -> None:
    """Measure, store the figures and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages.library")
    parser.add_argument("--adapters", type=int, nargs="+", default=(2_000, 10_000), help="counts, smallest first")
    parser.add_argument("--home", type=Path, help="make the adapters here and leave them")
    options = parser.parse_args()
    path = options.home or Path(tempfile.mkdtemp(prefix="atelier-library-"))
    try:
        home, measured = open_home(path), list[dict[str, Any]]()
        for count in options.adapters:
            make_adapters(home, count)
            measured.append({"adapters": count, **measure_handlers(home), **measure_pages(home)})
        figures = {"machine": describe_machine(), "measured": measured}
    finally:
        if options.home is None:
            shutil.rmtree(path)
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    DOCUMENT.write_text(page(figures), encoding="utf-8")
    print(json.dumps(figures, indent=1))


def page(figures: dict[str, Any]) -> str:
    """The document: one table, with a column for each count."""
    columns = figures["measured"]
    rows = [f"| {key} | {' | '.join(f'{each[key]:,}' for each in columns)} |" for key in columns[0]]
    head = ("# A library of many adapters\n\nMade by `python -m benchmarks.pages.library`. Other programs ran on the "
            f"machine:\ncompare processor times, not wall times.\n\n{in_words(figures['machine'])}\n\n"
            f"|{' |' * (len(columns) + 1)}\n|---|{'---:|' * len(columns)}\n")   # fmt: skip
    return head + "\n".join(rows) + "\n"


def make_adapters(home: Home, count: int) -> None:
    """Write the adapters that are missing, each with weights and a picture of its own, and note something on some."""
    dice = random.Random(7)
    adapters = create_adapters("lora", {"rank": 1}, [Spec("unet.a", (8, 6))])
    for number in range(count):
        thing = dice.choice(THINGS)
        colour = tuple(dice.randrange(256) for _ in range(3))
        path = home.adapters / f"{thing} {number:05}.safetensors"
        if path.exists():
            continue
        picture = Image.blend(Image.effect_noise((64, 64), 60).convert("RGB").resize((256, 256)),
                              Image.new("RGB", (256, 256), colour), 0.5)   # fmt: skip
        for parameter in adapters.parameters():
            torch.nn.init.normal_(parameter)
        info = AdapterInfo(trigger=f"zq{number}", subject=thing, base="embedded", family="embedded", pictures=5,
                           thumbnail=thumbnail(picture))   # fmt: skip
        save_adapter(path, adapters, info.to_metadata())
        if number % 100 == 0:
            save_notes(home, path.stem, star=True, tags=("good", thing))


def measure_handlers(home: Home) -> dict[str, Any]:
    """Processor time in milliseconds of what pages ask for, and the size of the answers in bytes."""
    dice, names = random.Random(8), [path.stem for path in sorted(home.adapters.iterdir())]
    first = _cpu(lambda: library._show(home, LibraryFilter(), 0, ""))
    whole = len(json.dumps(library._show(home, LibraryFilter(), 0, "")[0]))

    def look() -> None:
        """A search, an order, a page, and an adapter that is opened."""
        wanted = LibraryFilter(dice.choice(["", "fox", "owl 012", "good", "zq77", "nothing like this"]),
                               starred=dice.random() < 0.1, sort=dice.choice(list(SORTS)))   # fmt: skip
        library._show(home, wanted, dice.randrange(20), dice.choice(["", dice.choice(names)]))

    looks = [_cpu(look) for _ in range(CALLS)]
    choices = [_cpu(lambda: adapter_picker(home, dice.sample(names, 2), dice.choice(["", "fox", "zq1"])))
               for _ in range(CALLS)]   # fmt: skip

    def add() -> None:
        """A new adapter is in the folder: the list is looked through again."""
        (home.adapters / "new.safetensors").write_bytes((home.adapters / f"{names[0]}.safetensors").read_bytes())
        library._show(home, LibraryFilter(), 0, "")
        (home.adapters / "new.safetensors").unlink()
        library._show(home, LibraryFilter(), 0, "")

    added = [_cpu(add) / 2 for _ in range(10)]
    small = [make_thumbnail(home, card.thumbnail, LARGE) for card in list_adapters(home)[: library.PAGE]]
    return {
        "reading all of them for the first time (CPU ms)": first, "page of the Library (bytes)": whole,
        "largest small picture (bytes)": max(path.stat().st_size for path in small if path),
        "Library: search, order, page, open (CPU ms, median)": round(statistics.median(looks), 1),
        "Library: search, order, page, open (CPU ms, p95)": _p95(looks),
        "Studio's choice of adapters (CPU ms, p95)": _p95(choices),
        "Library after an adapter was added (CPU ms, p95)": _p95(added),
    }   # fmt: skip


def measure_pages(home: Home) -> dict[str, Any]:
    """What a browser gets of each page: bytes, nodes, and the time until its content is there."""
    found: dict[str, Any] = {}
    with _served(home) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, content in PAGES.items():
            figures = _measure_page(browser, f"{address}/{name}", content)
            found |= {f"{name or 'create'} in a new browser: {key}": value for key, value in figures.items()}
        browser.close()
    return found


def _measure_page(browser: Browser, address: str, content: str) -> dict[str, Any]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    tab = context.new_page()
    network = context.new_cdp_session(tab)
    sizes = list[float]()
    network.send("Network.enable")
    network.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    began = time.perf_counter()
    tab.goto(address, wait_until="domcontentloaded")
    tab.locator(content).first.wait_for(timeout=120_000)
    seconds = time.perf_counter() - began
    painted = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0")
    tab.wait_for_timeout(4000)
    nodes = tab.evaluate("document.querySelectorAll('*').length")
    context.close()
    return {"bytes": round(sum(sizes)), "nodes": nodes, "first paint (ms)": round(painted),
            "content (ms)": round(1e3 * seconds)}   # fmt: skip


@contextmanager
def _served(home: Home) -> Iterator[str]:
    """Start the product over a home, in a process of its own."""
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "atelier.app.cli.main", "serve", "--home", str(home.path), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        while "is open" not in process.stdout.readline():
            pass
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _cpu(work: Callable[[], Any]) -> float:
    """Processor time of one call, in milliseconds."""
    began = time.process_time()
    work()
    return round(1e3 * (time.process_time() - began), 1)


def _p95(values: list[float]) -> float:
    return sorted(values)[int(0.95 * (len(values) - 1))]


if __name__ == "__main__":
    main()
