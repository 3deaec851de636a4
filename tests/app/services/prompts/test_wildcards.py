"""Choices in prompts: the same seed chooses the same, each picture records its own, and no file leads anywhere else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from atelier.app.services.draw import DrawJob, check_job, draw, draw_preview
from atelier.app.services.draw_again import job_from_recipe
from atelier.app.services.engine import DrawCallbacks, Engine
from atelier.app.services.prompts.wildcards import (
    escape_wildcards,
    has_wildcards,
    list_wildcards,
    resolve_wildcards,
)
from atelier.app.store.gallery import save_picture
from atelier.app.store.home import Home, HomeError, open_home
from atelier.training.sampling.sample import DrawRequest


class FakeEngine:
    """Draws black pictures in two steps and remembers what was asked."""

    def __init__(self) -> None:
        self.requests: list[DrawRequest] = []

    def draw(self, _base: str, _adapters: Any, request: DrawRequest, *_: Any, callbacks: DrawCallbacks, **__: Any):
        self.requests.append(request)
        for step in (1, 2):
            if callbacks.on_step:
                callbacks.on_step(step, 2)
        return [Image.new("RGB", (8, 8)) for _ in range(request.count)]


@pytest.fixture
def home(own_home: Path) -> Home:
    return open_home(own_home)


def write(home: Home, name: str, *lines: str) -> None:
    path = home.wildcards / f"{name}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")


def test_each_seed_chooses_one_and_all_are_chosen(home: Home) -> None:
    write(home, "colour", "# warm", "red", " orange ", "", "deep {blue|green}")
    write(home, "animals/pets", "cat", "dog")
    text = "a __colour__ {big|small|} __animals/pets__"
    found = [resolve_wildcards(home, text, seed) for seed in range(200)]
    assert found == [resolve_wildcards(home, text, seed) for seed in range(200)]
    words = {word for prompt in found for word in prompt.split()}
    assert words == {"a", "red", "orange", "deep", "blue", "green", "big", "small", "cat", "dog"}
    assert list_wildcards(home) == ["animals/pets", "colour"]
    red = sum(" red " in prompt for prompt in found) / 200
    assert 0.2 < red < 0.47, "one of three"


@pytest.mark.parametrize("text", ["a fox", "{word}", "{{word}}", "a_b__", "(red:1.5) [x]", r"C:\path", "", "a | b"])
def test_what_is_no_choice_stays_as_it_is(home: Home, text: str) -> None:
    assert not has_wildcards(text)
    assert resolve_wildcards(home, text, 0) == text == escape_wildcards(text)


@pytest.mark.parametrize("text", ["a {red|blue} fox", "__colour__", r"\{a|b\} {c|d}", "{a|{b|c}}", r"\__a__", "{|}"])
def test_an_escaped_prompt_is_read_as_it_stands(home: Home, text: str) -> None:
    assert not has_wildcards(escape_wildcards(text))
    assert resolve_wildcards(home, escape_wildcards(text), 0) == text


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", ".hidden", "a//b", "..", "a/./b",
                                  "link", "folder/link", "a\0b", "x" * 300, r"..\secret"])  # fmt: skip
def test_no_name_leads_out_of_the_folder(home: Home, name: str) -> None:
    (home.path / "secret.txt").write_text("secret")
    (home.wildcards / "link.txt").symlink_to(home.path / "secret.txt")
    (home.wildcards / "folder").symlink_to(home.path)
    with pytest.raises(HomeError, match="wildcard"):
        resolve_wildcards(home, f"a __{name}__", 0)


@pytest.mark.parametrize(("lines", "why"), [
    (("__a__",), "contain each other"), (("{__a__|__a__}",), "contain each other"),
    (("x __a__",), "contain each other"),
    (("__a__ __a__",), "characters"), (("# nothing",), "has no lines"), (("y" * 30_000,), "characters"),
])  # fmt: skip
def test_choices_without_an_end_are_refused(home: Home, lines: tuple[str, ...], why: str) -> None:
    write(home, "a", *lines)
    with pytest.raises(HomeError, match=why):
        resolve_wildcards(home, "__a__", 0)


def test_files_that_can_not_be_read_are_named(home: Home) -> None:
    (home.wildcards / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    (home.wildcards / "folder.txt").mkdir()
    (home.wildcards / "large.txt").write_bytes(b"x\n" * 1_000_001)
    for name, why in (("bytes", "UTF-8"), ("folder", "no wildcard"), ("large", "2 MB"), ("gone", "There are: bytes")):
        with pytest.raises(HomeError, match=why):
            resolve_wildcards(home, f"__{name}__", 0)


def test_each_picture_of_a_drawing_has_its_own_prompt_and_is_drawn_again_with_it(home: Home) -> None:
    engine, steps = FakeEngine(), list[tuple[int, int]]()
    request = DrawRequest(prompt="a {red|blue|green|pink} fox", negative="{a|b|c|d}", seed=5, count=4)
    job = DrawJob(request=request)
    callbacks = DrawCallbacks(lambda done, of: steps.append((done, of)))
    drawn = list(draw(cast(Engine, engine), check_job(home, job), callbacks))
    recipes = [recipe for _, recipe in drawn]
    assert [(recipe["seed"], recipe["prompt"]) for recipe in recipes] == [
        (seed, resolve_wildcards(home, request.prompt, seed)) for seed in (5, 6, 7, 8)]   # fmt: skip
    assert len({recipe["prompt"] for recipe in recipes}) > 1
    assert {(recipe["prompt_template"], recipe["negative_template"]) for recipe in recipes} == {
        (request.prompt, request.negative)}   # fmt: skip
    assert steps == [(number, 8) for number in range(1, 9)]
    again, _ = job_from_recipe(home, {**recipes[2], "width": 0, "height": 0})
    [(_, recipe)] = draw(cast(Engine, engine), check_job(home, again))
    assert (recipe["prompt"], recipe["negative"]) == (recipes[2]["prompt"], recipes[2]["negative"])
    assert "prompt_template" not in recipe
    draw_preview(home, cast(Engine, engine), job)
    assert engine.requests[-1].prompt == recipes[0]["prompt"], "a preview shows the first picture's choice"


def test_pictures_from_before_there_were_choices_keep_their_prompts(home: Home) -> None:
    recipe = {"prompt": "a {red|blue} __fox__", "negative": "", "seed": 1, "steps": 2, "guidance": 3.0, "width": 64,
              "height": 64, "prompt_syntax": "weights", "base": "embedded", "adapters": []}   # fmt: skip
    save_picture(home, Image.new("RGB", (8, 8)), {**recipe, "family": "x"})
    job, _ = job_from_recipe(home, recipe)
    assert check_job(home, job).job.request.prompt == recipe["prompt"]


def test_a_plain_prompt_has_no_choices(home: Home) -> None:
    request = DrawRequest(prompt="{a|b} __c__", prompt_syntax="plain")
    assert check_job(home, DrawJob(request=request)).job.request.prompt == request.prompt


def test_adapters_can_be_chosen(home: Home) -> None:
    request = DrawRequest(prompt="a fox {<lora:gone:1>|<lora:gone:0.5>}")
    with pytest.raises(HomeError, match=re.escape("no adapter named 'gone'")):
        check_job(home, DrawJob(request=request))
