"""What an adapter file of any tool holds, told from its header alone: layers, algorithms, base family, what is odd.

No tensor is read and torch is not loaded, so a look at a file takes milliseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from atelier.adapters.formats import foreign_metadata
from atelier.adapters.formats.module_names import module_named, position_names
from atelier.adapters.formats.safetensors_header import Entries, FileError, HeaderError, read_entries

Shapes = Mapping[str, tuple[int, ...]]   # part of a layer → the shape of its tensor

# Endings of tensor names → what the tensor is. Ours are LyCORIS's words; the first that fits counts.
_ENDINGS = {
    ".lora_up.weight": "up", ".lora_down.weight": "down", ".lora_mid.weight": "mid",
    ".lora_B.default.weight": "up", ".lora_A.default.weight": "down", ".lora_B.weight": "up", ".lora_A.weight": "down",
    ".lora_B": "up", ".lora_A": "down", ".lora_linear_layer.up.weight": "up", ".lora_linear_layer.down.weight": "down",
    ".lora.up.weight": "up", ".lora.down.weight": "down", "_lora.up.weight": "up", "_lora.down.weight": "down",
    "_lora_up.weight": "up", "_lora_down.weight": "down",
    ".lora_magnitude_vector.default.weight": "magnitude", ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector": "magnitude", ".dora_scale": "dora_scale", ".alpha": "alpha",
    **{f".{part}": part for part in (
        "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
        "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
        "diff_b", "diff", "w_norm", "b_norm", "on_input")},
    ".a1.weight": "a1", ".a2.weight": "a2", ".b1.weight": "b1", ".b2.weight": "b2", ".weight": "weight",
}   # fmt: skip
# Which parts an algorithm needs, and what it is called. The first whose parts are there counts.
ALGORITHMS: dict[str, tuple[str, ...]] = {
    "LoRA": ("up", "down"),
    "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "LoKr": ("lokr_w1|lokr_w1_a", "lokr_w2|lokr_w2_a"),
    "GLoRA": ("a1", "a2", "b1", "b2"),
    "full": ("diff",),
    "norm": ("w_norm",),
    "IA3": ("weight", "on_input"),
    "bias": ("diff_b|b_norm",),
}
# Part of a tensor name → what the file is that has it.
_OTHERS = {
    "emb_params": "is a textual inversion: a learned word, not an adapter",
    "string_to_param": "is a textual inversion: a learned word, not an adapter",
    "clip_l": "is a textual inversion for Stable Diffusion XL: a learned word, not an adapter",
    "oft_blocks": "is an OFT adapter, which turns the weights instead of adding to them. Atelier can't use that",
    "double_blocks": "is an adapter for FLUX. Atelier works with Stable Diffusion 1.x, 2.x and XL",
    "single_transformer_blocks": "is an adapter for FLUX. Atelier works with Stable Diffusion 1.x, 2.x and XL",
    "joint_blocks": "is an adapter for Stable Diffusion 3. Atelier works with Stable Diffusion 1.x, 2.x and XL",
    "transformer.transformer_blocks": "is an adapter for a transformer model such as Stable Diffusion 3 or FLUX. "
                                      "Atelier works with Stable Diffusion 1.x, 2.x and XL",
    "cross_attn": "is an adapter for a video model. Atelier works with Stable Diffusion 1.x, 2.x and XL",
    "first_stage_model": "is a whole base model, not an adapter: give it as --base",
    "model.diffusion_model.": "is a base model, not an adapter: give it as --base",
    "control_model": "is a ControlNet, not an adapter",
}   # fmt: skip
_FAMILIES = {192: "embedded", 768: "sd1", 1024: "sd2", 2048: "sdxl"}   # width of the text features → family


@dataclass(frozen=True, slots=True)
class Contents:
    """What one adapter file holds."""

    family: str                            # of the base model it was made for
    layers: dict[str, dict[str, str]]      # module → part → the tensor's name in the file
    shapes: dict[str, tuple[int, ...]]     # of all tensors in the file, by their names there
    algorithms: dict[str, int]             # such as LoRA → number of layers
    ranks: tuple[int, ...]                 # all there are, smallest first
    alphas: dict[str, float]               # component → alpha, where it is no tensor
    unknown: tuple[str, ...]               # tensors nothing is made of
    notes: tuple[str, ...]                 # what a person should know, in sentences
    trigger: str                           # word that calls it; empty when the file does not say
    tags: tuple[tuple[str, int], ...]      # words of its captions, the most frequent first
    metadata: dict[str, str]


def look(path: Path) -> Contents:
    """Say what an adapter file holds.

    Raises:
        FileError: it is no adapter, or one that Atelier can't use; says what it is and the cure.
    """
    try:
        entries = read_entries(path)
        return sort(entries, path.name, foreign_metadata.alphas(path, entries.metadata))
    except FileNotFoundError:
        raise FileError(f"{path.name} does not exist.") from None
    except HeaderError as error:
        raise FileError(f"{path.name} {error}") from None
    except OSError as error:
        raise FileError(f"{path.name} can't be read: {error.strerror}.") from None


def sort(entries: Entries, name: str, alphas: Mapping[str, float] = MappingProxyType({})) -> Contents:
    """Sort the tensors of a header into layers; ``name`` is the file's in messages, ``alphas`` what is said elsewhere.

    Raises:
        FileError: see :func:`look`.
    """
    shapes = {key: entry.shape for key, entry in entries.tensors.items()}
    layers, unknown = _layers(shapes, entries.metadata)
    complete = {layer: found for layer, parts in layers.items() if (found := algorithm(parts))}
    unknown += [key for layer, parts in layers.items() if layer not in complete for key in parts.values()]
    layers = {layer: layers[layer] for layer in complete}
    if not layers:
        raise FileError(f"{name} {_what_else(shapes)}.")
    family, sure = _family(layers, shapes, entries.metadata)
    ranks = sorted({shapes[parts["down"]][0] for parts in layers.values() if "down" in parts})
    notes = _notes(shapes, unknown, sure)
    if "LoRA" in complete.values() and not alphas and not any("alpha" in parts for parts in layers.values()):
        notes.append("It holds no alpha, so every update is used as it is (scale 1).")
    return Contents(
        family=family, layers=layers, shapes=shapes, algorithms=dict(Counter(complete.values())),
        ranks=tuple(ranks), alphas=dict(alphas), unknown=tuple(unknown), notes=tuple(notes),
        trigger=foreign_metadata.trigger(entries.metadata), tags=foreign_metadata.tags(entries.metadata),
        metadata=entries.metadata,
    )   # fmt: skip


def algorithm(parts: Mapping[str, Any]) -> str:
    """What a layer with these parts is; empty when they make nothing whole.

    >>> algorithm({"up": 0, "down": 0, "alpha": 0})
    'LoRA'
    """
    for name, needs in ALGORITHMS.items():
        if all(any(part in parts for part in need.split("|")) for need in needs):
            return name
    return ""


def split_key(key: str) -> tuple[str, str] | None:
    """Our module name and the part that a tensor is; None when it is neither.

    >>> split_key("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight")
    ('unet.mid_block.attentions.0.proj_in', 'up')
    """
    plain = key.removeprefix("base_model.model.")
    for ending, part in _ENDINGS.items():
        if plain.endswith(ending) and (module := module_named(plain.removesuffix(ending))):
            return module, part
    return None


def _layers(shapes: Shapes, metadata: Mapping[str, str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    layers: dict[str, dict[str, str]] = {}
    unknown = []
    numbered = _numbered(shapes, metadata)
    for key in shapes:
        found = numbered.get(key) or split_key(key)
        if found:
            layers.setdefault(found[0], {})[found[1]] = key
        else:
            unknown.append(key)
    return layers, unknown


def _numbered(shapes: Shapes, metadata: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The first LoRA files' tensors, ``unet:7:up``: layers by their number alone."""
    found: dict[str, tuple[str, str]] = {}
    for component in ("unet", "text_encoder"):
        numbers = sorted(int(key.split(":")[1]) for key in shapes if key.startswith(f"{component}:") and
                         key.endswith(":up"))   # fmt: skip
        if numbers != list(range(len(numbers))) or not numbers or component not in metadata:
            continue
        try:
            names = position_names(component, len(numbers))
        except KeyError:
            continue
        found |= {f"{component}:{i}:{part}": (names[i], part) for i in numbers for part in ("up", "down")}
    return found


def _family(layers: Mapping[str, Mapping[str, str]], shapes: Shapes, metadata: Mapping[str, str]) -> tuple[str, bool]:
    """The base family, and whether the shapes prove it."""
    for layer, parts in layers.items():
        width = parts.get("down") or parts.get("diff") or parts.get("hada_w1_b")   # their columns are text features
        if layer.endswith(("attn2.to_k", "attn2.to_v")) and width and (family := _FAMILIES.get(shapes[width][1])):
            return family, True
    if any(layer.startswith(("text_encoder_2.", "unet.add_embedding")) or ".transformer_blocks.2." in layer
           for layer in layers):   # fmt: skip
        return "sdxl", True
    named = foreign_metadata.family(metadata)
    return named or "sd1", bool(named)


def _notes(shapes: Shapes, unknown: list[str], sure: bool) -> list[str]:
    notes = []
    words = [key for key in unknown if key.startswith(("<", "bundle_emb."))]
    if words:
        notes.append(f"It also holds {len(words)} learned words, which are not used: {', '.join(sorted(words)[:5])}.")
    if rest := [key for key in unknown if key not in words]:
        notes.append(f"{len(rest)} of {len(shapes)} tensors are not used, such as {rest[0]}.")
    if any(key.startswith("lora_unet_unet_") for key in shapes):
        notes.append("Its names are doubled (lora_unet_unet_) by a wrong conversion; they were read as meant.")
    if not sure:
        notes.append("Its shapes don't tell the base model; it is taken for Stable Diffusion 1.x.")
    return notes


def _what_else(shapes: Shapes) -> str:
    if not shapes:
        return "holds no tensors at all"
    for part, what in _OTHERS.items():
        if any(part in key for key in shapes):
            return what
    if any(key.startswith(("unet:", "text_encoder:")) for key in shapes):
        return ("numbers its layers instead of naming them (a format of 2022), and not in the usual order. "
                "Convert it with the tool it came from")
    return (f"is a safetensors file, but none of its {len(shapes)} tensors has a name of a Stable Diffusion adapter; "
            f"the first is {next(iter(shapes))}")
