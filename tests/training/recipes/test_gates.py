"""Teaching gates: who learns, what the hinge wants, and that it can be gone on from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.settings import SettingError
from atelier.adapters.core.targets import find_targets
from atelier.adapters.fusion.gates import GateRecord, GateSet, GateSettings
from atelier.adapters.fusion.live import WeightedAdapter
from atelier.adapters.fusion.methods import combine
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.base_models.bundled import gates_for
from atelier.training.config.events import Event, Stepped
from atelier.training.data.latent_cache import Example, tokenize
from atelier.training.loop.batch import AdapterExamples
from atelier.training.loop.losses import hinge_loss
from atelier.training.recipes.gates import (
    GateConfig,
    common_adapter,
    drop_captions,
    exchange_captions,
    gate_recipe,
    random_batch,
)
from atelier.training.runs.train_gates import gate_training_config, gates_on, train_gates
from atelier.training.sampling.sample import DrawRequest, draw


@pytest.fixture(scope="module")
def model() -> BaseModel:
    return load("embedded", "cpu")


def targets(model: BaseModel) -> list[Spec]:
    """A few layers: enough to learn with, few enough to be quick."""
    return find_targets({"unet": model.unet}, "attention")[:16]


def adapters(model: BaseModel, seed: int) -> AdapterSet:
    torch.manual_seed(seed)
    made = create_adapters("lora", {"rank": 2}, targets(model))
    for parameter in made.parameters():
        parameter.data.normal_(std=0.4)   # loud enough to spoil what the base draws
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def lessons(model: BaseModel) -> list[AdapterExamples]:
    found = []
    for seed, caption in enumerate(("an emoji of a rex fox", "an ink emoji of a house")):
        torch.manual_seed(100 + seed)
        [tokens] = tokenize(model, [caption])
        latents = [torch.randn(8, 16, 16) for _ in range(3)]
        found.append(AdapterExamples(adapters(model, seed), [Example(x, torch.zeros_like(x), tokens) for x in latents]))
    return found


def gates(model: BaseModel) -> GateSet:
    return GateSet(targets(model), GateSettings(), "embedded").requires_grad_()


def test_the_hinge_is_still_above_the_margin_and_pulls_below_it():
    of_base = torch.tensor([0.2, 0.2, 0.2])
    errors = torch.tensor([0.1, 0.23, 0.5], requires_grad=True)
    value = hinge_loss(errors, of_base, 1.1)
    assert_close(value, torch.tensor([0.12, 0.0, 0.0]), rtol=0, atol=1e-6)
    value.sum().backward()
    assert errors.grad is not None
    assert errors.grad.tolist() == [-1.0, 0.0, 0.0]


def test_only_gates_learn(model: BaseModel, lessons: list[AdapterExamples]):
    before = {name: value.clone() for lesson in lessons for name, value in lesson.adapters.tensors().items()}
    base = {name: value.clone() for name, value in model.unet.state_dict().items()}
    own = gates(model)
    config = gate_training_config(1, 2, 1e-2, 0)
    losses = gate_recipe(model, own, lessons, config).microstep(torch.Generator().manual_seed(0))
    (losses.subject + losses.prior).backward()
    assert all(p.grad is not None for p in own.parameters())
    assert sum(p.grad.abs().sum().item() for p in own.parameters() if p.grad is not None) > 0
    assert all(p.grad is None for lesson in lessons for p in lesson.adapters.parameters())
    assert all(p.grad is None for p in model.unet.parameters())
    assert {n: v for lesson in lessons for n, v in lesson.adapters.tensors().items()}.keys() == before.keys()
    assert all(torch.equal(value, base[name]) for name, value in model.unet.state_dict().items())


def test_a_hinge_of_no_margin_costs_nothing_and_its_weight_multiplies(model: BaseModel, lessons: list[AdapterExamples]):
    def losses(**values: float) -> tuple[float, float]:
        own = GateConfig.from_dict({"common_rank": 0, **values})
        recipe = gate_recipe(model, gates(model), lessons, gate_training_config(1, 2, 1e-2, 0), own)
        found = recipe.microstep(torch.Generator().manual_seed(3))
        return found.subject.item(), found.prior.item()

    right, wrong = losses(margin=3.0)
    assert wrong > 0
    assert losses(margin=0.0) == (right, 0.0)
    assert losses(margin=3.0, hinge_weight=2.0) == pytest.approx((right, 2 * wrong))


def test_prompts_are_dropped_and_exchanged_and_pictures_stay(lessons: list[AdapterExamples]):
    generator = torch.Generator().manual_seed(0)
    batch = random_batch(lessons[0].examples, 40, 1000, generator)
    empty = torch.zeros_like(lessons[0].examples[0].tokens)
    dropped = drop_captions(batch, empty, 0.3, generator)
    count = sum(torch.equal(example.tokens, empty) for example in dropped.examples)
    assert 5 <= count <= 20
    assert all(a.mean is b.mean for a, b in zip(batch.examples, dropped.examples, strict=True))
    other = exchange_captions(batch.examples, lessons[1].examples, generator)
    assert all(torch.equal(example.tokens, lessons[1].examples[0].tokens) for example in other)
    assert all(a.mean is b.mean for a, b in zip(batch.examples, other, strict=True))


def test_the_common_adapter_is_the_best_of_its_rank(model: BaseModel, lessons: list[AdapterExamples]):
    both = [lesson.adapters for lesson in lessons]
    found = common_adapter(model, both, 2)
    name = targets(model)[0].name
    whole = sum((a[name].up @ a[name].down for a in both), torch.zeros(()))   # type: ignore[operator]
    u, s, v = torch.linalg.svd(whole)
    best = (u[:, :2] * s[:2]) @ v[:2]
    up, down = found[name].factors()   # type: ignore[misc]
    assert_close(up @ down, best, rtol=1e-3, atol=1e-5)


def test_training_lowers_the_loss_and_goes_on_where_it_stopped(
    model: BaseModel, lessons: list[AdapterExamples], tmp_path: Path
):
    own = GateConfig(common_rank=0, hinge_weight=0.0)
    config = replace(gate_training_config(6, 1, 0.2, 0), warmup=1, checkpoint_every=3)

    def measured(learner: GateSet) -> float:
        with torch.no_grad():
            found = gate_recipe(model, learner, lessons, config, own).microstep(torch.Generator().manual_seed(1))
        return found.subject.item()

    whole, halted = gates(model), gates(model)
    before = measured(whole)
    def train(learner: GateSet, folder: str) -> Iterator[Event]:
        return train_gates(model, learner, gate_recipe(model, learner, lessons, config, own), config, tmp_path / folder)

    events = list(train(whole, "whole"))
    assert [event.step for event in events if isinstance(event, Stepped)] == list(range(1, 7))
    assert measured(whole) < before
    assert not any(p.requires_grad for p in whole.parameters())
    for event in train(halted, "halted"):
        if isinstance(event, Stepped) and event.step == 4:
            break
    again = gates(model)
    list(train(again, "halted"))
    assert all(torch.equal(value, whole.tensors()[key]) for key, value in again.tensors().items())


def test_only_layers_that_some_adapter_has_get_a_gate(model: BaseModel, lessons: list[AdapterExamples]):
    conv = create_adapters("lora", {"rank": 1}, find_targets({"unet": model.unet}, "all")[:1])
    found = gates_on([lessons[0].adapters, conv], GateSettings(), model)
    assert set(found) == {spec.name for one in (lessons[0].adapters, conv) for spec in one.specs}


def test_one_lesson_is_too_few(model: BaseModel, lessons: list[AdapterExamples]):
    with pytest.raises(SettingError, match="at least two"):
        gate_recipe(model, gates(model), lessons[:1], gate_training_config(1, 1, 1e-2, 0))


def test_the_gates_that_come_along_differ_over_layers_steps_and_prompts(
    model: BaseModel, lessons: list[AdapterExamples]
):
    """On a real trajectory, with the activations of the embedded base."""
    shipped = gates_for(model)
    assert shipped is not None
    assert shipped.family == "embedded"
    widths = {f"unet.{name}": module for name, module in model.unet.named_modules()}
    assert all(len(shipped.get(name).out) == len(widths[name].weight) for name in shipped)   # type: ignore

    def drawn(prompt: str) -> GateRecord:
        record = GateRecord()
        parts = [WeightedAdapter(lesson.adapters) for lesson in lessons]
        fusion = combine(model.models(), parts, "gated", gates=shipped, record=record)
        draw(model, DrawRequest(prompt=prompt, steps=3), fusion)
        return record

    one, other = drawn("an emoji of a rex fox"), drawn("an ink emoji of a house")
    layers, steps = one.by_layer(), one.by_timestep()
    assert len(layers) == len(lessons[0].adapters)
    assert len(steps) == 3
    assert all(0 < value < 4 for row in (*layers.values(), *steps.values()) for value in row)
    for rows in (list(layers.values()), list(steps.values())):
        assert all(len({row[part] for row in rows}) == len(rows) for part in (0, 1))
    assert layers != other.by_layer()
    bare = GateRecord()
    draw(model, DrawRequest(prompt="", steps=3), combine(model.models(), [], "gated", gates=shipped, record=bare))
    assert bare.by_layer() == {}
