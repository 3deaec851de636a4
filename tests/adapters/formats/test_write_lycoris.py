"""Exports in an adapter's own algorithm: ΔW by the tools' rules, and by LyCORIS itself, not by our own algebra."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from foreign_files import LYCORIS, Changes, largest_error, weights, write_lycoris, write_peft
from safetensors.torch import load_file, save_file
from tool_rules import TOOLS
from torch import Tensor

from atelier.adapters.core.base import Spec
from atelier.adapters.formats.compatibility import NO, PARTLY, YES
from atelier.adapters.formats.export import ExportReport, export_mix
from atelier.adapters.formats.native import load_adapter, save_adapter
from atelier.adapters.formats.read_foreign import read_foreign
from atelier.adapters.kinds.catalog import create_adapters

QUICK = ("LoCon with cores", "DoRA by rows", "LoHa with a scalar", "LoKr with a scalar", "GLoRA", "IA3 on inputs",
         "diag-OFT, constrained", "diag-OFT, rescaled", "norms")   # fmt: skip


@pytest.fixture(autouse=True)
def torch_alone(monkeypatch: pytest.MonkeyPatch):
    """LyCORIS would compile its reference."""
    monkeypatch.setenv("LYCORIS_KERNEL_BACKEND", "torch")


def exported(path: Path, family: str, form: str, dtype: str = "fp32") -> tuple[ExportReport, dict[str, Tensor]]:
    """A foreign file, imported and exported again."""
    own, out = path.with_name("own.safetensors"), path.with_name("out.safetensors")
    save_adapter(own, read_foreign(path)[0], {"atelier.family": family})
    base = weights(family)
    report = export_mix([(own, 1.0)], out, form, dtype, weight_of=lambda name: base[name].float())
    return report, load_file(out)


def matrices(family: str) -> dict[str, Tensor]:
    return {name: value for name, value in weights(family).items() if value.dim() > 1}


def error_of(tool: str, tensors: dict[str, Tensor], expected: Changes, family: str) -> float:
    """Of all layers, as the tool's rules compute them."""
    found = TOOLS[tool](tensors, matrices(family), family)
    assert found is not None and found.keys() == expected.keys()
    return largest_error({name: (delta, None) for name, delta in found.items()},
                         {name: (delta, None) for name, (delta, _) in expected.items()})   # fmt: skip


def read_again(path: Path, family: str) -> Changes:
    base = weights(family)
    return {adapter.spec.name: (adapter.delta(base[adapter.spec.name]).double(),
                                adapter.bias_delta(base.get(f"{adapter.spec.name}.bias")))
            for adapter in read_foreign(path)[0].double()}   # fmt: skip


def check_round_trip(tmp_path: Path, kind: str, family: str) -> None:
    path, expected = write_lycoris(tmp_path / "a.safetensors", kind, family)
    for form in ("lycoris", "comfyui"):
        report, _ = exported(path, family, form)
        found = read_again(tmp_path / "out.safetensors", family)
        assert report.exact and not report.left_out and found.keys() == expected.keys()
        assert largest_error(found, expected) <= 1e-5


@pytest.mark.parametrize("kind", QUICK)
def test_every_algorithm_goes_out_as_it_came_in(tmp_path: Path, kind: str):
    check_round_trip(tmp_path, kind, "sd1")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("kind", LYCORIS)
def test_every_algorithm_goes_out_as_it_came_in_on_every_topology(tmp_path: Path, kind: str, family: str):
    check_round_trip(tmp_path, kind, family)


def check_verdicts(path: Path, expected: Changes, family: str) -> None:
    """A tool of which we say yes gets every layer right, one of which we say no gets none."""
    for form in ("lycoris", "comfyui"):
        report, tensors = exported(path, family, form)
        for tool, rule in TOOLS.items():
            found, answer = rule(tensors, matrices(family), family), report.loads[tool].answer
            assert answer == YES if found and found.keys() == expected.keys() and (
                error_of(tool, tensors, expected, family) <= 1e-5) else answer != YES, (tool, form)
            assert bool(found) == (answer != NO), (tool, form)


MATRICES = [kind for kind in LYCORIS if kind != "norms"]


@pytest.mark.parametrize("kind", ["DoRA of LoKr", "GLoRA"])
def test_a_tool_of_which_we_say_yes_reads_every_layer_right(tmp_path: Path, kind: str):
    check_verdicts(*write_lycoris(tmp_path / "a.safetensors", kind, "sd1"), "sd1")


@pytest.mark.slow
@pytest.mark.parametrize("kind", MATRICES)
def test_a_tool_of_which_we_say_yes_reads_every_layer_of_sdxl_right(tmp_path: Path, kind: str):
    check_verdicts(*write_lycoris(tmp_path / "a.safetensors", kind, "sdxl"), "sdxl")


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("source", ["LyCORIS", "PEFT", "Atelier"])
def test_comfyui_and_forge_read_dora_right(tmp_path: Path, source: str, dtype: str):
    """Lengths of rows, which these two measure on the base's weight; in any other form they come out wrong there."""
    if source == "Atelier":
        path, expected = own_dora(tmp_path)
        base = weights("sd1")
        report = export_mix([(path, 1.0)], tmp_path / "out.safetensors", "comfyui", dtype,
                            weight_of=lambda name: base[name].float())   # fmt: skip
        tensors = load_file(tmp_path / "out.safetensors")
    else:
        path, expected = write_lycoris(tmp_path / "a.safetensors", "DoRA by rows", "sd1") if source == "LyCORIS" else \
            write_peft(tmp_path, "DoRA", "sd1")
        report, tensors = exported(path, "sd1", "comfyui", dtype)
    for tool in ("ComfyUI", "Forge"):
        assert report.loads[tool].answer == YES
        assert error_of(tool, tensors, expected, "sd1") <= (1e-5 if dtype == "fp32" else 5e-3)
    assert report.loads["A1111"].answer == PARTLY and "columns" in report.loads["A1111"].reason
    assert report.exact


def own_dora(folder: Path) -> tuple[Path, Changes]:
    base = matrices("sd1")
    torch.manual_seed(0)
    names = [name for name in base if name.endswith(("attn2.to_k", "resnets.0.conv1", "layers.0.self_attn.q_proj"))]
    adapters = create_adapters("dora", {"rank": 2}, [Spec(name, tuple(base[name].shape)) for name in names])
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_adapter(folder / "own.safetensors", adapters, {"atelier.family": "sd1"})
    whole = load_adapter(folder / "own.safetensors").double()
    return folder / "own.safetensors", {a.spec.name: (a.delta(base[a.spec.name]), None) for a in whole}


@pytest.mark.parametrize("tool", ["ComfyUI", "Forge", "A1111", "InvokeAI"])
def test_dora_by_columns_is_right_in_every_tool(tmp_path: Path, tool: str):
    path, expected = write_lycoris(tmp_path / "a.safetensors", "DoRA by columns", "sdxl")
    report, tensors = exported(path, "sdxl", "lycoris")
    assert report.loads[tool].answer == YES
    assert error_of(tool, tensors, expected, "sdxl") <= 1e-5


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_oft_with_a_limit_is_right_where_oft_is_read(tmp_path: Path, family: str):
    """ComfyUI takes the limit for that of one block, A1111 for that of one output: what it comes to is written."""
    path, expected = write_lycoris(tmp_path / "a.safetensors", "diag-OFT, constrained", family)
    report, tensors = exported(path, family, "lycoris")
    for tool in ("ComfyUI", "A1111"):
        assert report.loads[tool].answer == YES
        assert error_of(tool, tensors, expected, family) <= 1e-5
    assert {report.loads[tool].answer for tool in ("Forge", "InvokeAI", "diffusers")} == {NO}
    assert error_of("ComfyUI", load_file(path), expected, family) > 1e-3   # the file as LyCORIS wrote it


def test_a_mix_or_another_strength_is_written_as_what_it_comes_to(tmp_path: Path):
    path, expected = write_lycoris(tmp_path / "a.safetensors", "DoRA by rows", "sd1")
    save_adapter(tmp_path / "own.safetensors", read_foreign(path)[0], {"atelier.family": "sd1"})
    base = weights("sd1")
    report = export_mix([(tmp_path / "own.safetensors", 0.5)], tmp_path / "out.safetensors", "lycoris",
                        weight_of=lambda name: base[name].float())   # fmt: skip
    half = {name: (change / 2, None) for name, (change, _) in expected.items()}
    assert report.loads["A1111"].answer == YES
    assert error_of("A1111", load_file(tmp_path / "out.safetensors"), half, "sd1") <= 1e-5


def test_a_file_for_comfyui_comes_back_in_right(tmp_path: Path):
    """It says by which rule its lengths are, also where a tool saved its tensors again without the header's text."""
    path, expected = write_lycoris(tmp_path / "a.safetensors", "DoRA by rows", "sd1")
    exported(path, "sd1", "comfyui")
    first = tmp_path / "out.safetensors"
    assert largest_error(read_again(first, "sd1"), expected) <= 1e-5
    again = tmp_path / "b.safetensors"
    save_file(load_file(first), again)
    assert largest_error(read_again(again, "sd1"), expected) <= 1e-5
    assert read_foreign(again)[1].unknown == ()
    exported(again, "sd1", "lycoris")
    assert largest_error(read_again(first, "sd1"), expected) <= 1e-5
