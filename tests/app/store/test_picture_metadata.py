"""Pictures of other tools, written here the way each tool writes them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from atelier.app.store.a1111_parameters import parameters_text
from atelier.app.store.picture_metadata import NamedAdapter, read_metadata, read_texts

A1111 = """a photo of (rex:1.2) dog, <lora:rex_v2:0.8> on grass
second line <lora:film grain:-0.3>
Negative prompt: blurry, low quality,
ugly
Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 4294967295, Size: 512x768, Model hash: 6ce0161689, \
Model: v1-5-pruned, VAE hash: 735e4c3a44, Clip skip: 2, Lora hashes: "rex_v2: 0a1b2c3d4e5f, film grain: ffeeddccbbaa", \
Hires prompt: "a, \\"b\\": c", Version: v1.10.1"""


def test_a1111() -> None:
    found = read_texts({"parameters": A1111})
    assert found is not None and found.tool == "A1111"
    assert found.prompt == "a photo of (rex:1.2) dog, on grass\nsecond line"
    assert found.negative == "blurry, low quality,\nugly"
    assert (found.seed, found.steps, found.guidance, found.sampler) == (4294967295, 28, 6.5, "DPM++ 2M Karras")
    assert (found.width, found.height, found.clip_skip) == (512, 768, 2)
    assert (found.base, found.base_hash) == ("v1-5-pruned", "6ce0161689")
    assert found.adapters == (
        NamedAdapter("rex_v2", 0.8, "0a1b2c3d4e5f"), NamedAdapter("film grain", -0.3, "ffeeddccbbaa"))


def test_a1111_says_what_else_went_into_a_picture() -> None:
    text = ('\\(a\\) BREAK fox <lora:rex:0.8:1:lbw=MIDD>\nNegative prompt: bad <lora:none:1>\nSteps: 25, '
            'Sampler: Euler a, CFG scale: 6, Seed: 7, Size: 64x64, Denoising strength: 0.4, '
            'ADetailer prompt: "a face, Seed: 5", Hires upscale: 2, TI hashes: "easy: c74b"\nTemplate: {a|b}')
    found = read_texts({"parameters": text})
    assert found is not None and found.seed == 7 and found.prompt == "\\(a\\) BREAK fox"
    assert found.negative == "bad <lora:none:1>" and found.adapters == (NamedAdapter("rex", 0.8),)   # as A1111 does
    assert found.extras == ("hires fix", "ADetailer", "textual inversions")
    started = read_texts({"parameters": "a\nSteps: 2, Seed: 1, Size: 8x8, Denoising strength: 0.4"})
    assert started is not None and started.extras == ("a start picture",)


def test_civitai_names_models_in_a_list() -> None:
    listed = [{"type": "checkpoint", "modelName": "Dream, shaper"}, {"type": "lora", "weight": 0.8, "modelName": "Rex"}]
    found = read_texts({"parameters": "a\nSteps: 2, Seed: 1, Size: 8x8, Clip skip: 2, Civitai resources: "
                                      f"{json.dumps(listed)}, Civitai metadata: {{}}"})
    assert found is not None and (found.base, found.clip_skip) == ("Dream, shaper", 2)
    assert found.adapters == (NamedAdapter("Rex", 0.8),)


def as_a1111_reads(text: str) -> dict[str, str]:
    """What A1111's own parser makes of a text, as far as we write it (modules/infotext_utils.py)."""
    *lines, last = text.strip().split("\n")
    parts: dict[str, list[str]] = {"Prompt": [], "Negative prompt": []}
    now = "Prompt"
    for line in (line.strip() for line in lines):
        if line.startswith("Negative prompt:"):
            now, line = "Negative prompt", line[16:].strip()
        parts[now].append(line)
    found = {key: "\n".join(value) for key, value in parts.items()}
    for key, value in re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last):
        found[key] = json.loads(value) if value[:1] == value[-1:] == '"' else value
    return found


@pytest.mark.parametrize("prompt", [
    "a fox", "", "one\ntwo", "a cat, Steps: 3, Seed: 4, Size: 1x1", '日本語 "quoted", (a:1.2) [b|c]', "Steps: 1",
    "a\nNegative prompt: not this", "Negative prompt: odd"])
@pytest.mark.parametrize("negative", ["", "bad, worse", "ugly\nNegative prompt: worst"])
def test_a1111_gets_every_prompt_and_value_back(prompt: str, negative: str) -> None:
    parts = [NamedAdapter("rex: one, two", 0.8, "0a1b2c3d4e5f"), NamedAdapter("b", -1.25)]
    values = {"Steps": 20, "Seed": 7, "Model": 'a, b "c": d', "Empty": "", "Version": "Atelier 1"}
    found = as_a1111_reads(parameters_text(prompt, negative, parts, values))
    odd = "Negative prompt:"
    tagged = f"{prompt} <lora:rex: one, two:0.8> <lora:b:-1.25>".strip()
    assert found["Prompt"].replace("prompt :", "prompt:").strip() == tagged
    assert found["Negative prompt"].replace("prompt :", "prompt:") == negative
    assert odd in prompt + negative or "prompt :" not in "".join(found.values())
    assert (found["Steps"], found["Model"], found["Version"]) == ("20", 'a, b "c": d', "Atelier 1")
    assert found["Lora hashes"] == "rex: one, two: 0a1b2c3d4e5f" and "Empty" not in found


def test_forge_keeps_the_schedule_apart_and_a_prompt_may_be_empty() -> None:
    found = read_texts({"parameters": "Steps: 20, Sampler: Euler, Schedule type: SGM Uniform, CFG scale: 1, Seed: 5, "
                                      'Size: 64x64, Model: "odd, name", Version: f2.0.1v1.10.1'})
    assert found is not None and (found.tool, found.schedule, found.prompt) == ("Forge", "SGM Uniform", "")
    assert found.base == "odd, name" and found.guidance == 1


@pytest.mark.parametrize("text", [
    "", "a cat", "a cat\nSteps: 20", "Steps: 20, Seed: 1, Size: 1x1 but: not, Sampler", "{}", "[" * 5000])
def test_what_is_no_infotext_is_not_read_as_one(text: str) -> None:
    found = read_texts({"parameters": text})
    assert found is None or found.steps == 20


def graph() -> dict:
    """A usual graph of ComfyUI: two LoRAs, and a second sampler for the enlarged picture."""
    def node(kind: str, **inputs: object) -> dict:
        return {"class_type": kind, "inputs": inputs}

    return {
        "30": node("KSampler", seed=9, steps=12, cfg=7.0, sampler_name="euler", scheduler="normal", denoise=0.5,
                   model=["12", 0], positive=["6", 0], negative=["7", 0], latent_image=["31", 0]),
        "31": node("LatentUpscale", samples=["3", 0], width=1024, height=1024),
        "3": node("KSampler", seed=156680208700286, steps=20, cfg=8, sampler_name="dpmpp_2m_sde", scheduler="karras",
                  denoise=1, model=["12", 0], positive=["6", 0], negative=["7", 0], latent_image=["5", 0]),
        "4": node("CheckpointLoaderSimple", ckpt_name="sd15/dreamshaper_8.safetensors"),
        "5": node("EmptyLatentImage", width=640, height=512, batch_size=1),
        "6": node("CLIPTextEncode", text="a fox", clip=["12", 1]),
        "7": node("CLIPTextEncode", text=["40", 0], clip=["12", 1]),
        "40": node("PrimitiveString", value="bad hands"),
        "11": node("LoraLoader", lora_name="first.safetensors", strength_model=0.7, strength_clip=1,
                   model=["4", 0], clip=["41", 0]),
        "41": node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["4", 1]),
        "12": node("Power Lora Loader (rgthree)", lora_1={"on": True, "lora": "second.safetensors", "strength": 1.5},
                   lora_2={"on": False, "lora": "off.safetensors", "strength": 1}, model=["11", 0], clip=["11", 1]),
    }


def test_comfyui_is_read_from_the_sampler_that_runs_first() -> None:
    found = read_texts({"prompt": json.dumps(graph()), "workflow": "{}"})
    assert found is not None and found.tool == "ComfyUI"
    assert (found.prompt, found.negative) == ("a fox", "bad hands")
    assert (found.seed, found.steps, found.guidance) == (156680208700286, 20, 8)
    assert (found.sampler, found.schedule, found.clip_skip) == ("dpmpp_2m_sde", "karras", 2)
    assert (found.width, found.height, found.base) == (640, 512, "sd15/dreamshaper_8.safetensors")
    assert found.adapters == (NamedAdapter("first.safetensors", 0.7), NamedAdapter("second.safetensors", 1.5))


def test_comfyui_with_settings_in_nodes_of_their_own() -> None:
    nodes = graph()
    nodes["3"] = {"class_type": "SamplerCustomAdvanced", "inputs": {
        "noise": ["50", 0], "guider": ["51", 0], "sampler": ["52", 0], "sigmas": ["53", 0], "latent_image": ["5", 0]}}
    nodes |= {
        "50": {"class_type": "RandomNoise", "inputs": {"noise_seed": 77}},
        "51": {"class_type": "CFGGuider", "inputs": {
            "cfg": 4.5, "model": ["12", 0], "positive": ["6", 0], "negative": ["7", 0]}},
        "52": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "53": {"class_type": "BasicScheduler", "inputs": {"steps": 9, "scheduler": "simple", "model": ["12", 0]}},
    }
    found = read_texts({"prompt": json.dumps(nodes)})
    assert found is not None
    assert (found.prompt, found.negative, found.seed, found.steps) == ("a fox", "bad hands", 77, 9)
    assert (found.guidance, found.sampler, found.schedule) == (4.5, "euler", "simple")
    assert [part.name for part in found.adapters] == ["first.safetensors", "second.safetensors"]


def node(kind: str, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs}


# Changes of the graph → what is read otherwise than from the graph as it is.
VARIANTS: dict[str, tuple[dict[str, dict], dict[str, object]]] = {
    "ControlNet passes both prompts on": (
        {"3": {"positive": ["80", 0], "negative": ["80", 1]},
         "80": node("ControlNetApplyAdvanced", positive=["6", 0], negative=["7", 0], strength=0.7)},
        {"extras": ("ControlNet", "a second pass")}),
    "reroutes": ({"3": {"positive": ["82", 0], "model": ["81", 0]}, "81": node("Reroute", **{"": ["12", 0]}),
                  "82": node("Reroute", **{"": ["83", 0]}), "83": node("Reroute", **{"": ["6", 0]})}, {}),
    "two texts joined": ({"6": {"text": ["80", 0]}, "80": node("StringConcatenate", string_a="a red", string_b="fox",
                                                               delimiter=" ")}, {"prompt": "a red fox"}),
    "a switch": ({"3": {"positive": ["80", 0]}, "80": node("Switch any", boolean=False, on_true=["7", 0],
                                                           on_false=["6", 0])}, {}),
    "nothing unwanted": ({"3": {"negative": ["80", 0]}, "80": node("ConditioningZeroOut", conditioning=["6", 0])},
                         {"negative": ""}),
    "two encoders": ({"6": node("CLIPTextEncodeSDXL", text_g="a fox", text_l="a fox", width=1024, height=1024)}, {}),
    "a width of its own node": ({"5": {"width": ["80", 0]}, "80": node("PrimitiveInt", value=640)}, {}),
    "a start picture": ({"3": {"latent_image": ["80", 0]}, "80": node("VAEEncode", pixels=["81", 0]),
                         "81": node("LoadImage", image="a.png")},
                        {"width": None, "height": None, "extras": ("a start picture", "a second pass")}),
    "one loader of all": (
        {"3": {"model": ["80", 0], "positive": ["80", 1], "negative": ["80", 2], "latent_image": ["80", 3]},
         "80": node("Efficient Loader", ckpt_name="sd15/dreamshaper_8.safetensors", clip_skip=-2, positive="a fox",
                    negative="bad hands", lora_name="None", empty_latent_width=640, empty_latent_height=512)},
        {"adapters": ()}),
    "a stack of LoRAs": (
        {"12": node("CR Apply LoRA Stack", model=["4", 0], lora_stack=["80", 0]),
         "80": node("CR LoRA Stack", lora_name_1="a.safetensors", model_weight_1=0.4, switch_1="On",
                    lora_name_2="b.safetensors", model_weight_2=1, switch_2="Off", lora_name_3="None", switch_3="On")},
        {"adapters": (NamedAdapter("a.safetensors", 0.4),)}),
    "numbered LoRAs": ({"12": node("Lora Loader Stack (rgthree)", lora_01="a.safetensors", strength_01=0.4,
                                   lora_02="None", strength_02=1, model=["4", 0])},
                       {"adapters": (NamedAdapter("a.safetensors", 0.4),)}),
    "listed LoRAs": ({"12": node("Lora Loader (LoraManager)", model=["4", 0], loras={"__value__": [
        {"name": "a", "strength": 0.4, "active": True}, {"name": "b", "strength": 1, "active": False}]})},
        {"adapters": (NamedAdapter("a", 0.4),)}),
}   # fmt: skip


@pytest.mark.parametrize("what", VARIANTS)
def test_graphs_of_other_nodes_say_the_same(what: str) -> None:
    nodes, (changes, different) = graph(), VARIANTS[what]
    whole = read_texts({"prompt": json.dumps(graph())})
    for id, change in changes.items():
        nodes[id] = change if "class_type" in change else {**nodes[id], "inputs": nodes[id]["inputs"] | change}
    found = read_texts({"prompt": json.dumps(nodes)})
    assert whole is not None and whole.extras == ("a second pass",)
    assert found == replace(whole, **different)


def test_a_graph_in_a_circle_ends() -> None:
    nodes = graph()
    nodes["11"]["inputs"]["model"] = ["12", 0]
    assert read_texts({"prompt": json.dumps(nodes)}) is not None


def test_invokeai() -> None:
    said = {
        "generation_mode": "txt2img", "positive_prompt": "a fox", "negative_prompt": "bad", "seed": 3, "steps": 30,
        "cfg_scale": 7.5, "scheduler": "dpmpp_2m_k", "width": 512, "height": 640, "clip_skip": 0,
        "model": {"key": "1", "hash": "blake3:aa", "name": "Dreamshaper 8", "base": "sd-1", "type": "main"},
        "loras": [{"model": {"key": "2", "hash": "blake3:bb", "name": "rex", "type": "lora"}, "weight": 0.75}],
        "app_version": "5.6.0",
    }
    found = read_texts({"invokeai_metadata": json.dumps(said), "invokeai_graph": "{}"})
    assert found is not None and (found.tool, found.prompt, found.negative) == ("InvokeAI", "a fox", "bad")
    assert (found.seed, found.sampler, found.base) == (3, "dpmpp_2m_k", "Dreamshaper 8")
    assert found.adapters == (NamedAdapter("rex", 0.75, "blake3:bb"),)
    said["loras"] = [{"lora": {"model_name": "old", "base_model": "sd-1"}, "weight": 0.5}]   # before version 4
    older = read_texts({"invokeai_metadata": json.dumps(said)})
    assert older is not None and older.adapters == (NamedAdapter("old", 0.5),)


def test_invokeai_before_version_3() -> None:
    said = {"model_weights": "stable-diffusion-1.5", "model_hash": "cc6c", "image": {
        "prompt": [{"prompt": "a fox [ugly, blurred]", "weight": 1.0}], "steps": 50, "cfg_scale": 7.5,
        "sampler": "k_lms", "seed": 12, "width": 512, "height": 512}}
    found = read_texts({"sd-metadata": json.dumps(said), "Dream": "…"})
    assert found is not None and (found.prompt, found.negative) == ("a fox", "ugly, blurred")
    assert (found.seed, found.sampler, found.base) == (12, "k_lms", "stable-diffusion-1.5")


def test_novelai() -> None:
    said = {"steps": 28, "sampler": "k_euler_ancestral", "seed": 1234, "scale": 5.0, "uc": "lowres",
            "noise_schedule": "karras", "width": 832, "height": 1216}
    texts = {"Title": "AI generated image", "Description": "1girl, fox ears", "Software": "NovelAI",
             "Source": "Stable Diffusion XL 7BCCAA2C", "Comment": json.dumps(said)}
    found = read_texts(texts)
    assert found is not None and (found.prompt, found.negative) == ("1girl, fox ears", "lowres")
    assert (found.sampler, found.schedule, found.guidance, found.width) == ("k_euler_ancestral", "karras", 5, 832)
    assert read_texts(texts | {"Software": "GIMP"}) is None


def test_swarmui() -> None:
    said = {"sui_image_params": {
        "prompt": "a fox", "negativeprompt": "bad", "seed": 8, "steps": 20, "cfgscale": 7, "model": "m.safetensors",
        "loras": ["rex"], "loraweights": ["0.9"], "width": 64, "height": 64}}
    found = read_texts({"parameters": json.dumps(said)})
    assert found is not None and (found.tool, found.negative) == ("SwarmUI", "bad")
    assert found.adapters == (NamedAdapter("rex", 0.9),)


def test_novelai_4_and_swarmui_of_today() -> None:
    caption = {"caption": {"base_caption": "fox", "char_captions": [{"char_caption": "red hair"}]}}
    found = read_texts({"Software": "NovelAI", "Description": "", "Comment": json.dumps(
        {"prompt": "fox", "uc": "lowres", "seed": 1, "v4_prompt": caption})})
    assert found is not None and (found.prompt, found.negative) == ("fox, red hair", "lowres")
    said = {"sui_image_params": {"prompt": "a fox <lora:rex:0.8>", "model": "SDXL/m.safetensors", "loras": "rex,ink",
                                 "loraweights": "0.8,0.4"},
            "sui_models": [{"name": "m.safetensors", "hash": "0xab"}, {"name": "rex.safetensors", "hash": "0xcd"}]}
    found = read_texts({"parameters": json.dumps(said)})
    assert found is not None and (found.prompt, found.base_hash) == ("a fox", "0xab")
    assert found.adapters == (NamedAdapter("rex", 0.8, "0xcd"), NamedAdapter("ink", 0.4))


COMMENTS = {"UTF-16 LE": b"UNICODE\0" + A1111.encode("utf-16-le"), "UTF-16 with a mark": b"UNICODE\0" + A1111.encode(
    "utf-16"), "UTF-8 that says UNICODE": b"UNICODE\0" + A1111.encode(), "ASCII": b"ASCII\0\0\0" + A1111.encode(),
    "nothing said": A1111.encode(), "zeros": b"\0" * 8 + A1111.encode()}   # fmt: skip


@pytest.mark.parametrize("what", COMMENTS)
def test_a_comment_is_read_whatever_it_says_of_its_encoding(tmp_path: Path, what: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = COMMENTS[what]
    Image.new("RGB", (16, 16)).save(tmp_path / "a.webp", exif=exif)
    assert read_metadata(tmp_path / "a.webp") == read_texts({"parameters": A1111})


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_files_of_every_kind(tmp_path: Path, suffix: str) -> None:
    path, picture = tmp_path / f"a{suffix}", Image.new("RGB", (16, 16))
    if suffix == ".png":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt("parameters", A1111.replace("dog", "狐"))
        picture.save(path, pnginfo=chunks)
    else:
        exif = Image.Exif()
        comment = A1111.replace("dog", "狐").encode("utf-16-be")   # as piexif writes it
        exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + comment
        picture.save(path, exif=exif)
    found = read_metadata(path)
    assert found is not None and "狐" in found.prompt and found.seed == 4294967295


DAMAGED = [
    {"invokeai_metadata": "null"}, {"invokeai_metadata": "[1]"},
    {"invokeai_metadata": '{"loras": {"a": 1}, "seed": 1e999}'}, {"sd-metadata": "{}"}, {"prompt": "{"},
    {"prompt": '{"3": 5}'}, {"prompt": '{"3": {"class_type": "KSampler", "inputs": []}}'},
    {"Software": "NovelAI"}, {"Software": "NovelAI", "Comment": "9" * 5000}, {"parameters": '{"sui_image_params": 3}'},
    {"prompt": "[" * 100_000}, {"parameters": f"a\nSteps: {'9' * 6000}, Seed: nan, CFG scale: inf, Size: 9x9"},
]   # fmt: skip


@pytest.mark.parametrize("texts", DAMAGED)
def test_damaged_text_is_no_error_and_gives_no_odd_values(texts: dict[str, str]) -> None:
    found = read_texts(texts)
    if found is not None:
        assert found.seed is None and found.guidance is None and found.adapters == ()
        assert found.steps is None or found.steps < 10**6


def test_a_file_that_is_no_picture_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    assert read_metadata(tmp_path / "a.png") is None
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    assert read_metadata(tmp_path / "b.png") is None


def a1111_parser(text: str) -> dict[str, str]:
    """A1111's way of reading a text, written from its description: the last line counts if it has three values."""
    *lines, last = text.strip().split("\n")
    pattern = r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)'
    if len(re.findall(pattern, last)) < 3:
        lines, last = [*lines, last], ""
    found, key = {"Prompt": "", "Negative prompt": ""}, "Prompt"
    for line in map(str.strip, lines):
        if line.startswith("Negative prompt:"):
            key, line = "Negative prompt", line[16:].strip()
        found[key] += line if found[key] == "" else f"\n{line}"
    for name, value in re.findall(pattern, last):
        found[name] = json.loads(value) if value[:1] == value[-1:] == '"' and len(value) > 1 else value
    return found


def as_lines(prompt: str) -> str:
    """What A1111 keeps of any prompt: lines without spaces around them, no empty ones at the ends."""
    return "\n".join(line.strip() for line in prompt.split("\n")).strip()


PIECES = st.sampled_from([
    "a fox", ", ", ": ", "\n", "Negative prompt:", "Negative prompt: bad", "Steps: 20", "Seed: 1, Size: 1x1, Steps: 7",
    '"', "\\", "(a:1.2)", "[b|c]", "<lora:", ">", "BREAK", "  ", "\t", "é", "狐", "{", "}", "Lora hashes: \"x: 1\"",
    "\r", "\x85", "\u2028", "negative prompt:", "Negative prompt"])
PROMPTS = st.lists(st.one_of(PIECES, st.text(st.characters(codec="utf-8"), max_size=5)), max_size=10).map("".join)
VALUE = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20).filter(str.strip)


@settings(max_examples=400, deadline=None)
@given(PROMPTS, PROMPTS, VALUE)
def test_a1111_reads_every_prompt_that_we_write(prompt: str, negative: str, model: str) -> None:
    values = {"Steps": 20, "Sampler": "Euler a", "CFG scale": "7.5", "Seed": 3, "Size": "64x64", "Model": model}
    found = a1111_parser(parameters_text(prompt, negative, [NamedAdapter("rex", 0.8, "0a1b2c3d4e5f")], values))
    spaced = re.compile(r"^(\s*Negative prompt) :", re.MULTILINE)
    assert spaced.sub(r"\1:", found["Prompt"]) == as_lines(spaced.sub(r"\1:", f"{prompt.strip()} <lora:rex:0.8>"))
    assert spaced.sub(r"\1:", found["Negative prompt"]) == as_lines(spaced.sub(r"\1:", negative))
    assert {key: found[key] for key in values} == {key: str(value) for key, value in values.items()}
    assert found["Lora hashes"] == "rex: 0a1b2c3d4e5f"


@settings(max_examples=100, deadline=None)
@given(PROMPTS, PROMPTS)
def test_a_picture_gives_back_what_it_was_given(prompt: str, negative: str) -> None:
    """Through a real PNG, and by our own reader."""
    chunks = PngImagePlugin.PngInfo()
    values = {"Steps": 20, "Sampler": "Euler", "Seed": 3, "Size": "16x16"}
    chunks.add_text("parameters", parameters_text(prompt, negative, [], values))
    buffer = BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG", pnginfo=chunks)
    with Image.open(buffer) as image:
        found = read_texts({"parameters": image.info["parameters"]})
    assert found is not None and (found.steps, found.seed, found.width) == (20, 3, 16)


def node(kind: str, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs}


HOSTILE = {
    "a word of a million letters": {"parameters": "a\n" + "a" * 1_000_000},
    "a last line without a colon": {"parameters": "a\n" + "a" * 9_999},
    "spaces": {"parameters": " " * 199_999},
    "brackets": {"sd-metadata": '{"image": {"prompt": "' + "[" * 190_000 + '"}}'},
    "spaces before brackets": {"sd-metadata": '{"image": {"prompt": "' + " " * 190_000 + '"}}'},
    "tags": {"parameters": "<lora:" * 30_000 + "\nSteps: 1, Seed: 1, Size: 1x1"},
    "a circle": {"prompt": json.dumps({str(i): node("KSampler", positive=[str((i + 1) % 900), 0],
        latent_image=[str((i + 1) % 900), 0], model=[str(i), 0], seed=1) for i in range(900)})},
    "all to all": {"prompt": json.dumps({str(i): node("KSampler", **{f"i{j}": [str(j), 0] for j in range(150)},
        positive=[str(i), 0]) for i in range(150)})},
    "too many nodes": {"prompt": json.dumps({str(i): node("KSampler", positive=["1", 0]) for i in range(40_000)})},
    "deep": {"prompt": '{"a":' * 100_000}, "deep lists": {"invokeai_metadata": "[" * 100_000},
    "a graph of 100 MB": {"prompt": "x" * 100_000_000},
}   # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_text_ends_soon(case: str) -> None:
    """Each takes milliseconds; any of them would take minutes where the work grows with the square of the length."""
    found = read_texts(HOSTILE[case])
    assert found is None or found.tool


@pytest.mark.timeout(20)
def test_a_file_with_a_chunk_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    with path.open("ab") as file:
        file.truncate(1 << 30)
    assert read_metadata(path) is None
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("prompt", "x" * 60_000_000, zip=True)   # 60 kB that unpack to 60 MB
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunks)
    assert path.stat().st_size < 100_000 and read_metadata(path) is None


def test_fooocus_and_a_graph_in_a_webp(tmp_path: Path) -> None:
    said = {"prompt": "a fox", "negative_prompt": "bad", "seed": "12", "steps": 30, "guidance_scale": 4.0,
            "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras", "resolution": "(896, 1152)", "clip_skip": 2,
            "base_model": "juggernautXL_v8", "base_model_hash": "aeb7e9e689",
            "loras": [["offset", 0.1, "4852686128"]], "metadata_scheme": "fooocus"}   # fmt: skip
    found = read_texts({"parameters": json.dumps(said), "fooocus_scheme": "fooocus"})
    assert found is not None and (found.tool, found.seed, found.width, found.height) == ("Fooocus", 12, 896, 1152)
    assert found.adapters == (NamedAdapter("offset", 0.1, "4852686128"),) and found.base_hash == "aeb7e9e689"
    exif = Image.Exif()
    exif[0x0110], exif[0x010F] = f"prompt:{json.dumps(graph())}", "workflow:{}"
    Image.new("RGB", (16, 16)).save(tmp_path / "a.webp", exif=exif)
    found = read_metadata(tmp_path / "a.webp")
    assert found is not None and (found.tool, found.prompt) == ("ComfyUI", "a fox")
