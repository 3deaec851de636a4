"""One damaged file never ends a page: a home with a damaged file of every sort, and every page of it."""

from __future__ import annotations

import asyncio
import gc
import inspect
import io
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save

from atelier.adapters.core.base import Spec
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.jobs.jobs import new_run
from atelier.app.services.engine import Engine
from atelier.app.store.gallery import save_picture
from atelier.app.store.home import Home, open_home
from atelier.app.store.mixes import MixEntry, SavedMix, save_mix
from atelier.app.web.site import build
from atelier.training.config.events import Preparing, Stepped
from atelier.training.config.train_config import TrainConfig

pytestmark = pytest.mark.filterwarnings("ignore:The value passed into gr.Dropdown:UserWarning")   # of an update

DEEP = "[" * 100_000
DIGITS = '{"seed": ' + "9" * 5000 + "}"
HALF = r'{"prompt": "half a character: \ud83d", "adapters": [{"name": "\ud800", "strength": 1}]}'
JUNK = [b"", b"\xff\xfe\x00junk", b"[]", b"5", b"null", b'"text"', b"{}", DEEP.encode(), DIGITS.encode(), b'{"a": NaN}',
        b'{"pictures": 5}', b'{"pictures": [5]}', b'{"shares": 1, "method": [], "prompt": 1, "seed": "x", "base": 1}']


def adapter_bytes(**metadata: str) -> bytes:
    return save({"unet.a.up": torch.zeros(2, 2)}, metadata)


def header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def png(recipe: str | None) -> bytes:
    chunks, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    if recipe is not None:
        chunks.add_itxt("atelier", recipe)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


ADAPTERS = [
    *JUNK, header(b'{"__metadata__": 1}'), header(DEEP.encode()), header(DIGITS.encode()), header(b"{}"),
    header(b'{"__metadata__": {"atelier.schema": "1"}}'), adapter_bytes(), adapter_bytes()[:-3],
    adapter_bytes(**{"atelier.schema": "1", "atelier.kind": "lora", "atelier.settings": DEEP, "atelier.modules": DEEP}),
    adapter_bytes(**{"atelier.schema": "9" * 5000, "atelier.settings": "{}", "atelier.modules": "{}"}),
    adapter_bytes(**{"atelier.schema": "1", "atelier.kind": "lora", "atelier.settings": "{}", "atelier.modules": "{}",
                     "atelier.recipe": "a = " + DEEP, "atelier.created": "9999-99-99", "atelier.pictures": "9" * 5000,
                     "atelier.notes": DEEP, "modelspec.thumbnail": "data:image/jpeg;base64,!!!"}),
]  # fmt: skip
PICTURES = [
    b"", b"\x89PNG\r\n\x1a\n\0\0\0\0IEND\xaeB`\x82", png(None)[:-20], png(None)[:40] + bytes(40) + png(None)[80:],
    *(png(text) for text in ("", "{", "[]", "5", DEEP, DIGITS, HALF, '{"adapters": 5}', '{"adapters": [5]}',
                             '{"prompt": 5}', '{"adapters": [{"name": 1, "strength": "much"}], "width": {}, "seed": 0}',
                             '{"seed": []}', '{"fuse": 1, "shares": 1}',
                             '{"fuse": "sum", "shares": [[]], "prompt": {}}')),
]  # fmt: skip
RECIPES = [b"", b"\xff", b"a = ", b"steps = 'many'", b"a = " + DEEP.encode(), b"steps = " + b"9" * 5000, b"name = 5",
           b"kind = 'compression'\nname = 5", b"name = 'fox'\nunheard = 1"]
EVENTS = [b"\xff\xff", b"5\n", DEEP.encode() + b"\n", b"{}\n", b'{"event": "stepped", "time": "now"}\n',
          *(b'{"event": "stepped", "prior_loss": 1, "lr": 1, "seconds": 1, ' + values + b"}\n" for values in (
              b'"time": 1, "step": "a", "of": [], "loss": {}', b'"time": 1e300, "step": 1, "of": 9, "loss": 1',
              b'"time": 1, "step": 1, "of": 0, "loss": NaN')),
          b'{"event": "previewed", "time": 1, "step": 1, "prompt": "a", "path": "../../../../etc/passwd"}\n',
          b'{"event": "preparing", "time": ' + b"9" * 5000 + b', "what": "a"}\n']  # fmt: skip


@pytest.fixture
def home(own_home: Path) -> Home:
    """A home with one good thing of each sort."""
    home = open_home(own_home)
    adapters = create_adapters("lora", {"rank": 2}, [Spec("unet.a", (4, 4))])
    save_adapter(home.adapters / "good.safetensors", adapters, {"atelier.name": "good", "atelier.trigger": "zxq"})
    save_picture(home, Image.new("RGB", (8, 8)), {
        "prompt": "a good fox", "negative": "", "seed": 1, "steps": 2, "guidance": 3.0, "base": "embedded",
        "family": "embedded", "adapters": []})   # fmt: skip
    run = new_run(home, TrainConfig(name="goodrun", steps=9))
    run.append(Preparing("Loading"))
    run.append(Stepped(1, 9, 0.5, 0.0, 0.1, 0.1))
    save_mix(home, "goodmix", SavedMix(entries=(MixEntry("good"),)))
    return home


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, gr.Blocks]:
    """All pages, over a home that a test fills."""
    home = open_home(tmp_path_factory.mktemp("pages") / "home")
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):   # Gradio leaves an event loop open
        demo = build(home, Engine())
        asyncio.set_event_loop(None)
        gc.collect()
    return home, demo


def shown(demo: gr.Blocks, **query: str) -> Iterator[Any]:
    """What every page loads, or fetches at every tick, with an address's query."""
    request = SimpleNamespace(query_params=query, headers={}, session_hash="s")
    for function in list(demo.fns.values()):
        if not function.fn or not any(event in ("load", "tick") for _, event in function.targets):
            continue
        inputs = iter([getattr(component, "value", None) for component in function.inputs])
        parameters = inspect.signature(function.fn).parameters.values()
        arguments = [request if "Request" in str(parameter.annotation) else next(inputs, "") for parameter in parameters
                     if parameter.default is parameter.empty]   # fmt: skip
        yield function.fn(*arguments)


def loaded(pages: tuple[Home, gr.Blocks], home: Home, **query: str) -> str:
    """Everything that the pages show of a home, as text."""
    place, demo = pages
    shutil.rmtree(place.path)
    shutil.copytree(home.path, place.path, symlinks=True)
    return repr(list(shown(demo, **query)))


def damage_all(home: Home) -> None:
    """A damaged file of every sort, each in every way."""
    for number, content in enumerate(ADAPTERS):
        (home.adapters / f"bad{number}.safetensors").write_bytes(content)
    (home.adapters / "folder.safetensors").mkdir()
    (home.adapters / "dangling.safetensors").symlink_to(home.path / "nowhere")
    for number, content in enumerate(PICTURES):
        (home.gallery / f"20250101-000000-{number:06d}-abcdef.png").write_bytes(content)
    (home.gallery / "20250101-000000-999999-abcdef.png").mkdir()
    good = next(home.runs.glob("*-goodrun"))
    for number, content in enumerate(RECIPES):
        shutil.copytree(good, home.runs / f"20250102-000000-{number:06d}-badrecipe")
        (home.runs / f"20250102-000000-{number:06d}-badrecipe" / "recipe.toml").write_bytes(content)
    for number, content in enumerate(EVENTS):
        shutil.copytree(good, home.runs / f"20250103-000000-{number:06d}-badevents")
        with (home.runs / f"20250103-000000-{number:06d}-badevents" / "events.jsonl").open("ab") as file:
            file.write(content)
    (home.runs / "20250104-000000-000000-folder" / "recipe.toml").mkdir(parents=True)
    for number, content in enumerate(JUNK):
        (home.mixes / f"bad{number}.json").write_bytes(content)
        for base in (home.bases / f"bad{number}", home.bases / f"empty{number}"):
            base.mkdir()
            (base / "model_index.json").write_bytes(content)
    home.models.write_bytes(b"\xff\n/nowhere\n")


DAMAGED_FILES: list[Callable[[Home], Path]] = [
    lambda home: home.preferences, lambda home: home.models, lambda home: home.datasets / ".draft" / "draft.json",
    lambda home: home.state / "adapters.sqlite", lambda home: home.state / "keys.json",
    lambda home: home.state / "queue.sqlite", lambda home: home.state / "embeddings.safetensors",
    lambda home: home.state / "worker.json", lambda home: home.state / "server.json",
]  # fmt: skip
QUERIES: list[dict[str, str]] = [
    {}, {"adapter": "bad3"}, {"adapter": f"bad{len(ADAPTERS) - 1}"}, {"adapter": "folder"},
    *({"picture": f"20250101-000000-{number:06d}-abcdef"} for number in range(len(PICTURES))),
    *({"run": f"20250102-000000-{number:06d}-badrecipe"} for number in range(len(RECIPES))),
    *({"run": f"20250103-000000-{number:06d}-badevents"} for number in range(len(EVENTS))),
    *({"mix": f"bad{number}"} for number in range(len(JUNK))),
]  # fmt: skip


def test_every_page_shows_what_is_good_and_names_what_is_damaged(home, pages):
    damage_all(home)
    text = loaded(pages, home)
    for good in ("'good'", "a good fox", "goodrun"):
        assert good in text
    assert "half a character" in text and r"\ud83d" not in text, "no page can be sent with it"
    for number in range(len(ADAPTERS)):
        assert f"bad{number}" in text, number
    for number in range(len(PICTURES)):
        assert f"20250101-000000-{number:06d}-abcdef" in text, number
    for number in range(len(RECIPES)):
        assert f"20250102-000000-{number:06d}-badrecipe" in text, number


@pytest.mark.slow
def test_what_is_damaged_can_be_opened(home, pages):
    damage_all(home)
    loaded(pages, home)
    for query in QUERIES:
        list(shown(pages[1], **query))


@pytest.mark.parametrize("path", DAMAGED_FILES)
def test_a_damaged_file_of_settings_or_an_index_ends_no_page(home, pages, path):
    for content in JUNK[::3]:
        path(home).parent.mkdir(exist_ok=True)
        path(home).write_bytes(content)
        text = loaded(pages, home)
        for good in ("'good'", "a good fox", "goodrun"):
            assert good in text, content[:20]


def test_the_list_of_the_command_line_too(home, capsys):
    from atelier.app.cli.main import main

    damage_all(home)
    assert main(["list", "--home", str(home.path), "--json"]) == 0
    out, err = capsys.readouterr()
    # The last one is an adapter of no layers with a foolish recipe.
    assert [card["name"] for card in json.loads(out)] == [f"bad{len(ADAPTERS) - 1}", "good"]
    assert err.count("skipped") >= len(ADAPTERS) - 1
