"""What broke on graphics cards and with checkpoints that people have, what mends each, and the test that shows it.

``docs/devices.md`` is made of it: ``python tests/device_findings.py``. ``tests/test_devices.py`` takes each cure out in
a copy of the tree and sees its test fail.
"""

from __future__ import annotations

from pathlib import Path

from threats import Threat as Finding

PAGE = Path(__file__).resolve().parent.parent / "docs" / "devices.md"
_DRAW, _TRAIN = "training/sampling/test_draw_on_device.py", "training/runs/test_train_on_device.py"
_BASE, _RUN = "app/services/test_resident_base.py", "training/runs/test_run.py"
_DECODE, _PLAN = "training/sampling/test_decode.py", "training/sampling/test_draw_memory.py"
_DEVICE, _ESTIMATE = "training/base_models/test_device.py", "training/runs/test_memory_estimate.py"
_LOCK, _CLI = "training/base_models/test_device_lock.py", "app/cli/test_cli.py"
_ZOO, _FOLDERS = "training/base_models/test_checkpoint_layout.py", "training/base_models/test_weight_files.py"
_REFUSED = f"{_ZOO}::test_others_are_refused_with_the_cure"
_file, _identify = "training/base_models/single_file.py", "training/base_models/identify.py"
_PRECISION, _TWINS = "training/base_models/test_precision.py", "kernels/test_twins.py"
_device, _decode = "training/base_models/device.py", "training/sampling/decode.py"
_resident, _plan = "app/services/resident_base.py", "training/sampling/draw_memory.py"
_run, _estimate = "training/runs/run.py", "training/runs/memory_estimate.py"

FINDINGS = (
    Finding("1. the first training of the embedded base fails: text encoders wait in main memory when the trigger "
            "word's effect is measured", "they are fetched for it",
            f"{_TRAIN}::test_words_are_measured_while_the_text_encoder_waits_elsewhere",
            "training/base_models/base_model.py",
            "self.offload_to.onload(part, self.device)   # type: ignore[union-attr]", "pass"),
    Finding("2. adapters stay in main memory: most kinds fail, the others are copied in every call of the UNet",
            "they move once, to the device where they act and back where they rest",
            f"{_BASE}::test_adapters_from_files_act_on_the_device_and_leave_it_when_they_rest",
            "app/services/engine.py", 'each.to(device if id(each) in active else "cpu")', "pass"),
    Finding("3. four pictures are decoded together", "one at a time where memory is short",
            f"{_BASE}::test_a_card_that_is_too_small_for_all_at_once_is_enough",
            _decode, "1 if savings.decode_singly else len(scaled)", "len(scaled)"),
    Finding("3. the VAE's own tiles are as large as the picture", "tiles of 512 pixels",
            f"{_DECODE}::test_a_tile_is_of_512_pixels_whatever_the_model_is_made_for",
            "training/base_models/diffusers_internals.py",
            "vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size = True, pixels, latents",
            "vae.use_tiling = True"),
    Finding("3. drawing has no memory plan", "counted on tensors without contents, with as few savings as fit",
            f"{_PLAN}::test_stable_diffusion_1_draws_four_pictures_with_two_loras_on_4_gb",
            _plan, "    while peak(chosen) > available:\n", "    while False:\n"),
    Finding("3. the plan is not what a drawing takes", "every saving is counted as it acts",
            f"{_PLAN}::test_the_estimate_is_what_a_drawing_takes[4]",
            _plan, "return base + max(self.text_encoders, self.denoise, self.vae + self.decode)", "return base"),
    Finding("4. the Studio keeps the card's memory beside the training that it starts",
            "it lets go when a job begins", f"{_BASE}::test_a_job_that_begins_gets_the_memory",
            _resident, "BESIDE_JOB_SECONDS if job == loaded.beside else 0.0", "IDLE_SECONDS"),
    Finding("4. the Studio keeps it for ever", "it lets go after ten minutes without a drawing",
            f"{_BASE}::test_after_a_while_without_a_drawing_the_memory_is_free",
            _resident, "patience = IDLE_SECONDS if job is None", "patience = 1e9 if job is None"),
    Finding("5. out of memory has many spellings, some of them a plain RuntimeError", "all are recognised",
            f"{_DEVICE}::test_every_spelling_of_a_shortage_is_recognised",
            _device, '    "status_alloc_failed",                 # cuBLAS, cuDNN, cuSPARSE\n', ""),
    Finding("5. a drawing that runs out of memory fails", "it is tried again with the next saving, and that is said",
            f"{_BASE}::test_a_card_that_is_too_small_for_all_at_once_is_enough",
            _resident, "savings = self._after_shortage(savings, notify)", "savings = None"),
    Finding("5. a training that runs out of memory fails", "it goes on from its checkpoint with the next saving",
            f"{_RUN}::test_a_run_that_is_short_of_memory_continues_from_its_checkpoint_with_the_next_saving",
            _run, "if not is_out_of_memory(error) or folder.compression() is not None:", "if True:"),
    Finding("5. the page stays busy after a failure", "it rests again, whatever the failure",
            "app/web/test_studio.py::test_a_drawing_that_fails_leaves_the_page_at_rest",
            "app/web/pages/studio.py", "            yield [idle(), skip, skip, skip]\n", ""),
    Finding("5. the command line shows a traceback", "a sentence and exit code 1, and no file",
            f"{_CLI}::test_a_drawing_that_fails_is_a_sentence_and_no_file",
            "app/cli/main.py", 'if not type(error).__module__.startswith("atelier."):', "if True:"),
    Finding("5. values that are not finite become a picture", "no picture, and the precision that cures it",
            f"{_DECODE}::test_a_drawing_that_is_not_finite_gives_no_picture",
            _decode, "    if not latents.isfinite().all():\n", "    if False:\n"),
    Finding("5. a VAE overflows in half precision", "it decodes again in float32",
            f"{_DECODE}::test_a_vae_that_overflows_in_bfloat16_decodes_again",
            _decode, "if savings.half_vae and not pixels.isfinite().all():", "if False:"),
    Finding("5. drawing is always float16 on a card", "chosen in Settings or by --precision",
            f"{_BASE}::test_another_precision_loads_the_model_anew",
            _resident, "drawing_dtype(wanted[2], self.device)", "torch.float32"),
    Finding("6. without a C compiler Triton fails and drawing stops", "tried once; the definition runs",
            f"{_TWINS}::test_without_a_compiler_the_definition_runs_and_it_is_tried_once",
            "kernels/dispatch.py", "    return _compile_error(device)\n", '    return ""\n'),
    Finding("6. twins that never ran on a card run there", "off until `make gpu` has passed on that card",
            f"{_TWINS}::test_a_twin_is_off_until_it_has_passed_on_the_card",
            "kernels/dispatch.py", "    if name not in verified_twins(device):\n", "    if False:\n"),
    Finding("7. what a CUDA graph keeps is not counted", "counted, and the first saving is to do without",
            f"{_ESTIMATE}::test_a_recorded_step_counts_only_where_steps_are_recorded",
            _estimate, 'need.train - need.state if device == "cuda"', '0 if device == "cuda"'),
    Finding("8. the precision is timed, and can come out as float32", "bfloat16 by rule where a card has it",
            f"{_PRECISION}::test_a_gpu_is_not_timed_but_asked_whether_it_has_bfloat16",
            "training/base_models/precision.py", "    if has_own_memory(device):\n", "    if False:\n"),
    Finding("8. the clock is read before the device is done", "after a synchronization",
            f"{_PRECISION}::test_the_clock_is_read_when_the_device_is_done",
            "training/base_models/precision.py", "        synchronize(device)\n", ""),
    Finding("8. products of float32 do not use tensor cores", "they do, as convolutions already did",
            f"{_DRAW}::test_products_of_float32_use_what_the_card_has_for_them",
            "training/base_models/base_model.py", 'torch.set_float32_matmul_precision("high")', "pass"),
    Finding("9. prior pictures stay at the base's resolution", "they have the size that is trained",
            "training/recipes/test_prior_preservation.py::test_prior_pictures_have_the_size_that_is_trained",
            "training/recipes/prior_preservation.py",
            "latents if side == native else [_resize(model, latent, side) for latent in latents]", "latents"),
    Finding("10. previews decode whole in float32, the peak of a training", "in tiles, and mounted",
            "training/recipes/test_dreambooth.py::test_previews_beside_a_step_on_a_card_use_little_memory",
            "training/recipes/dreambooth.py", "DrawSavings(tiles=True, mount=True)", "DrawSavings()"),
    Finding("10. parts that no step needs are on the card", "only the UNet is",
            f"{_TRAIN}::test_nothing_of_the_base_but_the_unet_is_there_in_a_step",
            "training/base_models/base_model.py",
            "        offloaded = [] if self.offload_to is None else [part for part in parts "
            "if self.offload_to.holds(part)]\n",
            "        offloaded = []\n        self.onload(*parts)\n"),
    Finding("11. a card that torch has no code for is chosen, and the first kernel dies",
            "the CPU is used, and a sentence says why",
            f"{_DEVICE}::test_a_card_that_torch_has_no_code_for_is_left_alone",
            _device, 'torch.device("cpu") if found is None or missing_code(found) else found',
            'torch.device("cpu") if found is None else found'),
    Finding("11. a CPU wheel beside a card, or an old driver, says nothing", "one sentence and the cure each",
            f"{_DEVICE}::test_a_card_that_torch_does_not_find_is_explained",
            _device, "    if torch.version.cuda is None:\n", "    if False:\n"),
    Finding("11. nobody says so", "the start of the Studio and `doctor` do",
            f"{_CLI}::test_a_card_that_is_not_used_is_explained_at_the_start_and_by_the_doctor",
            "app/web/server.py", "    if problem := card_problem():\n", '    if problem := "":\n'),
    Finding("11. Intel's cards are ignored", "whatever accelerator torch finds",
            f"{_DEVICE}::test_the_best_device_is_an_accelerator_where_there_is_one",
            _device, "torch.accelerator.current_accelerator(check_available=True)\n    return torch",
            "None\n    return torch"),
    Finding("11. one lock for all cards", "one for each", f"{_LOCK}::test_two_cards_have_two_locks",
            "training/base_models/device_lock.py",
            'return f"cuda-{torch.cuda.get_device_properties(device).uuid}"', 'return "cuda"'),
    Finding("11. two cards run one job", "a job has a card of its own",
            "app/jobs/test_gpu_pool.py::test_two_jobs_have_two_cards_and_give_them_back",
            "app/jobs/gpu_pool.py", "if len(cards) > 1 else [{}]", "if False else [{}]"),
    Finding("12. free memory in pieces can't be used for something large", "segments that grow",
            f"{_CLI}::test_free_memory_of_a_card_can_be_used_in_one_piece",
            "app/cli/main.py", 'os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")', "pass"),
    Finding("12. LoRA-Pro waits for the device at every layer", "once a step, for all layers",
            f"{_TRAIN}::test_a_run_finishes_and_a_step_waits_once[whole gradient]",
            "training/loop/factor_gradients.py",
            "torch.stack([one.up.any() for one in loras]).tolist() if loras else []",
            "[bool(one.up.any()) for one in loras]"),
    Finding("12. each residual block and each attention is divided by 1", "what changes nothing is left out",
            "training/base_models/test_fewer_operations.py::test_nothing_is_divided_by_one",
            "training/base_models/base_model.py", '    skip_idle_operations(parts["unet"])\n', ""),
)   # fmt: skip
CHECKPOINTS = (
    Finding("a folder with the fp16 variant alone fails once its run exists", "it is loaded",
            f"{_FOLDERS}::test_one_variant_is_loaded[fp16-False]", "training/base_models/base_model.py",
            "variant = check_weights(folder.parent.name, folder.parent, folder.name).variant or None",
            "variant = None"),
    Finding("SSD-1B as a single file fails once its run exists", "refused before, with the form that works",
            f"{_REFUSED}[sdxl-ssd_1b-SSD-1B]", "training/base_models/checkpoint_layout.py",
            "            raise BaseError(_missing(base, name, len(expected.keys() - tensors.keys()), family))\n",
            "            continue\n"),
    Finding("Stable Diffusion 1 without `text_model.` in its names fails once its run exists", "it is loaded",
            f"{_ZOO}::test_whole_checkpoints_are_known[sd1-short_names]", "training/base_models/checkpoint_layout.py",
            'name.removeprefix(encoder.original_prefix).removeprefix("text_model.")',
            "name.removeprefix(encoder.original_prefix)"),
    Finding("a folder of `.bin` files is shown as good", "refused, as pickles are",
            f"{_FOLDERS}::test_a_part_without_safetensors_is_refused", "training/base_models/weight_files.py",
            "if any(name.endswith(_PICKLES) for name in names):", "if False:"),
    Finding("a UNet alone, as ComfyUI keeps it, is refused without a cure", "what is missing, and how to get it",
            f"{_REFUSED}[sdxl-<lambda>-Save Checkpoint]", _file,
            '    if "input_blocks.0.0.weight" in tensors:\n', "    if False:\n"),
    Finding("v-prediction in the name alone is taken for epsilon", "it is read there, and that is said",
            f"{_ZOO}::test_what_a_model_predicts_is_read_or_assumed_aloud", _file,
            "if _V_NAME.search(path.stem):", "if False:"),
    Finding("what a model predicts can't be set by hand", "for every form of base model, everywhere",
            f"{_FOLDERS}::test_what_is_predicted_can_be_said_by_hand", _identify,
            "prediction if options.prediction == AUTO_PREDICTION else options.prediction", "prediction"),
    Finding("Stable Diffusion 2 without metadata is guessed silently", "what was assumed is said",
            f"{_ZOO}::test_what_a_model_predicts_is_read_or_assumed_aloud", _file,
            '"" if official else assumed_prediction(path.name, found, f"as in most {family.title} models")', '""'),
    Finding("EDM (CosXL, Playground 2.5) is silently wrong", "refused",
            f"{_REFUSED}", _file, 'if any(name.startswith(("edm_mean", "edm_std", "edm_vpred.")) for name in tensors):',
            "if False:"),
    Finding("LCM's guidance embedding is silently wrong", "refused", f"{_REFUSED}", _file,
            'if UNET + "time_embed.cond_proj.weight" in tensors:', "if False:"),
    Finding("both as folders", "refused", f"{_FOLDERS}::test_models_that_are_trained_otherwise_are_refused", _identify,
            "    _check_training(base, unet, vae, scheduler)\n", ""),
    Finding("Turbo, Lightning, Hyper and LCM draw 20 steps with guidance: burnt", "they bring their settings",
            f"{_ZOO}::test_distilled_models_bring_their_steps", _file,
            "few_steps=distilled_by_name(_names(path, header.metadata))", "few_steps=None"),
    Finding("a download from the hub takes 2 to 4 times the bytes", "one variant of what is needed",
            "training/base_models/test_hub.py::test_one_variant_is_downloaded_and_nothing_else",
            "training/base_models/hub.py",
            'needed += [f"{part}/{name}" for name in (*files.names, *filter(None, [files.index]))]',
            'needed += [name for name in names if name.startswith(f"{part}/")]'),
    Finding("a folder that lacks single weights fails once its run exists", "refused before, with one of their names",
            f"{_FOLDERS}::test_a_part_that_lacks_weights_is_refused_before_it_is_loaded", _identify,
            "        check_tensors(base, folder, weights)\n", ""),
    Finding("a folder without a tokenizer fails once its run exists", "refused before",
            f"{_FOLDERS}::test_a_tokenizer_without_its_vocabulary_is_refused", _identify,
            "        check_tokenizers(base, folder, tuple(", "        tuple(tuple("),
)   # fmt: skip
HEAD = """# Devices

What broke or cost too much on graphics cards, on Apple's and Intel's, and with base models as people have them, and
what mends it. Each row has its test, and `make slow` takes each cure out in a copy of the tree and wants the test to
fail (`tests/test_devices.py`). No card is
needed: `tests/pretend_device.py` is a device without the hardware, with CUDA's rules of which tensors may meet, a
memory that ends, and counts of what a program waits for, copies and launches. This page is made from
`tests/device_findings.py` by running it.

## Findings

| What happened | What happens now | Test |
|---|---|---|
"""
CHECKPOINTS_HEAD = """
## Checkpoints as people have them

| What happened | What happens now | Test |
|---|---|---|
"""
BETWEEN = """
## Laws on the simulated device

| What runs there | Cases | Waits in a step | Test |
|---|---|---|---|
"""
# Waits for the device in a step of a training, by what is trained; ``test_train_on_device.py`` measures each.
STEP_WAITS = {
    "lora": 1, "bf16": 1, "text encoder": 1, "8 bits and checkpointing": 1, "split": 1, "dora": 1, "tlora": 1,
    "start from the inputs": 1, "start from the gradient": 1, "resumed": 1, "on a compressed base": 1,
    "whole gradient": 2,   # LoRA-Pro asks which layers have left zero
    "prodigy": 2,          # for the distance that was covered
}   # fmt: skip
# What runs there, how many cases, waits in a step, test.
_RUNS, _RESUMED = "test_a_run_finishes_and_a_step_waits_once", "test_a_run_is_resumed_there"
_RUN_TESTS = {"resumed": _RESUMED, "on a compressed base": "test_a_run_on_a_compressed_base_finishes"}
LAWS = (
    ("every kind of adapter from its file: mounted, merged, and fused by one method", "24", "",
     "test_each_kind_acts_there_as_on_the_cpu"),
    ("every kind by every method of fusion (slow)", "24 × 9", "", "test_each_kind_is_fused_there_by_each_method"),
    ("a drawing with a LoRA by every sampler", "8", "0",
     "test_a_drawing_waits_for_the_device_before_its_first_step_alone"),
    ("a drawing with every kind, merged and mounted (slow but for DoRA and TLoRA)", "24 × 2", "0",
     "test_no_kind_waits_for_the_device_in_a_step"),
    ("a drawing by every method of fusion", "9", "0", "test_a_fusion_waits_for_the_device_before_its_first_step_alone"),
    ("a drawing with a compressed base (slow)", "1", "0", _RUN_TESTS["on a compressed base"]),
    *((f"a training: {name}", "1", str(count), _RUN_TESTS.get(name, _RUNS)) for name, count in STEP_WAITS.items()),
    ("a training with previews and validation", "1", "", _RUNS),
    ("a training ends in the weights of one on the CPU", "1", "", "test_a_run_there_is_the_run_on_the_cpu"),
    ("a drawing takes no more memory than was counted, with each saving", "7", "",
     "test_the_estimate_is_what_a_drawing_takes"),
)
TAIL = """
The one wait of a training step is for its loss and the norm of its gradients, read together. LoRA-Pro asks which layers
have left zero as well, and Prodigy for the distance that was covered: prodigyopt itself waits twice for each parameter,
which `training/loop/prodigy.py` reads together.

## Left as it is

`channels_last` and `cudnn.benchmark` are off: what they gain can only be measured on a card. In a group of several
processes a step asks the first one five times for commands. A compression loads the whole base model to the card, in
float32. Solving LoRA-Pro's equations on a card waits inside of the library, which the simulated device does not see.
"""


def rendered() -> str:
    """The page."""
    rows, checkpoints = (
        "\n".join(f"| {one.what} | {one.answer} | `tests/{one.test}` |" for one in findings)
        for findings in (FINDINGS, CHECKPOINTS))
    laws = [f"| {' | '.join(law[:3])} | `{law[3]}` |" for law in LAWS]
    return HEAD + rows + "\n" + CHECKPOINTS_HEAD + checkpoints + "\n" + BETWEEN + "\n".join(laws) + "\n" + TAIL


if __name__ == "__main__":
    PAGE.write_text(rendered(), encoding="utf-8")
