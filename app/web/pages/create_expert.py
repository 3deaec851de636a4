"""The Expert settings on the Create page: all settings in groups, what differs from the preset, recipes in and out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from atelier.adapters.kinds.catalog import KINDS
from atelier.app.services.create.expert_settings import form_values, read_recipe_file, recipe_changes
from atelier.app.store.drafts.create_draft import edit_draft, load_draft
from atelier.app.store.home import Home
from atelier.app.text import create as words
from atelier.app.web.components.page_frame import UNQUEUED, press_when_shown, show_errors
from atelier.app.web.components.panel import action_of, panel
from atelier.app.web.components.settings_form import controls
from atelier.app.web.components.uploads import offer, uploaded
from atelier.training.config.train_config import TrainConfig

ASKED_ABOVE = ("name", "pictures", "subject")   # asked for above the Expert settings
NOT_IN_RECIPES = ("name", "pictures", "weights")   # they belong to one set of pictures
GROUPS = {
    "captions": ("trigger", "caption", "trigger_first", "caption_chunks", "clip_skip", "weights"),
    "base": ("base", "prediction", "vae"),
    "adapter": ("kind", "targets", "train_text_encoder", "continue_from"),
    "training": ("steps", "batch", "accumulate", "resolution", "seed"),
    "optimizer": ("optimizer", "lr", "lr_schedule", "warmup", "weight_decay", "clip", "up_speed", "whole_gradient",
                  "ema"),
    "loss": ("min_snr_gamma", "noise_offset", "prior_weight", "prior_count"),
    "checks": ("validate_every", "stop_when", "keep_best", "preview_every", "preview_prompts", "preview_seeds",
               "preview_adapters", "snapshots", "checkpoint_every"),
    "memory": ("precision", "base_in_8_bits", "gradient_checkpointing", "record", "compile"),
}   # fmt: skip


class RecipeParts(NamedTuple):
    """What exports and imports a recipe."""

    export: gr.Button
    file: gr.DownloadButton
    take: gr.UploadButton


def place_expert(bases: Sequence[tuple[str, str]] = ()) -> tuple[Any, dict[str, Any], RecipeParts]:
    """Controls for all settings: the run's own by name, those of an adapter kind as ``kind.name``."""
    tools = panel("expert-tools", words.changed_settings({}))
    found: dict[str, Any] = {}
    for key, names in GROUPS.items():
        with gr.Column(elem_classes="setting-group"):
            panel("heading-small", {"title": words.EXPERT_GROUPS[key], "hint": ""}, elem_id=f"group-{key}")
            with gr.Row(elem_classes="settings"):
                found |= controls(TrainConfig, only=names, suggestions={"base": bases})
            if key == "adapter":
                found |= _kind_options(found["kind"])
    with gr.Row(elem_classes="actions"):
        export = gr.Button(words.EXPORT_RECIPE, elem_id="export-recipe", size="sm")
        file = gr.DownloadButton(words.EXPORT_RECIPE, visible=False, elem_id="recipe-file", size="sm")
        take = gr.UploadButton(words.IMPORT_RECIPE, file_types=[".toml"], elem_id="import-recipe", size="sm")
    return tools, found, RecipeParts(export, file, take)


def _kind_options(chosen: Any) -> dict[str, Any]:
    """The options of every adapter kind; those of the chosen one are shown."""
    groups, found = {}, dict[str, Any]()
    for name, kind in KINDS.items():
        with gr.Row(elem_classes="settings", visible=name == "lora") as groups[name]:
            options = controls(kind.settings, prefix=f"set-{name}")
            found |= {f"{name}.{key}": control for key, control in options.items()}
    chosen.change(lambda kind: [gr.Row(visible=name == kind) for name in groups], chosen, list(groups.values()),
                  **UNQUEUED)   # fmt: skip
    return found


def connect_recipes(
    home: Home, keys: Sequence[str], parts: RecipeParts, form: Sequence[Any], preset: gr.Radio,
    settings: Callable[..., dict[str, Any]],
) -> None:   # fmt: skip
    """Connect [Reset], and the two buttons for recipes.

    Args:
        home: has the draft.
        keys: names of the controls.
        parts: the buttons.
        form: what is filled in when settings change: the panel that says what differs from the preset, what the
            controls are filled from, and the controls.
        preset: the chosen one.
        settings: those of a run, from the preset and the values of ``form``.
    """
    def export(*values: Any) -> gr.DownloadButton:
        """Write the settings on the page as a file."""
        with show_errors():
            text = TrainConfig.from_dict(settings(*values)).to_toml(without=NOT_IN_RECIPES)
            file = home.state / "recipe.toml"
            file.write_text(text, encoding="utf-8")
        return gr.DownloadButton(value=offer(file), visible=True)

    def reset(event: gr.EventData) -> list[Any]:
        """Back to the preset."""
        if action_of(event)[0] != "reset":
            return [gr.skip()] * (len(keys) + 2)
        return form_values(keys, edit_draft(home, changes={}))

    tools, *filled = form
    parts.export.click(export, [preset, *filled], parts.file, **UNQUEUED).success(
        None, None, None, js=press_when_shown("recipe-file"))
    parts.take.upload(partial(_import, home, keys), parts.take, list(form), **UNQUEUED)
    tools.action(reset, None, list(form), **UNQUEUED)


def _import(home: Home, keys: Sequence[str], path: str) -> list[Any]:
    """Take the settings of a file that was exported here, by the command line or from a run."""
    with show_errors():
        return take_recipe(home, keys, read_recipe_file(uploaded(path)))


def take_recipe(home: Home, keys: Sequence[str], text: str) -> list[Any]:
    """Let the draft have the settings of a recipe; returns what the form shows then.

    Raises:
        SettingError, BaseError: it can't be used.
    """
    changes = recipe_changes(text, keys, load_draft(home), leave_out=(*NOT_IN_RECIPES, *ASKED_ABOVE, "trigger"))
    return form_values(keys, edit_draft(home, changes=changes))
