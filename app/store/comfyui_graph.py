"""Graphs of ComfyUI: the nodes that were run, and what the sampler among them was given."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

MAX_NODES = 3_000   # of a graph; the largest that people share have some hundreds
MAX_SAMPLERS = 32


class Graph:
    """A graph of ComfyUI: nodes by id, each with inputs that are values or links ``[id, output]``."""

    def __init__(self, nodes: Mapping[str, Any]) -> None:
        if len(nodes) > MAX_NODES:
            raise ValueError(f"a graph of {len(nodes)} nodes")
        self.nodes = {str(id): node for id, node in nodes.items() if isinstance(node, dict)}

    def inputs(self, id: str) -> dict[str, Any]:
        """The inputs of a node; none where there is no such node."""
        found = self.nodes.get(id, {}).get("inputs")
        return found if isinstance(found, dict) else {}

    def sampler(self) -> dict[str, Any] | None:
        """The inputs of the sampler that runs first: its latents come from no other one."""
        samplers = [id for id, node in self.nodes.items() if "Sampler" in str(node.get("class_type", ""))
                    and {"positive", "guider"} & self.inputs(id).keys()][:MAX_SAMPLERS]   # fmt: skip
        below = {id: {found for found, _ in self.walk(self.inputs(id), "latent_image")} for id in samplers}
        return next((self.inputs(id) for id in samplers if not below[id] & set(samplers)), None)

    def walk(self, inputs: Mapping[str, Any], *names: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Nodes that the named inputs come from, nearest first; all inputs when none is named."""
        seen: set[str] = set()
        left = deque(value for name, value in inputs.items() if name in names or not names)
        while left:
            link = left.popleft()
            if not (isinstance(link, list) and len(link) == 2 and str(link[0]) not in seen):
                continue
            id = str(link[0])
            seen.add(id)
            yield id, self.inputs(id)
            left.extend(self.inputs(id).values())

    def above(self, inputs: Mapping[str, Any], *names: str) -> list[dict[str, Any]]:
        """The inputs of those nodes."""
        return [found for _, found in self.walk(inputs, *names)]

    def first(
        self, inputs: Mapping[str, Any], name: str, fits: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any] | None:
        """The nearest node before an input that fits."""
        return next((found for found in self.above(inputs, name) if fits(found)), None)

    def value(self, nodes: list[dict[str, Any]], *names: str) -> Any:
        """The first plain value of one of these names; a linked one is looked up in the node it comes from."""
        for inputs in nodes:
            for name in names:
                found = inputs.get(name)
                if isinstance(found, list) and len(found) == 2:
                    source = self.inputs(str(found[0]))
                    found = next((source[key] for key in (name, "value", "int", "float") if key in source), None)
                if found is not None and not isinstance(found, list | dict):
                    return found
        return None

    def text(self, sampler: Mapping[str, Any], name: str) -> str:
        """The prompt behind a conditioning input, its pieces joined where several encoders are combined."""
        link = {name: sampler.get(name)}
        if sampler.get(name) is None and name == "positive":   # a guider has one conditioning, or two
            guider = next(iter(self.above(sampler, "guider")), {})
            link = {name: guider.get("positive", guider.get("conditioning"))}
        elif sampler.get(name) is None:
            link = {name: next(iter(self.above(sampler, "guider")), {}).get("negative")}
        pieces: list[str] = []
        for inputs in self.above(link):
            for key in ("text", "text_g", "text_l", "string", "value"):
                piece = inputs.get(key)
                if isinstance(piece, str) and piece not in pieces:
                    pieces.append(piece)
        return ", ".join(piece.strip() for piece in pieces if piece.strip())

    def adapters(self, sampler: Mapping[str, Any], start: str) -> Iterator[tuple[str, Any]]:
        """Name and strength of the LoRAs on the model's way to the sampler, the first loaded first."""
        for inputs in reversed(self.above(sampler, start)):
            if isinstance(inputs.get("lora_name"), str):
                yield inputs["lora_name"], inputs.get("strength_model", 1.0)
            for each in inputs.values():   # loaders of several: {"on": true, "lora": name, "strength": s}
                if isinstance(each, dict) and isinstance(each.get("lora"), str) and each.get("on", True):
                    yield each["lora"], each.get("strength", 1.0)

    def clip_skip(self) -> int | None:
        """What ComfyUI counts from the end as −1, −2 is 1, 2 elsewhere."""
        layers = [self.inputs(id).get("stop_at_clip_layer") for id in self.nodes]
        return next((-layer for layer in layers if isinstance(layer, int) and layer < 0), None)
