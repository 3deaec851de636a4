"""The parts of the Settings page for single base models: downloads with their progress, and options."""

from __future__ import annotations

from typing import Any

import gradio as gr

from atelier.adapters.core.family import family_title
from atelier.app.services.known_models import KnownModel, known_model, known_models
from atelier.app.services.model_downloads import Download, ModelDownloads
from atelier.app.store.base_settings import base_options, save_base_options
from atelier.app.store.home import Home, absolute_base
from atelier.app.store.models import base_choices
from atelier.app.text import settings as words
from atelier.app.text import shared
from atelier.app.web.components.base_download import LOOK_SECONDS, download_row
from atelier.app.web.components.page_frame import UNQUEUED, inform, show_errors
from atelier.app.web.components.panel import action_of, panel
from atelier.training.config.base_options import AUTO_PREDICTION, PREDICTIONS, BaseOptions


def place_downloads(demo: gr.Blocks, downloads: ModelDownloads) -> None:
    """Place the list of known models, a field for any other, and how far downloads are."""
    with gr.Accordion(words.KNOWN_MODELS, open=False, elem_id="downloads", elem_classes="surface"):
        listed = panel("known-models", {"models": []})
        id = gr.Textbox(label=words.HUB_ID, info=words.HUB_ID_HINT, max_length=100, elem_id="hub-id")
        get = gr.Button(words.DOWNLOAD, elem_id="download-model")
        timer = gr.Timer(LOOK_SECONDS)

    def press(event: gr.EventData) -> dict[str, Any]:
        """Start the download whose button was pressed."""
        return _start(downloads, action_of(event)[1])

    listed.action(press, None, listed, **UNQUEUED)
    get.click(lambda text: _start(downloads, text), id, listed, api_visibility="private")
    timer.tick(lambda: _listed(downloads), None, listed, **UNQUEUED)
    demo.load(lambda: _listed(downloads), None, listed, **UNQUEUED)


def _start(downloads: ModelDownloads, id: str) -> dict[str, Any]:
    with show_errors():
        downloads.start(id)
    return _listed(downloads)


def _listed(downloads: ModelDownloads) -> dict[str, Any]:
    states = {download.id: download for download in downloads.all()}
    known = [_known(downloads, model, states.get(model.id)) for model in known_models()]
    others = [download_row(id, id, state) for id, state in states.items() if known_model(id) is None]
    return {"models": [*known, *others]}


def _known(downloads: ModelDownloads, model: KnownModel, state: Download | None) -> dict[str, Any]:
    needs = downloads.needs(model)
    memory = words.memory_line(needs.draw, needs.train, needs.draw_saves, needs.train_saves)
    facts = words.known_facts(family_title(model.family), model.licence, model.bytes, memory)
    return {**download_row(model.id, model.title, state), "about": model.about, "facts": facts}


def place_base_options(demo: gr.Blocks, home: Home) -> None:
    """Place the options of one base model: what it predicts, and a separate VAE."""
    with gr.Accordion(words.BASE_OPTIONS, open=False, elem_id="base-options", elem_classes="surface"):
        gr.Markdown(words.BASE_OPTIONS_HINT, elem_classes="hint")
        base = gr.Dropdown([], label=shared.BASE_MODEL, allow_custom_value=True, elem_id="options-base")
        prediction = gr.Dropdown(list(PREDICTIONS), value=AUTO_PREDICTION, label=words.PREDICTION, info=words.AUTO_HINT,
                                 elem_id="options-prediction")   # fmt: skip
        vae = gr.Textbox(label=words.VAE, info=words.VAE_HINT, max_length=1000, elem_id="options-vae")
        save = gr.Button(words.SAVE, elem_id="save-options")
    base.change(lambda name: _stored(home, name), base, [prediction, vae], **UNQUEUED)
    save.click(lambda *values: _save(home, *values), [base, prediction, vae], None, api_visibility="private")
    demo.load(lambda: gr.update(choices=base_choices(home)), None, base, **UNQUEUED)


def _stored(home: Home, base: str | None) -> list[str]:
    options = base_options(home, absolute_base(base or ""))
    return [options.prediction, options.vae]


def _save(home: Home, base: str | None, prediction: str, vae: str) -> None:
    with show_errors():
        if not base:
            raise ValueError(words.NO_BASE)
        options = BaseOptions(prediction, absolute_base(vae.strip()))
        info = save_base_options(home, absolute_base(base), options)
    inform(words.options_saved(info.title, info.prediction_type))
