"""What stands around the Studio's prompt: how long it is, what its choices come to, and the prompts drawn last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from atelier.app.services.prompts.history import forget_prompts, recent_prompts, remember_prompt
from atelier.app.services.prompts.token_count import count_prompt_tokens
from atelier.app.services.prompts.wildcards import has_wildcards, resolve_wildcards
from atelier.app.store.home import Home, HomeError
from atelier.app.text import shared
from atelier.app.text import studio as words
from atelier.app.web.components.page_frame import UNQUEUED, show_errors
from atelier.app.web.components.panel import action_of, panel
from atelier.training.config.train_config import EMBEDDED
from atelier.training.sampling.prompt_encoding import PLAIN
from atelier.training.sampling.prompt_syntax import split_adapters

MAX_LENGTH = 5000   # characters of a prompt


@dataclass(frozen=True, slots=True)
class PromptField:
    """The prompt and the panels below it."""

    home: Home
    prompt: gr.Textbox
    status: Any
    recent: Any

    def listen(self, base: Any, seed: Any, syntax: Any) -> None:
        """Follow what is typed, and offer the prompts drawn last."""
        typed = [self.prompt, base, seed, syntax]
        gr.on([self.prompt.change, base.change, seed.change, syntax.change], self._status, typed, self.status,
              trigger_mode="always_last", **UNQUEUED)   # fmt: skip
        self.recent.action(self._act, None, [self.prompt, self.recent], **UNQUEUED)

    def remember(self, prompt: str) -> dict[str, Any]:
        """Note a prompt that is being drawn; returns the panel's value."""
        with show_errors():
            remember_prompt(self.home, prompt or "")
        return self.offer()

    def offer(self) -> dict[str, Any]:
        """The panel's value: the prompts drawn last."""
        return {"prompts": [{"id": str(number), "text": text} for number, text in enumerate(recent_prompts(self.home))]}

    def _act(self, event: gr.EventData) -> list[Any]:
        action, id = action_of(event)
        known = recent_prompts(self.home)
        if action == "forget":
            with show_errors():
                forget_prompts(self.home)
            return [gr.skip(), self.offer()]
        return [known[int(id)] if id.isdecimal() and int(id) < len(known) else gr.skip(), gr.skip()]

    def _status(self, prompt: str, base: str, seed: float | None, syntax: str) -> dict[str, str]:
        return prompt_status(self.home, prompt or "", base or EMBEDDED, int(seed or 0), syntax or "")


def place_prompt(home: Home) -> PromptField:
    """Place the prompt with what is said below it."""
    prompt = gr.Textbox(label=shared.PROMPT, placeholder=shared.PROMPT_HINT, max_lines=8, max_length=MAX_LENGTH,
                        elem_id="prompt")   # fmt: skip
    status = panel("prompt-status", {})
    with gr.Accordion(words.RECENT_PROMPTS, open=False, elem_id="recent"):
        gr.Markdown(words.PROMPT_HELP, elem_classes="hint")
        recent = panel("recent-prompts", {"prompts": []})
    return PromptField(home, prompt, status, recent)


def prompt_status(home: Home, prompt: str, base: str, seed: int, syntax: str) -> dict[str, str]:
    """The panel's value: the length in tokens, and for a prompt with choices what they come to with this seed."""
    if not prompt.strip():
        return {}
    try:
        chosen = prompt if syntax == PLAIN else resolve_wildcards(home, prompt, seed)
        count = count_prompt_tokens(home, base, chosen, syntax)
    except HomeError as error:
        return {"problem": str(error)}
    length = words.token_count(count.tokens, count.chunk_tokens, count.chunk_ends, count.is_cut) if count else ""
    chosen, _ = split_adapters(chosen)
    return {"length": length, "chosen": chosen if syntax != PLAIN and has_wildcards(prompt) else ""}
