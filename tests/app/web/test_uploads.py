"""No request can name a file that was not uploaded: every handler of the real server, with paths of every kind."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load, save
from serving import ask, named, served, upload

from atelier.app.store.drafts.create_draft import clear_draft, load_draft, read_received
from atelier.app.store.gallery import gallery_page, read_recipe
from atelier.app.store.home import Home, open_home
from atelier.app.store.library import list_adapters
from atelier.app.text.shared import NOT_UPLOADED
from atelier.app.web.api import ENDPOINTS
from atelier.app.web.components.gradio_internals import CheckedBlocks
from atelier.app.web.components.uploads import check_inputs, offer, uploaded, without_foreign_files

SECRET = b"a secret that was never uploaded"
# Kinds of components that take files from the page, and the others that handlers have as inputs.
FILES = {"file", "uploadbutton", "image", "gallery", "imageeditor", "multimodaltextbox", "audio", "video", "model3d",
         "imageslider"}   # fmt: skip
OTHERS = {"api", "checkbox", "datetime", "dropdown", "number", "radio", "slider", "state", "textbox"}
LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return open_home(tmp_path_factory.mktemp("uploads") / "home")


@pytest.fixture(scope="module")
def web(home: Home) -> Iterator[httpx.Client]:
    with served(home) as (client, _):
        yield client


@pytest.fixture(scope="module")
def config(web: httpx.Client) -> dict[str, Any]:
    return web.get("/config").json()


@pytest.fixture(scope="module")
def handlers(config: dict[str, Any]) -> dict[int, list[str]]:
    """Number → kinds of inputs, of every handler on every page."""
    kinds = {part["id"]: part["type"] for part in config["components"]}
    return {part["id"]: [kinds[id] for id in part["inputs"]] for part in config["dependencies"]}


@pytest.fixture(scope="module")
def takers(config: dict[str, Any], handlers: dict[int, list[str]]) -> dict[str, int]:
    """The handlers that have an input on which a person drops files: its name and what starts them → number."""
    names = {part["id"]: part["props"].get("elem_id") for part in config["components"] if part["type"] in FILES}
    return {f"{next(names[id] for id in part['inputs'] if id in names)} {part['targets'][0][1]}": part["id"]
            for part in config["dependencies"] if takes_files(handlers[part["id"]])}   # fmt: skip


@pytest.fixture(scope="module")
def queued(config: dict[str, Any]) -> set[int]:
    """The handlers that a request reaches through the queue only."""
    return {part["id"] for part in config["dependencies"] if part["queue"]}


def png(side: int = 96, **text: str) -> bytes:
    image, buffer = Image.effect_noise((side, side), 90).convert("RGB"), BytesIO()
    chunks = PngInfo()
    for key, value in text.items():
        chunks.add_text(key, value)
    image.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def lora() -> bytes:
    return save({f"{LAYER}.lora_up.weight": torch.randn(32, 4), f"{LAYER}.lora_down.weight": torch.randn(4, 192),
                 f"{LAYER}.alpha": torch.tensor(4.0)}, {"format": "pt"})   # fmt: skip


class Listener:
    """Counts who knocks at a port of this machine."""

    def __init__(self) -> None:
        self.socket, self.knocks = socket.create_server(("127.0.0.1", 0)), 0
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        while True:
            try:
                self.socket.accept()[0].close()
            except OSError:
                return
            self.knocks += 1


def foreign_files(home: Home, outside: Path) -> list[Path]:
    """Files that nobody uploaded, outside of the home and inside."""
    outside.mkdir(exist_ok=True)
    contents = {"notes.png": png(), "notes.txt": SECRET, "notes.safetensors": lora(), "notes": SECRET}
    files = [outside / name for name in contents]
    files += [home.gallery / "20250101-000000-000000-abcdef.png", home.adapters / "own.safetensors",
              home.state / "draft" / "secret.png", home.path / "models.txt"]   # fmt: skip
    for path in files:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(contents.get(path.name, contents.get(f"notes{path.suffix}", SECRET)))
    return files


@pytest.fixture(scope="module")
def foreign(web: httpx.Client, home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Names of what may not be read, by what they try."""
    outside = tmp_path_factory.mktemp("outside") / "private"
    files = foreign_files(home, outside)
    kept = Path(upload(web, "a.png", png())).parent
    (kept / "link.png").symlink_to(files[0])
    (kept / "linked").symlink_to(outside, target_is_directory=True)
    os.mkfifo(kept / "fifo.png")
    listener = Listener()
    port = listener.socket.getsockname()[1]
    up = "../" * 40
    yield {
        **{f"absolute {path.name}": str(path) for path in files},
        "relative": f"{up}{str(files[0])[1:]}", "out of the folder": f"{kept}/{up}{str(files[0])[1:]}",
        "out and in again": f"{kept}/../../../gallery/{files[4].name}",
        "link": str(kept / "link.png"), "linked folder": str(kept / "linked" / "notes.png"),
        "file address": f"file://{files[0]}", "web address": f"http://127.0.0.1:{port}/notes.png",
        "encrypted web address": f"https://127.0.0.1:{port}/notes.png", "host": f"//127.0.0.1:{port}/a",
        "folder": str(kept), "folder of all": str(home.state / "web"), "pipe": str(kept / "fifo.png"),
        "device": "/dev/zero", "process": "/proc/self/environ", "NUL": f"{kept}/a.png\0.txt", "nothing": "",
        "long": f"{kept}/{'a' * 5000}.png", "no such file": f"{kept}/b.png", "data": "data:image/png;base64,AAAA",
    }   # fmt: skip
    listener.socket.close()
    assert listener.knocks == 0


def contents_of(home: Home) -> dict[Path, int]:
    """Every file of the home and its size."""
    return {path: path.lstat().st_size for path in home.path.rglob("*") if not path.is_dir()}


def age(path: Path) -> None:
    """Make the time of the last reading older than that of writing: then the next reading sets it."""
    os.utime(path, ns=(0, path.stat().st_mtime_ns))


def refused(answer: dict[str, Any]) -> bool:
    return not answer["success"] and NOT_UPLOADED in str(answer["output"])


def takes_files(kinds: list[str]) -> bool:
    """Whether a handler has an input that a person drops files on."""
    return not FILES.isdisjoint(kinds)


def test_reading_shows_in_the_time_of_access(tmp_path: Path) -> None:
    """What the other tests stand on."""
    (tmp_path / "a").write_bytes(b"x")
    age(tmp_path / "a")
    (tmp_path / "a").read_bytes()
    assert (tmp_path / "a").stat().st_atime_ns > 0


def test_the_handlers_that_take_files_are_known(takers: dict[str, int], handlers: dict[int, list[str]]) -> None:
    assert set(takers) == {"add-pictures upload", "picture-canvas click", "import-recipe upload", "open-picture upload",
                           "start-picture click", "start-picture upload", "mix-file upload", "import-files upload",
                           "add-to-gallery upload"}, (
        "try the new handler's good path too, below")   # fmt: skip
    assert {kind for kinds in handlers.values() for kind in kinds} <= FILES | OTHERS, "does the new kind take files?"


def test_no_handler_takes_a_file_that_was_not_uploaded(
    web: httpx.Client, home: Home, handlers: dict[int, list[str]], queued: set[int], foreign: dict[str, str]
) -> None:
    files = [Path(path) for name, path in foreign.items() if name.startswith("absolute")]
    before = contents_of(home)
    for path in files:
        age(path)
    one = foreign["absolute notes.png"]
    tried = [(handler, kinds, "absolute", [named(one)]) for handler, kinds in handlers.items()
             if kinds and handler in queued]   # fmt: skip
    for handler, kinds in handlers.items():
        if takes_files(kinds):
            tried += [(handler, kinds, name, [named(path)]) for name, path in foreign.items()]
            tried += [(handler, kinds, "alone", named(one)), (handler, kinds, "deep", {"a": [[{"path": one}]]})]
    # Side by side, because an answer waits for the queue, and the queue mostly for its clock.
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda each: ask(web, each[0], [each[3]] * len(each[1])), tried))
    assert not [each for each, answer in zip(tried, answers, strict=True) if not refused(answer)]
    assert contents_of(home) == before
    assert not [path for path in files if path.stat().st_atime_ns]


def test_no_queue_of_files_takes_one_that_was_not_uploaded(
    web: httpx.Client, home: Home, config: dict[str, Any], foreign: dict[str, str]
) -> None:
    """Their paths come in the data of an event, which passes by the check of inputs."""
    names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
    queues = {names[part["targets"][0][0]]: part for part in config["dependencies"]
              if part["targets"] and part["targets"][0][1] == "uploaded"}   # fmt: skip
    given = {"add-pictures-queue": [], "import-files-queue": [None, "", False, "", "", "newest", 0],
             "add-to-gallery-queue": [None, "", "", "", "", "", False, ""]}   # fmt: skip
    assert set(queues) == set(given)
    good = upload(web, "red.png", png())
    gallery = queues["add-to-gallery-queue"]["id"]
    ask(web, gallery, given["add-to-gallery-queue"], {"paths": []})   # its index is made when it is first looked at
    before = contents_of(home)
    bad = [*([path] for path in foreign.values()), [good, foreign["absolute notes.png"]], [None], [{}]]
    tried = [(queue["id"], given[name], paths) for name, queue in queues.items() for paths in (*bad, good, [])]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda each: ask(web, each[0], each[1], {"paths": each[2]}), tried))
    taken = [paths for (_, _, paths), answer in zip(tried, answers, strict=True) if answer["success"]]
    assert taken == [good, []] * 3, "a text is no list, and nothing is nothing to refuse"
    assert contents_of(home) == before
    assert ask(web, queues["add-pictures-queue"]["id"], [], {"paths": [good]})["success"]
    assert [draft.usable[0].name for draft, _ in read_received(home)] == ["red.png"]
    clear_draft(home)


@pytest.mark.slow
def test_no_endpoint_takes_a_file_that_was_not_uploaded(
    web: httpx.Client, home: Home, config: dict[str, Any], foreign: dict[str, str]
) -> None:
    """As a script calls it: each input gets a path, without the mark by which a client uploads a file."""
    files = [Path(path) for name, path in foreign.items() if name.startswith("absolute")]
    before = contents_of(home)
    for path in files:
        age(path)
    client = Client(str(web.base_url), verbose=False, download_files=False)
    inputs = {part["api_name"]: len(part["inputs"]) for part in config["dependencies"] if part["api_name"] in ENDPOINTS}
    assert set(inputs) == set(ENDPOINTS)
    one = foreign["absolute notes.png"]
    tried = {(name, at, path) for name, count in inputs.items() for at in range(count)
             for path in (foreign.values() if name in ("settings_of", "import_adapter") else [one])}   # fmt: skip
    for name, at, path in sorted(tried):
        with pytest.raises(AppError, match=NOT_UPLOADED):
            client.predict(*[[{"path": path}] if place == at else "" for place in range(inputs[name])],
                           api_name=f"/{name}")   # fmt: skip
    assert contents_of(home) == before
    assert not [path for path in files if path.stat().st_atime_ns]


@pytest.mark.slow
def test_an_address_with_a_gigabyte_of_data_is_no_file(web: httpx.Client, takers: dict[str, int]) -> None:
    """A long one is refused as a path, and one of a gigabyte before it is read: what is no upload stays small."""
    with socket.create_connection((web.base_url.host, web.base_url.port or 0), timeout=60) as connection:
        connection.sendall(b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n"
                           b'Content-Type: application/json\r\n\r\n{"data": ["data:image/png;base64,')   # fmt: skip
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    for handler in takers.values():
        assert refused(ask(web, handler, [named("data:image/png;base64," + "A" * 100_000)] * 7)), handler


def test_the_door_beside_the_queue_is_no_way_in(
    web: httpx.Client, handlers: dict[int, list[str]], queued: set[int], foreign: dict[str, str]
) -> None:
    """Handlers that need no queue can be posted to directly; the others can't."""
    secret = named(foreign["absolute notes.png"])
    waiting = next(handler for handler, kinds in handlers.items() if takes_files(kinds) and handler in queued)
    for handler, kinds in handlers.items():
        if handler == waiting or (kinds and handler not in queued):
            body = {"fn_index": handler, "session_hash": "door", "data": [secret] * len(kinds)}
            answer = web.post("/gradio_api/run/predict", json=body)
            assert answer.status_code == 404 if handler == waiting else NOT_UPLOADED in answer.text, handler


def test_what_was_uploaded_is_taken_and_an_export_downloaded(
    web: httpx.Client, home: Home, handlers: dict[int, list[str]], takers: dict[str, int]
) -> None:
    told = "a fox\nSteps: 7, Sampler: Euler a, Seed: 5, Size: 64x64, Model: embedded"
    answer = ask(web, takers["open-picture upload"], [named(upload(web, "drawn.png", png(parameters=told)))])
    assert answer["success"] and answer["output"]["data"][0] == "a fox", answer
    edited = {"background": named(upload(web, "start.png", png())), "layers": [], "composite": None}
    assert all(ask(web, takers[f"start-picture {event}"], [edited, 0.6])["success"] for event in ("click", "upload"))
    assert ask(web, takers["add-pictures upload"], [[named(upload(web, "red.png", png()))]])["success"]
    assert [draft.usable[0].name for draft, _ in read_received(home)] == ["red.png"]
    smaller = named(upload(web, "smaller.png", png(48)))
    drawn = {"background": smaller, "layers": [], "composite": smaller}
    assert ask(web, takers["picture-canvas click"], [load_draft(home).usable[0].id, drawn, "learn"])["success"]
    assert [picture.facts and picture.facts.size for picture in load_draft(home).usable] == [(48, 48)]
    assert ask(web, takers["import-recipe upload"], [named(upload(web, "recipe.toml", b"seed = 7"))])["success"]
    assert load_draft(home).changes["seed"] == 7
    mix = json.dumps({"format": "atelier mix", "method": "sum", "prompt": "two foxes", "seed": 1, "adapters": []})
    answer = ask(web, takers["mix-file upload"], [named(upload(web, "shared.mix.json", mix.encode()))])
    assert answer["success"] and "two foxes" in str(answer["output"]["data"])
    drawn = png(parameters="an owl\nSteps: 4, Sampler: Euler a, CFG scale: 5, Seed: 9, Size: 96x96")
    given = [[named(upload(web, "owl.png", drawn))], None, "", "", "", "", "", False, ""]
    assert ask(web, takers["add-to-gallery upload"], given)["success"]
    assert [(read_recipe(picture.path) or {})["prompt"] for picture in gallery_page(home)[:1]] == ["an owl"]
    given = [[named(upload(web, "fox.safetensors", lora()))], None, "", False, "", "", "newest", 0]
    assert ask(web, takers["import-files upload"], given)["success"]
    assert [card.name for card in list_adapters(home) if card.name == "fox"]
    [export] = (handler for handler, kinds in handlers.items()
                if kinds == ["textbox", "dropdown", "dropdown", "number", "checkbox"])   # fmt: skip
    answer = ask(web, export, ["fox", "kohya", "fp16", 0, False])
    assert answer["success"], answer
    got = web.get(answer["output"]["data"][0]["value"]["url"])
    assert load(lora()).keys() <= load(got.content).keys()
    assert got.headers["content-disposition"].startswith("attachment")
    assert 'filename="fox.safetensors"' in got.headers["content-disposition"]


def test_an_upload_has_no_large_form_field(web: httpx.Client) -> None:
    """Gradio would keep it in memory: 200 MB of it took 600."""
    answers = [web.post("/gradio_api/upload", data={"field": "a" * size}, files={"files": ("a", b"a")})
               for size in (1000, 200_000)]   # fmt: skip
    assert [answer.status_code for answer in answers] == [200, 400] and answers[1].text == "Only files can be uploaded."


def test_no_handler_can_hand_out_a_foreign_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.txt").write_bytes(SECRET)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")  # Gradio hands out what lies here, or in the system's folder for such files
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "work"))

    async def answer() -> Any:
        with CheckedBlocks(check_inputs, without_foreign_files) as demo:
            demo.load(lambda: str(tmp_path / "secret.txt"), None, gr.File())
        return await demo.process_api(0, [])

    with pytest.raises(Exception, match="Cannot move"):
        asyncio.run(answer())
    assert not list(folder.rglob("*.txt"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "web"))
    (tmp_path / "web").mkdir()
    return tmp_path / "web"


def test_a_plain_file_of_the_folder_is_an_upload(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"x")
    assert uploaded(str(folder / "a.png")) == (folder / "a.png").resolve()
    (folder / "link.png").symlink_to(folder / "a.png")
    for path in ("a.png", folder, folder / "link.png", folder / "b.png", f"{folder}-other/a.png"):
        with pytest.raises(ValueError, match="not uploaded"):
            uploaded(str(path))


def test_data_that_looks_like_a_file_is_data(folder: Path, tmp_path: Path) -> None:
    (folder / "a.png").write_bytes(b"x")
    (tmp_path / "secret.png").write_bytes(SECRET)
    ours = named(str(folder / "a.png"))
    foreign = [named(str(tmp_path / "secret.png")), named("http://127.0.0.1/a"), named("a.png"),
               {**ours, "url": "http://127.0.0.1/a"}, {"path": "a", "meta": "b"}, {"path": "a", "meta": None}]
    answer = {"recipe": [({"deep": each},) for each in foreign], "file": ours, "path": 7, "meta": {}}
    cleaned = without_foreign_files(answer)
    assert [deep["deep"] for deep, in cleaned.pop("recipe")] == [
        {key: value for key, value in each.items() if key != "meta"} for each in foreign]   # fmt: skip
    assert cleaned == {"file": ours, "path": 7, "meta": {}}


def test_a_recipe_that_looks_like_a_file_is_a_recipe(web: httpx.Client, home: Home, config: dict[str, Any]) -> None:
    """Of a picture that somebody put into the gallery; the folder for temporary files is one that Gradio hands out."""
    secret = Path(tempfile.gettempdir()) / f"{home.path.parent.name}.txt"
    secret.write_bytes(SECRET)
    listener = Listener()
    address = f"http://localhost:{listener.socket.getsockname()[1]}/a.png"
    endpoint = next(part["id"] for part in config["dependencies"] if part["api_name"] == "picture")
    for at, file in enumerate((named(str(secret)), named(address), {**named("a"), "url": address}, {"path": "a",
                                                                                                   "meta": 5})):
        id = f"20260101-00000{at}-000000-abcdef"
        (home.gallery / f"{id}.png").write_bytes(png(atelier=json.dumps({"prompt": "a fox", "extra": file})))
        answer = ask(web, endpoint, [id])
        found = answer["output"]["data"][0]
        assert answer["success"] and found["recipe"]["extra"].items() <= file.items()
        assert web.get(found["file"]["url"]).status_code == 200
        (home.gallery / f"{id}.png").unlink()
    secret.unlink()
    listener.socket.close()
    assert listener.knocks == 0 and not list((home.state / "web").rglob("*.txt"))


def test_what_is_offered_is_the_file_under_its_own_name(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "fox.safetensors").write_bytes(b"x")
    one, two = (Path(offer(tmp_path / "fox.safetensors")) for _ in range(2))
    assert one != two and {one.name, two.name} == {"fox.safetensors"} and one.is_relative_to(folder)
    assert one.read_bytes() == b"x"
