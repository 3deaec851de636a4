"""The named API: each endpoint's answers and refusals, and the examples of docs/api.md against a real server."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, cast

import gradio as gr
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from serving import served

from atelier.app.services.engine import Engine
from atelier.app.store.api_keys import make_key
from atelier.app.store.gallery import gallery_page
from atelier.app.store.home import Home, open_home
from atelier.app.web.api import COMMANDS, ENDPOINTS, Endpoints
from atelier.training.sampling.sample import DrawRequest

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.S)
LAYER = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


class FakeEngine:
    """Draws black pictures and remembers what was asked."""

    asked: list[tuple[str, Any, DrawRequest]]

    def __init__(self) -> None:
        self.asked = []

    def draw(self, base: str, adapters: Any, request: DrawRequest, *_: Any, **__: Any) -> list[Image.Image]:
        self.asked.append((base, adapters, request))
        return [Image.new("RGB", (8, 8)) for _ in range(request.count)]


@pytest.fixture
def home(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(own_home / "web"))
    return open_home(own_home)


@pytest.fixture
def api(home: Home) -> Endpoints:
    return Endpoints(home, cast(Engine, FakeEngine()))


def test_a_script_draws_into_the_gallery_and_gets_the_files(home: Home, api: Endpoints) -> None:
    *_, drawn = api.draw("a fox", settings={"seed": 3, "count": 2, "steps": 2})
    assert [each["recipe"]["seed"] for each in drawn["pictures"]] == [3, 4]
    newest = gallery_page(home)
    assert {each["id"] for each in drawn["pictures"]} == {picture.id for picture in newest}
    offered, = (Path(each["file"]["path"]) for each in drawn["pictures"] if each["id"] == newest[0].id)
    assert offered.read_bytes() == newest[0].path.read_bytes() and offered != newest[0].path
    assert [each["id"] for each in api.pictures(limit=1)] == [newest[0].id]
    assert [each["id"] for each in api.pictures(limit=9, before=newest[0].id)] == [newest[1].id]
    api.delete_picture(newest[0].id)
    assert [picture.id for picture in gallery_page(home)] == [newest[1].id]


def test_a_script_gives_parts_of_the_picture_prompts_and_gets_them_back(api: Endpoints) -> None:
    *_, drawn = api.draw("an owl", settings={"steps": 2, "regions": [{"prompt": "a fox", "region": [0, 0, 0.5, 1]}]})
    [one] = drawn["pictures"][0]["recipe"]["regions"]
    assert one["prompt"] == "a fox" and one["region"][0] == "1" * 16 + "0" * 16
    [again] = api.settings_of(drawn["pictures"][0]["file"])["settings"]["regions"]
    assert {**again, "region": list(again["region"])} == one


@pytest.mark.parametrize(("name", "arguments", "why"), [
    ("draw", ([],), "prompt must be a text"), ("draw", (" ",), "The prompt is empty"),
    ("draw", ("fox", ["rex"]), "adapters must be a table"), ("draw", ("fox", {"rex": "much"}), "a number is needed"),
    ("draw", ("fox", {"rex": float("nan")}), "a number is needed"), ("draw", ("fox", {"rex": 1}), "no adapter named"),
    ("draw", ("fox", None, {"step": 4}), "Did you mean 'steps'"), ("draw", ("fox", None, {"steps": "x"}), "steps is"),
    ("draw", ("fox", None, {"regions": [{"prompt": "owl"}]}), "The regions can't be used"),
    ("draw", ("fox", None, {"regions": 5}), "The regions can't be used"),
    ("draw", ("fox", None, None, "", "", {"image": 1}), "start has no 'image'"),
    ("draw", ("fox", None, None, "", "", {"picture": {"path": "/etc/hostname"}}), "was not uploaded"),
    ("settings_of", ("/etc/hostname",), "handle_file"), ("settings_of", ({"path": "/etc/hostname"},), "not uploaded"),
    ("train", ("rex", []), "no pictures"), ("train", ("rex", "pictures"), "handle_file"),
    ("train", ("rex", [{"path": "/etc/hostname"}]), "not uploaded"), ("train", (5, []), "name must be a text"),
    ("job", ("../x",), "does not exist"), ("job", (None,), "id must be a text"),
    ("control_job", ("x", "explode"), "There is no command"), ("control_job", ("x", "cancel"), "does not exist"),
    ("export", ("rex",), "no adapter named"), ("import_adapter", ({"path": "/etc/hostname"},), "not uploaded"),
    ("find", ("fox", "many"), "a number is needed"), ("pictures", ("", None), "a number is needed"),
    ("grid", ("x", ["seed"]), "axes must be a table"), ("grid", ("x", {"seed": 1}), "seed must be a text"),
    ("grid", ("x", {"seed": "1"}), "no longer in the gallery"), ("pictures", (5,), "search must be a text"),
    ("picture", ("../x",), "no longer in the gallery"), ("delete_picture", ("x",), "no longer in the gallery"),
    ("delete_adapter", ("rex",), "no adapter named"), ("adapters", (5,), "search must be a text"),
])  # fmt: skip
def test_what_can_not_be_used_is_said_in_a_sentence(api: Endpoints, name: str, arguments: Any, why: str) -> None:
    with pytest.raises(gr.Error, match=re.escape(why)):
        answer = getattr(api, name)(*arguments)
        assert name in ("draw", "grid")
        list(answer)


def test_every_endpoint_is_described_and_shown() -> None:
    described = {name for name in ENDPOINTS if getattr(Endpoints, name).__doc__}
    assert described == set(ENDPOINTS) == set(re.findall(r'api_name="/(\w+)"', "".join(EXAMPLES)))
    assert all(f"`{command}`" in PAGE for command in COMMANDS)


@pytest.mark.slow
def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = open_home(tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    (tmp_path / "pictures").mkdir()
    for number, path in enumerate(sorted((ROOT / "assets" / "examples" / "fox").glob("*.png"))[:4], start=1):
        shutil.copyfile(path, tmp_path / "pictures" / f"{number}.png")
    Image.new("L", (64, 64), 255).save("mask.png")
    save_file({f"{LAYER}.lora_up.weight": torch.ones(128, 2), f"{LAYER}.lora_down.weight": torch.ones(2, 192)},
              "fox.safetensors")   # fmt: skip
    names: dict[str, Any] = {}
    with served(home, ATELIER_PASSWORD="a long secret") as (web, _):
        address = str(web.base_url).rstrip("/")
        key = make_key(home, "script")
        assert web.get("/gradio_api/info").status_code == 401
        info = web.get("/gradio_api/info", headers={"authorization": f"Bearer {key}"}).json()
        assert {name[1:] for name in info["named_endpoints"]} == set(ENDPOINTS)
        assert all(each["description"] for each in info["named_endpoints"].values())
        for example in EXAMPLES:
            code = example.replace("http://127.0.0.1:7860", address).replace("Bearer KEY", f"Bearer {key}")
            code = code.replace("verbose=False)", "verbose=False, httpx_kwargs={'timeout': 300})")   # slow machines
            exec(compile(code, "docs/api.md", "exec"), names)
        body = {"prompt": "a fox", "settings": {"steps": 1}}
        asked = web.post("/gradio_api/call/v2/draw", json=body, headers={"authorization": f"Bearer {key}"})
        assert asked.status_code == 200 and asked.json()["event_id"]
    assert names["again"]["pictures"][0]["recipe"]["seed"] == 8 and len(names["found"]) == 1
    first, second = (Path(names[each]["pictures"][-1]["file"]) for each in ("drawn", "again"))
    assert Image.open(first).tobytes() == Image.open(second).tobytes()
    assert not list(home.adapters.glob("fox*")) and list(home.trash.rglob("*fox.safetensors"))
