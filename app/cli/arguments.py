"""The arguments of every subcommand. Imports little, so that ``atelier --help`` answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from atelier.app.cli.argument_values import (
    adapter_strength,
    count,
    fraction,
    key_value,
    member_weight,
    picture_weight,
    rank,
    size,
)
from atelier.app.cli.server_arguments import add_queue, add_serve
from atelier.app.store.home import absolute_base

_EPILOG = """examples:
  atelier serve                                          start the Studio in a browser
  atelier train pictures/ --name rex --subject dog       train an adapter on a folder of pictures
  atelier draw "a photo of rex dog" --adapter rex=0.8    draw with it
  atelier compress --adapter rex --name rex-small        merge it into the base model, in 4 bits
  atelier models get stabilityai/stable-diffusion-xl-base-1.0   download a base model
  atelier export rex --to kohya --out rex.safetensors    use it in another tool

exit codes: 0 done, 1 failed (the reason is on stderr), 2 wrong usage, 130 stopped with Ctrl+C
"""

JOB_ACTIONS = {
    "list": "list runs, the newest first", "show": "show a run's state, health and saved steps",
    "log": "print a run's log", "pause": "pause a run at its next step", "resume": "continue a run",
    "retry": "queue a failed, stopped or interrupted run again", "stop": "end a run and save its adapter",
    "cancel": "end a run without saving an adapter", "save": "save the weights of a run's next step",
    "sooner": "move a waiting run one place up in the queue", "later": "move a waiting run one place down",
    "preview": "draw a preview with a run's adapter as it is now",
    "grid": "draw a run's saved steps at several strengths", "keep": "put a saved step into the library",
    "average": "put the average of a run's saved steps into the library",
    "sizes": "measure how much of an adapter each rank holds", "leaks": "measure which ordinary words draw the subject",
}   # fmt: skip

_PREDICTIONS = ("auto", "epsilon", "v_prediction", "sample")   # of BaseOptions
_PRECISIONS = ("auto", "fp32", "bf16", "fp16")   # of TrainConfig, which takes longer to import

def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="atelier",
        description="Train adapters for Stable Diffusion on a few pictures, and draw with them.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )   # fmt: skip
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--home", type=Path, metavar="DIR",
                        help="folder for everything you make (default: $ATELIER_HOME, else your user data folder)")
    readable = argparse.ArgumentParser(add_help=False, parents=[shared])
    readable.add_argument("--json", action="store_true", help="print JSON")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, help: str, parent: argparse.ArgumentParser = readable) -> argparse.ArgumentParser:
        """A subcommand; its description is the help line as a sentence."""
        return commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.", parents=[parent])

    add_serve(add("serve", "start the Studio: web server and worker", shared))
    _add_key(add("key", "create, list or delete the keys with which programs sign in"))
    add_queue(add("worker", "run the queued jobs", shared))
    _add_train(add("train", "train an adapter on a folder of pictures"))
    _add_jobs(add("jobs", "list runs, control them, and compare, keep and measure their steps"))
    _add_transfer(add("transfer", "move an adapter to another base model, without its pictures"))
    _add_compress(add("compress", "compress a base model, with or without adapters merged in"))
    _add_make(add("make", "make one adapter from a content and a style adapter"))
    _add_draw(add("draw", "draw pictures"))
    _add_grid(add("grid", "draw a picture again and again while settings change"))
    _add_find(add("find", "find the adapters that fit a prompt, by their weights"))
    _add_words(add("words", "check which words have no meaning to a base model, and so are good trigger words"))
    add("list", "list your adapters")
    show = add("show", "show everything about an adapter")
    show.add_argument("name", metavar="NAME")
    show.add_argument("--intruders", action="store_true", help="also count its intruder dimensions: strong directions "
                      "that the base model has not, which go with forgetting")
    add("delete", "move an adapter to the trash").add_argument("name", metavar="NAME")
    add("restore", "put back what was deleted, or list it").add_argument(
        "name", metavar="NAME", nargs="?", default="", help="what to put back; without it, the trash is listed")
    _add_import(add("import", "import adapter files from other tools"))
    _add_inspect(add("inspect", "show what an adapter file contains, from its header"))
    _add_export(add("export", "export adapters for another tool"))
    _add_merge(add("merge", "merge several adapters into a new one"))
    _add_team(add("team", "combine adapters that several people trained on pictures of their own"))
    _add_resize(add("resize", "make a smaller copy of an adapter"))
    _add_extract(add("extract", "make an adapter from the difference between two base models"))
    _add_models(add("models", "list, show and download base models"))
    doctor = add("doctor", "show what this machine offers, check all files of the home, and list any problems")
    doctor.add_argument("--repair", action="store_true", help="repair what can be repaired, and say what was done")
    return parser


def _add_train(train: argparse.ArgumentParser) -> None:
    train.add_argument("pictures", type=Path, nargs="?", metavar="PICTURES",
                       help="folder with the training pictures (not needed with --resume)")
    train.add_argument("--name", required=True, metavar="NAME", help="name of the adapter")
    train.add_argument("--trigger", metavar="WORD", help="trigger word for prompts (default: the name)")
    train.add_argument("--subject", metavar="WORD",
                       help="class word: what it is, in one or two common words (default: object)")
    train.add_argument("--preset", default="normal", metavar="P",
                       help="settings to start from: quick, normal or thorough (default: normal)")
    train.add_argument("--kind", metavar="KIND", help="adapter kind (default: the preset's)")
    train.add_argument("--role", choices=("content", "style"),
                       help="with --kind split: train a subject or a way of drawing; 'atelier make' combines the two")
    train.add_argument("--base", type=absolute_base, metavar="PATH_OR_ID",
                       help="base model: 'embedded', a diffusers folder, a .safetensors checkpoint or a hub id")
    _add_base_options(train)
    train.add_argument("--steps", type=int, metavar="N", help="optimizer steps (default: the preset's)")
    train.add_argument("--precision", choices=_PRECISIONS, help="arithmetic (default: auto, the fastest here)")
    train.add_argument("--stop-when", choices=("auto", "never", "validation", "memorization", "drift", "any"),
                       help="measure that may end the training early and decides which step is saved "
                            "(default: auto, which is memorization or drift)")   # fmt: skip
    train.add_argument("--weight", type=picture_weight, action="append", default=[], metavar="FILE=WEIGHT",
                       dest="weights", help="how often a picture is trained on, compared with the others (default: 1); "
                       "repeatable")
    train.add_argument("--set", type=key_value, nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                       help="any other setting; an unknown key lists them all")
    train.add_argument("--resume", action="store_true", help="continue the newest unfinished run of this name")


def _add_jobs(jobs: argparse.ArgumentParser) -> None:
    actions = jobs.add_subparsers(dest="action", metavar="ACTION")
    for name, help in JOB_ACTIONS.items():
        action = actions.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        # The parent's --home and --json, here as well; their defaults must not overwrite what stands before ACTION.
        action.add_argument("--home", type=Path, metavar="DIR", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        if name == "list":
            continue
        action.add_argument("run", metavar="RUN", help="name of the adapter, or id of the run")
        if name in ("preview", "grid"):
            action.add_argument("--prompt", default="", metavar="TEXT", help="what to draw (default: the run's own)")
        if name == "keep":
            action.add_argument("--step", type=int, required=True, metavar="N", help="the step to keep")
        if name == "average":
            action.add_argument("--from", type=int, default=0, dest="first", metavar="N",
                                help="first step of the average (default: the first that was saved)")
        if name in ("keep", "average"):
            action.add_argument("--name", default="", metavar="NEW", help="name of the new adapter")
        if name == "grid":
            action.add_argument("--strength", type=float, nargs="+", metavar="S", dest="strengths",
                                help="strengths to draw at (default: 0.5 1 1.5)")
            action.add_argument("--step", type=int, nargs="+", default=[], metavar="N", dest="steps",
                                help="steps to draw (default: all that were saved)")


def _add_make(make: argparse.ArgumentParser) -> None:
    make.add_argument("content", metavar="CONTENT", help="adapter for what is drawn")
    make.add_argument("style", metavar="STYLE", help="adapter for how it is drawn")
    make.add_argument("--name", required=True, metavar="NAME", help="name of the new adapter")
    make.add_argument("--method", choices=("break-for-make", "sum", "zip", "k", "np"),
                      help="break-for-make needs two adapters of the kind split; the others work with any two "
                           "(default: sum)")
    make.add_argument("--steps", type=int, metavar="N",
                      help="optimizer steps on both sets of pictures; 0 is possible with break-for-make (default: 100; "
                           "sum, k and np need no training)")   # fmt: skip
    make.add_argument("--content-strength", type=float, default=1.0, metavar="C",
                      help="strength of the content (default: 1)")
    make.add_argument("--style-strength", type=float, metavar="S",
                      help="strength of the style (default: 0.75 for sum and np, else 1)")   # fmt: skip


def _add_transfer(transfer: argparse.ArgumentParser) -> None:
    transfer.add_argument("adapter", metavar="NAME", help="the adapter to move; its own base model draws with it")
    transfer.add_argument("--base", type=absolute_base, required=True, metavar="PATH_OR_ID",
                          help="the base model to move it to")
    transfer.add_argument("--name", required=True, metavar="NEW", help="name of the new adapter")
    transfer.add_argument("--count", type=count, default=24, metavar="N",
                          help="pictures to draw; about half of them are trained on (default: 24)")
    transfer.add_argument("--prompt", action="append", default=[], metavar="TEXT", dest="prompts",
                          help="what to draw (default: the caption it was trained with); repeatable")
    transfer.add_argument("--preset", default="normal", metavar="P",
                          help="settings of the training: quick, normal or thorough (default: normal)")
    transfer.add_argument("--steps", type=count, metavar="N", help="optimizer steps (default: the preset's)")
    transfer.add_argument("--set", type=key_value, nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                          help="any other setting of the training; an unknown key lists them all")


def _add_compress(compress: argparse.ArgumentParser) -> None:
    compress.add_argument("--base", type=absolute_base, default="embedded", metavar="PATH_OR_ID",
                          help="base model to compress (default: embedded)")
    compress.add_argument("--adapter", type=adapter_strength, action="append", default=[], metavar="NAME[=STRENGTH]",
                          dest="adapters", help="an adapter to merge into its weights first; repeatable")
    compress.add_argument("--preset", default="w4a8",
                          choices=("w8a8", "w6a8", "w5a8", "w4a8", "w4a4", "w2a8", "w8", "w4"),
                          help="bits of weights (w) and activations (a) (default: w4a8)")
    compress.add_argument("--name", required=True, metavar="NAME", help="name of the compressed base model")
    compress.add_argument("--steps", type=int, metavar="N",
                          help="training steps; 0 only calibrates (default: 400)")
    compress.add_argument("--prompt", action="append", default=[], metavar="TEXT", dest="prompts",
                          help="a prompt to train on, in addition to a built-in list; repeatable")
    compress.add_argument("--set", type=key_value, nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                          help="any other setting; an unknown key lists them all")
    compress.add_argument("--resume", action="store_true", help="continue the newest unfinished run of this name")


def _add_draw(draw: argparse.ArgumentParser) -> None:
    draw.add_argument("prompt", nargs="?", metavar="PROMPT", help="what to draw (not needed with --like)")
    draw.add_argument("--like", type=Path, metavar="FILE",
                      help="use the settings of a picture from Atelier or another tool, except for the options given "
                           "here")
    draw.add_argument("--adapter", type=adapter_strength, action="append", default=[], metavar="NAME[=STRENGTH]",
                      dest="adapters", help="an adapter and its strength (default: 1); repeatable")
    draw.add_argument("--blocks", nargs="+", action="append", default=[], metavar=("NAME", "BLOCK=STRENGTH"),
                      help="strengths of an adapter in single blocks of the UNet, such as mid=0 up.1.0=0.5; repeatable")
    draw.add_argument("--region", nargs=5, action="append", default=[], dest="regions",
                      metavar=("PROMPT", "LEFT", "TOP", "RIGHT", "BOTTOM"),
                      help="a part of the picture with a prompt of its own: a rectangle, sides from 0 to 1; repeatable")
    draw.add_argument("--adapter-region", nargs="+", action="append", default=[], dest="adapter_regions",
                      metavar=("NAME", "LEFT TOP RIGHT BOTTOM [PROMPT]"),
                      help="the rectangle in which an adapter acts, and what is drawn there; repeatable")
    draw.add_argument("--side-by-side", action="store_true",
                      help="several adapters from left to right, each in a field of its own; {subject} in the prompt "
                           "is the subject of each")
    draw.add_argument("--curve", nargs="+", action="append", default=[], metavar=("NAME", "STRENGTH"), dest="curves",
                      help="how an adapter's strength changes from the first step to the last, such as 0 1 1; "
                           "repeatable")   # fmt: skip
    draw.add_argument("--fuse", choices=("sum", "normalised", "gated", "switch", "composite", "dare", "ties", "svd",
                                         "concat"),
                      help="how several adapters are combined (default: sum); 'gated' lets each layer decide for every "
                           "position and step, 'switch' takes turns, 'composite' averages what each would "
                           "draw")   # fmt: skip
    draw.add_argument("--negative", metavar="TEXT", help="negative prompt: what the picture should not show")
    draw.add_argument("--unwanted", metavar="TEXT", help="what the trigger word brings along but should not")
    draw.add_argument("--unwanted-strength", type=float, metavar="U",
                      help="how strongly the unwanted part is removed (default: 1)")
    draw.add_argument("--seed", type=int, metavar="S", help="seed of the first picture (default: 0)")
    draw.add_argument("--count", type=int, metavar="N", help="number of pictures (default: 1)")
    draw.add_argument("--steps", type=int, metavar="N", help="denoising steps")
    draw.add_argument("--guidance", type=float, metavar="G", help="guidance scale: how closely the prompt is followed")
    draw.add_argument("--sampler", help="sampler (default: auto)", choices=(
        "auto", "ddim", "dpm++", "dpm++ sde", "unipc", "euler", "euler a", "heun", "lcm"))
    draw.add_argument("--schedule", choices=("auto", "karras", "exponential", "leading", "linspace", "trailing"),
                      help="spacing of the noise levels (default: auto, the base model's own)")
    draw.add_argument("--size", type=size, metavar="WxH",
                      help="width and height in pixels (default: the base model's own)")
    draw.add_argument("--base", type=absolute_base, metavar="PATH_OR_ID",
                      help="base model, or the name of a compressed one (default: that of the first adapter, else "
                           "embedded)")
    draw.add_argument("--precision", choices=_PRECISIONS,
                      help="arithmetic (default: that of the Settings page; auto is fp16 on a GPU and fp32 on a CPU)")
    draw.add_argument("--device", metavar="NAME",
                      help="auto, cpu or a card such as cuda:1 (default: that of the Settings page)")
    _add_base_options(draw)
    _add_start(draw)
    draw.add_argument("--out", type=Path, metavar="DIR", help="folder for the pictures (default: the gallery)")


def _add_base_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--prediction", choices=_PREDICTIONS,
                         help="what the base model's UNet predicts (default: as set for it, else as its files say)")
    command.add_argument("--vae", type=absolute_base, metavar="FILE_OR_DIR",
                         help="another VAE for the base model: a .safetensors file or a diffusers folder")


def _add_start(draw: argparse.ArgumentParser) -> None:
    draw.add_argument("--image", type=Path, metavar="FILE", help="picture to start from (img2img)")
    draw.add_argument("--mask", type=Path, metavar="FILE",
                      help="mask for --image: white is redrawn, black stays (inpainting)")
    draw.add_argument("--image-strength", type=float, metavar="S", default=0.6,
                      help="how much of --image may change, above 0 and at most 1 (default: 0.6)")
    draw.add_argument("--upscale", type=float, metavar="X",
                      help="hires fix: draw, enlarge X times, then draw the details")
    draw.add_argument("--upscaler", choices=("latent", "lanczos"),
                      help="what is enlarged: the latent or the picture (default: latent)")
    draw.add_argument("--upscale-steps", type=int, metavar="N", help="steps of the second pass (default: the same)")
    draw.add_argument("--upscale-strength", type=float, metavar="S",
                      help="how much the second pass may change (default: 0.55)")
    draw.add_argument("--clip-skip", type=int, metavar="N",
                      help="layers to skip at the end of the text encoder; 1 is what other tools call clip skip 2")
    draw.add_argument("--guidance-rescale", type=float, metavar="R",
                      help="reduces oversaturated colours at high guidance, 0 to 1 (default: 0)")
    draw.add_argument("--plain", action="store_const", const="plain", dest="prompt_syntax",
                      help="treat parentheses and brackets as text, not as weights")


def _add_find(find: argparse.ArgumentParser) -> None:
    find.add_argument("prompt", metavar="PROMPT", help="what you want to draw, in your own words")
    find.add_argument("--limit", type=int, default=8, metavar="N",
                      help="how many adapters to list at most (default: 8)")


def _add_words(words: argparse.ArgumentParser) -> None:
    words.add_argument("words", nargs="+", metavar="WORD", help="made-up words to check")
    words.add_argument("--base", type=absolute_base, default="embedded", metavar="PATH_OR_ID", help="base model")


def _add_export(export: argparse.ArgumentParser) -> None:
    _add_parts(export)
    forms = ("kohya", "diffusers", "lycoris", "comfyui", "diff", "native", "tiny", "base", "checkpoint")
    export.add_argument("--to", required=True, choices=forms, dest="form",
                        help="kohya: a LoRA, for every tool; diffusers: for diffusers only; lycoris: exact, each layer "
                             "in its own algorithm (DoRA, OFT, LoKr ...); comfyui: the same for ComfyUI and Forge; "
                             "diff: full weight differences, exact for every kind, for every tool but diffusers; "
                             "native: for Atelier; tiny: for Atelier, in a few bits per value; base: a diffusers "
                             "folder with the adapters merged in; checkpoint: the same as one file")
    export.add_argument("--out", required=True, type=Path, metavar="FILE")
    export.add_argument("--precision", default="fp32", choices=("fp32", "fp16", "bf16"),
                        help="precision of the file (default: fp32)")
    export.add_argument("--bits", type=int, default=4, choices=(1, 2, 4),
                        help="bits per value of a tiny file (default: 4)")
    export.add_argument("--recipe", action="store_true",
                        help="include the training settings, which can contain folder names and prompts")
    export.add_argument("--sidecars", action="store_true",
                        help="also write the files that A1111 and Forge show: NAME.json and NAME.preview.png")
    export.add_argument("--compare", action="store_true",
                        help="also measure how much the UNet's output with the file differs from that with the "
                             "adapters")
    _add_limits(export)


def _add_grid(grid: argparse.ArgumentParser) -> None:
    grid.add_argument("picture", metavar="PICTURE", help="a picture of the gallery by its id, or a file of Atelier; "
                      "the id of a grid draws what is missing in it")
    grid.add_argument("--vary", action="append", default=[], metavar="SETTING=VALUES", dest="axes",
                      help="a setting and its values, such as strength=0..1.5:4 or seed=1,2,3 or prompt='fox | owl'; "
                           "up to three")
    grid.add_argument("--adapter", default="", metavar="NAME",
                      help="whose strength, block or checkpoint changes (default: the first one's)")
    grid.add_argument("--out", type=Path, metavar="FILE", help="where to write the picture of all cells with labels")


def _add_inspect(inspect: argparse.ArgumentParser) -> None:
    inspect.add_argument("file", type=Path, metavar="FILE")


def _add_import(importer: argparse.ArgumentParser) -> None:
    importer.add_argument("file", type=Path, metavar="FILE_OR_DIR")
    importer.add_argument("--name", metavar="NAME", help="name in the library (default: the file's name)")


def _add_merge(merge: argparse.ArgumentParser) -> None:
    _add_parts(merge)
    merge.add_argument("--name", required=True, metavar="NEW", help="name of the new adapter")
    _add_limits(merge)


def _add_team(team: argparse.ArgumentParser) -> None:
    team.add_argument("members", type=member_weight, nargs="+", metavar="NAME[=WEIGHT]",
                      help="a member's adapter and how much it counts (default: as many as it has pictures)")
    team.add_argument("--name", required=True, metavar="NEW", help="name of the new adapter")
    team.add_argument("--method", default="stack", choices=("stack", "svd", "mean", "corrected"),
                      help="stack: exact, the ranks add up; svd: the same cut to a rank; mean: the mean of each value, "
                           "exact for LoRA-XS that continue from one adapter; corrected: the mean of one factor, "
                           "and the best other one for it (default: stack)")   # fmt: skip
    team.add_argument("--rank", type=rank, metavar="R", help="rank of svd (default: the members' largest)")
    team.add_argument("--values", type=count, metavar="N",
                      help="the most values that the new adapter may hold: those that contribute most stay")


def _add_resize(resize: argparse.ArgumentParser) -> None:
    resize.add_argument("adapter", metavar="NAME")
    resize.add_argument("--name", required=True, metavar="NEW", help="name of the new adapter")
    _add_limits(resize)


def _add_extract(extract: argparse.ArgumentParser) -> None:
    extract.add_argument("tuned", type=absolute_base, metavar="TUNED", help="the fine-tuned base model")
    extract.add_argument("--name", required=True, metavar="NEW", help="name of the new adapter")
    _add_limits(extract)


def _add_parts(command: argparse.ArgumentParser) -> None:
    command.add_argument("adapters", type=adapter_strength, nargs="+", metavar="NAME[=STRENGTH]",
                         help="an adapter and its strength (default: 1)")


def _add_limits(command: argparse.ArgumentParser) -> None:
    command.add_argument("--rank", type=rank, metavar="R", help="maximum rank per layer")
    command.add_argument("--energy", type=fraction, metavar="E",
                         help="share of each layer's energy (squared norm) to keep, such as 0.99")
    command.add_argument("--base", type=absolute_base, metavar="PATH_OR_ID",
                         help="base model, if the adapter does not name the one it needs")


def _add_models(models: argparse.ArgumentParser) -> None:
    models.add_argument("action", choices=("scan", "show", "get", "known"),
                        help="scan a folder; show one base model; get one from the hub; list known ones")
    models.add_argument("what", metavar="DIR_OR_BASE", nargs="?", default="",
                        help="scan: a folder; show: 'embedded', a folder, a file or a hub id; get: a hub id")


def _add_key(key: argparse.ArgumentParser) -> None:
    key.add_argument("action", choices=("make", "list", "delete"), help="create, list or delete a key")
    key.add_argument("name", nargs="?", default="", metavar="NAME", help="name of the key (not needed for list)")
