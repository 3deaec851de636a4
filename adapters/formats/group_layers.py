"""From the tensors of a file to layers: every tensor of a layer that is used is accounted for, or the file is refused.

A tensor *inside* a layer that nothing is made of would mean a wrong update without a word: AdaLoRA without its singular
values is off by a factor of 47. So it is refused by name, as are tensors that don't fit each other, a layer that lacks
what all others have, and a layer that is there twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from atelier.adapters.formats.layer_parts import ENDINGS, SHARED, UNIFORM, WHOLE, Algorithm, algorithm_of, shared_parts
from atelier.adapters.formats.layer_shapes import Shape, ShapeError, weight_shape
from atelier.adapters.formats.module_names import parse_module_name, position_names
from atelier.adapters.formats.peft_config import NOTHING, ONE_TRAINER, PeftConfig, Settings
from atelier.adapters.formats.safetensors_header import HeaderError

# What PEFT and parallel training put before a module's name, alone or behind its component.
_WRAPPERS = re.compile(r"((?:unet|text_encoder|text_encoder_2)\.)?((?:module\.|base_model\.model\.)+)")
# PEFT keeps whole modules under their own names; no other tool's `.weight` beside `.on_input` is among its files.
_PEFT_ENDINGS = {ending: part for ending, part in ENDINGS.items() if ending not in WHOLE} | WHOLE


class Key(NamedTuple):
    """A tensor's name taken apart."""

    module: str   # ours
    part: str
    stem: str     # the module as the file calls it


@dataclass(frozen=True, slots=True)
class Layer:
    """One target module as a foreign file describes it: its name there and the tensors that belong to it."""

    algorithm: str
    keys: Mapping[str, str]   # part → the tensor's name in the file
    settings: Settings        # part → its value, where it stands in a configuration instead
    shape: Shape              # of the weight; 0 for a side that the file does not tell

    @property
    def scaled(self) -> bool:
        """Whether something says how strong it is."""
        return any(part in self.keys or part in self.settings for part in ("alpha", "scale"))


def split_key(key: str, dimensions: int = 0) -> tuple[str, str] | None:
    """Our module name and the part that a tensor of so many dimensions is; None when it is neither.

    >>> split_key("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight")
    ('unet.mid_block.attentions.0.proj_in', 'up')
    """
    found = _parse(key, dimensions)
    return found and (found.module, found.part)


def _parse(key: str, dimensions: int = 0) -> Key | None:
    plain = _unwrapped(key)
    for ending, part in (ENDINGS if plain == key else _PEFT_ENDINGS).items():
        if plain.endswith(ending) and (module := parse_module_name(plain.removesuffix(ending))):
            part = "boft_blocks" if part == "oft_blocks" and dimensions == 4 else part
            return Key(module, part, key.removesuffix(ending))
    return None


def _unwrapped(key: str) -> str:
    """A name without PEFT's prefix.

    >>> _unwrapped("unet.base_model.model.mid_block"), _unwrapped("base_model.model.mid_block")
    ('unet.mid_block', 'mid_block')
    """
    return _WRAPPERS.sub(lambda found: found[1] or "", key, count=1) if _WRAPPERS.match(key) else key


class Grouped(NamedTuple):
    """Tensors sorted into layers, and those that are of none."""

    layers: dict[str, dict[str, str]]   # module → part → the tensor's name
    stems: dict[str, set[str]]          # module → what the file calls it, more than one in odd files
    unknown: list[str]                  # tensors of no layer, or of one that is not whole
    copies: list[tuple[str, str]]       # pairs that must hold the same


def group_layers(shapes: Mapping[str, Shape], metadata: Mapping[str, str]) -> Grouped:
    """Sort tensors into whole layers.

    Raises:
        HeaderError: a layer is there twice, or has a tensor that nothing is made of.
    """
    layers: dict[str, dict[str, str]] = {}
    stems: dict[str, set[str]] = {}
    unknown = []
    numbered = _numbered(shapes, metadata)
    for key in shapes:
        found = numbered.get(key) or _parse(key, len(shapes[key]))
        if found is None:
            unknown.append(key)
            continue
        parts = layers.setdefault(found.module, {})
        if other := parts.get(found.part):
            raise HeaderError(f"contains {found.module} twice, as {other} and as {key}. Convert it again from its "
                              "source.")
        parts[found.part] = key
        stems.setdefault(found.module, set()).add(found.stem)
    copies = _share(layers, unknown)
    whole = {module for module, parts in layers.items() if algorithm_of(parts)}
    _refuse_inside(set().union(*(stems[module] for module in whole)), unknown)
    unknown += [key for module, parts in layers.items() if module not in whole for key in parts.values()]
    return Grouped({module: layers[module] for module in layers if module in whole}, stems, unknown, copies)


def _share(layers: dict[str, dict[str, str]], unknown: list[str]) -> list[tuple[str, str]]:
    """Give every layer the tensors that PEFT keeps once for all of them; returns those that are there twice."""
    common = {part: key for key in unknown if (part := key.removeprefix("base_model.")) in SHARED}
    copies: list[tuple[str, str]] = []
    for module, parts in layers.items():
        for part in shared_parts(parts):
            if part in parts and part in common:
                copies.append((common[part], parts[part]))
            elif part in common:
                parts[part] = common[part]
            elif part not in parts:
                raise HeaderError(f"does not contain the random matrices of {module}. Save it again with "
                                  "save_projection=True.")
    used = {key for parts in layers.values() for key in parts.values()} | {key for key, _ in copies}
    unknown[:] = [key for key in unknown if key not in used]
    return copies


def _refuse_inside(stems: set[str], unknown: Sequence[str]) -> None:
    """See that no unknown tensor lies in a layer that is used."""
    for key in unknown:
        places = (place for place, letter in enumerate(key) if letter == "." or key[place:].startswith("_lora."))
        if any(key[:place] in stems for place in places):
            raise HeaderError(f"contains {key}, and Atelier does not know what that does to its layer. Ignoring it "
                              "would change the result, so the file can't be used.")


def _numbered(shapes: Mapping[str, Shape], metadata: Mapping[str, str]) -> dict[str, Key]:
    """The first LoRA files' tensors, ``unet:7:up``: layers by their number alone."""
    found: dict[str, Key] = {}
    for component in ("unet", "text_encoder"):
        numbers = sorted(int(number) for key in shapes if key.startswith(f"{component}:") and key.endswith(":up")
                         and (number := key.split(":")[1]).isdecimal() and len(number) < 6)   # fmt: skip
        if numbers != list(range(len(numbers))) or not numbers or component not in metadata:
            continue
        try:
            names = position_names(component, len(numbers))
        except KeyError:
            continue
        found |= {f"{component}:{i}:{part}": Key(names[i], part, f"{component}:{i}") for i in numbers
                  for part in ("up", "down")}   # fmt: skip
    return found


def build_layers(
    grouped: Grouped, shapes: Mapping[str, Shape], configs: Mapping[str, PeftConfig], family: str = ""
) -> dict[str, Layer]:
    """Whole layers with what they are, how strong, and the shapes of the weights they change.

    Raises:
        HeaderError: a layer has a tensor too many, lacks one that others have, or holds some that don't fit.
    """
    algorithms = {module: algorithm_of(parts) for module, parts in grouped.layers.items()}
    known = {module: algorithm for module, algorithm in algorithms.items() if algorithm}
    for module, algorithm in known.items():
        if extra := next((part for part in grouped.layers[module] if not algorithm.knows(part)), None):
            raise HeaderError(f"contains {grouped.layers[module][extra]}, which can't be part of a {algorithm.name} "
                              "layer. Ignoring it would change the result, so the file can't be used.")
    _check_uniform(grouped.layers, known)
    return {module: _layer(module, algorithm, grouped, shapes, configs, family)
            for module, algorithm in known.items()}   # fmt: skip


def _layer(
    module: str, algorithm: Algorithm, grouped: Grouped, shapes: Mapping[str, Shape],
    configs: Mapping[str, PeftConfig], family: str,
) -> Layer:   # fmt: skip
    keys, stem = grouped.layers[module], min(grouped.stems[module])
    sizes = {part: shapes[key] for part, key in keys.items()}
    try:
        shape = weight_shape(module, algorithm.name, sizes, family)
    except ShapeError as error:
        key = keys[error.part]
        raise HeaderError(f"can't be used: {key} has the shape {list(shapes[key])}, but it {error}. "
                          "Download or copy it again.") from None
    if "." in stem:
        own = configs.get(module.split(".", 1)[0], NOTHING).settings(algorithm.name, _peft_name(stem), sizes)
    else:   # kohya's way of naming, in which PEFT writes nothing
        own = ONE_TRAINER.get(algorithm.name, {})
        own = {**own, "transposed": 1.0} if own and len(shape) == 4 else own
    if "alpha" in keys or "scale" in keys:
        own = {part: value for part, value in own.items() if part != "scale"}
    return Layer(algorithm.name, keys, own, shape)


def _peft_name(stem: str) -> str:
    """A module as PEFT's patterns see it."""
    name = _unwrapped(stem)
    return next((name.removeprefix(prefix) for prefix in ("unet.", "text_encoder.", "text_encoder_2.")
                 if name.startswith(prefix)), name)   # fmt: skip


def _check_uniform(layers: Mapping[str, Mapping[str, str]], known: Mapping[str, Algorithm]) -> None:
    """See that no layer has lost what all others of its algorithm have."""
    for name in {algorithm.name for algorithm in known.values()} - {"bias"}:
        alike = {module: layers[module] for module, algorithm in known.items() if algorithm.name == name}
        for part in UNIFORM:
            if without := modules_without(part, alike):
                key = next(parts[part] for parts in alike.values() if part in parts)
                raise HeaderError(f"is incomplete: it contains {key}, but {without[0]} has no such tensor. Download or "
                                  "copy it again.")


def modules_without(part: str, layers: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The layers without a part that others have; none where all or no layers have it.

    >>> modules_without("alpha", {"a": {"alpha": "a.alpha"}, "b": {}})
    ['b']
    """
    without = [module for module, parts in layers.items() if part not in parts]
    return without if len(without) < len(layers) else []

