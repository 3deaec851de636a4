"""``atelier make``: from a content and a style that were taught apart to one file that every tool opens."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from atelier.adapters.attach.mount import find_target_modules, mount
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.native import load_adapter, read_header
from atelier.adapters.fusion.break_for_make_halves import basis_hash, combine_halves, scale_halves
from atelier.app.cli.main import main
from atelier.app.services.draw import suggested_prompt
from atelier.app.store.home import Home, open_home
from atelier.app.store.library import find_adapter
from atelier.training.base_models.base_model import load
from atelier.training.recipes import companions
from atelier.training.runs import save_adapter as keep

DATA = Path(__file__).resolve().parents[2] / "data"
SMALL = ["--set", "prior_count=0", "batch=1", "validate_every=0", "preview_every=0", "checkpoint_every=0",
         "precision=fp32", "targets=attention", "keep_best=false"]   # fmt: skip


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def teach(home: Path, name: str, pictures: Path, *more: object) -> None:
    assert run("train", pictures, "--name", name, "--home", home, "--steps", 2, "--kind", "split", *more, *SMALL) == 0


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a fox and a style, as halves that fit together."""
    home = tmp_path_factory.mktemp("lessons")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(companions, "PRIOR_STEPS", 1)
        teach(home, "rex", DATA / "held_out" / "fox", "--subject", "fox", "--role", "content")
        teach(home, "ink", DATA / "truth" / "pencil", "--subject", "emoji", "--role", "style")
    return home


@pytest.fixture
def taught(lessons: Path, own_home: Path) -> Home:
    shutil.copytree(lessons, own_home)
    return open_home(own_home)


def test_a_content_and_a_style_become_one_file(taught: Home, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    rex, ink = (load_adapter(find_adapter(taught, name).path) for name in ("rex", "ink"))
    assert read_header(find_adapter(taught, "rex").path).metadata["atelier.basis"] == basis_hash(rex) == basis_hash(ink)
    capsys.readouterr()
    assert run("make", "rex", "ink", "--name", "both", "--method", "break-for-make", "--steps", 0,
               "--style-strength", 0.5, "--json") == 0   # fmt: skip
    answer = json.loads(capsys.readouterr().out)
    card = find_adapter(taught, "both")
    assert answer == {"name": "both", "path": str(card.path), "trigger": "rex"}
    assert (card.subject, card.pictures, card.kind, card.base) == ("fox", 4 + 16, "split", "embedded")
    assert card.thumbnail
    assert suggested_prompt(card) == "an ink emoji of a rex fox"
    both = load_adapter(card.path)
    expected = scale_halves(combine_halves(rex, ink), content=1, style=0.5).tensors()
    assert all(torch.equal(value, expected[key]) for key, value in both.tensors().items())

    assert run("export", "both", "--to", "diffusers", "--out", tmp_path / "both.safetensors") == 0
    model = load("embedded", "cpu")
    inputs = torch.randn(1, 8, 16, 16), torch.tensor([500]), torch.randn(1, 24, 192)
    with torch.no_grad():
        before = model.unet(*inputs).sample
        with mount(model.models(), Mix(((both, 1.0),))):
            ours = model.unet(*inputs).sample
        model.pipeline.load_lora_weights(tmp_path, weight_name="both.safetensors")
        theirs = model.unet(*inputs).sample
    assert (ours - before).abs().max() > 1e-3
    assert (ours - theirs).abs().max() <= 1e-4


@pytest.mark.parametrize("method", ["break-for-make", "zip"])
def test_methods_that_learn_find_the_pictures_again(taught: Home, method: str):
    assert run("make", "rex", "ink", "--name", "both", "--method", method, "--steps", 2) == 0
    assert find_adapter(taught, "both").kind == ("split" if method == "break-for-make" else "lora")


@pytest.mark.parametrize("method", ["sum", "np", "k"])
def test_methods_that_compute_need_no_pictures(taught: Home, method: str, monkeypatch: pytest.MonkeyPatch):
    shutil.rmtree(taught.runs)
    monkeypatch.setattr(keep, "draw_preview", lambda *_: Image.new("RGB", (8, 8)))
    assert run("make", "rex", "ink", "--name", "both", "--method", method, "--content-strength", 0.5) == 0
    card = find_adapter(taught, "both")
    assert card.kind == "lora"
    assert read_header(card.path).metadata["atelier.method"] == method


def test_unless_somebody_says_otherwise_it_is_the_sum_with_less_style(taught: Home, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(keep, "draw_preview", lambda *_: Image.new("RGB", (8, 8)))
    assert run("make", "rex", "ink", "--name", "both") == 0
    rex, ink, both = (load_adapter(find_adapter(taught, name).path) for name in ("rex", "ink", "both"))
    models = load("embedded", "cpu").models()
    for name, module in find_target_modules(models, both).items():
        assert isinstance(module.weight, torch.Tensor)
        parts = [one[name].delta(module.weight) for one in (rex, ink)]
        torch.testing.assert_close(both[name].delta(module.weight), parts[0] + 0.75 * parts[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("line", "says"), [
    ("rex ink --name both --method break-for-make", "break-for-make needs the pictures that rex was.*--steps 0"),
    ("rex ink --name both --method zip", "zip needs the pictures.*np or sum"),
    ("ink rex --name both --method break-for-make --steps 0", "given as content was trained as style"),
    ("rex ink --name rex --steps 0", "The name 'rex' is already used"),
    ("rexx ink --name both", "Did you mean 'rex'"),
])   # fmt: skip
def test_what_can_not_be_made_is_said(taught: Home, capsys: pytest.CaptureFixture[str], line: str, says: str):
    shutil.rmtree(taught.runs)
    capsys.readouterr()
    assert run("make", *line.split()) == 1
    assert re.search(says, capsys.readouterr().err)


def test_adapters_of_two_bases_do_not_mix(taught: Home, capsys: pytest.CaptureFixture[str]):
    path = find_adapter(taught, "ink").path
    path.write_bytes(path.read_bytes().replace(b'"atelier.family":"embedded"', b'"atelier.family":"sdxlxlxl"'))
    assert run("make", "rex", "ink", "--name", "both", "--method", "sum") == 1
    assert "for the same base model" in capsys.readouterr().err
