"""What other tools call the modules of a base model. Pure text: no model is needed.

Ours are diffusers' names with the component in front, ``unet.mid_block.attentions.0.proj_in``. Others join the words
by underscores (kohya and what follows it), or use the names of the original (ldm) code, or both.
"""

from __future__ import annotations

import re
from collections.abc import Collection

_WORDS = """
    down_blocks up_blocks mid_block attentions resnets transformer_blocks downsamplers upsamplers
    conv conv1 conv2 conv_in conv_out conv_norm_out conv_shortcut time_embedding time_emb_proj add_embedding
    linear_1 linear_2 norm norm1 norm2 norm3 proj proj_in proj_out attn1 attn2 to_q to_k to_v to_out ff net
    text_model encoder layers self_attn q_proj k_proj v_proj out_proj mlp fc1 fc2 layer_norm1 layer_norm2
    final_layer_norm embeddings token_embedding position_embedding text_projection
    input_blocks middle_block output_blocks in_layers emb_layers out_layers skip_connection op out time_embed label_emb
""".split()
_WORD = re.compile(rf"({'|'.join(sorted(_WORDS, key=len, reverse=True))}|\d+)(?:_|$)")

LAYERS = 2   # residual blocks of a UNet level, in every family that comes in the original layout
_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
           "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}   # fmt: skip
_SINGLE = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}   # fmt: skip
_MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}

# Prefix → component and how the rest is written: by underscores, by dots, by dots in the original layout, or either.
# The first that fits counts, so the longer ones come first.
_PREFIXES: tuple[tuple[str, str, str], ...] = (
    ("lora_unet_unet_", "unet", "_"),   # a wrong conversion that went around
    ("lora_unet_", "unet", "_"),
    ("lora_te2_", "text_encoder_2", "_"),
    ("lora_te1_", "text_encoder", "_"),
    ("lora_te_", "text_encoder", "_"),
    ("oft_unet_", "unet", "_"),
    ("lycoris_", "unet", "_"),
    ("model.diffusion_model.", "unet", "original"),
    ("diffusion_model.", "unet", "original"),
    ("text_encoders.clip_l.transformer.", "text_encoder", "."),
    ("text_encoders.clip_g.transformer.", "text_encoder_2", "."),
    ("clip_l.", "text_encoder", "."),
    ("clip_g.", "text_encoder_2", "."),
    ("text_encoder_2.", "text_encoder_2", "."),
    ("text_encoder.", "text_encoder", "."),
    ("unet.", "unet", "either"),
    ("text_model.", "text_encoder", "."),
    ("", "unet", "."),
)
_UNET_STARTS = ("down_blocks.", "mid_block.", "up_blocks.", "conv_in", "conv_out", "conv_norm_out", "time_embedding.",
                "add_embedding.")   # fmt: skip
_TEXT_STARTS = ("text_model.encoder.", "text_model.embeddings.", "text_model.final_layer_norm",
                "text_model.text_projection")   # fmt: skip
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def to_underscores(name: str) -> str:
    """A module's name as kohya writes it, without prefix.

    >>> to_underscores("mid_block.attentions.0.proj_in")
    'mid_block_attentions_0_proj_in'
    """
    return name.replace(".", "_")


def from_underscores(text: str) -> str | None:
    """The name that :func:`to_underscores` wrote so; None when it is made of other words.

    >>> from_underscores("mid_block_attentions_0_proj_in")
    'mid_block.attentions.0.proj_in'
    """
    words, place = [], 0
    while place < len(text):
        found = _WORD.match(text, place)
        if not found:
            return None
        words.append(found[1])
        place = found.end()
    return ".".join(words) or None


def parse_module_name(text: str) -> str | None:
    """Our name, component first, for the module that any tool calls ``text``; None when it is no module we know.

    >>> parse_module_name("lora_te_text_model_encoder_layers_3_mlp_fc1")
    'text_encoder.text_model.encoder.layers.3.mlp.fc1'
    >>> parse_module_name("diffusion_model.middle_block.1.proj_in")
    'unet.mid_block.attentions.0.proj_in'
    """
    if text.startswith("encoder.layers."):   # a text encoder of transformers 5, by itself
        text = f"text_model.{text}"
    for prefix, component, writing in _PREFIXES:
        if text.startswith(prefix):
            rest = text.removeprefix(prefix)
            name = from_underscores(rest) if writing == "_" else _checked(rest)
            if name and component == "unet" and writing != ".":
                name = from_original(name) if writing == "original" else from_original(name) or name
            elif name and component != "unet":
                name = f"text_model.{name.removeprefix('text_model.')}"
            return f"{component}.{name}" if name and _known(component, name) else None
    return None


def has_no_bias(name: str) -> bool:
    """Whether a module of a Stable Diffusion UNet has no bias; all others have one.

    >>> has_no_bias("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    True
    """
    return name.endswith(("to_q", "to_k", "to_v"))


def canonical_name(name: str) -> str:
    """A module's name as files keep it: transformers 5 dropped the level ``text_model`` from some text encoders."""
    component, _, path = name.partition(".")
    if component.startswith("text_encoder") and not path.startswith("text_model."):
        path = f"text_model.{path}"
    return f"{component}.{path}"


def _checked(text: str) -> str | None:
    """A name with dots, brought up to date; None when it is made of words that we don't know."""
    if text.startswith(("text_model.", "encoder.")):
        text = re.sub(r"self_attn\.(to_q|to_k|to_v|to_out)$", lambda found: f"self_attn.{_OLD_TEXT[found[1]]}", text)
    text = re.sub(r"\.to_out$", ".to_out.0", text.replace(".processor.", "."))
    return text if from_underscores(to_underscores(text)) == text else None


def _known(component: str, name: str) -> bool:
    start = _UNET_STARTS if component == "unet" else _TEXT_STARTS
    return name.startswith(start)


def to_original(name: str, attended: Collection[int]) -> str:
    """One of diffusers' UNet names in the original layout; ``attended`` are the up blocks that have attention.

    Raises:
        KeyError: no name of a UNet with two residual blocks a level.

    >>> to_original("down_blocks.1.resnets.0.conv1.weight", {1, 2, 3})
    'input_blocks.4.0.in_layers.2.weight'
    >>> to_original("up_blocks.0.upsamplers.0.conv.bias", {1, 2, 3})
    'output_blocks.2.1.conv.bias'
    """
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        place, rest = _MIDDLE[f"{found[1]}.{found[2]}"], found[3]
        return f"middle_block.{place}.{_in_resnet(rest, _RESNET) if found[1] == 'resnets' else rest}"
    if found := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name):
        side, block, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        where, first = ("input_blocks", 1) if side == "down" else ("output_blocks", 0)
        place = (LAYERS + 1) * block + first
        match kind:
            case "resnets":
                return f"{where}.{place + number}.0.{_in_resnet(rest, _RESNET)}"
            case "attentions":
                return f"{where}.{place + number}.1.{rest}"
            case "downsamplers":
                return f"{where}.{place + LAYERS}.0.{rest.replace('conv', 'op', 1)}"
            case "upsamplers":   # behind the residual block, and behind the attention where there is one
                return f"{where}.{place + LAYERS}.{1 + (block in attended)}.{rest}"
    for ours, theirs in _SINGLE.items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    raise KeyError(name)


def from_original(name: str) -> str | None:
    """Diffusers' name for a module of the original UNet; None when it is none.

    >>> from_original("input_blocks.4.0.in_layers.2")
    'down_blocks.1.resnets.0.conv1'
    >>> from_original("output_blocks.2.1.conv")
    'up_blocks.0.upsamplers.0.conv'
    """
    if single := next((ours for ours, theirs in _SINGLE.items() if theirs == name), None):
        return single
    if found := re.match(r"middle_block\.([012])\.(.+)", name):
        place = next(ours for ours, theirs in _MIDDLE.items() if theirs == found[1])
        return f"mid_block.{place}.{_from_resnet(found[2]) if found[1] != '1' else found[2]}"
    found = re.match(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)", name)
    if not found:
        return None
    down, branch, rest = found[1] == "input", found[3], found[4]
    block, place = divmod(int(found[2]) - down, LAYERS + 1)
    side = "down_blocks" if down else "up_blocks"
    if rest == ("op" if down else "conv"):
        return f"{side}.{block}.{'down' if down else 'up'}samplers.0.conv"
    return f"{side}.{block}.resnets.{place}.{_from_resnet(rest)}" if branch == "0" else \
        f"{side}.{block}.attentions.{place}.{rest}"


def _in_resnet(rest: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        if rest == ours or rest.startswith(f"{ours}."):
            return theirs + rest.removeprefix(ours)
    return rest


def _from_resnet(rest: str) -> str:
    return _in_resnet(rest, {theirs: ours for ours, theirs in _RESNET.items()})


def position_names(component: str, count: int) -> list[str]:
    """Our names for the layers that the first LoRA files (cloneofsimo, 2022) only number.

    The order is that of Stable Diffusion 1's modules then: attention and the first half of the feed-forward network
    of each transformer block, down, up, middle; in the text encoder, keys first.

    Raises:
        KeyError: there was no such number of layers.
    """
    if component == "text_encoder" and count == 48:
        return [f"text_encoder.text_model.encoder.layers.{layer}.self_attn.{part}"
                for layer in range(12) for part in ("k_proj", "v_proj", "q_proj", "out_proj")]   # fmt: skip
    if component == "unet" and count == 144:
        blocks = [f"down_blocks.{block}.attentions.{i}" for block in range(3) for i in range(2)]
        blocks += [f"up_blocks.{block}.attentions.{i}" for block in range(1, 4) for i in range(3)]
        heads = ("to_q", "to_k", "to_v", "to_out.0")
        parts = [*(f"attn1.{head}" for head in heads), "ff.net.0.proj", *(f"attn2.{head}" for head in heads)]
        return [f"unet.{block}.transformer_blocks.0.{part}" for block in [*blocks, "mid_block.attentions.0"]
                for part in parts]   # fmt: skip
    raise KeyError(component, count)


