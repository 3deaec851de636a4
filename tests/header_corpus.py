"""Headers of a hundred sorts of files: tensor names and shapes, put together from what the formats say. No weights.

``ADAPTERS``: name → (tensors, base family, layers, algorithm). ``OTHERS``: name → (tensors, what the refusal must say).
"""

from __future__ import annotations

from collections.abc import Iterable

Shape = tuple[int, ...]
Header = dict[str, Shape]

# Layers


def sd(width: int = 768, blocks: Iterable[str] = ("down_blocks.1.attentions.0", "mid_block.attentions.0")) -> Header:
    """Weights of a few layers of a Stable Diffusion UNet: module → shape."""
    found: Header = {"down_blocks.1.resnets.0.conv1": (640, 320, 3, 3)}
    for block in blocks:
        inner = f"{block}.transformer_blocks.0"
        found |= {f"{inner}.attn1.to_q": (640, 640), f"{inner}.attn2.to_k": (640, width),
                  f"{inner}.attn2.to_out.0": (640, 640), f"{inner}.ff.net.0.proj": (5120, 640)}   # fmt: skip
    return found


def clip(width: int = 768, layers: int = 2) -> Header:
    return {f"text_model.encoder.layers.{layer}.{part}": (width, width) for layer in range(layers)
            for part in ("self_attn.q_proj", "self_attn.out_proj")}   # fmt: skip


def flux(double: int = 2, single: int = 2) -> Header:
    found = {f"double_blocks.{i}.{part}": (3072, 3072) for i in range(double)
             for part in ("img_attn.proj", "img_attn.qkv", "txt_mlp.0", "img_mod.lin")}   # fmt: skip
    return found | {f"single_blocks.{i}.{part}": (3072, 3072) for i in range(single) for part in ("linear1", "linear2")}


def named(prefix: str, count: int, *parts: str, width: int = 3072) -> Header:
    return {f"{prefix}.{i}.{part}": (width, width) for i in range(count) for part in parts}


# How files spell them

def under(layers: Header, prefix: str = "lora_unet_") -> Header:
    return {prefix + name.replace(".", "_"): shape for name, shape in layers.items()}


def dots(layers: Header, prefix: str) -> Header:
    return {prefix + name: shape for name, shape in layers.items()}


def pair(layers: Header, up: str, down: str, rank: int = 4, *, alpha: bool = False) -> Header:
    """A LoRA on each layer."""
    found: Header = {}
    for name, (rows, columns, *kernel) in layers.items():
        found |= {name + up: (rows, rank, *(1 for _ in kernel)), name + down: (rank, columns, *kernel)}
        found |= {f"{name}.alpha": ()} if alpha else {}
    return found


def kohya(layers: Header, rank: int = 4) -> Header:
    return pair(layers, ".lora_up.weight", ".lora_down.weight", rank, alpha=True)


def peft(layers: Header) -> Header:
    return pair(layers, ".lora_B.weight", ".lora_A.weight")


def parts(layers: Header, **shapes: str) -> Header:
    """Other algorithms: a tensor of each name, its shape in terms of ``o``, ``i`` and ``k``."""
    found: Header = {}
    for name, (rows, columns, *kernel) in layers.items():
        taps = kernel[0] * kernel[1] if kernel else 1
        known = {"o": rows, "i": columns, "k": taps, "K": tuple(kernel)}
        found |= {f"{name}.{part}": eval(shape, {}, known) for part, shape in shapes.items()}   # our own text
    return found


def linear(layers: Header) -> Header:
    return {name: shape for name, shape in layers.items() if len(shape) == 2}


def old(layers: Header) -> Header:
    """Attention layers in diffusers' spelling of 2023."""
    found: Header = {}
    for name, (rows, columns, *_) in layers.items():
        if ".attn" in name:
            head, _, last = name.partition("to_")
            stem = f"{head}processor.to_{last.removesuffix('.0')}_lora"
            found |= {f"{stem}.up.weight": (rows, 4), f"{stem}.down.weight": (4, columns)}
    return found


def original(layers: Header) -> Header:
    """Stability's own names of the layers of :func:`sd`."""
    places = {"down_blocks.1.attentions.0": "input_blocks.4.1", "mid_block.attentions.0": "middle_block.1",
              "down_blocks.1.resnets.0.conv1": "input_blocks.4.0.in_layers.2"}   # fmt: skip
    return {next(name.replace(ours, theirs) for ours, theirs in places.items() if name.startswith(ours)): shape
            for name, shape in layers.items()}   # fmt: skip


_PREFIX = "base_model.model."
_LOHA = {"hada_w1_a": "(o, 4)", "hada_w1_b": "(4, i * k)", "hada_w2_a": "(o, 4)", "hada_w2_b": "(4, i * k)",
         "alpha": "()"}   # fmt: skip
_LOKR = {"lokr_w1": "(8, 8)", "lokr_w2_a": "(o // 8, 4)", "lokr_w2_b": "(4, i // 8 * k)", "alpha": "()"}
_GLORA = {"a1.weight": "(i, 4)", "a2.weight": "(4, i)", "b1.weight": "(o, 4)", "b2.weight": "(4, i)", "alpha": "()"}
_XL = {"down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q": (640, 640)}

ADAPTERS: dict[str, tuple[Header, str, int, str]] = {
    "kohya, SD 1": (kohya(under(sd())), "sd1", 9, "LoRA"),
    "kohya, SD 2": (kohya(under(sd(1024))), "sd2", 9, "LoRA"),
    "kohya, SDXL in diffusers' names": (kohya(under(sd(2048))), "sdxl", 9, "LoRA"),
    "kohya, SDXL in Stability's names": (kohya(under(original(sd(2048)))), "sdxl", 9, "LoRA"),
    "kohya with a text encoder": (kohya(under(sd())) | kohya(under(clip(), "lora_te_")), "sd1", 13, "LoRA"),
    "kohya with two text encoders": (kohya(under(sd(2048))) | kohya(under(clip(), "lora_te1_"))
                                     | kohya(under(clip(1280), "lora_te2_")), "sdxl", 17, "LoRA"),
    "a text encoder alone": (kohya(under(clip(), "lora_te_")), "sd1", 4, "LoRA"),
    "SD 2's text encoder alone": (kohya(under(clip(1024), "lora_te_")), "sd2", 4, "LoRA"),
    "kohya without alpha": (pair(under(sd()), ".lora_up.weight", ".lora_down.weight"), "sd1", 9, "LoRA"),
    "kohya, rank 1": (kohya(under(sd()), 1), "sd1", 9, "LoRA"), "kohya, rank 128": (kohya(under(sd()), 128), "sd1", 9,
                                                                                   "LoRA"),
    "diffusers today": (peft(dots(sd(), "unet.")), "sd1", 9, "LoRA"),
    "diffusers, lora.up": (pair(dots(sd(), "unet."), ".lora.up.weight", ".lora.down.weight"), "sd1", 9, "LoRA"),
    "diffusers with a text encoder": (peft(dots(sd(), "unet.")) | pair(
        dots(clip(), "text_encoder."), ".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"), "sd1", 13,
        "LoRA"),
    "diffusers, SDXL": (peft(dots(sd(2048), "unet.") | dots(clip(1280), "text_encoder_2.")), "sdxl", 13, "LoRA"),
    "diffusers 2023": (dots(old(sd()), "unet."), "sd1", 6, "LoRA"),
    "diffusers 2023, bare": (old(sd()), "sd1", 6, "LoRA"),
    "PEFT": (peft(dots(sd(), _PREFIX)), "sd1", 9, "LoRA"),
    "PEFT with an adapter's name": (pair(dots(sd(), _PREFIX), ".lora_B.default.weight", ".lora_A.default.weight"),
                                 "sd1",
                                    9, "LoRA"),
    "PEFT, a text encoder": (peft(dots(clip(), _PREFIX)), "sd1", 4, "LoRA"),
    "PEFT, SDXL's second encoder": (peft(dots(clip(1280), _PREFIX)), "sdxl", 4, "LoRA"),
    "PEFT, transformers 5": (peft({_PREFIX + name.removeprefix("text_model."): shape
                                   for name, shape in clip().items()}),
                             "sd1", 4, "LoRA"),
    "PEFT, bare": (peft(sd()), "sd1", 9, "LoRA"),
    "PEFT's DoRA": (peft(dots(sd(), _PREFIX)) | {f"{_PREFIX}{name}.lora_magnitude_vector":
                    (shape[0],) if len(shape) == 2 else (1, shape[0], 1, 1) for name, shape in sd().items()}, "sd1", 9,
                    "LoRA"),
    "PEFT's biases": (peft(dots(sd(), _PREFIX)) | {f"{_PREFIX}{name}.lora_B.bias": shape[:1] for name, shape
                                                   in sd().items()}, "sd1", 9, "LoRA"),
    "PEFT's LoHa": (parts(dots(linear(sd()), _PREFIX), **{part: shape for part, shape in _LOHA.items()
                                                          if part != "alpha"}), "sd1", 8, "LoHa"),
    "OMI, SDXL": (kohya(dots(original(sd(2048)), "unet.") | dots(clip(), "clip_l.") | dots(clip(1280), "clip_g.")),
                  "sdxl", 17, "LoRA"),
    "ComfyUI's own names": (peft(dots(original(sd()), "diffusion_model.")), "sd1", 9, "LoRA"),
    "ComfyUI with its text encoder": (peft(dots(original(sd(2048)), "diffusion_model.")
                                           | dots(clip(1280), "text_encoders.clip_g.transformer.")),
                  "sdxl", 13, "LoRA"),
    "SimpleTuner": (parts(under(sd(), "lycoris_"), **_LOKR), "sd1", 9, "LoKr"),
    "LoCon with cores": (kohya(linear(under(sd()))) | {
        "lora_unet_down_blocks_1_resnets_0_conv1.lora_up.weight": (640, 4, 1, 1),
        "lora_unet_down_blocks_1_resnets_0_conv1.lora_mid.weight": (4, 4, 3, 3),
        "lora_unet_down_blocks_1_resnets_0_conv1.lora_down.weight": (4, 320, 1, 1),
        "lora_unet_down_blocks_1_resnets_0_conv1.alpha": ()}, "sd1", 9, "LoRA"),
    "DoRA by rows": (kohya(under(sd())) | parts(under(sd()), dora_scale="(o, 1) + K and (o, 1, 1, 1) if K else (o, 1)"),
                     "sd1", 9, "LoRA"),
    "DoRA by columns": (kohya(under(linear(sd()))) | parts(under(linear(sd())), dora_scale="(1, i)"), "sd1", 8, "LoRA"),
    "LyCORIS's scalar": (kohya(under(sd())) | parts(under(sd()), scalar="()"), "sd1", 9, "LoRA"),
    "A1111's scale": (kohya(under(sd())) | parts(under(sd()), scale="()"), "sd1", 9, "LoRA"),
    "LoHa": (parts(under(sd()), **_LOHA), "sd1", 9, "LoHa"), "LoKr": (parts(under(sd()), **_LOKR), "sd1", 9, "LoKr"),
    "LoKr, whole": (parts(under(sd()), lokr_w1="(8, 8)", lokr_w2="(o // 8, i // 8) + K"), "sd1", 9, "LoKr"),
    "GLoRA": (parts(under(linear(sd())), **_GLORA), "sd1", 8, "GLoRA"),
    "full": (parts(under(sd()), diff="(o, i) + K"), "sd1", 9, "full"),
    "full with biases": (parts(under(sd()), diff="(o, i) + K", diff_b="(o,)"), "sd1", 9, "full"),
    "norms": (kohya(under(sd())) | {f"lora_unet_mid_block_resnets_0_norm1.{part}": (320,) for part in
                                    ("w_norm", "b_norm")}, "sd1", 10, "LoRA"),
    "IA3": (parts(under(linear(sd())), weight="(o,)", on_input="()"), "sd1", 8, "IA3"),
    "diag-OFT": (parts(under(sd()), oft_blocks="(o // 8, 8, 8)", alpha="()"), "sd1", 9, "OFT"),
    "diag-OFT, rescaled": (parts(under(sd()), oft_blocks="(o // 8, 8, 8)", alpha="()", rescale="(o, 1)"), "sd1", 9,
                           "OFT"),
    "BOFT": (parts(under(sd()), oft_blocks="(3, o // 8, 8, 8)", alpha="()"), "sd1", 9, "BOFT"),
    "kohya's OFT": (parts(under(sd(), "oft_unet_"), oft_blocks="(4, o // 4, o // 4)", alpha="()"), "sd1", 9, "OFT"),
    "OneTrainer's OFT": (parts(under(sd()), **{"oft_R.weight": "(i * k // 32, 496)"}), "sd1", 9, "OFT of inputs"),
    "PEFT's SHiRA": (parts(dots(linear(sd()), _PREFIX), shira_weight="(99,)", shira_indices="(2, 99)"),
                     "sd1", 8, "SHiRA"),
    "PEFT's MiSS": (parts(dots(linear(sd()), _PREFIX), miss_block="(8, o)"), "sd1", 8, "MiSS"),
    "PEFT's HiRA": (parts(dots(linear(sd()), _PREFIX), hira_A="(4, i)", hira_B="(o, 4)"), "sd1", 8, "HiRA"),
    "PEFT's BOFT": (parts(dots(linear(sd()), _PREFIX), boft_R="(1, i // 8, 8, 8)", boft_s="(o, 1)"), "sd1", 8,
                    "BOFT of inputs"),
    "PEFT's IA3": (parts(dots(linear(sd()), _PREFIX), ia3_l="(o, 1)"), "sd1", 8, "IA3 of PEFT"),
    "PEFT's C3A": (parts(dots(linear(sd()), _PREFIX), c3a_kernel="(o // 64, i // 64, 64)"), "sd1", 8, "C3A"),
    "PEFT's VeRA": (parts(dots(linear(sd()), _PREFIX), vera_lambda_b="(o,)", vera_lambda_d="(16,)") | {
        "base_model.vera_A": (16, 5120), "base_model.vera_B": (5120, 16)}, "sd1", 8, "VeRA"),
    "a doubled prefix": (pair(under(sd(), "lora_unet_unet_"), "_lora_up.weight", "_lora_down.weight"),
                         "sd1", 9, "LoRA"),
    "with a learned word": (kohya(under(sd())) | {"bundle_emb.zwx.string_to_param.*": (2, 768)}, "sd1", 9, "LoRA"),
    "LCM-LoRA": (kohya(under(sd())) | kohya({"lora_unet_time_embedding_linear_1": (1280, 320)}), "sd1", 10, "LoRA"),
    "SDXL, deeper blocks": (kohya(under(sd(2048) | _XL)), "sdxl", 10, "LoRA"),
}   # fmt: skip

_QKV = ("attn.to_q", "attn.to_k", "attn.to_out.0")
_ADDED = ("attn.add_q_proj", "attn.to_add_out", "attn.to_q")
OTHERS: dict[str, tuple[Header, str]] = {
    "FLUX, kohya": (kohya(under(flux())), "FLUX"),
    "FLUX, kohya with CLIP": (kohya(under(flux())) | kohya(under(clip(), "lora_te1_")), "FLUX"),
    "FLUX, Black Forest Labs": (peft(flux()), "FLUX"),
    "FLUX, ComfyUI": (peft(dots(flux(), "diffusion_model.")), "FLUX"),
    "FLUX, PEFT": (peft(dots(flux(), _PREFIX)), "FLUX"),
    "FLUX, XLabs": (pair(named("double_blocks", 2, "processor.qkv_lora1"), ".up.weight", ".down.weight"), "FLUX"),
    "FLUX, diffusers": (peft(named("transformer.single_transformer_blocks", 2, *_QKV)), "FLUX"),
    "FLUX, diffusers, double blocks alone": (peft(named("transformer.transformer_blocks", 2, *_ADDED)),
                                             "Stable Diffusion 3|FLUX"),
    "FLUX, OneTrainer": (kohya(under(named("single_transformer_blocks", 2, *_QKV), "lora_transformer_")), "FLUX"),
    "FLUX, LyCORIS": (parts(under(named("single_transformer_blocks", 2, *_QKV), "lycoris_"), **_LOKR), "FLUX"),
    "FLUX, LoKr": (parts(under(flux()), **_LOKR), "FLUX"), "FLUX, full": (parts(under(flux()), diff="(o, i)"), "FLUX"),
    "HunyuanVideo": (peft(named("transformer.double_blocks", 2, "img_attn_qkv", "txt_attn_proj")), "HunyuanVideo"),
    "SD 3, kohya": (kohya(under(named("joint_blocks", 2, "x_block.attn.qkv", "context_block.mlp.fc1"))),
                    "Stable Diffusion 3"),
    "SD 3, kohya with CLIP and T5": (kohya(under(named("joint_blocks", 2, "x_block.attn.qkv")))
                                     | kohya(under(clip(), "lora_te1_")) | kohya(under(
                                         named("encoder.block", 2, "layer.0.SelfAttention.q"), "lora_te3_")),
                                     "Stable Diffusion 3"),
    "SD 3, diffusers": (peft(named("transformer.transformer_blocks", 2, *_ADDED)), "Stable Diffusion 3"),
    "SD 3, OneTrainer": (kohya(under(named("transformer_blocks", 2, *_ADDED), "lora_transformer_")),
                         "Stable Diffusion 3"),
    "Qwen-Image, diffusers": (peft(named("transformer.transformer_blocks", 2, *_ADDED, "img_mlp.net.0.proj")),
                              "Qwen-Image"),
    "Qwen-Image, ComfyUI": (peft(named("diffusion_model.transformer_blocks", 2, *_ADDED, "txt_mlp.net.2")),
                            "Qwen-Image"),
    "Qwen-Image, kohya": (kohya(under(named("transformer_blocks", 2, *_ADDED, "img_mod.1"))), "Qwen-Image"),
    "Z-Image": (peft(named("diffusion_model.layers", 2, "attention.to_q", "feed_forward.w1")), "Z-Image"),
    "Z-Image, refiners": (peft(named("diffusion_model.context_refiner", 2, "attention.to_q")), "Z-Image"),
    "Lumina": (kohya(under(named("layers", 2, "attention.qkv", "feed_forward.w1"))), "Lumina"),
    "Wan, ComfyUI": (peft(named("diffusion_model.blocks", 2, "cross_attn.k", "self_attn.q", "ffn.0")), "Wan"),
    "Wan, musubi": (kohya(under(named("blocks", 2, "cross_attn.k", "ffn.2"))), "Wan"),
    "Wan, PEFT": (peft(named("base_model.model.blocks", 2, "self_attn.q")), "Wan"),
    "HiDream": (peft(named("diffusion_model.double_stream_blocks", 2, "block.attn1.to_q")), "HiDream"),
    "AuraFlow": (peft(named("transformer.joint_transformer_blocks", 2, *_QKV)), "a version made for"),
    "PixArt": (peft(named("transformer.transformer_blocks", 2, "attn1.to_q", "attn2.to_k", "ff.net.2")), "PixArt"),
    "LTX-Video": (peft(named("diffusion_model.transformer_blocks", 2, "attn1.to_q", "ff.net.2")), "LTX-Video"),
    "Hunyuan-DiT": (kohya(under(named("blocks", 2, "attn1.Wqkv", "attn2.q_proj"))), "Hunyuan-DiT"),
    "Stable Cascade": (kohya(under(named("down_blocks.0", 2, "attention.attn.to_q"), "lora_prior_unet_")), "Cascade"),
    "AnimateDiff's motion LoRA": (pair(named(
        "down_blocks.0.motion_modules", 2,
        "temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.to_q"),
        "_lora.up.weight", "_lora.down.weight"), "AnimateDiff"),
    "AnimateDiff, diffusers": (peft(named("unet.down_blocks.0.motion_modules", 2, "transformer_blocks.0.attn1.to_q")),
                               "AnimateDiff"),
    "AnimateDiff's motion module": (named("down_blocks.0.motion_modules", 2, "temporal_transformer.proj_in.weight"),
                                    "AnimateDiff"),
    "Stable Video Diffusion": (peft(named("unet.down_blocks.0.attentions", 2,
                                          "temporal_transformer_blocks.0.attn1.to_q")), "Stable Video"),
    "SDXL's refiner": (kohya(under(sd(1280))), "refiner"),
    "a language model's LoRA": (peft(named("base_model.model.model.layers", 2, "self_attn.q_proj", "mlp.up_proj")),
                                "a language model"),
    "ControlNet, original": ({"control_model.input_blocks.0.0.weight": (320, 4, 3, 3),
                              "control_model.zero_convs.0.0.weight": (320, 320, 1, 1)}, "ControlNet"),
    "ControlNet, diffusers": ({"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
                               "controlnet_down_blocks.0.weight": (320, 320, 1, 1), "conv_in.weight": (320, 4, 3, 3)},
                              "ControlNet"),
    "ControlLoRA": ({"lora_controlnet": (0,), "input_blocks.4.1.transformer_blocks.0.attn1.to_q.up": (640, 128),
                     "input_blocks.4.1.transformer_blocks.0.attn1.to_q.down": (128, 640),
                     "input_hint_block.0.weight": (16, 3, 3, 3)}, "ControlLoRA"),
    "ControlNet-LLLite": ({"lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight": (32, 640)},
                          "ControlLoRA"),
    "T2I-Adapter": ({"adapter.body.0.resnets.0.block1.weight": (320, 320, 3, 3)}, "T2I-Adapter"),
    "IP-Adapter": ({"image_proj.proj.weight": (3072, 1024), "ip_adapter.1.to_k_ip.weight": (320, 768)}, "IP-Adapter"),
    "IP-Adapter FaceID": ({"image_proj.proj.0.weight": (1024, 512), "ip_adapter.0.to_q_lora.down.weight": (128, 320),
                           "ip_adapter.0.to_q_lora.up.weight": (320, 128)}, "IP-Adapter"),
    "VAE, original": ({"encoder.down.0.block.0.conv1.weight": (128, 128, 3, 3), "quant_conv.weight": (8, 8, 1, 1),
                       "decoder.up.0.block.0.conv1.weight": (128, 128, 3, 3)}, "a VAE"),
    "VAE, diffusers": ({"decoder.up_blocks.0.resnets.0.conv1.weight": (512, 512, 3, 3),
                        "encoder.conv_in.weight": (128, 3, 3, 3), "post_quant_conv.weight": (4, 4, 1, 1)}, "a VAE"),
    "a small VAE": ({"taesd_decoder.1.weight": (64, 4, 3, 3)}, "a small VAE"),
    "a checkpoint": ({"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
                      "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
                      "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768)},
                     "checkpoint.*--base"),
    "an SDXL checkpoint": ({"conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (768,),
                            "model.diffusion_model.label_emb.0.0.weight": (1280, 2816)}, "checkpoint.*--base"),
    "a FLUX checkpoint": (named("double_blocks", 2, "img_attn.proj.weight"), "FLUX"),
    "an SD 3 checkpoint": (named("model.diffusion_model.joint_blocks", 2, "x_block.attn.qkv.weight"),
                           "Stable Diffusion 3"),
    "a UNet": ({"conv_in.weight": (320, 4, 3, 3), "down_blocks.1.resnets.0.conv1.weight": (640, 320, 3, 3),
                "mid_block.attentions.0.proj_in.bias": (1280,)}, "the UNet of a base model"),
    "a text encoder": ({"text_model.encoder.layers.0.self_attn.q_proj.weight": (768, 768),
                        "text_model.embeddings.token_embedding.weight": (49408, 768)}, "a text encoder"),
    "CLIP vision": ({"vision_model.encoder.layers.0.mlp.fc1.weight": (4096, 1024)}, "an image encoder"),
    "T5": ({"shared.weight": (32128, 4096), "encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096)}, "T5"),
    "Llama": ({"model.layers.0.self_attn.q_proj.weight": (4096, 4096), "model.embed_tokens.weight": (32000, 4096),
               "lm_head.weight": (32000, 4096)}, "a language model"),
    "GPT-2": ({"transformer.h.0.attn.c_attn.weight": (768, 2304), "transformer.wte.weight": (50257, 768)},
              "a language model"),
    "an upscaler": ({"conv_first.weight": (64, 3, 3, 3), "body.0.rdb1.conv1.weight": (32, 64, 3, 3)}, "an upscaler"),
    "a learned word, InvokeAI": ({"emb_params": (5, 768)}, "textual inversion"),
    "a learned word, diffusers": ({"<zwx>": (768,)}, "textual inversion"),
    "learned words, diffusers": ({"<zwx>": (3, 768), "<style>": (3, 768)}, "textual inversion"),
    "a learned word, SDXL": ({"clip_l": (4, 768), "clip_g": (4, 1280)}, "textual inversion"),
    "a learned word, pivotal": ({"text_encoders_0": (2, 768), "text_encoders_1": (2, 1280)}, "textual inversion"),
    "a learned word, A1111": ({"string_to_param.*": (4, 768)}, "textual inversion"),
    "learned words of a bundle": ({"bundle_emb.zwx.string_to_param.*": (2, 768)}, "textual inversion"),
    "a word for every layer (XTI)": ({"emb_params": (16, 2, 768)}, "textual inversion"),
    "numbered layers": ({"unet:0:up": (4, 4), "unet:5:down": (4, 4)}, "numbers its layers"),
    "LyCORIS's first OFT": ({"lora_unet_mid_block_attentions_0_proj_in.oft_diag": (8, 8)}, "OFT in a form"),
    "nothing we know": ({"layer.weight": (4,), "layer.bias": (4,)}, r"the first is layer\.weight"),
    "nothing at all": ({}, "contains no tensors"),
}   # fmt: skip
