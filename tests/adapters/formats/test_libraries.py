"""Files of PEFT and LyCORIS, kind by kind, on the topology of every family: ΔW against the library's own merge."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import FAMILIES
from foreign_files import ALL, LYCORIS, PEFT, Changes, largest_error, weights, write_lycoris, write_peft
from torch import Tensor

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.formats.native import load_adapter, save_adapter
from atelier.adapters.formats.read_foreign import read_foreign

TOLERANCE = 1e-5
FLOAT32_ONLY = {"FourierFT": 1e-4}   # PEFT computes it in float32 whatever the model's precision


@pytest.fixture(autouse=True)
def torch_alone(monkeypatch: pytest.MonkeyPatch):
    """LyCORIS would compile its reference."""
    monkeypatch.setenv("LYCORIS_KERNEL_BACKEND", "torch")


def changes_of(adapters: AdapterSet, base: dict[str, Tensor]) -> Changes:
    found: Changes = {}
    for adapter in adapters.double():
        name = adapter.spec.name
        assert adapter.matches_shape(base[name].shape), name
        found[name] = adapter.delta(base[name]).double(), adapter.bias_delta(base.get(f"{name}.bias"))
    return found


def tells_the_family(changes: Changes) -> bool:
    """Whether layers are changed by which families differ: those that read the prompt, or a text encoder's own."""
    return any(name.endswith(("attn2.to_k", "attn2.to_v")) or name.startswith("text_encoder") for name in changes)


def check(path: Path, expected: Changes, family: str, tolerance: float = TOLERANCE) -> None:
    """All layers are used, each is right, and stays so in our own file."""
    adapters, contents = read_foreign(path)
    assert contents.unknown == ()
    told = not any("don't reveal the base model" in note for note in contents.notes)
    assert contents.family == (family if told else "sd1") and (told or not tells_the_family(expected))
    save_adapter(path.with_name("own.safetensors"), adapters, {"atelier.family": family})
    base = weights(family)
    for opened in (adapters, load_adapter(path.with_name("own.safetensors"))):
        found = changes_of(opened, base)
        assert found.keys() == expected.keys()
        assert largest_error(found, expected) <= tolerance


@pytest.mark.parametrize("kind", PEFT)
def test_peft_on_sd1(tmp_path: Path, kind: str):
    check(*write_peft(tmp_path, kind, "sd1"), "sd1", FLOAT32_ONLY.get(kind, TOLERANCE))


@pytest.mark.parametrize("kind", [kind for kind in LYCORIS if not kind.startswith("BOFT")])   # seconds each
def test_lycoris_on_sdxl(tmp_path: Path, kind: str):
    check(*write_lycoris(tmp_path / "a.safetensors", kind, "sdxl"), "sdxl")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", PEFT)
def test_peft_on_every_layer_of_every_family(tmp_path: Path, kind: str, family: str):
    check(*write_peft(tmp_path, kind, family, ALL), family, FLOAT32_ONLY.get(kind, TOLERANCE))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", LYCORIS)
def test_lycoris_on_every_layer_of_every_family(tmp_path: Path, kind: str, family: str):
    check(*write_lycoris(tmp_path / "a.safetensors", kind, family, ALL), family)
