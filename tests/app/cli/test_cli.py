"""The command line: its contract, its manners, and the whole way from pictures to a file for another tool."""

# pyright: reportOptionalSubscript=false
from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from atelier.adapters.core.family import FAMILIES
from atelier.adapters.kinds.catalog import KINDS
from atelier.app.cli import train as train_command
from atelier.app.cli.arguments import build_parser
from atelier.app.cli.main import main
from atelier.app.cli.train import make_config
from atelier.app.jobs import worker
from atelier.app.jobs.jobs import list_runs, new_run, submit
from atelier.app.store.gallery import gallery_page, read_recipe
from atelier.app.store.home import Home, open_home
from atelier.app.store.library import INDEX
from atelier.app.text.server import STARTING
from atelier.app.web import server
from atelier.app.web.listener import bind
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.identify import identify
from atelier.training.config.events import Failed, Finished, Saved, Stepped
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig, load_preset, preset_names
from atelier.training.sampling.decode import NotFiniteError

# As little work as a whole training can be.
SMALL = ["--set", "prior_count=0", "batch=1", "rank=1", "validate_every=0", "preview_every=0", "precision=fp32"]
COMMANDS = {"models", "serve", "worker", "train", "jobs", "make", "compress", "draw", "grid", "find", "words",
            "list", "show", "delete", "restore", "key",
            "doctor", "import", "inspect", "export", "merge", "resize", "extract", "team", "transfer"}


@pytest.fixture
def home(own_home) -> Home:
    return open_home(own_home)


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        image = Image.new("RGB", (64, 64), (200 - 60 * i, 60 * i, 90))
        ImageDraw.Draw(image).ellipse((8 + 6 * i, 10, 40 + 6 * i, 50), fill="orange", outline="black")
        image.save(folder / f"{i}.png")
    (folder / "notes.md").write_text("no business of ours")
    return folder


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def refused(capsys, *arguments: object) -> str:
    """The one sentence on stderr of a command that fails as it should."""
    assert run(*arguments) == 1
    out, err = capsys.readouterr()
    assert out == (f"{STARTING}\n" if arguments[0] == "serve" else "") and err.startswith("atelier: ")
    return err


def misused(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 2
    return capsys.readouterr().err


# --- the contract

def test_help_lists_every_command_and_loads_nothing_heavy():
    code = ("import sys; from atelier.app.cli.main import main\n"
            "try: main(['--help'])\n"
            "except SystemExit as end:\n"
            "    print(end.code, sorted({'torch', 'gradio', 'huey', 'PIL', 'numpy'} & {*sys.modules}))")
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.endswith("\n0 []\n")
    assert set(re.findall(r"^    ([a-z]+) ", shown, re.M)) == COMMANDS


@pytest.mark.parametrize("line", [
    "serve --home h --host 127.0.0.1 --port 7860", "worker --home h",
    "train pics --name n --preset quick --kind lora --base b --steps 5 --set a=1 b=2 --set c=3 --home h --json",
    "train --name n --trigger zfx --subject fox --resume", "train pics --name n --kind split --role style",
    "train pics --name n --stop-when never", "jobs", "jobs --json", "jobs list --home h", "jobs show n --json",
    "jobs --home h keep n --step 5 --name m", "jobs average n --from 5", "jobs preview n --prompt p",
    "jobs grid n --prompt p --strength 0.5 1 --step 5 10", "jobs sizes n", "jobs leaks n", "jobs sooner n",
    "make c s --name n --method np --steps 5 --content-strength 0.5 --style-strength 1.5 --home h --json",
    "draw p --adapter a=0.5 --adapter b --negative t --seed 1 --count 2 --steps 3 --guidance 4 --size 64x32 --base b "
    "--out o --home h --json",
    "list --json --home h", "show n --json", "show n --intruders",
    "delete n --json", "doctor --json", "import f --name n --home h --json",
    "export n --to kohya --out f --json", "inspect f --json", "merge a b=-1 --name n",
    "transfer a --base b --name n --count 8 --prompt p --prompt q --preset quick --steps 9 --set rank=2",
    "team a b=3 --name n --method svd --rank 8 --values 9000", "resize a --name n --rank 4",
    "export a=0.5 b --to diff --out f --precision fp16 --rank 8 --energy 0.9 --base b --compare",
    "extract b --base c --name n --energy 0.99", "words rex hw --base b --json",
])  # fmt: skip
def test_the_contract_is_understood(line):
    command = line.split()
    assert build_parser().parse_args(command).command == command[0]


def test_values_arrive_as_what_they_mean():
    draw = build_parser().parse_args("draw p --adapter fox=-0.5 --adapter my --size 64X32".split())
    assert draw.adapters == [("fox", -0.5), ("my", 1.0)] and draw.size == (64, 32)
    train = build_parser().parse_args("train p --name n --set a=1 b=x=y --set c=".split())
    assert train.set == [("a", "1"), ("b", "x=y"), ("c", "")] and train.preset == "normal"


@pytest.mark.parametrize(("line", "words"), [
    ("", "COMMAND"), ("fly", "invalid choice"),
    ("draw p --size 64", "such as 512x512"), ("draw p --size 64x-1", "such as 512x512"),
    ("draw p --adapter fox=much", "0 is off, 1 is as trained"), ("draw p --adapter fox=nan", "is not a strength"),
    ("train p --name n --set rank", "KEY=VALUE"), ("train p --name n --steps few", "invalid int"),
    ("train p", "--name"), ("serve --port 99999", "is not a port"), ("export n --to gguf --out f", "invalid choice"),
])  # fmt: skip
def test_wrong_usage_ends_with_two_and_says_what_is_right(capsys, line, words):
    assert words in misused(capsys, *line.split())


def test_windows_is_sent_to_its_linux(capsys, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert "install it inside WSL" in refused(capsys, "list")


def test_a_recipe_is_the_preset_then_the_options_then_what_was_set():
    def config(line: str) -> TrainConfig:
        return make_config("rex", build_parser().parse_args(["train", "p", "--name", "rex", *line.split()]))

    normal, quick = config(""), config("--preset quick")
    assert normal.name == "rex" and normal.base == "embedded" and quick.steps < normal.steps
    chosen = config("--preset quick --steps 7 --trigger zrx --subject dog --set steps=8 rank=3 lr=1e-5 keep_best=no")
    assert (chosen.steps, chosen.trigger, chosen.subject, chosen.adapter["rank"]) == (8, "zrx", "dog", 3)
    assert (chosen.lr, chosen.keep_best) == (1e-5, False)
    assert config("--steps 7").steps == 7


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("family", FAMILIES)
def test_every_preset_makes_a_recipe_for_every_kind(monkeypatch, preset, family):
    monkeypatch.setattr(train_command, "identify", lambda *_: replace(identify("embedded"), family=family))
    for kind in KINDS:
        for chosen in (["--kind", kind], ["--set", f"kind={kind}"]):
            config = make_config("rex", build_parser().parse_args(
                ["train", "p", "--name", "rex", "--preset", preset, *chosen]))   # fmt: skip
            assert config.kind == kind
            assert config.steps == load_preset(preset, family)["steps"]
            assert config.adapter == ({"rank": load_preset(preset, family)["rank"]} if kind == "lora" else {})


def test_a_base_folder_stays_the_same_from_everywhere(tmp_path, monkeypatch):
    (tmp_path / "sd").mkdir()
    monkeypatch.chdir(tmp_path)
    base = build_parser().parse_args(["draw", "p", "--base", "sd"]).base
    assert base == str(tmp_path / "sd")
    assert build_parser().parse_args(["draw", "p", "--base", "owner/model"]).base == "owner/model"
    (tmp_path / "embedded").mkdir()
    assert build_parser().parse_args(["draw", "p", "--base", "embedded"]).base == "embedded"


# --- bad input: one sentence, and nothing is lost

@pytest.mark.parametrize(("line", "words"), [
    ("train {pictures} --name ../x", r"letters, digits"),
    ("train {pictures} --name taken", r"'taken' is already used\. .*'taken-2'"),
    ("train {pictures} --name x --steps 0", r"steps is 0, but it must be between 1"),
    ("train {pictures} --name x --set rnak=8", r"no setting 'rnak'\. Did you mean 'rank'.* batch, .*warmup"),
    ("train {pictures} --name x --set rank=many", r"rank is 'many', but it must be a whole number"),
    ("train {pictures} --name x --kind magic", r"no adapter kind 'magic'"),
    ("train {pictures} --name x --preset huge", r"no preset 'huge'.*normal"),
    ("train {pictures} --name x --base {pictures}", r"not a base model"),
    ("train {pictures} --name x --base {pictures}/none", r"does not exist"),
    ("train {pictures}/none --name x", r"none does not exist, but a folder"),
    ("train {pictures}/0.png --name x", r"0\.png is a file, but a folder"),
    ("train {pictures}/.. --name x", r"picture"),
    ("train --name x", r"No pictures were given"),
    ("train --name x --resume", r"no unfinished run named 'x'"),
    ("draw p --adapter nobody", r"no adapter named 'nobody'"),
    ("draw p --adapter taken", r"'taken' can't be opened"),
    ("draw p --count 0", r"count is 0"),
    ("draw p --steps 0", r"steps is 0"),
    ("draw p --guidance nan", r"guidance is nan"),
    ("draw p --base {pictures}", r"not a base model"),
    ("draw p --size 63x64", r"63×64.*multiples of"),
    ("draw p --out {pictures}/0.png", r"should be a folder"),
    ("show nobody", r"no adapter named"), ("delete nobody", r"no adapter named"),
    ("export nobody --to kohya --out {pictures}/x", r"no adapter named"),
    ("list --home {pictures}/0.png", r"should be a folder.*--home"),
    ("serve --host 203.0.113.1", r"password"),
])  # fmt: skip
def test_a_mistake_gets_one_clear_sentence(capsys, home, pictures, line, words):
    (home.adapters / "taken.safetensors").write_text("hello")
    (home.state / INDEX).touch()   # an index may be made or brought up to date
    before = sorted(path.relative_to(home.path) for path in home.path.rglob("*"))
    message = refused(capsys, *(part.format(pictures=pictures) for part in line.split()))
    assert re.search(words, message, re.S), message
    assert sorted(path.relative_to(home.path) for path in home.path.rglob("*")) == before
    assert len(list(pictures.iterdir())) == 4


def test_a_mistake_of_ours_is_not_hidden(monkeypatch, home):
    monkeypatch.setattr("atelier.app.store.library.list_adapters", lambda home: int("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        run("list")


def test_a_taken_port_is_named(capsys, home):
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert str(port) in refused(capsys, "serve", "--port", port)


def test_the_server_and_the_worker_get_the_home(monkeypatch, own_home):
    seen = []
    monkeypatch.setattr(server, "serve", lambda *given, **_options: seen.append(given))
    monkeypatch.setattr(worker, "run_worker", lambda *given: seen.append(given))
    assert run("serve", "--host", "localhost", "--port", "7777") == run("worker") == 0
    assert seen == [(Home(own_home), "localhost", 7777), (Home(own_home),)]


def test_a_reader_that_leaves_early_is_no_error(home):
    command = f"{sys.executable} -m atelier.app.cli.main list --json | true"
    shown = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert shown.stderr == ""


def test_damaged_files_are_named_and_the_rest_is_listed(capsys, home):
    (home.adapters / "bad.safetensors").write_text("hello")
    assert run("list", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == [] and "skipped: bad.safetensors" in err


def test_the_doctor_knows_the_machine_and_its_troubles(capsys, home, pictures):
    assert run("doctor", "--json") in (0, 1)   # 1 where memory or disk are short
    found = json.loads(capsys.readouterr().out)
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["home"] == str(home.path) and found["worker"] == "not running"
    assert found["device"] in ("cpu", "cuda", "mps") and found["precision"] in ("fp32", "bf16", "fp16")
    assert found["cores"] >= 1 and found["memory_bytes"] >= found["memory_free_bytes"] > 0
    assert run("doctor", "--home", pictures / "0.png") == 1
    assert "! " in (shown := capsys.readouterr().out) and "should be a folder" in shown


def test_a_card_that_is_not_used_is_explained_at_the_start_and_by_the_doctor(capsys, home, monkeypatch):
    problem = "This machine has an NVIDIA card, but the installed PyTorch is a build for CPUs only."
    monkeypatch.setattr("atelier.training.base_models.device.card_problem", lambda: problem)
    monkeypatch.setattr("atelier.app.cli.doctor.card_problem", lambda: problem)
    monkeypatch.setattr(server, "application", lambda *_, **__: None)
    server._load(home, {"host": "127.0.0.1"}, "")
    assert problem in capsys.readouterr().err
    assert run("doctor") == 1
    assert problem in capsys.readouterr().out


@pytest.mark.parametrize("error", [NotFiniteError("The UNet gave values that are not finite."),
                                   BaseError("There is not enough memory for this.")])   # fmt: skip
def test_a_drawing_that_fails_is_a_sentence_and_no_file(capsys, home, tmp_path, monkeypatch, error):
    def fail(*_given: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr("atelier.app.services.engine.Engine.draw", fail)
    assert refused(capsys, "draw", "a fox", "--out", tmp_path / "drawn").startswith("atelier: " + str(error))
    assert run("draw", "a fox") == 1
    assert not list(tmp_path.rglob("*.png")) and not gallery_page(home)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere PyTorch's allocator has no such segments")
def test_free_memory_of_a_card_can_be_used_in_one_piece(home, monkeypatch):
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    assert run("list") == 0
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


# --- resuming

def test_resuming_picks_the_newest_unfinished_run(capsys, home, monkeypatch):
    for last in (Failed("old"), Failed("new"), Finished(1, "x", 1.0)):
        made = new_run(home, TrainConfig(name="rex", steps=2))
        made.append(last)
    old, new, _ = reversed(list_runs(home))
    seen = []
    monkeypatch.setattr("atelier.training.runs.run.run",
                        lambda run, adapters, resume: seen.append((run.id, resume)) or [])
    assert run("train", "--name", "rex", "--resume") == 1
    assert seen == [(new.id, True)] and old.id != new.id
    assert "new\nResume it with: atelier train --name rex --resume" in capsys.readouterr().err


def test_a_run_that_waits_or_works_is_not_resumed(capsys, home):
    submit(home, TrainConfig(name="rex"))
    assert "is already queued" in refused(capsys, "train", "--name", "rex", "--resume")
    new_run(home, TrainConfig(name="max"), started=True).append(Stepped(1, 2, 0.1, 0.0, 0.1, 0.1))
    assert "is already training" in refused(capsys, "train", "--name", "max", "--resume")


# --- the whole way, on the embedded base model

def test_from_pictures_to_a_file_for_another_tool(capsys, home, pictures, tmp_path):
    (pictures / "broken.png").write_text("hello")
    assert run("train", pictures, "--name", "rex", "--subject", "dog", "--steps", 2, *SMALL, "--json") == 0
    out, err = capsys.readouterr()
    made = json.loads(out)
    assert made["name"] == "rex" and made["path"] == str(home.adapters / "rex.safetensors") and made["step"] == 2
    assert "broken.png" in err and "notes.md" not in err
    assert sorted(path.name for path in (home.datasets / "rex").iterdir()) == ["0.png", "1.png", "2.png"]
    assert RunFolder(home.runs / made["run"]).config().pictures == str(home.datasets / "rex")

    assert run("show", "rex", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["trigger"], shown["subject"], shown["family"], shown["pictures"]) == ("rex", "dog", "embedded", 3)
    assert shown["settings"]["rank"] == 1 and shown["recipe"]["steps"] == 2
    assert run("list") == 0
    assert re.search(r"^rex +lora +rex ", capsys.readouterr().out, re.M)

    few = ("--steps", 2, "--size", "32x64")
    assert run("draw", "rex dog", "--adapter", "rex=0.5", "--count", 2, "--seed", 5, *few) == 0
    lines = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [picture.path for picture in reversed(gallery_page(home))] and len(lines) == 2
    recipe = read_recipe(lines[1])
    assert (recipe["seed"], recipe["width"], recipe["height"], recipe["base"]) == (6, 32, 64, "embedded")
    assert [(part["name"], part["strength"]) for part in recipe["adapters"]] == [("rex", 0.5)]

    assert run("draw", "rex dog", "--seed", 6, *few, "--out", tmp_path / "out", "--json") == 0
    (plain,) = json.loads(capsys.readouterr().out)
    assert run("draw", "rex dog", "--adapter", "rex=0", "--seed", 6, *few, "--out", tmp_path / "out", "--json") == 0
    (off,) = json.loads(capsys.readouterr().out)
    assert len(gallery_page(home)) == 2 and off["seed"] == 6
    pixels = [np.asarray(Image.open(path)) for path in (plain["path"], off["path"], lines[1])]
    assert (pixels[0] == pixels[1]).all() and (pixels[0] != pixels[2]).any()

    assert run("export", "rex", "--to", "kohya", "--out", tmp_path / "rex.safetensors") == 0
    assert all(key.startswith("lora_unet_") for key in load_file(tmp_path / "rex.safetensors"))
    capsys.readouterr()
    assert run("delete", "rex", "--json") == 0
    assert Path(json.loads(capsys.readouterr().out)["trashed"]).is_file() and not Path(made["path"]).exists()


def test_ctrl_c_saves_and_says_how_to_go_on(home, pictures):
    command = [sys.executable, "-m", "atelier.app.cli.main", "train", str(pictures), "--name", "my rex",
               "--steps", "100000", *SMALL, "checkpoint_every=0"]  # fmt: skip
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)   # a job in the background ignores Ctrl-C
    training = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, inherited)
    limit = time.monotonic() + 200
    try:
        while not any(isinstance(event, Stepped) for event in events(home)):
            assert time.monotonic() < limit and training.poll() is None
            time.sleep(0.05)
        training.send_signal(signal.SIGINT)
        out, err = training.communicate(timeout=60)
    finally:
        training.kill()
        training.communicate()
    assert training.returncode == 130 and out == "" and "Traceback" not in err
    assert err.rstrip().endswith("Resume it with: atelier train --name 'my rex' --resume")
    (run,) = list_runs(home)
    assert run.state == "stopped" and any(isinstance(event, Saved) for event in events(home))
    assert not list(home.adapters.iterdir())


def events(home: Home) -> list[object]:
    return [event for path in home.runs.iterdir() for _, event in RunFolder(path).events()]


def test_words_that_mean_something_are_told_from_those_that_do_not(home: Home, capsys):
    assert run("words", "house", "hw", "--home", home.path) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "hw" in first and "nothing" in first
    assert "house" in second and "something" in second
