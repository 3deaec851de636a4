"""Which tool loads a file: rules from the tools' own loaders, told from names and shapes alone.

Sources and what was tried with each loader: docs/interop.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from atelier.adapters.core.family import SD1, SD2, SDXL
from atelier.adapters.formats.adapter_info import COMFYUI_LENGTHS_ENTRY
from atelier.adapters.formats.group_layers import split_key
from atelier.adapters.formats.layer_parts import algorithm_of
from atelier.adapters.formats.layer_shapes import weight_shape

YES, PARTLY, NO = "yes", "partly", "no"
_FORGE_PATIENCE = 12   # unmatched tensors, beyond which Forge drops the whole file
_EVERYWHERE = {"LoRA", "LoHa", "LoKr", "full", "norm"}
_READS = {   # tool → algorithms
    "ComfyUI": {*_EVERYWHERE, "GLoRA", "bias", "OFT", "BOFT"}, "Forge": {*_EVERYWHERE, "GLoRA", "bias"},
    "A1111": {*_EVERYWHERE, "IA3", "OFT", "BOFT"}, "InvokeAI": {*_EVERYWHERE, "IA3"}, "diffusers": {"LoRA"},
}   # fmt: skip
# What a tool passes over inside a layer that it uses: a part, and what that is. Of strengths only A1111 knows `scale`.
_FACTORS = {"scalar": "the learned strength of each layer (scalar)", "scale": "the strength of each layer (scale)"}
_BIASES = {"up_bias": "what is added to a layer's outputs (lora_B.bias)", "diff_b": "changes to biases beside a LoRA"}
_PASSES_OVER = {
    "ComfyUI": {**_FACTORS, "up_bias": _BIASES["up_bias"]}, "Forge": {**_FACTORS, "up_bias": _BIASES["up_bias"]},
    "A1111": {"scalar": _FACTORS["scalar"], **_BIASES}, "InvokeAI": {**_FACTORS, **_BIASES},
}   # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a tool loads a file, and why not."""

    answer: str        # yes, partly, no
    reason: str = ""


def check_tools(
    shapes: Mapping[str, tuple[int, ...]], family: str, *, comfyui_lengths: bool = False
) -> dict[str, Verdict]:
    """What each tool makes of a file with tensors of these names and shapes, made for a base of ``family``.

    ``comfyui_lengths`` says that the lengths of a DoRA are those that ComfyUI needs.
    """
    layers: dict[str, dict[str, str]] = {}
    for key in shapes:
        if found := split_key(key, len(shapes[key])):
            layers.setdefault(found[0], {})[found[1]] = key
    algorithms = {found.name for parts in layers.values() if (found := algorithm_of(parts))}
    return {tool: rule(_Facts(tool, shapes, layers, algorithms, family, comfyui_lengths))
            for tool, rule in _RULES.items()}   # fmt: skip


@dataclass(frozen=True, slots=True)
class _Facts:
    tool: str
    shapes: Mapping[str, tuple[int, ...]]
    layers: Mapping[str, Mapping[str, str]]
    algorithms: set[str]
    family: str
    comfyui_lengths: bool

    def has(self, part: str) -> bool:
        """Whether any layer has a tensor of this name."""
        return any(part in parts for parts in self.layers.values())

    def strange(self) -> str:
        """The algorithms that the tool does not read, for a sentence; empty when it reads all."""
        return " and ".join(sorted(self.algorithms - _READS[self.tool])).replace("IA3", "(IA)³")

    def words(self) -> bool:
        """Whether learned words are in the file."""
        return any(key.startswith("bundle_emb.") for key in self.shapes)

    def scaled_convolution(self) -> bool:
        """Whether there is an (IA)³ of a convolution."""
        return any("on_input" in parts and self._is_convolution(name, parts) for name, parts in self.layers.items())

    def _is_convolution(self, name: str, parts: Mapping[str, str]) -> bool:
        sizes = {part: self.shapes[key] for part, key in parts.items()}
        return len(weight_shape(name, "IA3", sizes, self.family)) > 2

    def passed_over(self) -> str:
        """What the tool does not read of layers that it uses, for a sentence; a full difference has its bias read."""
        return next((what for part, what in _PASSES_OVER[self.tool].items()
                     if any(part in parts and not (part == "diff_b" and "diff" in parts)
                            for parts in self.layers.values())), "")   # fmt: skip

    def by_row(self) -> bool:
        """Whether there is a DoRA with a length for each row."""
        return any(key.endswith(".dora_scale") and shape[:1] > (1,) for key, shape in self.shapes.items())


_UNDERSCORED = re.compile(r"(lora_unet_(?!unet_)|lora_te[12]?_)\w+\.")
_LYCORIS = re.compile(r"lycoris_\w+\.")
# Dotted attention layers only in the spelling of 2023.
_COMFY_DOTTED = re.compile(r"diffusion_model\.(input|middle|output)_block|text_encoder\.|text_encoders\.clip_[lg]\."
                           r"|(unet\.)?(down|up|mid)_block(?!.*\.attn\d\.to_)|(unet\.)?(down|up|mid)_block.*\.processor\.")
# Layers in diffusers' spelling that A1111 looks for in the wrong place, or nowhere.
_A1111_LOSES = {
    "": re.compile(r"lora_unet_conv_norm_out\.|lycoris_"),
    SD2.name: re.compile(r"lora_te1_"),
    SDXL.name: re.compile(r"lora_unet_(up_blocks_0_upsamplers|add_embedding)_|lora_te_"),
}


def _comfy(facts: _Facts) -> Verdict:
    known = [key for key in facts.shapes
             if _UNDERSCORED.match(key) or _LYCORIS.match(key) or _COMFY_DOTTED.match(key)]   # fmt: skip
    if not known:
        return Verdict(NO, "it knows none of the names and silently loads nothing")
    if strange := facts.strange():
        return Verdict(PARTLY if facts.algorithms & _READS[facts.tool] else NO, f"it does not support {strange}")
    if len(known) < len(facts.shapes.keys() - {COMFYUI_LENGTHS_ENTRY}):
        return Verdict(PARTLY, "it ignores the text embeddings" if facts.words() else "it ignores some names")
    if facts.has("magnitude"):
        return Verdict(PARTLY, "it ignores DoRA's magnitudes in PEFT's form")
    if facts.by_row() and not facts.comfyui_lengths:
        return Verdict(PARTLY, "it computes DoRA's magnitudes from the base model's rows, not from the changed ones")
    if facts.has("rescale") and "OFT" in facts.algorithms:
        return Verdict(PARTLY, "it ignores rescale")
    return _all_of(facts)


def _all_of(facts: _Facts) -> Verdict:
    what = facts.passed_over()
    return Verdict(PARTLY, f"it ignores {what}") if what else Verdict(YES)


def _forge(facts: _Facts) -> Verdict:
    verdict = _comfy(facts)
    unmatched = sum(not (_UNDERSCORED.match(key) or _LYCORIS.match(key) or _COMFY_DOTTED.match(key))
                    for key in facts.shapes)   # fmt: skip
    if verdict.answer == PARTLY and unmatched > _FORGE_PATIENCE:
        return Verdict(NO, f"it rejects files with more than {_FORGE_PATIENCE} unknown names")
    return verdict


def _a1111(facts: _Facts) -> Verdict:
    if not any(_UNDERSCORED.match(key) for key in facts.shapes):
        return Verdict(NO, "it cuts names at the first dot and silently finds no layer")
    if strange := facts.strange():
        return Verdict(NO, f"it fails on {strange}")
    if facts.scaled_convolution():
        return Verdict(PARTLY, "it fails on (IA)³ of convolutions")
    if any("w_norm" in parts and "b_norm" not in parts for parts in facts.layers.values()):
        return Verdict(NO, "it fails on a normalization layer without a bias")
    lost = [key for key in facts.shapes if _A1111_LOSES[""].match(key)
            or (facts.family in _A1111_LOSES and _A1111_LOSES[facts.family].match(key))]   # fmt: skip
    if lost:
        return Verdict(PARTLY, f"it silently drops {lost[0].partition('.')[0]}")
    return _by_columns(facts)


def _by_columns(facts: _Facts) -> Verdict:
    if facts.by_row():
        return Verdict(PARTLY, "it reads DoRA's magnitudes as belonging to columns")
    return _all_of(facts)


def _invoke(facts: _Facts) -> Verdict:
    if facts.words():
        return Verdict(NO, "it rejects files with text embeddings")
    if not all(_UNDERSCORED.match(key) for key in facts.shapes):
        return Verdict(NO, "it rejects files with unknown names")
    if strange := facts.strange():
        return Verdict(NO, f"it does not support {strange}")
    if any("w_norm" in parts and "b_norm" not in parts for parts in facts.layers.values()):
        return Verdict(NO, "it needs a bias for every normalization layer")
    if facts.scaled_convolution():
        return Verdict(NO, "it fails on (IA)³ of convolutions")
    if any("dora_scale" in parts and "up" not in parts for parts in facts.layers.values()):
        return Verdict(NO, "it fails on DoRA of anything but a LoRA")
    if not any(re.search(r"attn2\.to_[kv]$|^text_encoder.*self_attn", name) for name in facts.layers):
        return Verdict(NO, "it can't identify the base model without cross-attention or text encoder layers")
    numbered = any(key.startswith("lora_te1_") for key in facts.shapes)
    if numbered and facts.family in (SD1.name, SD2.name):
        return Verdict(PARTLY, "it ignores a numbered text encoder in this family")
    return _by_columns(facts)


def _diffusers(facts: _Facts) -> Verdict:
    kohya = any(key.startswith(("lora_unet_", "lora_te")) for key in facts.shapes)
    own = all(key.startswith(("unet.", "text_encoder")) for key in facts.shapes)
    if any(key.startswith("lora_unet_unet_") for key in facts.shapes) or not (kohya or own):
        return Verdict(NO, "it finds no layer it knows and applies nothing")
    if facts.words():
        return Verdict(NO, "it fails on the text embeddings")
    if kohya and not all(_UNDERSCORED.match(key) for key in facts.shapes):
        return Verdict(NO, "it fails on unknown names")
    if strange := facts.strange():
        return Verdict(NO, f"it rejects files with {strange}")
    if facts.has("mid"):
        return Verdict(NO, "it rejects LoCon's Tucker form")
    if facts.has("diff_b"):
        return Verdict(NO, "it rejects changes to biases")
    if kohya and (facts.has("scalar") or facts.has("scale")):
        return Verdict(NO, "it rejects strengths in any form but alpha")
    if facts.has("dora_scale"):
        return Verdict(PARTLY, "it drops DoRA's magnitudes with a warning")
    return Verdict(YES)


_RULES: dict[str, Callable[[_Facts], Verdict]] = {
    "ComfyUI": _comfy, "A1111": _a1111, "Forge": _forge, "InvokeAI": _invoke, "diffusers": _diffusers,
}   # fmt: skip
