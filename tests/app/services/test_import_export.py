"""Adapters in and out of the library: by other libraries' readings, on real models of every family's shape."""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from families import write_configurations, write_models
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from atelier.adapters.core.base import Spec
from atelier.adapters.formats.imported_layers import create_imported
from atelier.adapters.formats.low_rank import EXACT, LowRankLimits
from atelier.adapters.formats.native import load_adapter, read_metadata, save_adapter
from atelier.adapters.formats.safetensors_header import FileError
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.cli.inspect import inspect_file
from atelier.app.cli.main import main
from atelier.app.services.import_export import (
    export_adapters,
    export_base,
    extract_adapter,
    import_file,
    merge_adapters,
    unet_error,
)
from atelier.app.store.home import Home, HomeError, open_home
from atelier.app.store.library import find_adapter, list_adapters
from atelier.app.store.models import check_family
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.base_model import load
from atelier.training.base_models.identify import identify

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
KOHYA = "lora_unet_" + LAYER.replace(".", "_")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return open_home(tmp_path / "home")


def foreign(path: Path, width: int = 192, **metadata: str) -> Path:
    torch.manual_seed(zlib.crc32(path.stem.encode()))
    tensors = {f"{KOHYA}.lora_up.weight": torch.randn(32, 4), f"{KOHYA}.lora_down.weight": torch.randn(4, width),
               f"{KOHYA}.alpha": torch.tensor(2.0)}   # fmt: skip
    save_file(tensors, path, {"format": "pt", **metadata})
    return path


def delta(path: Path) -> torch.Tensor:
    (adapter,) = load_adapter(path)
    return adapter.delta(torch.zeros(adapter.spec.shape)).detach()


def test_a_file_comes_in_with_all_it_says_and_goes_out_the_same(home: Home, tmp_path: Path):
    said = {"modelspec.trigger_phrase": "zwx", "ss_tag_frequency": json.dumps({"x": {"zwx": 3}})}
    path = foreign(tmp_path / "my (nice) file!.safetensors", 192, **said)
    card = import_file(home, path).card
    assert (card.name, card.kind, card.family, card.trigger) == ("my -nice- file", "imported", "embedded", "zwx")
    source = load_file(path)
    expected = 0.5 * source[f"{KOHYA}.lora_up.weight"] @ source[f"{KOHYA}.lora_down.weight"]
    assert_close(delta(card.path), expected)
    for form in ("kohya", "diffusers", "diff"):
        out, report = export_adapters([(card, 1.0)], form, tmp_path / f"{form}.safetensors")
        assert report.exact
        again = import_file(home, out).card
        assert_close(delta(again.path), expected, rtol=1e-6, atol=1e-6)
    kept = load_file(card.path)
    assert {tuple(value.shape) for value in kept.values()} == {(32, 4), (4, 192), ()}


def test_names_that_are_taken_get_a_number(home: Home, tmp_path: Path):
    names = []
    for number in range(3):
        path = foreign(tmp_path / f"number {number}.safetensors")
        names.append(import_file(home, path.rename(tmp_path / "fox.safetensors")).card.name)
    assert names == ["fox", "fox-2", "fox-3"]
    with pytest.raises(HomeError, match="'fox' is already used"):
        import_file(home, foreign(tmp_path / "new one.safetensors"), "fox")


@pytest.mark.parametrize(("path", "name"), [
    ("rex/adapter_model.safetensors", "rex"), ("my dog/pytorch_lora_weights.safetensors", "my dog"),
    ("x/ink.v2 (final).safetensors", "ink-v2 -final"), ("x/___.safetensors", "imported"),
])   # fmt: skip
def test_a_name_is_made_of_whatever_the_file_is_called(home: Home, tmp_path: Path, path: str, name: str):
    (tmp_path / path).parent.mkdir()
    assert import_file(home, foreign(tmp_path / path)).card.name == name


def test_an_adapter_of_another_family_says_so_before_anything_is_loaded(home: Home, tmp_path: Path):
    old = import_file(home, foreign(tmp_path / "old.safetensors", width=768)).card
    with pytest.raises(HomeError, match=r"old was made for Stable Diffusion 1\.x, but the base model is .* Choose a"):
        check_family(identify("embedded"), [old])


def test_the_same_file_comes_in_once(home: Home, tmp_path: Path):
    path = foreign(tmp_path / "fox.safetensors")
    import_file(home, path)
    with pytest.raises(HomeError, match=r"other\.safetensors is already in your library as fox\."):
        import_file(home, path.rename(tmp_path / "other.safetensors"))
    assert [card.name for card in list_adapters(home)] == ["fox"]


def test_our_own_files_come_in_as_they_are(home: Home, tmp_path: Path):
    specs = [Spec(f"unet.{LAYER}", (32, 192))]
    adapters = create_adapters("dora", {"rank": 2}, specs)
    save_adapter(tmp_path / "own.safetensors", adapters, {"atelier.family": "embedded"})
    card = import_file(home, tmp_path / "own.safetensors").card
    assert (card.kind, card.family) == ("dora", "embedded")
    before, after = load_file(tmp_path / "own.safetensors"), load_file(card.path)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_a_folder_comes_in_and_what_is_no_adapter_says_why(home: Home, tmp_path: Path, capsys):
    folder = tmp_path / "many"
    folder.mkdir()
    foreign(folder / "fox.safetensors")
    (folder / "page.safetensors").write_text("<!DOCTYPE html>" + " " * 20)
    code = main(["import", str(folder), "--home", str(home.path)])
    said = capsys.readouterr()
    assert code == 1
    assert "fox  (embedded, from fox.safetensors)" in said.out
    assert "! page.safetensors is a web page" in said.out
    assert [card.name for card in list_adapters(home)] == ["fox"]
    with pytest.raises(FileError, match="web page"):
        import_file(home, folder / "page.safetensors")
    assert main(["import", str(folder), "--name", "one", "--home", str(home.path)]) == 1
    assert f"but {folder} contains 2 files" in capsys.readouterr().err


def test_inspect_needs_no_torch(tmp_path: Path, capsys):
    found = inspect_file(foreign(tmp_path / "fox.safetensors"))
    assert (found["form"], found["family"], found["ranks"]) == ("LoRA (1 layer)", "embedded", "4")
    assert all(answer == "yes" for answer in found["loads in"].values())
    assert main(["inspect", str(tmp_path / "gone.safetensors")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_merging_adds_and_resizing_keeps_the_largest(home: Home, tmp_path: Path):
    said = {name: {"modelspec.trigger_phrase": name} for name in ("fox", "great owl")}
    fox, owl = (import_file(home, foreign(tmp_path / f"{name}.safetensors", 192, **said[name])).card
                for name in ("fox", "great owl"))   # fmt: skip
    both = merge_adapters(home, [(fox, 1.0), (owl, -0.5)], "both")
    whole = delta(fox.path) - 0.5 * delta(owl.path)
    assert (both.kind, both.trigger) == ("lora", "fox, great owl")
    assert_close(delta(both.path), whole, rtol=1e-5, atol=1e-5)
    small = merge_adapters(home, [(both, 1.0)], "small", LowRankLimits(rank=3))
    u, s, v = torch.linalg.svd(whole.double(), full_matrices=False)
    assert_close(delta(small.path).double(), u[:, :3] * s[:3] @ v[:3], rtol=1e-4, atol=1e-4)
    assert (load_adapter(small.path).tensors()[f"unet.{LAYER}.up"].shape) == (32, 3)


def test_families_do_not_mix(home: Home, tmp_path: Path):
    fox = import_file(home, foreign(tmp_path / "fox.safetensors")).card
    old = import_file(home, foreign(tmp_path / "old.safetensors", width=768)).card
    with pytest.raises(HomeError, match="different families of base models"):
        merge_adapters(home, [(fox, 1.0), (old, 1.0)], "both")


def test_strength_zero_merges_into_nothing_and_says_so(home: Home, tmp_path: Path):
    fox, owl = (import_file(home, foreign(tmp_path / f"{name}.safetensors")).card for name in ("fox", "owl"))
    with pytest.raises(HomeError, match="Every strength is 0"):
        merge_adapters(home, [(fox, 0.0)], "none")
    assert_close(delta(merge_adapters(home, [(fox, 0.0), (owl, 1.0)], "owl alone").path), delta(owl.path))


@pytest.mark.parametrize("limits", [EXACT, LowRankLimits(rank=2)])
def test_merge_and_resize_keep_changes_of_biases_and_normalizations(home: Home, tmp_path: Path, limits: LowRankLimits):
    norm, conv = "lora_unet_down_blocks_0_resnets_0_norm1", "lora_unet_down_blocks_0_resnets_0_conv1"
    tensors = load_file(foreign(tmp_path / "fox.safetensors"))
    extra = {f"{norm}.w_norm": torch.randn(64), f"{norm}.b_norm": torch.randn(64), f"{conv}.diff_b": torch.randn(64)}
    save_file(tensors | extra, tmp_path / "fox.safetensors")
    fox, owl = (import_file(home, path).card for path in (tmp_path / "fox.safetensors",
                                                          foreign(tmp_path / "owl.safetensors")))   # fmt: skip
    both = merge_adapters(home, [(fox, 2.0), (owl, 1.0)], "both", limits, base="embedded")
    merged = load_adapter(both.path)
    assert_close(merged["unet.down_blocks.0.resnets.0.norm1"].delta(torch.zeros(64)), 2 * extra[f"{norm}.w_norm"])
    assert_close(merged["unet.down_blocks.0.resnets.0.norm1"].bias_delta(), 2 * extra[f"{norm}.b_norm"])
    assert_close(merged["unet.down_blocks.0.resnets.0.conv1"].bias_delta(), 2 * extra[f"{conv}.diff_b"])
    assert both.algorithms == "LoRA, bias, norm" and merged.specs[0] == load_adapter(owl.path).specs[0]


@pytest.mark.parametrize("rank", ["0", "-1", "1.5", "9999"])
def test_a_rank_that_is_none_is_refused(capsys, rank: str):
    with pytest.raises(SystemExit):
        main(["resize", "fox", "--name", "small", f"--rank={rank}"])
    assert "is not a rank; use a whole number from 1 to 1024" in capsys.readouterr().err


@pytest.mark.parametrize(("out", "written"), [("dots.v1.2", "dots.v1.2.safetensors"), ("plain", "plain.safetensors"),
                                              ("a.SAFETENSORS", "a.SAFETENSORS"), ("", "fox.safetensors")])
def test_an_exported_file_gets_its_ending(home: Home, tmp_path: Path, out: str, written: str):
    fox = import_file(home, foreign(tmp_path / "fox.safetensors")).card
    (tmp_path / "out").mkdir()
    path, _ = export_adapters([(fox, 1.0)], "kohya", tmp_path / "out" / out)
    assert path == tmp_path / "out" / written and path.is_file()


def test_a_folder_may_write_endings_in_capitals(home: Home, tmp_path: Path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("one.SAFETENSORS", "two.safetensors"):
        foreign(tmp_path / "in" / name)
    assert main(["import", str(tmp_path / "in"), "--home", str(home.path)]) == 0
    assert "from one.SAFETENSORS" in capsys.readouterr().out
    assert main(["import", str(tmp_path / "in"), "--name", "x", "--home", str(home.path)]) == 1
    assert "contains 2 files" in capsys.readouterr().err


@pytest.fixture
def taught(home: Home) -> Home:
    """An adapter on every layer of the embedded base, of a kind that depends on the base's weights."""
    model = load("embedded", "cpu")
    specs = [Spec(f"unet.{name}", tuple(module.weight.shape)) for name, module in model.unet.named_modules()
             if name.endswith(("attn2.to_k", "conv1"))]   # fmt: skip
    torch.manual_seed(0)
    adapters = create_adapters("dora", {"rank": 2}, specs)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    metadata = {"atelier.family": "embedded", "atelier.base": "embedded", "atelier.name": "fox"}
    save_adapter(home.adapters / "fox.safetensors", adapters, metadata)
    return home


def test_what_depends_on_the_base_is_exact_as_difference_and_near_as_lora(taught: Home, tmp_path: Path):
    parts = [(find_adapter(taught, "fox"), 1.0)]
    _, whole = export_adapters(parts, "diff", tmp_path / "diff.safetensors")
    assert whole.exact and whole.max_error < 1e-6
    assert whole.loads["A1111"].answer == "yes" and whole.loads["diffusers"].answer == "no"
    limits = LowRankLimits(energy=0.9, rank=200)
    _, near = export_adapters(parts, "kohya", tmp_path / "kohya.safetensors", limits=limits)
    assert not near.exact
    assert 0.9 <= near.energy < 1
    assert near.max_error <= 0.1**0.5 + 1e-6
    assert all(verdict.answer == "yes" for verdict in near.loads.values())
    # ΔW by hand: (W + up @ down) with the stored row lengths, less W
    model = load("embedded", "cpu")
    (name, adapter) = next((a.spec.name, a) for a in load_adapter(parts[0][0].path) if a.spec.name.endswith("conv1"))
    weight = model.unet.get_parameter(f"{name.removeprefix('unet.')}.weight").detach().double().flatten(1)
    after = weight + (adapter.get_parameter("up") @ adapter.get_parameter("down")).double()
    lengths = weight.norm(dim=1) + adapter.get_parameter("lengthen").double()
    expected = after * (lengths / after.norm(dim=1))[:, None] - weight
    stored = load_file(tmp_path / "diff.safetensors")[f"lora_unet_{name.removeprefix('unet.').replace('.', '_')}.diff"]
    assert_close(stored.flatten(1).double(), expected, rtol=1e-4, atol=1e-6)


def test_a_merged_base_is_what_the_mount_computes(taught: Home, tmp_path: Path):
    card = find_adapter(taught, "fox")
    export_base([(card, 0.5)], tmp_path / "merged", "fp32", single_file=False)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "merged", safety_checker=None)
    before = load("embedded", "cpu").unet.state_dict()
    for adapter in load_adapter(card.path):
        key = f"{adapter.spec.name.removeprefix('unet.')}.weight"
        expected = before[key] + 0.5 * adapter.delta(before[key])
        assert_close(pipeline.unet.state_dict()[key], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(HomeError, match="already exists"):
        export_base([(card, 0.5)], tmp_path / "merged", "fp32", single_file=False)
    with pytest.raises(BaseError, match="can't be written as a single file"):
        export_base([(card, 0.5)], tmp_path / "one.safetensors", "fp32", single_file=True)


def test_extract_finds_what_was_merged(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A single file of Stable Diffusion's layout with an adapter in it, less the model without: the adapter again."""
    small = write_configurations(tmp_path / "models", "sd1")
    monkeypatch.setattr("atelier.training.base_models.single_file.MODELS", small)
    folder, base = write_models(tmp_path, "sd1", configurations=small)
    model = load(str(folder), "cpu")
    specs = [Spec(f"unet.{name}", tuple(module.weight.shape)) for name, module in model.unet.named_modules()
             if name.endswith(("attn2.to_k", "resnets.0.conv1"))]   # fmt: skip
    torch.manual_seed(1)
    adapters = create_adapters("lora", {"rank": 2}, specs)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save_adapter(home.adapters / "fox.safetensors", adapters, {"atelier.family": "sd1", "atelier.base": str(base)})
    norm = {part: torch.randn(32) for part in ("w_norm", "b_norm")}
    vectors = create_imported({Spec("unet.conv_norm_out", (32,)): norm,
                               Spec("unet.conv_in", (32, 4, 3, 3)): {"diff_b": torch.randn(32)}})   # fmt: skip
    save_adapter(home.adapters / "norm.safetensors", vectors, {"atelier.family": "sd1", "atelier.base": str(base)})
    parts = [(find_adapter(home, name), 1.0) for name in ("fox", "norm")]
    export_base(parts, tmp_path / "tuned.safetensors", "fp32", single_file=True)
    limits = LowRankLimits(energy=0.999999)
    found = extract_adapter(home, str(tmp_path / "tuned.safetensors"), str(base), "again", limits)
    again = {adapter.spec.name: adapter for adapter in load_adapter(found.path)}
    assert again.keys() == {spec.name for spec in (*specs, *vectors.specs)}
    for adapter in vectors:
        ours = again[adapter.spec.name]
        assert_close(ours.bias_delta(), adapter.bias_delta(), rtol=1e-4, atol=1e-5)
        zeros = torch.zeros(adapter.spec.shape)
        assert_close(ours.delta(zeros), adapter.delta(zeros), rtol=1e-4, atol=1e-5)
    for adapter in adapters:
        zeros = torch.zeros(adapter.spec.shape)
        assert_close(again[adapter.spec.name].delta(zeros), adapter.delta(zeros).detach(), rtol=1e-3, atol=1e-4)
    with pytest.raises(BaseError, match="nothing to extract"):
        extract_adapter(home, str(base), str(base), "none")


def test_what_the_difference_does_to_the_unet(taught: Home, tmp_path: Path):
    parts = [(find_adapter(taught, "fox"), 1.0)]
    exact, _ = export_adapters(parts, "diff", tmp_path / "diff.safetensors")
    coarse, _ = export_adapters(parts, "kohya", tmp_path / "kohya.safetensors", limits=LowRankLimits(rank=1))
    assert unet_error(parts, exact) < 1e-4
    assert 0.1 < unet_error(parts, coarse) < 2


def test_a_tiny_file_is_small_and_opens_like_any_other(home: Home, tmp_path: Path, capsys):
    specs = [Spec(f"unet.{LAYER}", (320, 768))]
    torch.manual_seed(0)
    adapters = create_adapters("lora", {"rank": 8}, specs)
    torch.nn.init.normal_(next(iter(adapters)).get_parameter("up"))
    save_adapter(home.adapters / "fox.safetensors", adapters, {"atelier.family": "sd1"})
    out = tmp_path / "fox.safetensors"
    where = ["--out", str(out), "--home", str(home.path), "--json"]
    assert main(["export", "fox", "--to", "tiny", "--bits", "4", *where]) == 0
    told = json.loads(capsys.readouterr().out)
    ours, theirs = delta(home.adapters / "fox.safetensors"), delta(out)
    assert told["mean_error"] == pytest.approx(((ours - theirs).norm() / ours.norm()).item(), rel=1e-3)
    assert out.stat().st_size < 0.25 * (home.adapters / "fox.safetensors").stat().st_size
    card = import_file(home, foreign(tmp_path / "owl.safetensors")).card
    assert main(["export", card.name, "--to", "tiny", "--out", str(tmp_path), "--home", str(home.path)]) == 1
    assert "comes from another tool" in capsys.readouterr().err


def test_how_it_was_trained_stays_at_home_unless_it_is_asked_for(home: Home, tmp_path: Path):
    recipe = 'pictures = "/home/somebody/secret"\nsubject = "fox"\n'
    specs = [Spec(f"unet.{LAYER}", (32, 192))]
    metadata = {"atelier.family": "sd1", "atelier.recipe": recipe, "atelier.base": "/home/somebody/model"}
    save_adapter(home.adapters / "fox.safetensors", create_adapters("lora", {}, specs), metadata)
    parts = [(find_adapter(home, "fox"), 1.0)]
    for form in ("kohya", "diffusers", "diff", "native"):
        out, _ = export_adapters(parts, form, tmp_path / "a.safetensors")
        assert b"somebody" not in out.read_bytes()
        out, _ = export_adapters(parts, form, tmp_path / "b.safetensors", recipe=True)
        assert read_metadata(out)["atelier.recipe"] == recipe


def test_sidecars_say_what_a1111_shows(home: Home, tmp_path: Path, capsys):
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "orange").save(picture, "JPEG")
    thumbnail = "data:image/jpeg;base64," + base64.b64encode(picture.getvalue()).decode()
    specs = [Spec(f"unet.{LAYER}", (320, 768))]
    metadata = {"atelier.family": "sd1", "atelier.trigger": "zwx", "modelspec.thumbnail": thumbnail}
    save_adapter(home.adapters / "fox.safetensors", create_adapters("lora", {}, specs), metadata)
    out = tmp_path / "rex.safetensors"
    assert main(["export", "fox", "--to", "kohya", "--sidecars", "--out", str(out), "--home", str(home.path)]) == 0
    facts = json.loads((tmp_path / "rex.json").read_text())
    assert (facts["activation text"], facts["sd version"]) == ("zwx", "SD1")
    with Image.open(tmp_path / "rex.preview.png") as shown:
        assert shown.format == "PNG" and shown.size == (64, 64)
