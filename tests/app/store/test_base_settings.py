"""What is set for single base models holds for trainings, drawings and their recipes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from atelier.app.cli.arguments import build_parser
from atelier.app.cli.train import make_config
from atelier.app.services.draw import DrawJob, check_job, with_sampler
from atelier.app.services.draw_again import job_from_picture
from atelier.app.store.base_settings import base_options, save_base_options, with_base_settings
from atelier.app.store.gallery import save_picture
from atelier.app.store.home import Home, open_home
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.distilled import FewSteps
from atelier.training.base_models.identify import EMBEDDED_FOLDER, identify
from atelier.training.config.base_options import PLAIN_BASE, BaseOptions
from atelier.training.config.compress_config import CompressConfig
from atelier.training.config.train_config import TrainConfig
from atelier.training.sampling.sample import DrawRequest

VAE = str(EMBEDDED_FOLDER / "vae")
EPSILON = BaseOptions("epsilon", VAE)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return open_home(tmp_path / "home")


def test_options_are_kept_and_damage_is_no_obstacle(home: Home):
    assert base_options(home, "embedded") == PLAIN_BASE
    assert save_base_options(home, "embedded", EPSILON).prediction_type == "epsilon"
    assert base_options(home, "embedded") == EPSILON
    assert base_options(home, "another") == PLAIN_BASE
    save_base_options(home, "embedded", PLAIN_BASE)
    assert json.loads(home.base_settings.read_text()) == {}
    for damage in ("", "[1]", '{"embedded": 3}', '{"embedded": {"prediction": "wild", "vae": 7}}'):
        home.base_settings.write_text(damage)
        assert base_options(home, "embedded") == PLAIN_BASE


def test_a_vae_that_does_not_fit_is_not_saved(home: Home):
    with pytest.raises(BaseError):
        save_base_options(home, "embedded", BaseOptions(vae=str(EMBEDDED_FOLDER / "unet")))
    assert base_options(home, "embedded") == PLAIN_BASE


def config(home: Home, line: str = "") -> TrainConfig:
    return make_config("rex", build_parser().parse_args(["train", "p", "--name", "rex", *line.split()]), home)


def test_a_training_takes_what_was_typed_then_what_was_set(home: Home):
    assert config(home).base_options == PLAIN_BASE
    save_base_options(home, "embedded", EPSILON)
    assert config(home).base_options == EPSILON
    assert config(home, "--prediction sample").base_options == BaseOptions("sample", VAE)
    assert config(home, "--set prediction=v_prediction").prediction == "v_prediction"
    assert with_base_settings(home, TrainConfig(prediction="sample")).base_options == BaseOptions("sample", VAE)
    again = TrainConfig.from_toml(config(home).to_toml())
    assert again.base_options == EPSILON   # the recipe holds them
    assert identify(again.base, again.base_options).prediction_type == "epsilon"
    assert CompressConfig.from_dict({"prediction": "epsilon", "vae": VAE}).base_options == EPSILON


def test_a_drawing_and_its_recipe_hold_the_options(home: Home):
    save_base_options(home, "embedded", EPSILON)
    checked = check_job(home, DrawJob(request=DrawRequest(prompt="a fox"), options=BaseOptions("sample")))
    assert checked.job.options == BaseOptions("sample", VAE)
    recipe = checked.recipe(0)
    assert (recipe["prediction"], recipe["vae"]) == ("sample", VAE)
    picture = save_picture(home, Image.new("RGB", (64, 64)), recipe)
    job, _ = job_from_picture(home, picture.stem)
    assert job.options == BaseOptions("sample", VAE)
    plain = check_job(open_home(home.path / "other"), DrawJob(request=DrawRequest(prompt="a fox"))).recipe(0)
    assert "prediction" not in plain and "vae" not in plain   # as recipes always were


def test_a_distilled_base_model_brings_its_steps():
    few = FewSteps("Turbo", 4, 1.0, "euler a", "trailing")
    info = replace(identify("embedded"), few_steps=few, title="sdxl-turbo")
    decided, notice = with_sampler(DrawRequest(), [], info)
    assert (decided.steps, decided.guidance, decided.sampler, decided.schedule) == (4, 1.0, "euler a", "trailing")
    assert "sdxl-turbo" in notice and "4 steps" in notice
    chosen = DrawRequest(steps=2, guidance=2.0, schedule="leading")   # what a person chose stays
    decided, _ = with_sampler(chosen, [], info)
    assert (decided.steps, decided.guidance, decided.sampler, decided.schedule) == (2, 2.0, "euler a", "leading")
    explicit = DrawRequest(sampler="ddim", steps=20)
    assert with_sampler(explicit, [], info) == (explicit, "")
    assert with_sampler(DrawRequest(), [], identify("embedded"))[0] == DrawRequest().with_sampler()
    assert any("Turbo" in warning for warning in info.warnings)
