"""How strong each layer of a PEFT or diffusers file is, where that stands beside its tensors and not among them.

PEFT writes ``adapter_config.json`` beside ``adapter_model.safetensors``, diffusers the same entries into the file's
own header, each with its component in front. What is said there holds for a layer only where it has no tensor for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isnan, nan
from pathlib import Path
from typing import Any

from atelier.adapters.core.parse import parse_json
from atelier.adapters.formats.layer_shapes import Shape, Shapes
from atelier.adapters.formats.safetensors_header import HeaderError

Settings = Mapping[str, float]   # part that the file has no tensor for → its value
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
CONFIG = "adapter_config.json"
_ITS_FILE = "adapter_model"   # the one file that a config belongs to
_IN_HEADER = "lora_adapter_metadata"
_SCALED = ("LoRA", "LoHa", "LoKr")
PEFT_WAVELETS = ("db1", "db2", "db4", "sym4")   # PEFT's names of those that are known here, as a file counts them
_ADALORA_EPSILON = 1e-5   # PEFT adds it to the rank, AdaLoraLayer.get_delta_weight
# Kinds of LoRA that compute something else than up @ down; PEFT says them by a setting.
_VARIANTS = ("use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config")
_SAID_PARTS = {"use_dora": "magnitude", "lora_bias": "up_bias"}   # setting → the part that each layer then has
_MOVED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")   # starts that take their product off the base
# A pattern from a stranger: words, dots, and a few of `.*`; nested repeats could take for ever.
_PLAIN_PATTERN = re.compile(r"[\w.\\\-^$|()*+\[\]]{1,200}")
_NESTED = re.compile(r"\)[*+{?]")
_MOST_REPEATS = 3
_LARGEST = 1e12


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What is said about the layers of one component."""

    source: str = ""   # where it stands, for messages
    values: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, algorithm: str, module: str, shapes: Shapes) -> Settings:
        """The numbers that a layer's tensors don't tell.

        Args:
            algorithm: what the layer is, see ``layer_parts.ALGORITHMS``.
            module: its name as PEFT has it, without component.
            shapes: of its tensors.

        Raises:
            HeaderError: an entry that is needed is missing or can't be used.
        """
        if algorithm == "IA3 of PEFT":
            return {"on_input": float(self._on_input(module, shapes["ia3_l"]))}
        if not self.values and algorithm in (*_DIRECT, "AdaLoRA"):
            raise HeaderError(f"needs {CONFIG}, which PEFT saves with it and which gives each layer's scale. Put both "
                              "into one folder and import adapter_model.safetensors from there.")
        if algorithm in _DIRECT:
            return _DIRECT[algorithm](self)
        if not self.values:
            return {}
        if algorithm == "LoRA" and (lost := next((part for said, part in _SAID_PARTS.items()
                                                  if self.values.get(said) and part not in shapes), "")):   # fmt: skip
            raise HeaderError(f"is incomplete: {module} has no {lost}, which it must have according to {self.source}. "
                              "Download or copy both again.")
        return self._scale(algorithm, module)

    def _scale(self, algorithm: str, module: str) -> Settings:
        if algorithm == "AdaLoRA":
            rank, alpha = self.number("init_r", 1), self.number("lora_alpha")
            return {"scale": (alpha if alpha > 0 else rank) / (rank + _ADALORA_EPSILON)}
        if algorithm not in _SCALED:
            return {}
        self._check_variant(algorithm)
        rank = self.number("r", 1, self._pattern("rank_pattern", module))
        alpha = self.number("lora_alpha" if algorithm == "LoRA" else "alpha",
                            found=self._pattern("alpha_pattern", module))   # fmt: skip
        return {"scale": alpha / (rank**0.5 if algorithm == "LoRA" and self.values.get("use_rslora") else rank)}

    def _on_input(self, module: str, shape: Shape) -> bool:
        """Whether (IA)³ scales the inputs of a layer, as PEFT's ``feedforward_modules``."""
        if len(shape) == 2 and max(shape) > 1:
            return shape[0] == 1
        listed = self.values.get("feedforward_modules")
        if listed is None:
            raise HeaderError(f"needs {CONFIG}, which PEFT saves with it: it tells which side of {module} is scaled.")
        if isinstance(listed, str):
            return self._fits(listed, module)
        return isinstance(listed, list) and any(module.endswith(str(name)) for name in listed)

    def _check_variant(self, algorithm: str) -> None:
        if algorithm != "LoRA":
            return
        if variant := next((name for name in _VARIANTS if self.values.get(name)), None):
            raise HeaderError(f"is a kind of LoRA that Atelier can't use: {self.source} says {variant}.")
        start = self.values.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(_MOVED_BASE):
            raise HeaderError(f"belongs to a base model whose weights were changed before training ({self.source} says "
                              f"init_lora_weights={start}). Save it again with PEFT's "
                              "path_initial_model_for_weight_conversion.")

    def _pattern(self, name: str, module: str) -> Any:
        """The value of the first pattern that fits a module's name, in PEFT's way; None where none does."""
        patterns = self.values.get(name) or {}
        if not isinstance(patterns, Mapping):
            raise HeaderError(f"can't be read: {name} in {self.source} is not a table.")
        return next((value for pattern, value in patterns.items() if self._fits(pattern, module)), None)

    def _fits(self, pattern: str, module: str) -> bool:
        repeats = len(re.findall(r"[*+]", pattern))
        if not _PLAIN_PATTERN.fullmatch(pattern) or _NESTED.search(pattern) or repeats > _MOST_REPEATS:
            raise HeaderError(f"can't be read: the pattern {pattern[:50]!r} in {self.source} is too complicated.")
        try:
            return re.match(rf"(.*\.)?({pattern})$", module) is not None
        except re.error:
            raise HeaderError(f"can't be read: {pattern[:50]!r} in {self.source} is not a valid pattern.") from None

    def number(self, name: str, low: float | None = None, found: Any = None) -> float:
        """An entry that must be a number, at least ``low``; ``found`` takes its place where it is given.

        Raises:
            HeaderError: it is none.
        """
        value = self.values.get(name) if found is None else found
        number = nan
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST:
            number = float(value)
        if isnan(number) or (low is not None and number < low):
            raise HeaderError(f"can't be read: {name} in {self.source} is {str(value)[:30]!r}, but it must be a "
                              "number.")
        return number


def _oft(config: PeftConfig) -> Settings:
    found = {"terms": config.number("num_cayley_neumann_terms", 0)} if config.values.get("use_cayley_neumann") else {}
    return found | ({"largest_turn": config.number("eps", 0)} if config.values.get("coft") else {})


def _wavelet(config: PeftConfig) -> Settings:
    name = str(config.values.get("wavelet_family"))
    if name not in PEFT_WAVELETS:
        raise HeaderError(f"uses the wavelet {name!r}; Atelier knows {', '.join(PEFT_WAVELETS)}.")
    return {**_drawn(config), "wavelet": float(PEFT_WAVELETS.index(name)),
            "direct": float(config.values.get("use_idwt") is False)}   # fmt: skip


def _drawn(config: PeftConfig) -> Settings:
    return {"scale": config.number("scaling"), "seed": config.number("random_loc_seed", 0)}


# Algorithms whose tensors say nothing of the numbers that they need → where PEFT has them.
_DIRECT: dict[str, Callable[[PeftConfig], Settings]] = {
    "OFT of inputs": _oft, "WaveFT": _wavelet, "FourierFT": _drawn,
    "RandLoRA": lambda config: {"scale": config.number("randlora_alpha") / config.number("r", 1)},
    "GraLoRA": lambda config: {
        "scale": config.number("alpha") / (config.number("r", 1) + config.number("hybrid_r", 0))},
    "HRA": lambda config: {"gram_schmidt": float(bool(config.values.get("apply_GS")))},
}
# OneTrainer's OFT is PEFT's, always as a series of so many terms.
ONE_TRAINER: dict[str, Settings] = {"OFT of inputs": {"terms": 5.0}}
NOTHING = PeftConfig()


def configs(path: Path, metadata: Mapping[str, str]) -> dict[str, PeftConfig]:
    """Component → what is said about its layers: in the file's own header, else in the configuration beside it.

    Raises:
        HeaderError: there is a configuration, but it can't be read.
    """
    own = _table(metadata[_IN_HEADER], _IN_HEADER) if _IN_HEADER in metadata else None
    if own:
        return _by_component(own)
    beside = path.with_name(CONFIG)
    if path.stem != _ITS_FILE or not beside.is_file():
        return {}
    try:
        text = beside.read_bytes().decode("utf-8-sig")   # Windows editors put a mark in front
    except (OSError, UnicodeDecodeError):
        raise HeaderError(f"needs {CONFIG} in the same folder, but that can't be read. Download both again.") from None
    return dict.fromkeys(COMPONENTS, PeftConfig(CONFIG, _table(text, CONFIG) or {}))


def passed_over(path: Path) -> str:
    """What to say of a configuration that lies beside a file, but not beside the one it belongs to; or empty."""
    if path.stem == _ITS_FILE or not path.with_name(CONFIG).is_file():
        return ""
    return (f"{CONFIG} in the same folder is not used, because PEFT's own file is called {_ITS_FILE}.safetensors. If "
            "it belongs to this file, rename the file so and import it again.")


def _table(text: str, source: str) -> Mapping[str, Any] | None:
    try:
        found = parse_json(text)
    except ValueError:
        raise HeaderError(f"can't be read: {source} is damaged. Download or copy it again.") from None
    if found is not None and not isinstance(found, dict):
        raise HeaderError(f"can't be read: {source} is damaged. Download or copy it again.")
    return found


def _by_component(entries: Mapping[str, Any]) -> dict[str, PeftConfig]:
    if not any(_component(key) for key in entries):   # a single model's own: diffusers' save_lora_adapter
        return dict.fromkeys(COMPONENTS, PeftConfig(_IN_HEADER, entries))
    found: dict[str, dict[str, Any]] = {}
    for key, value in entries.items():
        if component := _component(key):
            found.setdefault(component, {})[key.removeprefix(f"{component}.")] = value
    return {component: PeftConfig(_IN_HEADER, values) for component, values in found.items()}


def _component(key: str) -> str:
    return next((component for component in COMPONENTS if key.startswith(f"{component}.")), "")
