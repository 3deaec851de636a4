"""Which tensors one layer of an adapter file is made of: their endings, and what each algorithm needs and may have.

Pure text. The names of parts are LyCORIS's words, or PEFT's where only PEFT has the part.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

# Endings of tensor names → what the tensor is. The first that fits counts.
ENDINGS = {
    ".lora_up.weight": "up", ".lora_down.weight": "down", ".lora_mid.weight": "mid",
    ".lora_B.default.weight": "up", ".lora_A.default.weight": "down", ".lora_B.weight": "up", ".lora_A.weight": "down",
    ".lora_B.default": "up", ".lora_A.default": "down", ".lora_E.default": "singular",
    ".lora_B": "up", ".lora_A": "down", ".lora_E": "singular",
    ".lora_B.bias": "up_bias", ".lora_B.default.bias": "up_bias",
    ".lora_linear_layer.up.weight": "up", ".lora_linear_layer.down.weight": "down",
    ".lora.up.weight": "up", ".lora.down.weight": "down", "_lora.up.weight": "up", "_lora.down.weight": "down",
    "_lora_up.weight": "up", "_lora_down.weight": "down",
    ".lora_magnitude_vector.default.weight": "magnitude", ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector": "magnitude",
    **{f".{part}": part for part in (
        "dora_scale", "alpha", "scale", "scalar",
        "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
        "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
        "diff_b", "diff", "w_norm", "b_norm", "on_input")},
    ".oft_blocks": "oft_blocks", ".rescale": "rescale",
    **{f".{part}{name}.weight": part for part in ("oft_R", "gralora_A_general", "gralora_B_general")
       for name in ("", ".default")},
    ".oft_R.scaled_oft": "scaled_oft",
    **{f".{part}{name}": part for part in (
        "boft_R", "boft_s", "ia3_l", "shira_weight", "shira_indices", "waveft_spectrum", "fourierft_spectrum",
        "miss_block", "randlora_lambda", "randlora_gamma", "randlora_A", "randlora_B", "vera_lambda_b",
        "vera_lambda_d", "hra_u", "hira_A", "hira_B", "c3a_kernel", "gralora_A", "gralora_B")
       for name in ("", ".default")},
    ".set_weight": "set_weight", ".ln_tuning_layers.weight": "set_weight", ".ln_tuning_layers.bias": "set_bias",
    ".base_layer.weight": "set_weight", ".base_layer.bias": "set_bias",
    ".a1.weight": "a1", ".a2.weight": "a2", ".b1.weight": "b1", ".b2.weight": "b2", ".weight": "weight",
}   # fmt: skip

_STRENGTHS = ("alpha", "scale", "scalar")
_LENGTHS = ("dora_scale", "magnitude")
_PEFT = ("set_bias",)   # PEFT's ``bias`` setting: those of all layers that are adapted
_COMMON = (*_STRENGTHS, *_LENGTHS, "base_lengths", "diff_b")
# PEFT draws these once for all layers. Of VeRA they stand beside the layers, of RandLoRA there and in every layer.
SHARED = ("vera_A", "vera_B", "randlora_A", "randlora_B")
# Endings that mean a layer kept whole, where PEFT wrote the file: its ``modules_to_save`` have no name of their own.
WHOLE = {".weight": "set_weight", ".bias": "set_bias"}
# Parts that all layers of one algorithm have or none has: a single layer without it is one that lost it. Where `alpha`
# or a bias is missing, the layer still means something, so that is only said.
UNIFORM = ("scale", "scalar", "dora_scale", "magnitude", "singular", "b_norm", "rescale", "gralora_A_general")


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What a layer is called, and which parts it consists of."""

    name: str
    needs: tuple[str, ...]      # alternatives are separated by |
    takes: tuple[str, ...] = ()

    def complete(self, parts: Collection[str]) -> bool:
        """Whether these parts make a layer of it."""
        return all(any(part in parts for part in need.split("|")) for need in self.needs)

    def knows(self, part: str) -> bool:
        """Whether such a layer can have the part."""
        return part in self.takes or any(part in need.split("|") for need in self.needs)


# The first whose parts are there counts.
ALGORITHMS = (
    Algorithm("AdaLoRA", ("up", "down", "singular"), (*_STRENGTHS, "diff_b", *_PEFT)),
    Algorithm("LoRA", ("up", "down"), (*_COMMON, "mid", "up_bias", *_PEFT)),
    Algorithm("LoHa", ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), (*_COMMON, "hada_t1", "hada_t2")),
    Algorithm("LoKr", ("lokr_w1|lokr_w1_a", "lokr_w2|lokr_w2_a"), (*_COMMON, "lokr_w1_b", "lokr_w2_b", "lokr_t2")),
    Algorithm("GLoRA", ("a1", "a2", "b1", "b2"), _COMMON),
    Algorithm("full", ("diff",), ("diff_b", "scale")),
    Algorithm("norm", ("w_norm",), ("b_norm",)),
    Algorithm("IA3", ("weight", "on_input"), ("scale",)),
    Algorithm("OFT", ("oft_blocks",), ("alpha", "rescale")),
    Algorithm("BOFT", ("boft_blocks",), ("alpha", "rescale")),
    Algorithm("OFT of inputs", ("oft_R",), (*_PEFT, "scaled_oft", "terms", "largest_turn", "transposed")),
    Algorithm("BOFT of inputs", ("boft_R", "boft_s"), _PEFT),
    Algorithm("IA3 of PEFT", ("ia3_l",), ("on_input",)),
    Algorithm("SHiRA", ("shira_weight", "shira_indices"), _PEFT),
    Algorithm("WaveFT", ("waveft_spectrum",), (*_PEFT, "scale", "seed", "wavelet", "direct")),
    Algorithm("FourierFT", ("fourierft_spectrum",), (*_PEFT, "scale", "seed")),
    Algorithm("MiSS", ("miss_block",), _PEFT),
    Algorithm("RandLoRA", ("randlora_lambda", "randlora_gamma", "randlora_A", "randlora_B"), (*_PEFT, "scale")),
    Algorithm("VeRA", ("vera_lambda_b", "vera_lambda_d"), (*_PEFT, "vera_A", "vera_B")),
    Algorithm("HRA", ("hra_u",), (*_PEFT, "gram_schmidt")),
    Algorithm("HiRA", ("hira_A", "hira_B"), _PEFT),
    Algorithm("C3A", ("c3a_kernel",), _PEFT),
    Algorithm("GraLoRA", ("gralora_A", "gralora_B"), (*_PEFT, "gralora_A_general", "gralora_B_general", "scale")),
    Algorithm("whole layers", ("set_weight|set_bias",)),
    Algorithm("bias", ("diff_b|b_norm",)),
)


def ending_of(part: str) -> str:
    """How the name of a part's tensor ends in kohya's and LyCORIS's files, after the dot.

    >>> ending_of("a1"), ending_of("boft_blocks")
    ('a1.weight', 'oft_blocks')
    """
    name = "oft_blocks" if part == "boft_blocks" else part
    return next(ending for ending, found in ENDINGS.items() if found == name).removeprefix(".")


def shared_parts(parts: Collection[str]) -> list[str]:
    """What a layer with these parts has in common with all others.

    >>> shared_parts({"vera_lambda_b"})
    ['vera_A', 'vera_B']
    """
    kinds = {part.partition("_")[0] for part in parts}
    return [part for part in SHARED if part.partition("_")[0] in kinds]


def algorithm_of(parts: Collection[str]) -> Algorithm | None:
    """What a layer with these parts is; None when they make nothing whole.

    >>> algorithm_of({"up", "down", "alpha"}).name
    'LoRA'
    """
    return next((algorithm for algorithm in ALGORITHMS if algorithm.complete(parts)), None)
