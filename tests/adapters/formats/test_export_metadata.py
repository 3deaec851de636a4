"""What exported files say: what other tools look for, true, hashed as they hash it, and nothing private."""

from __future__ import annotations

import hashlib
import json
import struct
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.formats.export import export
from atelier.adapters.formats.export_metadata import export_metadata
from atelier.adapters.formats.low_rank import Pair
from atelier.adapters.formats.native import AdapterHeader, load_adapter, read_header, save_adapter, write_tensors
from atelier.adapters.formats.write_foreign import FORMS, to_kohya
from atelier.adapters.kinds.catalog import create_adapters

THUMBNAIL = "data:image/jpeg;base64,/9j/4AAQ"
SPECS = (
    Spec("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v", (12, 20)),
    Spec("unet.mid_block.resnets.0.conv1", (14, 6, 3, 3)),
)
OWN = {
    "atelier.name": "Zorro",
    "atelier.trigger": "zwx",
    "atelier.subject": "fox",
    "atelier.base": "C:/Users/anna/secret models/sd15",
    "atelier.family": "sd1",
    "atelier.title": "secret-sd15",
    "atelier.started": "2026-11-22T07:58:30+00:00",
    "atelier.created": "2026-11-22T08:00:00+00:00",
    "atelier.recipe": 'base = "C:/Users/anna/secret models/sd15"\npreview_prompts = "secret prompt"\nlr = 0.001\n',
    "atelier.pictures": "17",
    "atelier.best_step": "250",
    "modelspec.thumbnail": THUMBNAIL,
}
LITTLE = AdapterHeader("lora", {}, (), {"atelier.family": "sd1"})
# Kept by kohya's trainer even when it is told to write no metadata.
KOHYA_MINIMUM = {
    "ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args",
}
MODELSPEC_MUST = {"sai_model_spec", "architecture", "implementation", "title"}


def pairs(adapters: AdapterSet) -> dict[Spec, Pair]:
    return {adapter.spec: pair for adapter in adapters if (pair := adapter.factors()) is not None}


def adapters_of(specs: tuple[Spec, ...] = SPECS, rank: int = 4) -> AdapterSet:
    torch.manual_seed(0)
    adapters = create_adapters("lora", {"rank": rank, "alpha": 3.0}, specs)
    for parameter in adapters.parameters():
        nn.init.normal_(parameter, std=0.1)
    return adapters


def raw(path: Path) -> tuple[dict[str, str], bytes, int]:
    """Metadata, tensor bytes and header length of a safetensors file, read by hand."""
    blob = path.read_bytes()
    (length,) = struct.unpack("<Q", blob[:8])
    return json.loads(blob[8 : 8 + length])["__metadata__"], blob[8 + length :], length


def exported(folder: Path, form: str, own: dict[str, str], dtype: str = "fp32") -> Path:
    save_adapter(folder / "own.safetensors", adapters_of(), own)
    export(folder / "own.safetensors", folder / "out.safetensors", form, dtype)
    return folder / "out.safetensors"


def entries(folder: Path, form: str, **changes: str | None) -> dict[str, str]:
    own = OWN | {f"atelier.{key}": value for key, value in changes.items()}
    return raw(exported(folder, form, {key: value for key, value in own.items() if value is not None}))[0]


def test_kohya_entries(tmp_path: Path):
    found = entries(tmp_path, "kohya")
    assert found.keys() >= KOHYA_MINIMUM
    assert found["ss_output_name"] == "Zorro"
    assert found["ss_v2"] == "False"
    assert found["ss_base_model_version"] == "sd_v1"
    assert found["ss_network_module"] == "networks.lora"
    assert (found["ss_network_dim"], float(found["ss_network_alpha"])) == ("4", 4.0)
    assert json.loads(found["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": found["ss_network_alpha"]}
    assert json.loads(found["ss_tag_frequency"]) == {"Zorro": {"zwx": 17}}
    assert (found["ss_num_train_images"], found["ss_steps"]) == ("17", "250")
    started = datetime.fromtimestamp(float(found["ss_training_started_at"]), UTC)
    finished = datetime.fromtimestamp(float(found["ss_training_finished_at"]), UTC)
    assert (started, finished) == (datetime(2026, 11, 22, 7, 58, 30, tzinfo=UTC), datetime(2026, 11, 22, 8, tzinfo=UTC))


def test_network_entries_describe_the_tensors_beside_them():
    """alpha is what the file's alpha tensors hold, not the adapter's own setting, which is in `up` already."""
    adapters = adapters_of(SPECS[:1], rank=8)
    found = export_metadata(LITTLE, to_kohya(pairs(adapters), "sd1"), "kohya")
    assert (found["ss_network_dim"], float(found["ss_network_alpha"])) == ("8", 8.0)
    assert found["ss_network_args"] == "{}", "conv_dim is for kernels wider than one"


def test_layers_of_many_ranks_are_called_dynamic():
    first, rest = (pairs(adapters_of(specs, rank=rank)) for specs, rank in ((SPECS[:1], 8), (SPECS[1:], 2)))
    tensors = to_kohya(first, "sd1") | to_kohya(rest, "sd1")
    assert export_metadata(LITTLE, tensors, "kohya")["ss_network_dim"] == "Dynamic"


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_modelspec(tmp_path: Path, form: str):
    found = entries(tmp_path, form)
    assert found.keys() >= {f"modelspec.{name}" for name in MODELSPEC_MUST}
    assert found["modelspec.sai_model_spec"] == "1.0.1"
    assert found["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert found["modelspec.implementation"] == "diffusers"
    assert found["modelspec.title"] == "Zorro"
    assert found["modelspec.trigger_phrase"] == "zwx"
    assert found["modelspec.usage_hint"] == "Trigger word: zwx"
    assert found["modelspec.tags"] == "fox"
    assert found["modelspec.thumbnail"] == THUMBNAIL
    assert found["modelspec.date"] == "2026-11-22T08:00:00+00:00"
    assert found["format"] == "pt"


def test_kohya_entries_stay_out_of_the_diffusers_form(tmp_path: Path):
    """The file is not in kohya's layout, so it must not claim kohya's network module."""
    assert not [key for key in entries(tmp_path, "diffusers") if key.startswith("ss_")]


@pytest.mark.parametrize(
    ("family", "version", "architecture", "v2"),
    [
        ("sd1", "sd_v1", "stable-diffusion-v1/lora", "False"),
        ("sd2", "sd_v2", "stable-diffusion-v2/lora", "True"),
        ("sdxl", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora", "False"),
        ("embedded", "atelier_embedded", "atelier-embedded-v1/lora", "False"),
    ],
)
def test_family(tmp_path: Path, family: str, version: str, architecture: str, v2: str):
    found = entries(tmp_path, "kohya", family=family)
    assert found["ss_base_model_version"] == version
    assert found["modelspec.architecture"] == architecture
    assert found["ss_v2"] == v2
    assert ("embedded" in found["modelspec.title"]) == (family == "embedded")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_hashes_are_those_of_the_tensor_bytes(tmp_path: Path, form: str, dtype: str):
    found, data, _ = raw(exported(tmp_path, form, OWN, "fp32" if form == "native" else dtype))
    digest = hashlib.sha256(data).hexdigest()
    assert found["sshs_model_hash"] == digest
    assert found["modelspec.hash_sha256"] == f"0x{digest}"


def test_the_older_hash_is_kohya_s(tmp_path: Path):
    """sd-scripts, precalculate_safetensors_hashes: of the file with the ``ss_`` entries alone."""
    large = Spec("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k", (4096, 4096))
    adapters = create_adapters("lora", {"rank": 64}, [large])
    save_adapter(tmp_path / "a.safetensors", adapters, {"atelier.family": "sd1"})
    export(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "kohya")
    found, _, _ = raw(tmp_path / "b.safetensors")
    training = {key: text for key, text in found.items() if key.startswith("ss_")}
    save_file(load_file(tmp_path / "b.safetensors"), tmp_path / "c.safetensors", training)
    part = (tmp_path / "c.safetensors").read_bytes()[0x100000 : 0x100000 + 0x10000]
    assert found["sshs_legacy_hash"] == hashlib.sha256(part).hexdigest()[:8] and part


@pytest.mark.parametrize("form", FORMS)
def test_nothing_private_is_written(tmp_path: Path, form: str):
    blob = exported(tmp_path, form, OWN).read_bytes()
    for word in (b"secret", b"anna", b"Users", b"prompt", b"recipe", str(tmp_path).encode()):
        assert word not in blob, word


def test_own_file_is_private_by_nature(tmp_path: Path):
    """The proof that the test above can fail."""
    exported(tmp_path, "kohya", OWN)
    assert b"secret prompt" in (tmp_path / "own.safetensors").read_bytes()


def test_native_keeps_what_atelier_needs(tmp_path: Path):
    out = exported(tmp_path, "native", OWN)
    own, handed_on = read_header(tmp_path / "own.safetensors"), read_header(out)
    assert (handed_on.kind, handed_on.settings, handed_on.specs) == (own.kind, own.settings, own.specs)
    assert len(load_adapter(out)) == 2
    kept = {key for key in OWN if handed_on.metadata.get(key) == OWN[key]}
    assert OWN.keys() - kept == {"atelier.base", "atelier.title", "atelier.recipe"}


def test_native_names_the_embedded_base(tmp_path: Path):
    found = entries(tmp_path, "native", family="embedded", base="embedded", title="Atelier's own")
    assert (found["atelier.base"], found["atelier.title"]) == ("embedded", "Atelier's own")


@pytest.mark.parametrize("form", FORMS)
def test_a_file_with_little_to_say_exports(tmp_path: Path, form: str):
    found, _, _ = raw(exported(tmp_path, form, {"atelier.family": "sd1"}))
    assert not [key for key in found if not found[key]], "an entry is left out, not left empty"
    assert "ss_tag_frequency" not in found
    assert "modelspec.trigger_phrase" not in found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("size", "kept"), [(900_000, True), (1_040_000, True), (1_060_000, False), (5_000_000, False)])
def test_the_header_stays_under_a_mebibyte(tmp_path: Path, form: str, size: int, kept: bool):
    out = exported(tmp_path, form, OWN | {"modelspec.thumbnail": "x" * size})
    found, _, length = raw(out)
    assert 8 + length < 1 << 20
    assert ("modelspec.thumbnail" in found) == kept


def test_the_layers_count_towards_the_header(tmp_path: Path):
    """A thumbnail that fits a small adapter is dropped beside the names of two thousand layers."""
    names = [f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_{n}_attn2_to_k" for n in range(2000)]
    parts = {"lora_up.weight": torch.zeros(2, 1), "lora_down.weight": torch.zeros(1, 2), "alpha": torch.tensor(1.0)}
    tensors = {f"{name}.{part}": tensor.clone() for name in names for part, tensor in parts.items()}
    header = AdapterHeader("lora", {}, (), OWN | {"modelspec.thumbnail": "x" * 500_000})
    found = export_metadata(header, tensors, "kohya")
    assert "modelspec.thumbnail" not in found
    write_tensors(tmp_path / "out.safetensors", tensors, found)
    length = raw(tmp_path / "out.safetensors")[2]
    assert 8 + length < 1 << 20
    assert length > 500_000, "the layers alone take half of it"


def test_words_in_any_script_survive(tmp_path: Path):
    found = entries(tmp_path, "kohya", name="Füchsin ✓", trigger="狐")
    assert found["ss_output_name"] == "Füchsin ✓"
    assert json.loads(found["ss_tag_frequency"]) == {"Füchsin ✓": {"狐": 17}}
