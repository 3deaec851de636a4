"""Compressing from the outside: the plan, what becomes of a result, the page and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from atelier.adapters.core.settings import SettingError
from atelier.adapters.quantization.bit_policy import PRESETS
from atelier.app.cli import compress as compress_command
from atelier.app.cli.arguments import build_parser
from atelier.app.cli.compress import run_compress
from atelier.app.jobs.jobs import new_run, run_status
from atelier.app.services.compress import (
    accept,
    discard,
    make_config,
    plan_compression,
    read_report,
    verdict,
)
from atelier.app.store.home import Home, HomeError, open_home
from atelier.app.store.models import base_choices, resolve_base
from atelier.app.text import compress as compress_words
from atelier.app.text import jobs as jobs_words
from atelier.app.text import shared
from atelier.app.web.components.page_frame import job_bar, run_url
from atelier.app.web.pages import compress as page
from atelier.app.web.pages import jobs as jobs_page
from atelier.training.base_models.identify import EMBEDDED_FOLDER
from atelier.training.config.compress_config import CompressConfig
from atelier.training.config.events import Failed, Finished, Preparing, Stepped, Validated
from atelier.training.config.run_folder import RunFolder

REPORT = {
    "preset": "w4a8", "steps": 4, "bytes_before": 22_000_000, "bytes_after": 6_400_000, "seconds_before": 2.0,
    "seconds_after": 1.5, "whole_numbers": [81, 123], "device": "cpu", "layers": 123,
    "pairs": [{"prompt": "a hat", "seed": 1, "before": "pairs/0-before.png", "after": "pairs/0-after.png",
               "psnr": 30.0}],
    "by_layer": [["mid.ff.net.2", 0.2], ["conv1", 0.1]],
    "by_timestep": {"before": [[999, 0.02], [499, 0.04]], "after": [[999, 0.01], [499, 0.02]]},
}   # fmt: skip


@pytest.fixture
def home(own_home: Path) -> Home:
    return open_home(own_home)


def working(home: Home, name: str = "small", **values: Any) -> RunFolder:
    """A compression in its second trajectory."""
    run = new_run(home, CompressConfig(name=name, steps=4, timesteps=2, **values), started=True)
    run.append(Preparing("Loading the base model"))
    run.append(Validated(0, 0.5, True))
    for step, loss in enumerate((0.1, 0.4, 0.2), start=1):
        run.append(Stepped(step, 4, loss, 0.0, 1e-3, 2.0))
    return run


def finished(home: Home, name: str = "small") -> RunFolder:
    run = working(home, name)
    result = run.path / "compressed"
    result.mkdir()
    for path in EMBEDDED_FOLDER.iterdir():   # anything that is a base model
        (result / path.name).symlink_to(path)
    (run.path / "report.json").write_text(json.dumps(REPORT))
    (run.path / "pairs").mkdir()
    for pair in REPORT["pairs"]:
        for key in ("before", "after"):
            Image.new("RGB", (8, 8)).save(run.path / pair[key])
    run.append(Finished(4, str(result), 9.0))
    (run.path / "heartbeat").unlink()
    return run


def test_the_plan_weighs_before_anything_is_done(home: Home):
    plans = {preset: plan_compression(home, CompressConfig(preset=preset)) for preset in PRESETS}
    weights = (EMBEDDED_FOLDER / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    for plan in plans.values():
        assert plan.before == pytest.approx(weights, rel=0.01)   # the shipped file is float16
        assert plan.after < 0.6 * plan.before
    assert plans["w2a8"].after < plans["w4a8"].after < plans["w8a8"].after
    assert plans["w4a8"].memory > plan_compression(home, CompressConfig(steps=0)).memory


def test_the_time_is_that_of_earlier_steps_here(home: Home):
    assert plan_compression(home, CompressConfig()).seconds is None
    working(home)
    assert plan_compression(home, CompressConfig(steps=400)).seconds == pytest.approx(400 * 2.0 * 1.5)


def test_a_kept_result_is_a_base_model_like_any_other(home: Home):
    run = finished(home)
    path = accept(home, run.id)
    assert path == home.bases / "small"
    assert verdict(run) == "kept"
    assert resolve_base(home, "small") == str(path)
    assert resolve_base(home, "embedded") == "embedded"
    assert str(path) in [base for _, base in base_choices(home)]
    with pytest.raises(HomeError, match="no result to keep"):
        accept(home, run.id)
    with pytest.raises(HomeError, match="is already used"):
        make_config(home, "Small", "embedded", [], "w4a8")


def test_a_discarded_result_is_gone_and_its_report_stays(home: Home):
    run = finished(home)
    discard(home, run.id)
    assert not (run.path / "compressed").exists()
    assert EMBEDDED_FOLDER.exists()
    assert (verdict(run), list(home.bases.iterdir())) == ("discarded", [])
    assert read_report(run)["preset"] == "w4a8"
    with pytest.raises(HomeError, match="no result to keep"):
        discard(home, run.id)


def test_a_name_that_was_taken_meanwhile_loses_nothing(home: Home):
    run = finished(home)
    (home.bases / "small").mkdir()
    with pytest.raises(HomeError, match="small-2"):
        accept(home, run.id)
    assert (run.path / "compressed").is_dir()


def test_the_page_while_it_learns(home: Home):
    run = working(home)
    *_, live, version = page._show(home, run.id, "")
    assert (live["step"], live["of"], live["percent"], live["pause"], live["can_decide"]) == (3, 4, 75, True, False)
    assert live["latest"]["first"].startswith("M0.0")
    assert live["report"] == {}
    again = page._show(home, run.id, version)
    assert again[3]["step"] == 3   # goes on being drawn
    assert job_bar(home)["href"] == run_url(run_status(home, run.id)) == f"/compress?run={run.id}"
    assert jobs_page._show(home, run.id, "")[3]["message"] == jobs_words.SEE_COMPRESS


def test_the_page_when_it_is_done(home: Home):
    run = finished(home)
    *_, live, version = page._show(home, run.id, "")
    assert (live["can_decide"], live["decision"], live["message"]) == (True, "", "")
    report = live["report"]
    assert report["size"] == "22 MB → 6.4 MB (29 %)"
    assert "81 of 123 layers" in report["execution"]
    assert [layer["share"] for layer in report["layers"]] == ["100.0", "50.0"]
    assert report["pairs"][0]["before"].startswith("/gradio_api/file=")
    # A pair may be under somebody's finger: what is over is left alone until something changes.
    assert page._show(home, run.id, version)[3] == gr.skip()
    page._on_action(home, run.id, "keep", "")
    after = page._show(home, run.id, version)[3]
    assert (after["can_decide"], after["decision"]) == (False, compress_words.KEPT)
    assert page._row(home, run_status(home, run.id))["picture"].startswith("/gradio_api/file=")


def test_the_page_of_no_job_and_of_a_training(home: Home):
    assert page._show(home, "nothing", "")[3]["name"] == shared.JOB_NOT_FOUND
    assert page._show(home, "", "")[1] == []


def test_the_page_says_what_a_preset_means(home: Home):
    assert compress_words.PRESETS.keys() == compress_words.NOTES.keys() == PRESETS.keys()
    plan = page._plan(home, "embedded", "w4a4", "learn")
    assert "not for speed" in plan["note"]
    assert plan["time"] == compress_words.TIME_UNKNOWN
    assert page._plan(home, "embedded", "w4a4", "quick")["time"] == compress_words.TIME_QUICK


def command(*words: str) -> Any:
    return build_parser().parse_args(["compress", "--name", "small", *words])


def test_the_command_keeps_its_result(home: Home, monkeypatch: pytest.MonkeyPatch):
    asked: list[CompressConfig] = []

    def stand_in(run: RunFolder, _adapters: Path, *, resume: bool) -> Finished | Failed:
        config = run.compression()
        assert config is not None
        assert not resume
        asked.append(config)
        if config.preset == "w2a8":
            return Failed("The disk is full.")
        (run.path / "compressed").mkdir()
        (run.path / "report.json").write_text(json.dumps(REPORT))
        return Finished(4, str(run.path / "compressed"), 1.0)

    monkeypatch.setattr(compress_command, "run_training", stand_in)
    values = run_compress(home, command("--preset", "w4a4", "--steps", "40", "--prompt", "a hat", "--set", "rank=8"))
    assert values["path"] == str(home.bases / "small")
    assert values["bytes"] == 6_400_000
    assert (asked[0].preset, asked[0].steps, asked[0].prompts, asked[0].rank) == ("w4a4", 40, "a hat", 8)
    other = build_parser().parse_args(["compress", "--name", "other", "--preset", "w2a8"])
    assert run_compress(home, other) == {"error": "The disk is full."}


@pytest.mark.parametrize(("given", "said"), [
    (["--set", "preset=w8"], "its own option"), (["--set", "bits=3"], "There is no setting 'bits'"),
    (["--adapter", "nobody"], "nobody"), (["--steps", "-1"], "at least 0|between"),
])   # fmt: skip
def test_what_can_not_be_used_is_said(home: Home, given: list[str], said: str):
    with pytest.raises((SettingError, HomeError), match=said):
        run_compress(home, command(*given))
