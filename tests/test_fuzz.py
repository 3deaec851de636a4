"""No reader dies of what it reads: a few changed inputs each in the quick suite, a million in the slow one.

``ATELIER_RECORD=1 pytest -m slow -s tests/test_fuzz.py`` writes what it found into docs/robustness.md. It goes on where
it was cut with ``ATELIER_RESUME=1``.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz import MOST_SECONDS, Outcome, Reader, fuzz, row, safetensors, with_length
from fuzz_headers import file_reader, fuzz_headers, header_reader, headers
from huey import SqliteHuey
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from robustness import record, recorded
from telling_picture import telling_picture
from test_house import ROOT

from atelier.adapters.core.base import Spec
from atelier.adapters.core.parse import parse_path
from atelier.adapters.formats import native
from atelier.adapters.formats.adapter_info import AdapterInfo
from atelier.adapters.formats.detect import detect
from atelier.adapters.formats.peft_config import CONFIG, configs
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.jobs.base_queue import Queue
from atelier.app.jobs.huey_internals import JsonSerializer, close_database
from atelier.app.jobs.worker_process import stop_orphaned_worker
from atelier.app.services import compress, finished_run
from atelier.app.services.grid import read_grid
from atelier.app.services.mix_files import open_mix_file
from atelier.app.services.prompts.history import recent_prompts
from atelier.app.store import foreign_hashes, gallery, library, model_hashes
from atelier.app.store.adapter_notes import read_notes
from atelier.app.store.api_keys import list_keys
from atelier.app.store.base_settings import base_options
from atelier.app.store.drafts.create_draft import load_draft, undo_label
from atelier.app.store.home import Home, open_home
from atelier.app.store.mixes import MixEntry, SavedMix, mix_from_recipe, read_mix, save_mix
from atelier.app.store.picture_marks import read_marks
from atelier.app.store.picture_metadata import read_metadata, read_texts
from atelier.app.store.preferences import drawing_precision
from atelier.app.store.previews import is_showable, preview_png
from atelier.app.store.textual_inversions import list_textual_inversions, list_unreadable_inversions
from atelier.app.web.components.run_view import View
from atelier.training.base_models.identify import identify_folder
from atelier.training.config.compress_config import CompressConfig, read_compression
from atelier.training.config.events import Finished, Stepped, from_line, to_line
from atelier.training.config.run_folder import RunFolder, status
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.captions import read_caption, read_caption_list
from atelier.training.data.images import open_picture

HEADERS, OTHERS = 1_000_000, 100_000   # inputs; but for headers, for each reader
GRID_ID = "20260101-000000-000000"
MEMORY = Path("/dev/shm")             # where a disk would be worn out
EMBEDDED = ROOT / "assets" / "base"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as path:
        yield Path(path)


def text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: read(data.decode(errors="surrogateescape"))


RECIPE = json.dumps({"fuse": "sum", "prompt": "a fox", "seed": 1, "base": "embedded", "adapters": [], "shares": [
    {"name": "fox", "strength": 1.0, "curve": [1.0, 0.5], "region": ["01", "10"]}]})   # fmt: skip


def pictures(folder: Path) -> list[bytes]:
    texts = PngInfo()
    texts.add_itxt("atelier", RECIPE)
    Image.new("RGB", (16, 16)).save(folder / "ours", "PNG", pnginfo=texts)
    forms = ("PNG", "JPEG", "WEBP", "AVIF")
    return [*(telling_picture(folder / form, form).read_bytes() for form in forms), (folder / "ours").read_bytes()]


def base_folder(folder: Path) -> Path:
    to = folder / "base"
    shutil.copytree(EMBEDDED, to, ignore=shutil.ignore_patterns("*.safetensors"))
    for weights in EMBEDDED.rglob("*.safetensors"):
        (to / weights.relative_to(EMBEDDED)).symlink_to(weights)
    return to


def config_readers(folder: Path) -> Iterator[Reader]:
    base = base_folder(folder)
    for name in ("model_index.json", "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"):
        path = base / name
        good = path.read_bytes()

        def read(data: bytes, path: Path = path, good: bytes = good) -> object:
            path.write_bytes(data)
            try:
                return identify_folder(str(base), base)
            finally:
                path.write_bytes(good)

        yield Reader(f"base model: {name}", [good], read)


def home_readers(home: Home) -> Iterator[Reader]:
    save_mix(home, "fox", SavedMix(entries=(MixEntry("a", 1.0, (1.0, 0.5), ("01",)),), prompt="a fox"))
    mix = home.mixes / "fox.json"
    key = json.dumps([{"name": "a", "created": "2026-01-01T00:00:00+00:00", "sha256": "0" * 64}]).encode()
    draft = json.dumps({"pictures": [{"id": "a", "name": "a.png"}], "what": "object", "changes": {"rank": 4}}).encode()
    (home.state / "draft").mkdir(exist_ok=True)
    yield Reader("saved Mix", [mix.read_bytes()], file_reader(mix, lambda _: read_mix(home, "fox")))
    yield Reader("keys", [key], file_reader(home.state / "keys.json", lambda _: list_keys(home)))
    yield Reader("draft", [draft], file_reader(home.state / "draft" / "draft.json", lambda _: load_draft(home)))
    yield Reader("preferences", [b'{"drawing_precision": "fp16"}'],
                 file_reader(home.preferences, lambda _: drawing_precision(home)))   # fmt: skip
    yield Reader("processes of the worker", [b"[[1, 2.0], [3, 4.0]]"],
                 file_reader(home.state / "worker.json", lambda _: stop_orphaned_worker(home)))   # fmt: skip


def small_readers(folder: Path) -> Iterator[Reader]:
    """What lies beside other files."""
    yield from listed_readers(folder)
    yield from index_readers(open_home(folder / "home"))
    yield from kept_readers(open_home(folder / "home"))


def index_readers(home: Home) -> Iterator[Reader]:
    """Files that Atelier writes for itself, and that anything may have happened to."""
    run = RunFolder.create(home.runs / "20260101-fox", TrainConfig(name="fox"))
    grid = b'{"prompt": "a fox", "steps": [1], "strengths": [1.0], "cells": [[1, 1.0, "grid/a.png"]]}'
    yield Reader("grid of steps", [grid],
                 file_reader(run.path / "grid.json", lambda _: finished_run.read_step_grid(home, run.id)))   # fmt: skip
    yield Reader("report of a compression", [b'{"bytes": [1, 2], "layers": {"a": 4}}'],
                 file_reader(run.path / compress.REPORT, lambda _: compress.read_report(run)))   # fmt: skip
    yield Reader("view of a run's page", [b'{"preview": 3, "log": true, "text": false}'], text(View.from_text))
    yield Reader("settings of base models", [b'{"x": {"prediction": "epsilon", "vae": ""}}'],
                 file_reader(home.base_settings, lambda _: base_options(home, "x")))   # fmt: skip
    index = library._index(home.adapters, home.state / library.INDEX)

    def read_row(content: bytes) -> object:
        with index._open() as db, db:
            db.execute("INSERT OR REPLACE INTO files VALUES (?, 1, 2, ?)", (b"a.safetensors", content))
        return index._stored()

    file = home.adapters / "a.safetensors"
    file.write_bytes(saved_adapter(home.path))
    card = library._card(library.FileState(file, 1, 2), AdapterInfo(kind="lora", notes=("a", "b")))
    yield Reader("row of the index of adapters", [library._store(card).encode(), b'{"reason": "cut"}'], read_row)
    for name, good, read in (("hashes elsewhere", b'{"a": "b"}', foreign_hashes._read),
                             ("hashes of models", b'{"a": "b"}', model_hashes._read)):   # fmt: skip
        yield Reader(name, [good], file_reader(home.state / "index.json", read))


def kept_readers(home: Home) -> Iterator[Reader]:
    """What pages keep of what people did, and mixes that they share."""
    mix = (b'{"format": "atelier mix", "version": 1, "method": "sum", "prompt": "a fox", "seed": 1, "base": "x", '
           b'"adapters": [{"name": "a", "strength": 1.0, "curve": [], "region": [], "sha256": "0", "bytes": 5}]}')
    grid = (b'{"recipe": {"prompt": "a"}, "axes": [{"kind": "seed", "values": [1, 2], "adapter": ""}], "cells": '
            b'[{"values": [1], "picture": "", "problem": ""}], "votes": [[0, 1]]}')
    word = safetensors({"emb_params": {"dtype": "F32", "shape": [1, 8], "data_offsets": [0, 32]}}, 32)
    draft = home.state / "draft"
    draft.mkdir(exist_ok=True)
    yield Reader("textual inversion", [word], file_reader(home.textual_inversions / "a.safetensors", lambda _: (
        list_textual_inversions(home), list_unreadable_inversions(home))), repair=with_length)   # fmt: skip
    for name, path, good, read in (
        ("shared mix", home.path / "shared.json", mix, lambda path: open_mix_file(home, path)),
        ("grid", home.grids / f"{GRID_ID}.json", grid, lambda _: read_grid(home, GRID_ID)),
        ("prompts drawn last", home.state / "recent_prompts.json", b'["a fox", "a cat"]',
         lambda _: recent_prompts(home)),
        ("notes on adapters", home.path / "library.json", b'{"fox": {"star": true, "tags": ["a"], "low": -1.0}}',
         lambda _: read_notes(home)),
        ("marks of pictures", home.picture_marks, b'{"stars": ["a"], "boards": {"b": ["a"]}}',
         lambda _: read_marks(home)),
        ("undo of a draft", draft / "undo.json", b'{"label": "a", "pictures": [{"id": "a", "name": "a.png"}]}',
         lambda _: undo_label(home)),
    ):
        yield Reader(name, [good], file_reader(path, read))


def listed_readers(folder: Path) -> Iterator[Reader]:
    """What lies beside pictures and adapters of strangers."""
    lines = b'{"file_name": "a.png", "text": "a fox"}\n{"file_name": "b.png", "text": "a cat"}\n'
    entries = b'{"a.png": {"caption": "a fox", "tags": "red, fox"}}'
    config = b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "rank_pattern": {"a": 2}, "target_modules": ["to_k"]}'
    beside = folder / "peft" / "adapter_model.safetensors"
    beside.parent.mkdir()
    for name, good in (("metadata.jsonl", lines), ("meta.json", entries)):
        yield Reader(f"captions: {name}", [good], file_reader(folder / name, read_caption_list), (ValueError,))
    yield Reader("configuration of PEFT", [config],
                 file_reader(beside.with_name(CONFIG), lambda _: configs(beside, {})))   # fmt: skip
    yield Reader("path", [b"~/models/x.safetensors", b"/a/b"], text(parse_path))


def run_reader(folder: Path) -> Reader:
    run = RunFolder.create(folder / "run", TrainConfig(name="fox", steps=9))
    lines = (to_line(Stepped(1, 9, 0.5, 0.1, 0.01, 0.2)) + to_line(Finished(9, "fox.safetensors", 1.0))).encode()
    return Reader("events of a run", [lines], file_reader(run.path / "events.jsonl", lambda _: status(run)))


def queue_reader(folder: Path) -> Reader:
    queue = Queue(SqliteHuey("fuzz", filename=str(folder / "queue.sqlite"), serializer=JsonSerializer(), results=False),
                  lambda _id, _action: None)   # fmt: skip
    message = queue.huey.serialize_task(queue._train.s("20260101-fox", "start", priority=1))

    def read(data: bytes) -> object:
        queue.huey.storage.flush_queue()
        queue.huey.storage.enqueue(data)
        return queue.waiting()

    close_database(queue.huey)
    return Reader("message in the queue", [message], read)


def other_readers(folder: Path) -> Iterator[Reader]:
    a1111 = (b"a fox <lora:fox:0.8>\nNegative prompt: blur\n"
             b"Steps: 20, Sampler: Euler a, Seed: 1, Size: 512x512, Model: x")   # fmt: skip
    comfy = json.dumps({"1": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 20, "positive": ["2", 0]}},
                        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "fox", "clip": ["3", 0]}},
                        "3": {"class_type": "LoraLoader", "inputs": {"lora_name": "x", "strength_model": 1}}}).encode()
    invoke = json.dumps({"positive_prompt": "fox", "seed": 1, "steps": 2, "loras": [{"model": {"name": "a"}}]}).encode()
    shown = pictures(folder)
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "PNG")
    address = b"data:image/png;base64," + base64.b64encode(small.getvalue())
    adapter = saved_adapter(folder)

    def adapter_file(path: Path) -> object:
        return native.read_header(path), native.adapter_problem(path)

    yield Reader("native adapter", [adapter], file_reader(folder / "n.safetensors", adapter_file), repair=with_length)
    yield Reader("foreign adapter", headers()[1:], file_reader(folder / "f.safetensors", detect, 10_000_000),
                 repair=with_length)
    yield Reader("recipe (TOML)", [TrainConfig(name="fox").to_toml().encode()], text(TrainConfig.from_toml))
    yield Reader("recipe of a compression", [CompressConfig(name="fox").to_toml().encode()], text(read_compression))
    yield Reader("recipe of a Mix", [RECIPE.encode()], lambda data: mix_from_recipe(_object(data)))
    yield Reader("event", [to_line(Stepped(1, 9, 0.5, 0.1, 0.01, 0.2)).encode()], text(from_line))
    yield Reader("chunks of a picture", shown, file_reader(folder / "p.png", read_metadata))
    yield Reader("recipe in a picture", shown[3:], file_reader(folder / "r.png", gallery.read_recipe))
    yield Reader("pixels of a picture", shown, file_reader(folder / "o.png", open_picture))
    for keyword, good in (("parameters", a1111), ("prompt", comfy), ("invokeai_metadata", invoke)):
        yield Reader(f"chunk {keyword}", [good], text(lambda given, keyword=keyword: read_texts({keyword: given})))
    yield Reader("preview in a header", [address], text(lambda given: (is_showable(given), preview_png(given))))
    yield Reader("caption", [b"a photo of {trigger} fox"], file_reader(folder / "c.txt", read_caption), (ValueError,))
    yield run_reader(folder)
    yield queue_reader(folder)
    yield from config_readers(folder)
    yield from home_readers(open_home(folder / "home"))


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def saved_adapter(folder: Path) -> bytes:
    adapters = create_adapters("lora", {"rank": 2}, [Spec("unet.a", (4, 4))])
    native.save_adapter(folder / "saved.safetensors", adapters, {})
    return (folder / "saved.safetensors").read_bytes()


def check(outcomes: list[Outcome]) -> None:
    assert {outcome.name: outcome.uncaught for outcome in outcomes if not outcome.is_sound} == {}


def test_no_reader_dies_of_a_few_changed_inputs(folder: Path) -> None:
    readers = [header_reader(folder), *other_readers(folder), *small_readers(folder)]
    check([fuzz(reader, 60, seed=1) for reader in readers])
    assert MOST_SECONDS == 2


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_no_header_of_a_million_is_misread(folder: Path) -> None:
    outcome = fuzz_headers(folder, HEADERS, os.cpu_count() or 1)
    record("Fuzz: header reader", [row(outcome)])
    check([outcome])


def fuzz_all(title: str, readers: Iterable[Reader], count: int) -> None:
    """Fuzz one reader after the other; each is in the table as soon as it is done, because all take hours.

    With ``ATELIER_RESUME`` those that the table has with as many inputs are left out.
    """
    wanted, outcomes = list(readers), list[Outcome]()
    rows = {known["reader"]: known for known in recorded(title)}
    for reader in wanted:
        if not os.environ.get("ATELIER_RESUME") or rows.get(reader.name, {}).get("inputs") != f"{count:,}":
            outcomes.append(fuzz(reader, count))
            rows[reader.name] = row(outcomes[-1])
            record(title, [rows[one.name] for one in wanted if one.name in rows])
    check(outcomes)


@pytest.mark.slow
@pytest.mark.timeout(14400)
def test_no_reader_of_foreign_files_dies_of_a_hundred_thousand_changed_inputs(folder: Path) -> None:
    fuzz_all("Fuzz: the other readers", other_readers(folder), OTHERS)


@pytest.mark.slow
@pytest.mark.timeout(14400)
def test_no_reader_of_a_small_file_dies_of_a_hundred_thousand_changed_inputs(folder: Path) -> None:
    fuzz_all("Fuzz: readers of what lies beside other files", small_readers(folder), OTHERS)
