"""The prompts that were drawn last: newest first, each once, for the home's owner alone."""

from __future__ import annotations

from pathlib import Path

from atelier.app.services.prompts.history import MAX_PROMPTS, forget_prompts, recent_prompts, remember_prompt
from atelier.app.store.home import open_home


def test_the_newest_prompts_are_remembered_once_each(own_home: Path) -> None:
    home = open_home(own_home)
    assert recent_prompts(home) == []
    for prompt in ("a fox", " an owl ", "a fox", "", "  "):
        remember_prompt(home, prompt)
    assert recent_prompts(home) == ["a fox", "an owl"]
    for number in range(MAX_PROMPTS):
        remember_prompt(home, f"number {number}")
    assert len(recent_prompts(home)) == MAX_PROMPTS and "a fox" not in recent_prompts(home)
    forget_prompts(home)
    assert recent_prompts(home) == []


def test_a_damaged_file_forgets(own_home: Path) -> None:
    home = open_home(own_home)
    for content in ('{"a": 1}', "[1, null]", "nonsense"):
        (home.state / "recent_prompts.json").write_text(content)
        assert recent_prompts(home) == []
    remember_prompt(home, "a fox")
    assert recent_prompts(home) == ["a fox"]
