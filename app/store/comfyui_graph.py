"""Graphs of ComfyUI: the nodes that were run, and what the sampler among them was given."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MAX_NODES = 3_000   # of a graph; the largest that people share have some hundreds
MAX_SAMPLERS = 32
_TEXTS = ("text", "text_g", "text_l", "string", "value", "prompt", "string_a", "string_b", "text_a", "text_b", "text1",
          "text2", "text_1", "text_2")   # fmt: skip
_EXTRAS = {"ControlNet": "ControlNet", "IPAdapter": "IP-Adapter", "Detailer": "a detailer",
           "Hypernetwork": "a hypernetwork"}   # fmt: skip
_NUMBERED = re.compile(r"lora(?:_name)?_?(\d+)")   # loaders of several
_STRENGTHS = ("strength_{}", "model_weight_{}", "lora_wt_{}", "model_str_{}", "strength_model_{}", "lora_strength_{}")


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

    def size(self, sampler: Mapping[str, Any]) -> tuple[Any, Any]:
        """Width and height of the latents that a sampler begins with; None where no node says them."""
        for inputs in self.above(sampler, "latent_image"):
            for names in (("width", "height"), ("empty_latent_width", "empty_latent_height")):
                if all(name in inputs for name in names):
                    return self.value([inputs], names[0]), self.value([inputs], names[1])
        return None, None

    def value(self, nodes: Sequence[Mapping[str, Any]], *names: str) -> Any:
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
        for piece in self._pieces(link[name], name, set()):
            if piece.strip() and piece not in pieces:
                pieces.append(piece)
        return ", ".join(piece.strip() for piece in pieces)

    def _pieces(self, link: Any, name: str, seen: set[str]) -> Iterator[str]:
        """The texts behind a link, on the side of the prompt or of what is unwanted where a node has both."""
        if not (isinstance(link, list) and len(link) == 2 and f"{link}" not in seen and len(seen) < MAX_NODES):
            return
        seen.add(f"{link}")
        node, inputs = self.nodes.get(str(link[0]), {}), self.inputs(str(link[0]))
        if "ZeroOut" in str(node.get("class_type")):
            return
        if {"positive", "negative"} <= inputs.keys():   # one that passes both on, or writes both itself
            side = inputs["negative" if link[1] == 1 and isinstance(inputs["negative"], list) else
                          "positive" if isinstance(inputs["positive"], list) else name]   # fmt: skip
            yield from [side] if isinstance(side, str) else self._pieces(side, name, seen)
            return
        if isinstance(said := self._joined(inputs), str):
            yield said
            return
        yield from (inputs[key] for key in _TEXTS if isinstance(inputs.get(key), str))
        for value in self._taken(inputs):
            yield from self._pieces(value, name, seen)

    def _joined(self, inputs: Mapping[str, Any]) -> str | None:
        """What a node that joins two texts gives; None for another node."""
        parts = [self.value([inputs], key) for key in ("string_a", "string_b")]
        return str(inputs["delimiter"]).join(map(str, parts)) if None not in parts and "delimiter" in inputs else None

    def _taken(self, inputs: Mapping[str, Any]) -> list[Any]:
        """The inputs that a node uses: of a switch the one that is chosen."""
        if isinstance(chosen := inputs.get("boolean"), bool) and {"on_true", "on_false"} <= inputs.keys():
            return [inputs["on_true" if chosen else "on_false"]]
        if isinstance(number := inputs.get("select"), int) and f"input{number}" in inputs:
            return [inputs[f"input{number}"]]
        return list(inputs.values())

    def extras(self, sampler: Mapping[str, Any]) -> tuple[str, ...]:
        """What else went into the picture, in words."""
        kinds = [str(node.get("class_type", "")) for node in self.nodes.values()]
        found = [said for word, said in _EXTRAS.items() if any(word in kind for kind in kinds)]
        if any("image" in inputs and "width" not in inputs for inputs in self.above(sampler, "latent_image")):
            found.append("a start picture")
        if sum("Sampler" in kind and "Select" not in kind for kind in kinds) > 1:
            found.append("a second pass")
        return tuple(found)

    def adapters(self, sampler: Mapping[str, Any], start: str) -> Iterator[tuple[str, Any]]:
        """Name and strength of the LoRAs on the model's way to the sampler, the first loaded first."""
        for inputs in reversed(self.above(sampler, start)):
            if isinstance(inputs.get("lora_name"), str) and inputs["lora_name"] != "None":
                yield inputs["lora_name"], inputs.get("strength_model", inputs.get("lora_model_strength", 1.0))
            yield from _several(inputs)

    def clip_skip(self) -> int | None:
        """What ComfyUI counts from the end as −1, −2 is 1, 2 elsewhere."""
        layers = [self.inputs(id).get("stop_at_clip_layer") for id in self.nodes]
        return next((-layer for layer in layers if isinstance(layer, int) and layer < 0), None)


def _several(inputs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a loader of several LoRAs loads: numbered names, or records of name and strength."""
    for key, each in inputs.items():
        listed = each.get("__value__") if isinstance(each, dict) else None
        for part in listed if isinstance(listed, list) else [each]:
            name = part.get("lora", part.get("name")) if isinstance(part, dict) else None
            if isinstance(name, str) and part.get("on", part.get("active", True)):
                yield name, part.get("strength", 1.0)
        number = _NUMBERED.fullmatch(key)
        if number and isinstance(each, str) and each != "None" and inputs.get(f"switch_{number[1]}", "On") == "On":
            names = (pattern.format(number[1]) for pattern in _STRENGTHS)
            yield each, next((inputs[name] for name in names if name in inputs), 1.0)
