"""Mix Lab: a content, a style, and a pad on which both strengths move at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import gradio as gr

from atelier.adapters.core.settings import SettingError
from atelier.adapters.fusion.batched_strengths import UNTRAINED_METHODS
from atelier.app.services.combine_two import BEST_METHOD, STYLE_STRENGTHS, CombineJob, caption_for_both, combine
from atelier.app.services.draw import with_sampler
from atelier.app.services.engine import Engine
from atelier.app.store.home import Home, new_name
from atelier.app.store.library import AdapterCard, find_adapter, list_adapters
from atelier.app.text import mix as words
from atelier.app.text import shared
from atelier.app.web.components.page_frame import UNQUEUED, heading, mix_tabs, show_errors
from atelier.app.web.components.panel import action_of, panel
from atelier.app.web.components.urls import page_url
from atelier.training.base_models.identify import identify
from atelier.training.config.train_config import EMBEDDED
from atelier.training.runs.save_adapter import thumbnail
from atelier.training.sampling.sample import DrawRequest

MAX_STRENGTH, PAD_STEPS = 2.0, 8   # the pad's strengths
DRAW_STEPS = 8           # denoising steps of the grid's pictures: enough to judge a mix by
GRID_FRACTIONS = (0.0, 0.5, 1.0)
START_STRENGTHS = (1.0, STYLE_STRENGTHS[BEST_METHOD])   # content and style strength
_NO_PROGRESS: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


class Choice(NamedTuple):
    """What is chosen on the page."""

    content: str | None
    style: str | None
    method: str
    strengths: tuple[float, float]   # content and style strength


def build(demo: gr.Blocks, home: Home, engine: Engine) -> None:
    """Place the Mix Lab page for one content and one style; ``engine`` draws the grid."""
    heading(words.TITLE, words.LEAD)
    mix_tabs("mix")
    with gr.Row(elem_classes="layout layout-studio"):
        with gr.Column(scale=5, elem_classes="surface"):
            content = gr.Dropdown([], label=words.CONTENT, elem_id="mix-content", interactive=True)
            style = gr.Dropdown([], label=words.STYLE, elem_id="mix-style", interactive=True)
            method = gr.Dropdown([(words.METHODS[name], name) for name in UNTRAINED_METHODS], value=BEST_METHOD,
                                 label=words.METHOD, info=words.BEST_METHOD, elem_id="mix-method",
                                 interactive=True)   # fmt: skip
            prompt = gr.Textbox(label=shared.PROMPT, placeholder=shared.PROMPT_HINT, max_length=1000, elem_id="prompt")
            seed = gr.Number(0, label=shared.SEED, precision=0, minimum=0, maximum=2**31 - 1, elem_id="mix-seed")
            pad = panel("strength-pad", _pad(*START_STRENGTHS))
            strengths = gr.State(START_STRENGTHS)
        with gr.Column(scale=7, elem_classes="output"):
            grid = panel("strength-grid", {"cells": []})
            name = gr.Textbox(label=words.NAME, max_length=100, elem_id="mix-name")
            save = gr.Button(words.SAVE, variant="primary", elem_id="mix-save")
            message = panel("mix-message", {})

    events = _Events(home, engine)
    choice = [content, style, method, strengths]
    inputs = [*choice, prompt, seed]
    latest: dict[str, Any] = {"trigger_mode": "always_last", **_NO_PROGRESS}
    demo.load(events.on_load, None, [content, style], **UNQUEUED)
    both = gr.on([content.change, style.change], events.suggest, [content, style], prompt, **UNQUEUED)
    both.then(events.show, inputs, grid, **latest)
    gr.on([method.input, prompt.submit, seed.change], events.show, inputs, grid, **latest)
    pad.action(_move, None, [strengths, pad], **UNQUEUED).then(events.show, inputs, grid, **latest)
    save.click(events.save_mix, [*choice, name], message, **_NO_PROGRESS)


@dataclass(frozen=True, slots=True)
class _Events:
    """Event handlers of the page; ``values`` begin with those of the controls that make a :class:`Choice`."""

    home: Home
    engine: Engine

    def on_load(self, request: gr.Request) -> list[Any]:
        """List the adapters, those in the page's address chosen."""
        return _on_load(self.home, dict(request.query_params))

    def show(self, *values: Any) -> dict[str, Any]:
        """Draw the grid around the present strengths."""
        *chosen, prompt, seed = values
        with show_errors():
            return _grid(self.home, self.engine, Choice(*chosen), prompt, seed)

    def save_mix(self, *values: Any) -> dict[str, Any]:
        """Save the present choice under a name."""
        *chosen, name = values
        with show_errors():
            return _save(self.home, Choice(*chosen), name)

    def suggest(self, *names: str | None) -> Any:
        """A prompt with the trigger words of both adapters."""
        return _suggest_prompt(self.home, *names)


def _move(event: gr.EventData) -> list[Any]:
    """Set both strengths to the pressed place of the pad."""
    place = strengths_at(action_of(event)[1])
    return [place, _pad(*place)]


def strengths_at(text: str) -> tuple[float, float]:
    """Content and style strength from a pad cell's id, which may be anything: it comes from a browser."""
    try:
        content, style = (min(MAX_STRENGTH, max(0.0, float(part))) for part in text.split(","))
    except ValueError:
        return START_STRENGTHS
    return (content, style) if content == content and style == style else START_STRENGTHS


def cells_at(content: float, style: float) -> list[tuple[float, float]]:
    """Strengths of the grid's pictures, row by row; its corners are neither, content alone, style alone, and both."""
    return [(content * across, style * down) for down in GRID_FRACTIONS for across in GRID_FRACTIONS]


def _on_load(home: Home, query: dict[str, str]) -> list[Any]:
    names = [card.name for card in list_adapters(home)]
    chosen = [query[key] if query.get(key) in names else None for key in ("content", "style")]
    return [gr.Dropdown(choices=names, value=one) for one in chosen]


def _suggest_prompt(home: Home, content: str | None = None, style: str | None = None) -> Any:
    """A prompt with the trigger words of both."""
    if not content or not style:
        return gr.skip()
    with show_errors():
        return _prompt(find_adapter(home, content), find_adapter(home, style))


def _prompt(content: AdapterCard, style: AdapterCard) -> str:
    caption = caption_for_both(identify(content.base or EMBEDDED), style.trigger)
    return caption.replace("{trigger}", content.trigger).replace("{subject}", content.subject)


def _pad(content: float, style: float) -> dict[str, Any]:
    steps = [MAX_STRENGTH * i / PAD_STEPS for i in range(PAD_STEPS + 1)]
    return {
        "rows": [{"cells": [_pad_cell(across, down, (across, down) == (content, style)) for across in steps]}
                 for down in reversed(steps)],
        "label": words.strengths(content, style),
    }   # fmt: skip


def _pad_cell(content: float, style: float, pressed: bool) -> dict[str, str]:
    return {"id": f"{content:g},{style:g}", "label": words.strengths(content, style), "pressed": str(pressed).lower()}


def _grid(home: Home, engine: Engine, choice: Choice, prompt: str, seed: float | None) -> dict[str, Any]:
    """Nine pictures from one seed, at the pad's strengths and at half and none of them."""
    if not choice.content or not choice.style or not prompt.strip():
        return {"cells": []}
    cards = [find_adapter(home, name) for name in (choice.content, choice.style)]
    cells = cells_at(*choice.strengths)
    request = DrawRequest(prompt=prompt, seed=int(seed or 0), count=len(cells), steps=DRAW_STEPS)
    request, _ = with_sampler(request, list(zip(cards, choice.strengths, strict=True)))
    paths = (cards[0].path, cards[1].path)
    pictures = engine.draw_grid(cards[0].base or EMBEDDED, paths, choice.method, cells, request)
    shown = zip(pictures, cells, strict=True)
    return {"cells": [{"src": thumbnail(picture), "label": words.strengths(*cell)} for picture, cell in shown]}


def _save(home: Home, choice: Choice, name: str) -> dict[str, Any]:
    """Make the adapter at the pad's strengths, without training."""
    if not choice.content or not choice.style:
        raise SettingError(words.CHOOSE_TWO)
    content, style = (find_adapter(home, one) for one in (choice.content, choice.style))
    job = CombineJob(name=new_name(home, name), content=content, style=style, method=choice.method, steps=0,
                     strengths=choice.strengths)   # fmt: skip
    *_, card = combine(home, job)
    assert isinstance(card, AdapterCard)
    return {"name": card.name, "href": page_url("library", adapter=card.name)}
