"""What other tools make of a file, written down a second time from their loaders' rules: names, types, ΔW.

Independent of adapters/: no name table, no algebra of ours is used. Each function takes the tensors of a file, the
weights of the base by our names (component first, then diffusers' own) and its family, and returns ΔW of the layers
that the tool would change; None where it refuses the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
Deltas = dict[str, Tensor]
FORGE_LIMIT = 12
ENDINGS = ("lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha", "dora_scale", "diff", "oft_blocks",
           "rescale", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1",
           "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
           "a1.weight", "a2.weight", "b1.weight", "b2.weight")   # fmt: skip
ATTENDED = {"embedded": (1, 2, 3), "sd1": (1, 2, 3), "sd2": (1, 2, 3), "sdxl": (0, 1)}   # up blocks with attention
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}   # fmt: skip
SINGLES = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
           "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
           "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}   # fmt: skip


def ldm_name(name: str, family: str) -> str:
    """What Stability's own code calls a module that diffusers calls ``name``."""
    if name in SINGLES:
        return SINGLES[name]
    if found := re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", name):
        side, block, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        first = 3 * block + number + (side == "down")
        where = {"down": "input_blocks", "up": "output_blocks"}[side]
        if kind == "downsamplers":
            return f"input_blocks.{3 * block + 3}.0.op"
        if kind == "upsamplers":
            return f"output_blocks.{3 * block + 2}.{2 if block in ATTENDED[family] else 1}.conv"
        return f"{where}.{first}.0.{RESNET[rest]}" if kind == "resnets" else f"{where}.{first}.1.{rest}"
    found = re.fullmatch(r"mid_block\.(\w+)\.(\d)\.(.+)", name)
    assert found, name
    if found[1] == "attentions":
        return f"middle_block.1.{found[3]}"
    return f"middle_block.{2 * int(found[2])}.{RESNET[found[3]]}"


def a1111_name(layer: str) -> str:
    """What A1111 makes of a layer in diffusers' spelling, whatever the family: networks.py, by pattern."""
    patterns: list[tuple[str, Callable[[re.Match[str]], str]]] = [
        (r"lora_unet_conv_in", lambda m: "input_blocks_0_0"),
        (r"lora_unet_conv_out", lambda m: "out_2"),
        (r"lora_unet_time_embedding_linear_(\d)", lambda m: f"time_embed_{2 * int(m[1]) - 2}"),
        (r"lora_unet_down_blocks_(\d)_downsamplers_0_conv", lambda m: f"input_blocks_{3 + 3 * int(m[1])}_0_op"),
        (r"lora_unet_up_blocks_(\d)_upsamplers_0_conv",
         lambda m: f"output_blocks_{2 + 3 * int(m[1])}_{2 if int(m[1]) > 0 else 1}_conv"),
        (r"lora_unet_(down|up)_blocks_(\d)_(attentions|resnets)_(\d)_(.+)", lambda m: (
            f"{'input' if m[1] == 'down' else 'output'}_blocks_"
            f"{3 * int(m[2]) + int(m[4]) + (m[1] == 'down')}_{_a1111_inside(m[3], m[5])}")),
        (r"lora_unet_mid_block_(attentions|resnets)_(\d)_(.+)", lambda m: (
            f"middle_block_{1 if m[1] == 'attentions' else 2 * int(m[2])}_{_a1111_inside(m[1], m[3])[2:]}")),
    ]   # fmt: skip
    for pattern, ours in patterns:
        if found := re.fullmatch(pattern, layer):
            return ours(found)
    return layer.removeprefix("lora_unet_")   # and so names of Stability's own code are right as they are


def _a1111_inside(kind: str, rest: str) -> str:
    return f"1_{rest}" if kind == "attentions" else f"0_{RESNET.get(rest, rest).replace('.', '_')}"


def _prefixes(component: str, family: str, tool: str) -> tuple[str, ...]:
    """How a tool lets a text encoder's layers begin in this family."""
    if component == "text_encoder_2":
        return ("lora_te2_",)
    if family == "sdxl":
        return ("lora_te1_",) if tool != "comfy" else ("lora_te1_", "lora_te_")
    numbered = tool == "comfy" or (tool == "a1111" and family != "sd2")
    return ("lora_te_", "lora_te1_") if numbered else ("lora_te_",)


def comfy(tensors: Tensors, weights: Tensors, family: str = "sd1") -> Deltas | None:
    """comfy/lora.py: a map from every accepted spelling of a base key, then the known endings."""
    bases: dict[str, str] = {}
    for name in weights:
        component, _, path = name.partition(".")
        flat = path.replace(".", "_")
        if component != "unet":
            bases |= {prefix + flat: name for prefix in _prefixes(component, family, "comfy")}
            bases[name] = name
            continue
        ldm = ldm_name(path, family)
        bases |= {f"lora_unet_{flat}": name, f"lycoris_{flat}": name, f"diffusion_model.{ldm}": name,
                  f"lora_unet_{ldm.replace('.', '_')}": name}   # fmt: skip
        for prefix in ("", "unet."):
            old = re.sub(r"\.to_(q|k|v)$", r".processor.to_\1", path)
            old = re.sub(r"\.to_out\.0$", ".processor.to_out", old)
            if "attn" not in path or old != path:
                bases[prefix + old] = name
    found: Deltas = {}
    for base, name in bases.items():
        parts = {ending: tensors[f"{base}.{ending}"] for ending in ENDINGS if f"{base}.{ending}" in tensors}
        for up, down in (("_lora.up.weight", "_lora.down.weight"), (".lora_B.weight", ".lora_A.weight"),
                         (".lora.up.weight", ".lora.down.weight")):   # fmt: skip
            if base + up in tensors:
                parts |= {"lora_up.weight": tensors[base + up], "lora_down.weight": tensors[base + down]}
        update = _update(parts, weights[name], glora=True)
        if update is not None:
            lengths = parts.get("dora_scale")
            found[name] = update if lengths is None else _dora(update, lengths, weights[name], by_base=True)
        if "diff" in parts:
            found[name] = parts["diff"].double().reshape(weights[name].shape)
        if "oft_blocks" in parts:   # of BOFT alone it reads `rescale`
            rescale = parts.get("rescale") if parts["oft_blocks"].dim() == 4 else None
            found[name] = _turned(parts["oft_blocks"], parts.get("alpha", torch.tensor(0.0)).item(), rescale,
                                  weights[name])   # fmt: skip
    return found


def forge(tensors: Tensors, weights: Tensors, family: str = "sd1") -> Deltas | None:
    """As ComfyUI, without OFT; more than twelve unmatched keys and the whole file is dropped."""
    found = comfy({key: value for key, value in tensors.items() if "oft_blocks" not in key}, weights, family)
    matched = _matched(tensors, weights, family)
    return found if found and len(tensors) - matched <= FORGE_LIMIT else None


def _matched(tensors: Tensors, weights: Tensors, family: str) -> int:
    known = set()
    for name in weights:
        component, _, path = name.partition(".")
        flat = path.replace(".", "_")
        names = {path, ldm_name(path, family)} if component == "unet" else {path}
        known |= {f"lora_unet_{each.replace('.', '_')}" for each in names} if component == "unet" else {
            prefix + flat for prefix in _prefixes(component, family, "comfy")}   # fmt: skip
    return sum(key.split(".")[0] in known or ".processor." in key for key in tensors)


def a1111(tensors: Tensors, weights: Tensors, family: str = "sd1") -> Deltas | None:
    """Every key is cut at its first dot; what is no underscored name of the base's own code is lost without a word."""
    modules = {}
    for name in weights:
        component, _, path = name.partition(".")
        flat = path.replace(".", "_")
        if component == "unet":
            modules[ldm_name(path, family).replace(".", "_")] = name
        else:
            modules |= {prefix + flat: name for prefix in _prefixes(component, family, "a1111")}
    found: Deltas = {}
    for layer, parts in _by_layer(tensors).items():
        name = modules.get(a1111_name(layer)) or modules.get(layer.removeprefix("lora_unet_"))
        if name is None:
            continue
        weight = weights[name]
        if (update := _update(parts, weight)) is not None:
            found[name] = _dora(update, parts["dora_scale"], weight) if "dora_scale" in parts else update
        elif "diff" in parts:
            found[name] = parts["diff"].double().reshape(weight.shape)
        elif "oft_blocks" in parts:
            constraint = parts.get("alpha", torch.tensor(0.0)).item() * weight.shape[0]
            found[name] = _turned(parts["oft_blocks"], constraint, parts.get("rescale"), weight)
        elif "on_input" in parts:
            if weight.dim() == 2:   # of a convolution the shapes don't fit, and the layer is passed over
                found[name] = _scaled(parts, weight)
        else:
            return None   # "could not find a module type"
    return found


def invoke(tensors: Tensors, weights: Tensors, family: str = "sd1") -> Deltas | None:
    """As A1111, but an unknown layer refuses the file, and so does one that can't be told from its attn2 widths.

    Names of Stability's own code are known in SDXL alone, and only if all are.
    """
    layers = _by_layer(tensors)
    spelled = {}
    for name in weights:
        component, _, path = name.partition(".")
        flat = path.replace(".", "_")
        if component != "unet":
            spelled |= {prefix + flat: name for prefix in _prefixes(component, family, "invoke")}
            continue
        spelled[f"lora_unet_{flat}"] = name
        if family == "sdxl":
            spelled[f"lora_unet_{ldm_name(path, family).replace('.', '_')}"] = name
    inside = [layer for layer in layers if layer.startswith("lora_unet_")]
    theirs = re.compile(r"lora_unet_((input|middle|output)_block|time_embed_|label_emb|out_)")
    original = sum(bool(theirs.match(layer)) for layer in inside)
    told = any(layer.endswith(("_attn2_to_k", "_attn2_to_v")) or layer.startswith("lora_te") for layer in layers)
    if not layers.keys() <= spelled.keys() or not told or (0 < original < len(inside)):
        return None
    found: Deltas = {}
    for layer, parts in layers.items():
        weight = weights[spelled[layer]]
        if "dora_scale" in parts and "lora_up.weight" not in parts:
            return None   # it takes every such layer for a LoRA
        if (update := _update(parts, weight)) is not None:
            found[spelled[layer]] = _dora(update, parts["dora_scale"], weight) if "dora_scale" in parts else update
        elif "diff" in parts:
            found[spelled[layer]] = parts["diff"].double().reshape(weight.shape)
        elif "on_input" in parts and weight.dim() == 2:
            found[spelled[layer]] = _scaled(parts, weight)
        else:
            return None
    return found


def _by_layer(tensors: Tensors) -> dict[str, dict[str, Tensor]]:
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        layer, _, part = key.partition(".")
        layers.setdefault(layer, {})[part] = tensor
    return layers


def _update(parts: Tensors, weight: Tensor, *, glora: bool = False) -> Tensor | None:
    """What a LoRA, LoHa, LoKr or GLoRA adds, before lengths are set; None where a layer is none of them."""
    whole = {ending: value.double() for ending, value in parts.items()}
    if "lora_up.weight" in parts:
        core, down = whole.get("lora_mid.weight"), whole["lora_down.weight"]
        update = _tucker(whole["lora_up.weight"].flatten(1), down, core)
        rank = len(down)
    elif "hada_w1_a" in parts:
        left, right = (_half(whole, f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}") for i in (1, 2))
        update, rank = left * right, len(parts["hada_w1_b"])
    elif "lokr_w1" in parts or "lokr_w1_a" in parts:
        small = whole["lokr_w1"] if "lokr_w1" in parts else whole["lokr_w1_a"] @ whole["lokr_w1_b"]
        large = whole["lokr_w2"] if "lokr_w2" in parts else _half(whole, "lokr_w2_a", "lokr_w2_b", "lokr_t2")
        update = torch.kron(small.reshape(*small.shape, *(1 for _ in large.shape[2:])), large.contiguous())
        inner = [len(parts[ending]) for ending in ("lokr_w2_b", "lokr_w1_b") if ending in parts]
        rank = inner[0] if inner else 0
    elif glora and "a1.weight" in parts:
        a1, a2, b1, b2 = (whole[f"{x}{i}.weight"].flatten(1) for x in "ab" for i in (1, 2))
        update = torch.einsum("oi...,ij->oj...", weight.double(), a1 @ a2) + (b1 @ b2).reshape(weight.shape)
        rank = a2.shape[0]
    else:
        return None
    scale = parts["alpha"].item() / rank if "alpha" in parts and rank else 1.0
    return scale * update.reshape(weight.shape)


def _scaled(parts: Tensors, weight: Tensor) -> Tensor:
    """(IA)³ of a linear layer: its columns scaled, or its rows."""
    factors = parts["weight"].double()
    return weight.double() * (factors.reshape(1, -1) if parts["on_input"].item() else factors.reshape(-1, 1))


def _half(parts: Tensors, left: str, right: str, core: str) -> Tensor:
    """Two factors, or two factors around a core: then the first is on its side."""
    return _tucker(parts[left].T if core in parts else parts[left], parts[right], parts.get(core))


def _tucker(up: Tensor, down: Tensor, core: Tensor | None) -> Tensor:
    if core is None:
        return torch.tensordot(up, down, dims=1)
    return torch.einsum("ijkl,jr,pi->prkl", core, down.flatten(1), up)


def _dora(update: Tensor, lengths: Tensor, weight: Tensor, *, by_base: bool = False) -> Tensor:
    """A1111 and InvokeAI know lengths of columns only; ComfyUI and Forge measure those of rows on the base's weight."""
    weight, lengths = weight.double(), lengths.double()
    after = weight + update
    axis = 0 if by_base and lengths.shape[0] == weight.shape[0] else 1
    measured = weight if axis == 0 else after
    others = [place for place in range(weight.dim()) if place != axis]
    return after * (lengths / torch.linalg.vector_norm(measured, dim=others, keepdim=True)) - weight


def _turned(blocks: Tensor, constraint: float, rescale: Tensor | None, weight: Tensor) -> Tensor:
    """OFT: every block of output rows is turned. BOFT, ``[m, n, b, b]``: m times, of ever farther rows."""
    blocks = blocks.double()
    skew = blocks - blocks.transpose(-1, -2)
    if constraint > 0:
        skew = skew * min(1.0, constraint / (skew.norm().item() + 1e-8))
    one = torch.eye(blocks.shape[-1], dtype=torch.float64)
    turn = (one + skew) @ torch.linalg.inv(one - skew)
    if blocks.dim() == 3:
        rows = weight.double().reshape(blocks.shape[0], blocks.shape[1], -1)
        turned = torch.einsum("knm,knp->kmp", turn, rows).reshape(weight.shape)
    else:
        turned = weight.double()
        for i in range(len(turn)):
            near = turned.unflatten(0, (-1, 2, 2**i * (blocks.shape[-1] // 2))).transpose(1, 2).flatten(0, 2)
            near = torch.einsum("bij,bj...->bi...", turn[i], near.unflatten(0, (-1, blocks.shape[-1]))).flatten(0, 1)
            turned = near.unflatten(0, (-1, 2**i * (blocks.shape[-1] // 2), 2)).transpose(1, 2).flatten(0, 2)
    if rescale is not None:
        turned = turned * rescale.double().reshape(-1, *(1 for _ in weight.shape[1:]))
    return turned - weight.double()


TOOLS = {"ComfyUI": comfy, "A1111": a1111, "Forge": forge, "InvokeAI": invoke}
