"""One run from recipe to adapter file: the work of a job's child process, and of `atelier train` in its own process.

``python -m atelier.training.runs.run RUN_FOLDER --adapters FOLDER [--resume]`` ends with 0 when the adapter is in the
library, 1 when the run failed (the reason is its last event), 3 when it was stopped, cancelled or interrupted, 4 when
another process works on the run.
"""

from __future__ import annotations

import argparse
import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from atelier.adapters.attach.mount import MountError
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.disk_space import is_disk_full, space_shortage
from atelier.adapters.core.settings import SettingError
from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.native import adapter_problem, read_header
from atelier.adapters.formats.safetensors_header import FileError
from atelier.adapters.initialization.initialize import initialize
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.base_models.device import best_device, is_out_of_memory, release_cached
from atelier.training.base_models.device_lock import DeviceLock, is_occupied, running_job
from atelier.training.base_models.malloc_tuning import return_freed_memory
from atelier.training.base_models.offload import DiskOffload
from atelier.training.base_models.precision import DTYPES
from atelier.training.base_models.torch_compile import compile_blocks, compile_error
from atelier.training.compression.compress import compress
from atelier.training.config.events import Event, Failed, Finished, Preparing, Stopped, Warned
from atelier.training.config.run_folder import RunBusyError, RunFolder
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.images import PictureError
from atelier.training.data.prepare import encode_dataset, encode_views, scan_pictures
from atelier.training.loop import checkpoint
from atelier.training.loop.cuda_graph import CudaGraphs, can_record
from atelier.training.loop.distributed import ProcessGroup, join_group, leave_group
from atelier.training.loop.optimizer_step import make_accelerator
from atelier.training.loop.recipe import Recipe
from atelier.training.loop.training_loop import CONTINUES, DISK_FULL, Controls, Training
from atelier.training.measures.trigger_word import trigger_word_warning
from atelier.training.recipes import dreambooth
from atelier.training.recipes.break_for_make import half_recipe
from atelier.training.recipes.companions import draw_companions, role_of, with_role_caption
from atelier.training.runs.preview_adapters import load_preview_adapters
from atelier.training.runs.resource_plan import plan_after_out_of_memory, plan_run, run_precision
from atelier.training.runs.save_adapter import result_path, save_result
from atelier.training.runs.signals import quit_signals
from atelier.training.runs.start_adapter import load_start_adapter

DONE, FAILED, STOPPED, BUSY = 0, 1, 3, 4
_log = logging.getLogger(__name__)
WAIT_SECONDS = 2.0
RELEASE_SECONDS, POLL_SECONDS = 30.0, 0.5


def run(folder: RunFolder, adapters: Path, *, resume: bool = False) -> Iterator[Event]:
    """Train what the folder's recipe says and put the adapter file into ``adapters``.

    Every event is written to the folder before it is yielded. Errors become a :class:`Failed` event; the traceback
    goes to the log. With ``resume``, training continues from the newest complete checkpoint. Of several processes, only
    the main one writes.

    Raises:
        RunBusyError: another process works on the run.
        OSError: the folder is gone, or nothing can be written there.
    """
    group = join_group(best_device())
    with ExitStack() as stack:
        if group.is_main:
            stack.enter_context(folder.lock())
            stack.enter_context(folder.heartbeat())
        quitting = stack.enter_context(quit_signals())
        told: set[Warned] = set()
        for event in _with_restarts(folder, adapters, resume, quitting, group):
            if isinstance(event, Warned):
                if event in told:   # before a restart
                    continue
                told.add(event)
            if group.is_main:
                _record(folder, event, quitting)
            yield event


def _record(folder: RunFolder, event: Event, quitting: threading.Event) -> None:
    """Write an event to the folder. On a full disk even that has to wait for room."""
    if isinstance(event, Warned):
        _log.warning("%s", event.message)
    while True:
        try:
            return folder.append(event)
        except OSError as error:
            if not is_disk_full(error) or quitting.wait(WAIT_SECONDS):
                raise


def _with_restarts(
    folder: RunFolder, adapters: Path, resume: bool, quitting: threading.Event, group: ProcessGroup
) -> Iterator[Event]:
    """All events. Where memory runs out, the run begins again from its checkpoint with the next saving."""
    while True:
        try:
            yield from _events(folder, adapters, resume, quitting, group)
            return
        except Exception as error:   # whatever happened, the person has to be told
            if is_disk_full(error):
                ended = yield from _wait_for_space(folder, quitting, group)
                if ended:
                    return
                resume = True
                continue
            _log.error("%s", traceback.format_exc())
            if not is_out_of_memory(error) or folder.compression() is not None:
                yield Failed(explain(error))
                return
        # Not before the error is gone: it holds everything that was in memory.
        release_cached(best_device())
        plan = plan_after_out_of_memory(folder, best_device())
        if not plan.savings:
            yield Failed(f"{plan.shortage} Use a smaller resolution or base model.")
            return
        if group.size > 1:   # the others wait for this process, or are gone
            yield Failed(f"{plan.shortage} Resume it to continue with less memory: {plan.savings}.")
            return
        yield Warned(f"{plan.shortage} The run continues with less: {plan.savings}.")
        resume = checkpoint.read_newest(folder.path / "checkpoints") is not None


def _wait_for_space(folder: RunFolder, quitting: threading.Event, group: ProcessGroup) -> Iterator[Event]:
    """Wait until something can be written again; returns whether somebody ended the run meanwhile."""
    controls = _controls(folder, quitting, group)
    yield Preparing(f"{DISK_FULL} {CONTINUES}")
    while True:
        quitting.wait(WAIT_SECONDS)   # at least once: another limit than the disk's may be reached
        if controls.should_quit():
            return True
        if controls.take_command("cancel") is not None:
            yield Stopped(0, "Cancelled while waiting for free disk space.")
            return True
        if not controls.shortage(0):
            return False


def explain(error: Exception) -> str:
    """Say what went wrong, and the cure, in words for a person."""
    match error:
        case SettingError() | BaseError() | FileError() | MountError() | PictureError() | FloatingPointError():
            return str(error)
        case _ if is_out_of_memory(error):
            return "The memory ran out. Close other programs, or choose a smaller resolution or base model, and resume."
        case _ if is_disk_full(error):
            return "The disk is full. Free some space and resume. The last checkpoint is safe."
        case _:
            return (f"Something unexpected went wrong ({type(error).__name__}: {error}). The run's log.txt has the "
                    "details.")


def _events(
    folder: RunFolder, adapters: Path, resume: bool, quitting: threading.Event, group: ProcessGroup
) -> Iterator[Event]:
    """Wait for the device, then train. The kernel frees the lock when the process dies, however it dies."""
    if found := group.broadcast(_finished_before(folder, adapters) if group.is_main else None):
        yield found
        return
    device, controls = best_device(), _controls(folder, quitting, group)
    lock, name = DeviceLock(device), (folder.compression() or folder.config()).name
    while not group.broadcast(group.is_main and lock.acquire(name, folder.path)):
        other = group.broadcast(running_job(device))
        yield Preparing("Waiting for another job on this device" + (f": {other}" if other else ""))
        if controls.take_command("cancel") is not None:
            yield Stopped(0, "Cancelled while waiting.")
            return
        quitting.wait(WAIT_SECONDS)
        if controls.should_quit():
            return
    try:
        yield from _wait_for_drawings(device, quitting, group)
        if (compression := folder.compression()) is not None:
            yield from compress(folder, compression, controls, device, resume=resume)
        else:
            yield from _train(folder, adapters, resume, controls, device, group)
    finally:
        lock.release()


def _finished_before(folder: RunFolder, adapters: Path) -> Finished | None:
    """The end of a run that was killed after its adapter was complete, and before it could say so."""
    if folder.compression() is not None:
        return None
    path = result_path(adapters, folder.config().name, folder.id)
    if path is None or adapter_problem(path):
        return None
    return Finished(read_header(path).info.best_step or 0, str(path), 0.0)


def _wait_for_drawings(device: torch.device, quitting: threading.Event, group: ProcessGroup) -> Iterator[Event]:
    """Let the Studio release the memory that it keeps a base model in; one that draws without an end is not awaited."""
    until, said = time.monotonic() + RELEASE_SECONDS, False
    while group.broadcast(is_occupied(device) and time.monotonic() < until and not quitting.is_set()):
        if not said:
            yield Preparing("Waiting for the Studio to release its memory")
        said = True
        quitting.wait(POLL_SECONDS)


def _controls(folder: RunFolder, quitting: threading.Event, group: ProcessGroup) -> Controls:
    """Commands reach the main process, which broadcasts them."""
    return Controls(
        take_command=lambda name: group.broadcast(folder.take_command(name) if group.is_main else None),
        should_quit=lambda: group.broadcast(quitting.is_set()),
        shortage=lambda needed: group.broadcast(space_shortage(folder.path, needed) if group.is_main else ""),
    )


def _train(
    folder: RunFolder, adapters: Path, resume: bool, controls: Controls, device: torch.device, group: ProcessGroup
) -> Iterator[Event]:
    started, config = time.monotonic(), with_role_caption(folder.config())
    adapters.mkdir(parents=True, exist_ok=True)   # now, and not after an hour of training
    yield Preparing("Reading the pictures")
    report = scan_pictures(config)
    yield from (Warned(message) for message in [*(reason for _, reason in report.refused), *report.warnings])
    yield Preparing("Loading the base model")
    # Only the main process measures; the others take its plan.
    config, savings = group.broadcast(plan_run(config, folder, device, group.size) if group.is_main else (config, ""))
    group.broadcast(run_precision(config, folder, device) if group.is_main else "")
    if savings:
        yield Warned(savings)
    model = _load(config, folder, device)
    if group.is_main and not resume:
        yield from map(Warned, model.info.warnings)
    if config.compile and (reason := compile_error(device)):
        yield Warned(f"The base model can't be compiled here, so it runs uncompiled: {reason}")
        config = replace(config, compile=False)
    yield Preparing("Encoding the pictures")
    subject = encode_dataset(model, report, config.caption_chunks)
    views = encode_views(model, report, config.caption_chunks) if len(subject) < dreambooth.LEAST_TO_SPARE else []
    model.onload(model.unet, *(model.text_encoders if config.train_text_encoder else []))
    meaning = trigger_word_warning(model, config.trigger_word) if group.is_main and not resume else ""
    if meaning := group.broadcast(meaning):
        yield Warned(meaning)
    if config.prior_batch:
        yield Preparing("Drawing pictures for prior preservation")
    data = dreambooth.split_examples(model, config, subject, views)
    yield Preparing("Preparing the first step")
    others, problems = load_preview_adapters(config.preview_adapters, adapters, model)
    yield from map(Warned, problems)
    training = _training(model, data, config, folder, group, others)
    if resume and not training.resume():
        yield Warned("There was no complete checkpoint to resume from, so training starts again.")
    yield from training.events(controls)
    if training.result is not None:
        path = group.broadcast(
            save_result(training, config, model, len(report.usable), folder, adapters) if group.is_main else None
        )
        yield Finished(training.result_step, str(path), time.monotonic() - started)


def _load(config: TrainConfig, folder: RunFolder, device: torch.device) -> BaseModel:
    # Beside a card nothing is on it yet: the VAE encodes the pictures first, alone.
    dtype = DTYPES[run_precision(config, folder, device)]
    model = load(config.base, device, dtype, in_8_bits=config.base_in_8_bits, resident=(),
                 options=config.base_options)   # fmt: skip
    if model.offload_to is None and device.type == "cpu":
        model = replace(model, offload_to=DiskOffload(folder.path))
    model.offload(model.vae, *([] if config.train_text_encoder else model.text_encoders))
    if config.gradient_checkpointing:
        return_freed_memory()
        model.unet.enable_gradient_checkpointing()
        model.unet.train()   # diffusers checkpoints in training mode only; these UNets have no dropout
    return model


def _training(
    model: BaseModel, data: dreambooth.TrainingData, config: TrainConfig, folder: RunFolder, group: ProcessGroup,
    others: dreambooth.Parts = (),
) -> Training:   # fmt: skip
    torch.manual_seed(config.seed)   # of the adapter's initial values
    parts = {name: part for name, part in model.models().items() if name == "unet" or config.train_text_encoder}
    targets = find_targets(parts, config.targets)
    if config.continue_from:
        adapters = load_start_adapter(folder.start_adapter, config, model).to(model.device)
    else:
        adapters = create_adapters(config.kind, config.adapter, targets).to(model.device)
    recipe = _recipe(model, adapters, data, config, folder.path, others=others)
    generator = torch.Generator().manual_seed(config.seed)
    if not config.continue_from:
        initialize(adapters, model.models(), lambda: recipe.microstep(generator).subject)
    if config.compile:
        compile_blocks(model.unet, [spec.name for spec in targets])
    gpu = CudaGraphs() if can_record(model.device, config, group) else None
    return Training(_distributed(recipe, group), config, folder.path, make_accelerator(model), group, gpu)


def _recipe(
    model: BaseModel, adapters: AdapterSet, data: dreambooth.TrainingData, config: TrainConfig, folder: Path, *,
    others: dreambooth.Parts,
) -> Recipe:   # fmt: skip
    if role := role_of(config):
        companions = draw_companions(model, role, config.resolution)
        return half_recipe(model, adapters, data, companions, config, folder, others=others)
    return dreambooth.recipe(model, adapters, data, config, folder, others=others)


def _distributed(recipe: Recipe, group: ProcessGroup) -> Recipe:
    """The recipe as several processes carry it out: steps together, all else by the main process."""
    return replace(
        recipe,
        microstep=partial(recipe.microstep, group=group),
        validate=lambda weights: group.broadcast(recipe.validate(weights) if group.is_main else 0.0),
        measure=lambda weights, step: group.broadcast(recipe.measure(weights, step) if group.is_main else None),
        preview=recipe.preview if group.is_main else lambda *_: [],
    )


def main() -> int:
    """Run one job; see the module's docstring for the exit codes."""
    parser = argparse.ArgumentParser(prog="python -m atelier.training.runs.run", description="Train one run folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--adapters", type=Path, required=True, help="where the adapter file goes")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    arguments = parser.parse_args()
    folder = RunFolder(arguments.folder)
    try:
        events = [type(event) for event in run(folder, arguments.adapters, resume=arguments.resume)]
    except RunBusyError as error:
        _log.error("%s", error)
        return BUSY
    except OSError as error:
        _log.error("Nothing can be written to the run's folder: %s.", error)
        return FAILED
    leave_group(join_group(best_device()))
    return {Finished: DONE, Failed: FAILED}.get(events[-1] if events else None, STOPPED)


if __name__ == "__main__":
    sys.exit(main())
