"""Settings: where things are, what draws them, how much room they take, and what Atelier stands on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import gradio as gr
import psutil

from atelier.adapters.core.byte_size import format_bytes
from atelier.adapters.core.family import family_title
from atelier.app.jobs.jobs import worker_alive
from atelier.app.services.engine import Engine
from atelier.app.services.model_downloads import ModelDownloads
from atelier.app.store.api_keys import delete_key, list_keys, make_key
from atelier.app.store.home import Home
from atelier.app.store.library import list_adapters
from atelier.app.store.models import ModelEntry, find_models, model_folders, save_model_folders
from atelier.app.store.preferences import (
    drawing_device,
    drawing_precision,
    save_drawing_device,
    save_drawing_precision,
)
from atelier.app.text import settings as words
from atelier.app.text import shared
from atelier.app.web.components.page_frame import UNQUEUED, heading, show_errors
from atelier.app.web.components.panel import action_of, panel
from atelier.app.web.components.urls import root_path
from atelier.app.web.pages.settings_models import place_base_options, place_downloads
from atelier.app.web.pages.settings_storage import place_help, place_storage
from atelier.training.base_models.device import best_device, card_problem, device_named, device_title, usable_devices
from atelier.training.base_models.identify import identify
from atelier.training.config.assets import DISTRIBUTION
from atelier.training.config.train_config import EMBEDDED, PRECISIONS

PACKAGES = (DISTRIBUTION, "torch", "diffusers", "transformers", "accelerate", "safetensors", "gradio", "huey")


def build(
    demo: gr.Blocks, home: Home, engine: Engine, downloads: ModelDownloads, *, has_password: bool = False
) -> None:
    """Place the Settings page; with ``has_password`` it offers signing out."""
    heading(words.TITLE, words.LEAD)
    facts = panel("facts", [])
    with gr.Column(elem_classes="surface"):
        folders = gr.Textbox(label=words.MODEL_FOLDERS, info=words.MODEL_FOLDERS_HINT, lines=2, max_lines=8,
                             elem_id="model-folders")   # fmt: skip
        scan = gr.Button(words.SCAN, elem_id="scan-models")
        models = panel("models", {"hint": "", "models": []})
    with gr.Column(elem_classes="surface"):
        device = gr.Dropdown([], label=words.DRAWING_DEVICE, info=words.DRAWING_DEVICE_HINT, elem_id="drawing-device")
        precision = gr.Dropdown(list(PRECISIONS), label=words.PRECISION, info=words.PRECISION_HINT, elem_id="precision")
    place_downloads(demo, downloads)
    place_base_options(demo, home)
    precision.input(lambda name: _save_precision(home, name), precision, None, api_visibility="private")
    device.input(lambda name: _save_device(home, name), device, None, api_visibility="private")
    _place_keys(demo, home, has_password)
    place_storage(demo, home)
    place_help(home)
    demo.load(lambda: drawing_precision(home), None, precision, **UNQUEUED)
    demo.load(lambda: _devices(home), None, device, **UNQUEUED)
    demo.load(lambda: _groups(home, engine), None, facts, **UNQUEUED)
    demo.load(lambda: _models(home), None, [folders, models], **UNQUEUED)
    scan.click(lambda text: _scan(home, text), folders, [folders, models], api_visibility="private")


def _save_precision(home: Home, name: str) -> None:
    with show_errors():
        save_drawing_precision(home, name)


def _save_device(home: Home, name: str) -> None:
    with show_errors():
        save_drawing_device(home, name)


def _devices(home: Home) -> gr.Dropdown:
    """The choice of a device: those that are here by their makers' names, and the chosen one though it is gone."""
    choices = [(words.device_choice(name, device_title(device_named(name))), name) for name in usable_devices()]
    chosen = drawing_device(home)
    if chosen not in [name for _, name in choices]:
        choices.append((words.missing_device(chosen), chosen))
    return gr.Dropdown(choices, value=chosen)


def _place_keys(demo: gr.Blocks, home: Home, has_password: bool) -> None:
    """Place the keys of programs and the button to sign out."""
    with gr.Column(elem_classes="surface"):
        name = gr.Textbox(label=words.KEY_NAME, info=words.KEYS_HINT, max_length=64, elem_id="key-name")
        make = gr.Button(words.MAKE_KEY, elem_id="make-key")
        keys = panel("keys", {})
        sign_out = gr.Button(words.SIGN_OUT, visible=has_password, elem_id="sign-out")

    def delete(event: gr.EventData) -> dict[str, Any]:
        """Delete the key whose button was pressed."""
        with show_errors():
            delete_key(home, action_of(event)[1])
        return _keys(home)

    make.click(lambda text: _make_key(home, text), name, [name, keys], api_visibility="private")
    keys.action(delete, None, keys, **UNQUEUED)
    demo.load(lambda: _keys(home), None, keys, **UNQUEUED)
    address = f"{root_path()}/logout"
    sign_out.click(None, None, None, js=f"() => fetch('{address}', {{method: 'POST'}}).then(() => location.reload())")


def _make_key(home: Home, name: str) -> list[Any]:
    with show_errors():
        return ["", _keys(home, make_key(home, name))]


def _keys(home: Home, new: str = "") -> dict[str, Any]:
    """What the panel shows: the keys, and once the text of a new one."""
    return {"new": new, "keys": [{"name": key.name, "created": key.created[:10]} for key in list_keys(home)]}


def _groups(home: Home, engine: Engine) -> list[dict[str, Any]]:
    return [
        _group(words.HOME, _home_facts(home), words.HOME_HINT),
        _group(words.MACHINE, _machine_facts(home), card_problem()),
        _group(shared.BASE_MODEL, _base_facts(engine)),
        _group(words.VERSIONS, {name: _version(name) for name in PACKAGES}),
        _group(words.ABOUT, words.LICENCES, words.ABOUT_HINT),
    ]


def _home_facts(home: Home) -> dict[str, str]:
    return {words.FOLDER: str(home.path), words.FREE: format_bytes(psutil.disk_usage(str(home.path)).free)}


def _machine_facts(home: Home) -> dict[str, str]:
    return {
        words.DEVICE: device_title(best_device()),
        words.MEMORY: format_bytes(psutil.virtual_memory().total),
        words.SYSTEM: f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        words.WORKER: words.WORKER_RUNNING if worker_alive(home) else words.NO_WORKER,
    }


def _base_facts(engine: Engine) -> dict[str, str]:
    base = engine.loaded.info if engine.loaded else identify(EMBEDDED)
    return {
        words.NAME: base.title, words.FAMILY: base.family, words.PREDICTION: base.prediction_type,
        shared.SIZE: f"{base.resolution} × {base.resolution}",
        words.LOADED: words.YES if engine.loaded else words.NOT_YET,
    }   # fmt: skip


def _scan(home: Home, text: str) -> list[Any]:
    """Remember the folders and show what is in them."""
    with show_errors():
        save_model_folders(home, text)
    return _models(home)


def _models(home: Home) -> list[Any]:
    """The folders as text, and the base models in them; those that can't be used say why."""
    folders, cards = model_folders(home), list_adapters(home)
    models = [{"name": model.path.name, "path": str(model.path),
               "description": _model_line(model, len(model.fitting_adapters(cards)))}
              for model in find_models(home)]   # fmt: skip
    hint = words.NO_MODELS if folders and not models else ""
    return ["\n".join(map(str, folders)), {"hint": hint, "models": models}]


def _model_line(model: ModelEntry, adapters: int) -> str:
    if model.info is None:
        return model.reason
    info = model.info
    return words.base_facts(family_title(info.family), info.prediction_type, info.precision, info.bytes, adapters)


def _group(title: str, facts: dict[str, str], hint: str = "") -> dict[str, Any]:
    return {"title": title, "hint": hint, "facts": [{"name": name, "value": value} for name, value in facts.items()]}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return words.FROM_SOURCE
