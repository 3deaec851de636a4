"""What a training run is told: one flat, checked record that round-trips through TOML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Self, get_type_hints

import tomli_w

from atelier.adapters.core.parse import parse_toml
from atelier.adapters.core.settings import SettingError, Settings, convert, setting, unknown_setting
from atelier.adapters.core.targets import TARGETS
from atelier.adapters.kinds.catalog import KINDS, get_kind
from atelier.adapters.kinds.lora import Lora
from atelier.training.config.assets import ASSETS
from atelier.training.config.base_options import AUTO_PREDICTION, PREDICTIONS, BaseOptions

EMBEDDED = "embedded"
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
LEAST_PRODIGY_LR = 0.1   # it multiplies the rate that Prodigy finds; AdamW's usual values would all but stop it
PRESETS = ASSETS / "presets"
PACES = ASSETS / "pace.toml"   # learning rate of adapter kinds over that of LoRA, where it was measured
STOP_MEASURES: dict[str, tuple[str, ...]] = {   # choice of stop_when → the measures that may end a training
    "auto": ("memorization", "drift"), "never": (), "validation": ("validation",), "memorization": ("memorization",),
    "drift": ("drift",), "any": ("memorization", "drift", "validation"),
}   # fmt: skip
MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000
MAX_CHUNKS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(Settings):
    """Everything that decides the result of a run. Same config, pictures and machine: same weights.

    Options of the adapter kind are in ``adapter``; when read from text they may stand beside the other fields.
    """

    name: str = setting("", "Name of the adapter.")
    pictures: str = setting("", "Folder with the training pictures.")
    base: str = setting(EMBEDDED, "Base model: 'embedded', a diffusers folder, a .safetensors checkpoint, or a hub id.")
    prediction: str = setting(AUTO_PREDICTION, "What the base model's UNet predicts. 'auto' reads it from its files.",
                              choices=PREDICTIONS)
    vae: str = setting("", "Another VAE for the base model: a .safetensors file or a diffusers folder. Empty means its "
                           "own.")
    trigger: str = setting("", "Trigger word for prompts. Empty means the name.")
    subject: str = setting("object", "Class word: what it is, in one or two common words, such as 'fox', 'coffee cup' "
                                     "or 'person'.")
    caption: str = setting("", "Caption for pictures that have none. {trigger} and {subject} are replaced.")
    trigger_first: bool = setting(False, "Captions that lack the trigger word, or have it where the text encoder no "
                                         "longer reads, begin with it.")
    caption_chunks: int = setting(1, "How many times the text encoder's length captions may have. What is longer is "
                                     "cut off.", low=1, high=MAX_CHUNKS)
    clip_skip: int = setting(0, "Layers to skip at the end of the text encoder; draw with the same number. Other tools "
                                "count from 1.", low=0, high=11)
    weights: str = setting("", "Pictures that count more or less than the others, one NAME=WEIGHT per line. 2 means "
                               "twice as often.")

    kind: str = setting("lora", "Adapter kind.", choices=tuple(KINDS))
    adapter: dict[str, Any] = setting(None, "Options of the adapter kind, such as rank.")
    targets: str = setting("transformer", "Layers of the UNet to train.", choices=tuple(TARGETS))
    continue_from: str = setting("", "Adapter of the library whose training is continued: its name, or the SHA-256 of "
                                     "its weights. Kind, options and layers are then its own.")
    train_text_encoder: bool = setting(False, "Also train the text encoder.")

    steps: int = setting(300, "Optimizer steps.", low=1, high=1_000_000)
    batch: int = setting(4, "Pictures per microstep (batch size).", low=1, high=256)
    accumulate: int = setting(1, "Microsteps per step (gradient accumulation).", low=1, high=1024)
    resolution: int = setting(0, "Training resolution in pixels. 0 means the base model's own.", low=0, high=4096)

    optimizer: str = setting("adamw", "Optimizer. GaLore and LISA need little memory for their state and are meant "
                                     "for full.", choices=("adamw", "prodigy", "galore", "galore-8bit", "lisa"))
    lr: float = setting(1e-3, "Learning rate. With Prodigy, which finds its own, set it to 1.", low=0, high=10)
    lr_schedule: str = setting("cosine", "Learning rate schedule.", choices=("constant", "linear", "cosine"))
    warmup: int = setting(20, "Steps over which the learning rate rises from 0.", low=0, high=100_000)
    weight_decay: float = setting(1e-4, "Weight decay of AdamW.", low=0, high=1)
    clip: float = setting(1.0, "Maximum gradient norm. 0 turns clipping off.", low=0)
    up_speed: float = setting(1.0, "How many times faster `up` learns than `down` in a LoRA (LoRA+). 16 is common, 1 "
                                   "treats both alike.", low=0.01, high=1000)
    whole_gradient: bool = setting(False, "Update both factors of a LoRA so that their product follows the gradient of "
                                          "the full weight (LoRA-Pro).")
    ema: float = setting(0.0, "Decay of the moving average of the weights, which is saved. 0 turns it off.",
                         low=0, high=0.99999)

    min_snr_gamma: float = setting(0.0, "Gamma of Min-SNR loss weighting. 0 turns it off.", low=0, high=100)
    noise_offset: float = setting(0.0, "How far noise moves whole channels, so that very dark and very bright pictures "
                                       "can be learned. 0.05 to 0.1 is usual. 0 turns it off.", low=0, high=1)
    prior_weight: float = setting(1.0, "Weight of prior preservation: how strictly other subjects stay unchanged.",
                                  low=0, high=100)
    prior_count: int = setting(32, "Pictures that the base model draws for prior preservation.",
                               low=0, high=10_000)

    precision: str = setting("auto", "Numeric precision. 'auto' measures which is fastest here.",
                             choices=PRECISIONS)
    base_in_8_bits: bool = setting(False, "Store the UNet's frozen weights in 8 bits: half the memory or less, "
                                          "slightly slower and less exact.")
    gradient_checkpointing: bool = setting(False, "Use less memory, but take about a third longer.")
    record: str = setting("auto", "Record steps as CUDA graphs on NVIDIA cards: faster with small batches, but their "
                                  "activations stay in memory.", choices=("auto", "off"))
    compile: bool = setting(False, "Compile parts of the base model with torch first. This takes minutes and pays off "
                                   "only in long runs on a GPU.")
    seed: int = setting(0, "Random seed.", low=0, high=2**31 - 1)

    validate_every: int = setting(50, "Steps between validations. 0 turns them off.", low=0)
    preview_every: int = setting(100, "Steps between previews. 0 turns them off.", low=0)
    preview_prompts: str = setting("", "Preview prompts, one per line. {trigger} and {subject} are replaced.")
    preview_seeds: int = setting(1, "Pictures per preview prompt, each from a seed of its own.", low=1, high=8)
    preview_adapters: str = setting("", "Other adapters of the library that act in previews, such as 'oil=0.8, fog'.")
    checkpoint_every: int = setting(100, "Steps between checkpoints to resume from. 0 turns them off.", low=0)
    keep_best: bool = setting(True, "Save the step with the lowest validation loss instead of the last one.")
    stop_when: str = setting("auto", "Measure that may end the training early, and then decides which step is saved. "
                                     "'auto' is memorization or drift.", choices=tuple(STOP_MEASURES))
    snapshots: int = setting(8, "Steps along the run whose weights are kept, to compare them afterwards. 0 keeps none.",
                             low=0, high=64)

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapter", dict(self.adapter or {}))
        Settings.__post_init__(self)
        get_kind(self.kind).settings.from_dict(self.adapter)
        picture_weights(self.weights)
        if self.lr == 0:
            raise SettingError("lr is 0, so nothing would be learned. Set it above 0; 0.001 is usual.")
        if self.optimizer == "prodigy" and self.lr < LEAST_PRODIGY_LR:
            raise SettingError(f"lr is {self.lr}, but Prodigy finds its own learning rate. Set lr=1.")
        if self.optimizer == "prodigy" and self.up_speed != 1:
            raise SettingError(f"up_speed is {self.up_speed}, but Prodigy uses one learning rate for all parameters. "
                               "Set up_speed=1.")
        if self.whole_gradient and not issubclass(get_kind(self.kind), Lora):
            raise SettingError(f"whole_gradient works only with lora and kinds built on it, not with {self.kind}. Set "
                               "it to false.")
        if self.kind == "split" and (self.optimizer != "adamw" or self.up_speed != 1):
            raise SettingError("The halves of a split adapter have their own learning rates. Set optimizer=adamw and "
                               "up_speed=1.")

        if self.base_in_8_bits and self.needs_whole_base:
            raise SettingError("base_in_8_bits is on, but this initialization needs gradients of the full weights. "
                               "Choose another start, or turn base_in_8_bits off.")

    @property
    def needs_whole_base(self) -> bool:
        """Whether the kind looks at gradients of the base's own weights before it starts."""
        kind = get_kind(self.kind)
        return kind.required_statistics(kind.settings.from_dict(self.adapter)) in ("gradient", "movement")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain values. A name that is no field of ours is looked up among the adapter kind's options.

        Raises:
            SettingError: an unknown name (the message lists the fields) or a value that does not fit.
        """
        hints = get_type_hints(cls)
        options = get_kind(str(values.get("kind", "lora"))).settings
        option_hints = {f.name: get_type_hints(options)[f.name] for f in fields(options)}
        own: dict[str, Any] = {}
        table = values.get("adapter") or {}
        if not isinstance(table, Mapping):
            raise SettingError(f"adapter is {table!r}, but it must be a table of the adapter kind's options.")
        adapter: dict[str, Any] = dict(table)
        for name, value in values.items():
            if name in option_hints:
                adapter[name] = convert(name, option_hints[name], value)
            elif name not in hints:
                raise SettingError(unknown_setting(name, sorted({*hints, *option_hints} - {"adapter"})))
            elif name != "adapter":
                own[name] = convert(name, hints[name], value)
        return cls(**own, adapter=adapter)

    def to_toml(self, without: Sequence[str] = ()) -> str:
        """Write as TOML, every field explicit but those named in ``without``."""
        return tomli_w.dumps({name: value for name, value in self.to_dict().items() if name not in without})

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Read what :meth:`to_toml` wrote.

        Raises:
            SettingError: not TOML, or a field does not fit.
        """
        try:
            values = parse_toml(text)
        except ValueError as error:
            raise SettingError(f"This is not a valid recipe: {error}.") from None
        return cls.from_dict(values)

    @property
    def base_options(self) -> BaseOptions:
        """How the base model is loaded."""
        return BaseOptions(self.prediction, self.vae)

    @property
    def trigger_word(self) -> str:
        """The word that calls the subject."""
        return self.trigger or self.name

    @property
    def prior_batch(self) -> int:
        """Prior pictures in one microstep, beside the ``batch`` of the subject; 0 without prior preservation."""
        return max(1, self.batch // 2) if self.prior_weight and self.prior_count else 0


def picture_weights(text: str) -> dict[str, float]:
    """The weights of pictures by file name, from lines ``NAME=WEIGHT``.

    Raises:
        SettingError: a line is of another form, or a weight is not between 0.001 and 1000.

    >>> picture_weights("rex.jpg=2\\nsleeping.png=0.5")
    {'rex.jpg': 2.0, 'sleeping.png': 0.5}
    """
    weights = {}
    for line in filter(str.strip, text.split("\n")):
        name, _, value = line.rpartition("=")
        try:
            weight = float(value)
        except ValueError:
            weight = 0.0
        if not name.strip() or not MIN_WEIGHT <= weight <= MAX_WEIGHT:   # also refuses nan
            raise SettingError(f"weights has the line {line.strip()!r}, but each must be a picture's file name, = and "
                               f"a number from {MIN_WEIGHT} to {MAX_WEIGHT}, such as rex.jpg=2.")
        weights[name.strip()] = weight
    return weights


def weights_text(weights: Mapping[str, float]) -> str:
    """Write what :func:`picture_weights` reads."""
    return "\n".join(f"{name}={weight:g}" for name, weight in weights.items())


def preset_names() -> list[str]:
    """Names of the presets that come with Atelier, the default first."""
    return sorted((path.stem for path in PRESETS.glob("*.toml")), key=lambda name: (name != "normal", name))


def preset_evidence(name: str | None) -> str:
    """What was measured with a preset, in a sentence for people; empty where nothing was or there is no such preset."""
    if name not in preset_names():
        return ""
    return str(parse_toml((PRESETS / f"{name}.toml").read_text(encoding="utf-8")).get("evidence", ""))


def preset_notes(name: str) -> dict[str, str]:
    """What a preset says of itself: its ``title``, and in a ``hint`` what it is good for."""
    tables = parse_toml((PRESETS / f"{name}.toml").read_text(encoding="utf-8"))
    return {"title": str(tables.get("title", name.capitalize())), "hint": str(tables.get("hint", ""))}


def load_preset(name: str, family: str, kind: str = "") -> dict[str, Any]:
    """Settings of a preset for one base family: its ``[settings]`` table, overlaid by ``[<family>]``.

    Options of the adapter kind, such as the rank, are meant for the preset's own kind; with another they are left out,
    for it may not have them, or mean something else by them. The learning rate is multiplied by the kind's pace.

    Args:
        name: the preset.
        family: the base model's.
        kind: the kind it is wanted for; empty for the preset's own.

    Raises:
        SettingError: there is no such preset; the message lists those that exist.
    """
    path = PRESETS / f"{name}.toml"
    if name not in preset_names():
        raise SettingError(f"There is no preset {name!r}. The presets are: {', '.join(preset_names())}.")
    tables = parse_toml(path.read_text(encoding="utf-8"))
    values = {**tables.get("settings", {}), **tables.get(family, {})}
    if kind in ("", values.get("kind", "lora")):
        return values
    own = {key: value for key, value in values.items() if key in {f.name for f in fields(TrainConfig)}}
    return own | ({"lr": own["lr"] * pace(kind)} if "lr" in own and own.get("optimizer") != "prodigy" else {})


@cache
def _paces() -> dict[str, Any]:
    return parse_toml(PACES.read_text(encoding="utf-8"))


def pace(kind: str) -> float:
    """How many times LoRA's learning rate suits a kind; 1 where it was not measured."""
    return float(_paces().get(kind, 1.0))
