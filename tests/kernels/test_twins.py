"""Triton twins against their definitions: in Triton's interpreter everywhere, on the GPU where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from atelier.kernels import dispatch
from atelier.kernels.dispatch import CHOICE, twin

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is made for Linux alone")


def lines(script: str, *arguments: str, **environment: str) -> list[dict[str, Any]]:
    """What a script of this folder prints. In a process of its own: Triton decides at its import how kernels run."""
    result = subprocess.run(
        [sys.executable, HERE / script, *arguments], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert not result.stderr, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def check(found: list[dict[str, Any]], dtypes: int) -> None:
    assert len({line["case"] for line in found}) == 12
    assert len({line["dtype"] for line in found}) == dtypes
    gradients = {line["name"] for line in found}
    assert {"of x", "of up", "of down", "of values", "of step", "of zero"} <= gradients
    assert [line for line in found if not line["error"] <= line["limit"]] == []


def test_twins_are_their_definitions_in_the_interpreter():
    check(lines("twins.py", TRITON_INTERPRET="1"), dtypes=2)


@pytest.mark.gpu
def test_twins_are_their_definitions_on_this_gpu():
    check(lines("twins.py", "--device", "cuda", "--dtypes", "float32", "float16", "bfloat16"), dtypes=3)


# Registers of a thread at most: what triton 3.7.1 took. More, and fewer programs share a multiprocessor.
REGISTERS = {
    "low_rank": 138, "low_rank, rank 64": 192, "low_rank, gradient": 194, "low_rank, float32": 150,
    "merge_low_rank, plain": 164, "merge_low_rank, products and Haar": 254, "merge_low_rank, trains, float32": 228,
    "fake_quant, gradient": 40, "int8_linear": 128, "gated_sum": 215,
}   # fmt: skip
MATRIX = {80: ("HMMA", "IMMA"), 89: ("HMMA", "IMMA"), 90: ("HGMMA", "IGMMA")}   # tensor cores, float and int8
SHARED = {80: 163, 89: 99, 90: 227}   # kB that a block may have
IN_A_LOOP = ("low_rank", "int8_linear", "merge_low_rank, p")   # these must copy the next tiles while they multiply


@pytest.mark.parametrize("card", [80, *(pytest.param(card, marks=pytest.mark.slow) for card in (89, 90))])
def test_twins_compile_for_a_card_and_use_it_well(card: int, tmp_path: Path):
    """Spills alone would let builds pass that lost their wide loads: registers and asynchronous copies are counted."""
    found = lines("compiled.py", str(card), TRITON_CACHE_DIR=str(tmp_path))
    assert {(line["name"], line["card"]) for line in found} == {(name, card) for name in REGISTERS}
    floating, whole = MATRIX[card]
    for line in found:
        name = line["name"]
        assert line["STL"] == line["LDL"] == 0, f"{line} spills"
        assert line["registers"] <= REGISTERS[name], line
        assert line["shared"] <= SHARED[card] * 1024, line
        assert not name.startswith(IN_A_LOOP) or line["LDGSTS"] > 0, line
        assert line[floating] > 0 or "float32" in name or name.startswith(("fake", "gated_sum")), line
        assert name != "int8_linear" or line[whole] > 0, line


def test_the_device_chooses_and_the_variable_forces(monkeypatch: pytest.MonkeyPatch):
    loaded: list[str] = []
    monkeypatch.setattr(dispatch, "_module", loaded.append)
    monkeypatch.setattr(dispatch, "twin_obstacle", lambda *_: "")
    monkeypatch.delenv(CHOICE, raising=False)

    class OnGpu:
        device = torch.device("cuda")

    there: Any = OnGpu()
    for choice, tensor, name, expected in (
        ("", torch.zeros(1), "gated_sum", []), ("", there, "gated_sum", ["gated_sum"]), ("", there, "low_rank", []),
        ("triton", there, "low_rank", ["low_rank"]), ("triton", torch.zeros(1), "gated_sum", ["gated_sum"]),
        ("torch", there, "gated_sum", []),
    ):   # fmt: skip
        monkeypatch.setenv(CHOICE, choice)
        loaded.clear()
        twin(name, tensor)
        assert loaded == expected, (choice, name)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A tensor on an NVIDIA GPU that is not here, and a cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(CHOICE, raising=False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA GeForce RTX 3060")
    monkeypatch.setattr(dispatch, "_module", lambda name: name)
    remembered = (dispatch.twin_obstacle, dispatch._compile_error)
    for function in remembered:
        function.cache_clear()

    class OnGpu:
        device = torch.device("cuda")

    yield OnGpu()
    for function in remembered:
        function.cache_clear()


def test_a_twin_is_off_until_it_has_passed_on_the_card(card: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dispatch, "_compile_error", lambda _: "")
    assert twin("gated_sum", card) is None
    assert "make gpu" in dispatch.twin_obstacle("gated_sum", card.device)
    dispatch.record_verified(card.device, ["gated_sum", "fake_quant"])
    dispatch.twin_obstacle.cache_clear()
    assert twin("gated_sum", card) == "gated_sum"   # type: ignore[comparison-overlap]
    assert twin("int8_linear", card) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA GeForce RTX 4060")
    dispatch.twin_obstacle.cache_clear()
    assert twin("gated_sum", card) is None


def test_without_a_compiler_the_definition_runs_and_it_is_tried_once(card: Any, monkeypatch: pytest.MonkeyPatch):
    tried: list[torch.device] = []

    def probe(device: torch.device) -> None:
        tried.append(device)
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")

    dispatch.record_verified(card.device, ["gated_sum", "fake_quant"])
    monkeypatch.setattr(dispatch, "import_module", lambda _: SimpleNamespace(probe=probe))
    assert [twin(name, card) for name in ("gated_sum", "fake_quant", "gated_sum")] == [None] * 3
    assert tried == [card.device]
    assert dispatch.twin_obstacle("fake_quant", card.device) == (
        "Triton can't compile here (Failed to find C compiler. Please specify via CC environment variable.)")


def test_a_damaged_record_is_none(card: Any, tmp_path: Path):
    (tmp_path / "atelier").mkdir()
    (tmp_path / "atelier" / "verified-kernels.json").write_text("[1")
    assert dispatch.verified_twins(card.device) == []
    dispatch.record_verified(card.device, ["gated_sum"])
    assert dispatch.verified_twins(card.device) == ["gated_sum"]


def test_another_choice_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(CHOICE, "cuda")
    with pytest.raises(ValueError, match="'cuda', but it must be torch or triton"):
        twin("gated_sum", torch.zeros(1))
