"""The text entries of Atelier's own files: written out here by hand, as files made long ago have them."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from atelier.adapters.core.base import Spec
from atelier.adapters.formats.adapter_info import AdapterInfo, AdapterLayout, GateInfo, is_adapter, is_gates
from atelier.adapters.formats.native import load_adapter, read_header, save_adapter
from atelier.adapters.formats.tiny import shrink
from atelier.adapters.kinds.catalog import create_adapters

METADATA = {
    "atelier.kind": "lora", "atelier.name": "rex", "atelier.trigger": "rex", "atelier.subject": "dog",
    "atelier.base": "/models/sd15", "atelier.title": "Stable Diffusion 1.5", "atelier.family": "sd1",
    "atelier.started": "2026-01-02T03:04:05+00:00", "atelier.created": "2026-01-02T04:04:05+00:00",
    "atelier.recipe": 'name = "rex"\n', "atelier.run": "20260102-030405-rex", "atelier.pictures": "5",
    "atelier.best_step": "300", "atelier.parent": "cd34", "atelier.basis": "abc", "atelier.method": "sum",
    "atelier.content": "rex", "atelier.style": "ink", "atelier.parts": "rex, ink", "atelier.algorithms": "LoRA, LoHa",
    "atelier.source": "123", "atelier.file_hash": "ab12", "atelier.sampler": "lcm",
    "atelier.notes": "One.\nTwo, and more.", "atelier.error": "0.0123",
    "atelier.worst_error": "0.4000", "modelspec.thumbnail": "data:image/png;base64,AA==",
    "modelspec.merged_from": "rex (1), ink (0.5)", "ss_steps": "300", "atelier.later": "kept",
}   # fmt: skip
INFO = AdapterInfo(
    kind="lora", name="rex", trigger="rex", subject="dog", base="/models/sd15", title="Stable Diffusion 1.5",
    family="sd1", started="2026-01-02T03:04:05+00:00", created="2026-01-02T04:04:05+00:00", recipe='name = "rex"\n',
    run="20260102-030405-rex", pictures=5, best_step=300, parent="cd34", basis="abc", method="sum",
    content="rex", style="ink", parts=("rex", "ink"), algorithms=("LoRA", "LoHa"), source="123",
    file_hash="ab12", sampler="lcm", notes=("One.", "Two, and more."), error=0.0123, worst_error=0.4,
    thumbnail="data:image/png;base64,AA==", merged_from="rex (1), ink (0.5)",
    other={"ss_steps": "300", "atelier.later": "kept"},
)   # fmt: skip


def test_every_field_is_an_entry():
    assert all(getattr(INFO, field.name) != field.default for field in fields(INFO)), "a field is not tried here"
    assert AdapterInfo.from_metadata(METADATA) == INFO
    assert INFO.to_metadata() == METADATA


def test_missing_and_empty_entries_are_the_same():
    empty = dict.fromkeys(METADATA.keys() - INFO.other, "")
    assert AdapterInfo.from_metadata({}) == AdapterInfo.from_metadata(empty) == AdapterInfo()
    assert AdapterInfo().to_metadata() == {}
    assert AdapterInfo(pictures=0).to_metadata() == {"atelier.pictures": "0"}, "no picture is not an unknown number"


@pytest.mark.parametrize("text", ["many", "-1", "3.5", "1e3", "9" * 5000])
def test_a_count_that_is_none_is_missing(text: str):
    assert AdapterInfo.from_metadata({"atelier.pictures": text, "atelier.error": "?"}) == AdapterInfo()


def test_a_layout_is_what_old_files_have():
    old = {"atelier.schema": "1", "atelier.kind": "lora", "atelier.settings": '{"rank": 2}',
           "atelier.modules": '{"unet.a": [4, 3], "unet.b": [4, 3, 1, 1]}',
           "atelier.ranks": '{"unet.a": 1}'}   # fmt: skip
    layout = AdapterLayout.from_metadata(old)
    assert layout == AdapterLayout(kind="lora", settings={"rank": 2}, ranks={"unet.a": 1},
                                   modules={"unet.a": [4, 3], "unet.b": [4, 3, 1, 1]})   # fmt: skip
    assert layout.to_metadata() == old
    packed = replace(layout, bits=4, ranks={}).to_metadata()
    assert (packed["atelier.schema"], packed["atelier.bits"], "atelier.ranks" in packed) == ("2", "4", False)
    assert AdapterLayout.from_metadata(packed).bits == 4


def test_the_entries_of_a_layout_are_no_other_entries():
    """They follow from the adapter that is written, and would say what is not so if they were copied."""
    packed = AdapterLayout(kind="lora", settings={}, modules={}, ranks={"a": 1}, bits=4).to_metadata()
    assert AdapterInfo.from_metadata(packed) == AdapterInfo(kind="lora")


def test_a_tiny_file_that_is_saved_again_is_not_tiny(tmp_path: Path):
    adapters = create_adapters("lora", {"rank": 2}, [Spec("unet.a", (32, 24))])
    torch.nn.init.normal_(next(iter(adapters)).up)
    save_adapter(tmp_path / "a.safetensors", adapters, AdapterInfo(name="rex").to_metadata())
    shrink(tmp_path / "a.safetensors", tmp_path / "tiny.safetensors", 4)
    tiny, header = load_adapter(tmp_path / "tiny.safetensors"), read_header(tmp_path / "tiny.safetensors")
    assert header.bits == 4 and header.info.name == "rex" and header.info.error
    save_adapter(tmp_path / "again.safetensors", tiny, header.info.to_metadata())
    again = read_header(tmp_path / "again.safetensors")
    assert again.bits == 0 and again.metadata["atelier.schema"] == "1" and again.info == header.info
    for key, value in load_adapter(tmp_path / "again.safetensors").tensors().items():
        assert torch.equal(value, tiny.tensors()[key])


def test_what_is_saved_says_what_it_is(tmp_path: Path):
    specs = [Spec("unet.a", (6, 5)), Spec("unet.b", (6, 5, 3, 3))]
    adapters = create_adapters("lora", {"rank": 2}, specs, {"unet.a": 1})
    save_adapter(tmp_path / "a.safetensors", adapters, INFO.to_metadata())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        found = file.metadata()
    settings = {"rank": 2, "alpha": 0.0, "stabilized": False, "start": "random", "budget": 0}
    layout = {"schema": "1", "kind": "lora", "settings": json.dumps(settings), "ranks": '{"unet.a": 1}',
              "modules": '{"unet.a": [6, 5], "unet.b": [6, 5, 3, 3]}'}   # fmt: skip
    assert found == {**METADATA, **{f"atelier.{name}": text for name, text in layout.items()}}


def test_gates_say_what_they_are():
    old = {"atelier.gates": "1", "atelier.family": "sd1", "atelier.modules": '{"unet.a": 4}',
           "atelier.settings": '{"start": "sum"}', "atelier.steps": "200"}   # fmt: skip
    info = GateInfo.from_metadata(old)
    assert info == GateInfo(family="sd1", widths={"unet.a": 4}, settings={"start": "sum"}, steps=200)
    assert info.to_metadata() == old
    assert GateInfo.from_metadata({**old, "atelier.steps": ""}).steps is None
    assert is_gates(old) and not is_adapter(old)
    assert is_adapter(METADATA) and not is_gates(METADATA)
