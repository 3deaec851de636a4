"""The command line's contract: what can be typed. Light on purpose, so that ``atelier --help`` answers at once."""

from __future__ import annotations

import argparse
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

from atelier.app.store.home import absolute_base

_EPILOG = """examples:
  atelier serve                                          open the Studio in a browser
  atelier train pictures/ --name rex --subject dog       teach it what the pictures show
  atelier draw "a photo of rex dog" --adapter rex=0.8    draw it
  atelier compress --adapter rex --name rex-small        the base with rex in it, in 4 bits
  atelier export rex --to kohya --out rex.safetensors    take it to another tool

exit codes: 0 done, 1 failed (the reason is on stderr), 2 wrong usage, 130 stopped with Ctrl-C
"""


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="atelier",
        description="Teach a diffusion model from a handful of pictures, and draw with what it learned.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )   # fmt: skip
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--home", type=Path, metavar="DIR",
                        help="folder that holds everything (default: $ATELIER_HOME, else a folder of your own)")
    readable = argparse.ArgumentParser(add_help=False, parents=[shared])
    readable.add_argument("--json", action="store_true", help="machine-readable output")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, help: str, parent: argparse.ArgumentParser = readable) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.", parents=[parent])

    serve = add("serve", "open the Studio: web server and worker", shared)
    serve.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on (default: this machine)")
    serve.add_argument("--port", type=_port, default=0, metavar="P", help="port (default: the first free from 7860)")
    serve.add_argument("--open", action="store_true", help="show it in the browser of this desktop")
    serve.add_argument("--proxy", type=_network, action="append", default=[], metavar="ADDRESS",
                       help="address of a reverse proxy whose X-Forwarded headers are believed (may be repeated)")
    serve.add_argument("--public-name", action="append", default=[], metavar="HOST",
                       help="host name under which browsers reach that proxy (may be repeated)")
    _add_key(add("key", "make, list or delete the keys by which programs sign in"))
    add("worker", "work off the queue of training runs", shared)
    _add_train(add("train", "teach it what a folder of pictures shows"))
    _add_compress(add("compress", "make a base model smaller, with adapters in it or without"))
    _add_make(add("make", "mix what is drawn with how it is drawn: two adapters into one"))
    _add_draw(add("draw", "draw pictures"))
    _add_find(add("find", "say which adapters fit what you want to draw, by their weights"))
    _add_words(add("words", "say which words mean nothing to a base model, and so are good trigger words"))
    add("list", "list the adapters")
    add("show", "show all that is known about an adapter").add_argument("name", metavar="NAME")
    add("delete", "move an adapter to the trash").add_argument("name", metavar="NAME")
    _add_import(add("import", "take adapter files of other tools into the library"))
    _add_inspect(add("inspect", "say what an adapter file holds, from its header"))
    _add_export(add("export", "write adapters for another tool"))
    _add_merge(add("merge", "make one new adapter of several"))
    _add_resize(add("resize", "make a smaller adapter of one"))
    _add_extract(add("extract", "make an adapter of what turns one base model into another"))
    _add_models(add("models", "say what base models are"))
    add("doctor", "say what this machine can do and what will be used")
    return parser


def _add_train(train: argparse.ArgumentParser) -> None:
    train.add_argument("pictures", type=Path, nargs="?", metavar="PICTURES",
                       help="folder with the pictures (not needed with --resume)")
    train.add_argument("--name", required=True, metavar="NAME", help="what you call the adapter")
    train.add_argument("--trigger", metavar="WORD", help="word that calls it in a prompt (default: the name)")
    train.add_argument("--subject", metavar="WORD", help="what it is, in one or two plain words (default: object)")
    train.add_argument("--preset", default="normal", metavar="P", help="settings to start from (default: normal)")
    train.add_argument("--kind", metavar="KIND", help="adapter kind (default: the preset's)")
    train.add_argument("--role", choices=("content", "style"),
                       help="with --kind split: teach a thing or a way of drawing, to be mixed later (atelier make)")
    train.add_argument("--base", type=absolute_base, metavar="PATH_OR_ID",
                       help="base model: 'embedded', a diffusers folder, a .safetensors checkpoint or a hub id")
    train.add_argument("--steps", type=int, metavar="N", help="optimizer updates (default: the preset's)")
    train.add_argument("--set", type=_key_value, nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                       help="any other setting; a wrong key lists them all")
    train.add_argument("--resume", action="store_true", help="go on with the newest unfinished run of this name")


def _add_make(make: argparse.ArgumentParser) -> None:
    make.add_argument("content", metavar="CONTENT", help="adapter of the thing that is drawn")
    make.add_argument("style", metavar="STYLE", help="adapter of the way it is drawn")
    make.add_argument("--name", required=True, metavar="NAME", help="what you call the new adapter")
    make.add_argument("--method", choices=("break-for-make", "sum", "zip", "k", "np"),
                      help="break-for-make needs two of the kind split; the others take any two (default: sum)")
    make.add_argument("--steps", type=int, metavar="N",
                      help="optimizer updates with both sets of pictures; break-for-make can do with 0 (default: 100, "
                           "and none for sum, k and np, which do not learn)")   # fmt: skip
    make.add_argument("--content-strength", type=float, default=1.0, metavar="C", help="how much of it (default: 1)")
    make.add_argument("--style-strength", type=float, metavar="S",
                      help="how much of it (default: 0.75 for sum and np, else 1)")   # fmt: skip


def _add_compress(compress: argparse.ArgumentParser) -> None:
    compress.add_argument("--base", type=absolute_base, default="embedded", metavar="PATH_OR_ID",
                          help="base model to compress (default: embedded)")
    compress.add_argument("--adapter", type=_adapter_strength, action="append", default=[], metavar="NAME[=STRENGTH]",
                          dest="adapters", help="an adapter that goes into its weights first; repeatable")
    compress.add_argument("--preset", default="w4a8", choices=("w8a8", "w4a8", "w4a4", "w2a8", "w8", "w4"),
                          help="bits of weights (w) and of what flows between layers (a); the default is w4a8")
    compress.add_argument("--name", required=True, metavar="NAME", help="what you call the compressed base model")
    compress.add_argument("--steps", type=int, metavar="N",
                          help="updates of learning to be rounded; 0 only calibrates (default: 400)")
    compress.add_argument("--prompt", action="append", default=[], metavar="TEXT", dest="prompts",
                          help="what you like to draw, for it to learn on besides its own list; repeatable")
    compress.add_argument("--set", type=_key_value, nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                          help="any other setting; a wrong key lists them all")
    compress.add_argument("--resume", action="store_true", help="go on with the newest unfinished run of this name")


def _add_draw(draw: argparse.ArgumentParser) -> None:
    draw.add_argument("prompt", metavar="PROMPT")
    draw.add_argument("--adapter", type=_adapter_strength, action="append", default=[], metavar="NAME[=STRENGTH]",
                      dest="adapters", help="an adapter and how strongly it acts (default: 1); repeatable")
    draw.add_argument("--fuse", choices=("sum", "normalised", "gated", "switch", "composite", "dare", "ties", "svd",
                                         "concat"),
                      help="how several adapters act together (default: sum); 'gated' lets each layer decide for every "
                           "token, 'switch' takes turns, 'composite' averages what each would draw")   # fmt: skip
    draw.add_argument("--negative", metavar="TEXT", help="what must not be in the picture")
    draw.add_argument("--unwanted", metavar="TEXT", help="what a learned word brings along and should not")
    draw.add_argument("--unwanted-strength", type=float, metavar="U", help="how much of it is taken out (default: 1)")
    draw.add_argument("--seed", type=int, metavar="S", help="seed of the first picture (default: 0)")
    draw.add_argument("--count", type=int, metavar="N", help="number of pictures (default: 1)")
    draw.add_argument("--steps", type=int, metavar="N", help="denoising steps")
    draw.add_argument("--guidance", type=float, metavar="G", help="how strictly the prompt is followed")
    draw.add_argument("--sampler", choices=("auto", "ddim", "dpm++", "unipc", "euler", "lcm"), help="way to draw")
    draw.add_argument("--size", type=_size, metavar="WxH", help="width and height in pixels (default: the base's own)")
    draw.add_argument("--base", type=absolute_base, metavar="PATH_OR_ID",
                      help="base model, or the name of a compressed one (default: the first adapter's, else embedded)")
    draw.add_argument("--out", type=Path, metavar="DIR", help="folder for the pictures (default: the gallery)")


def _add_find(find: argparse.ArgumentParser) -> None:
    find.add_argument("prompt", metavar="PROMPT", help="what you want to draw, in your own words")
    find.add_argument("--limit", type=int, default=8, metavar="N", help="how many to name at most (default: 8)")


def _add_words(words: argparse.ArgumentParser) -> None:
    words.add_argument("words", nargs="+", metavar="WORD", help="made-up words to try")
    words.add_argument("--base", type=absolute_base, default="embedded", metavar="PATH_OR_ID", help="base model")


def _add_export(export: argparse.ArgumentParser) -> None:
    _add_parts(export)
    forms = ("kohya", "diffusers", "diff", "native", "tiny", "base", "checkpoint")
    export.add_argument("--to", required=True, choices=forms, dest="form",
                        help="kohya loads in every tool; diffusers in diffusers; diff is the whole change, exact for "
                        "every kind, in all but diffusers; native keeps everything for Atelier, tiny the same in a few "
                        "bits a value; base is a diffusers folder with the adapters in its weights, checkpoint the "
                        "same as one file")
    export.add_argument("--out", required=True, type=Path, metavar="FILE")
    export.add_argument("--precision", default="fp32", choices=("fp32", "fp16", "bf16"), help="default: fp32")
    export.add_argument("--bits", type=int, default=4, choices=(1, 2, 4), help="of a tiny file (default: 4)")
    export.add_argument("--recipe", action="store_true",
                        help="put into the file how it was trained; that can hold folder names and prompts")
    export.add_argument("--sidecars", action="store_true",
                        help="write what A1111 and Forge show beside the file: NAME.json and NAME.preview.png")
    export.add_argument("--compare", action="store_true",
                        help="also say how far the UNet's output is from the adapter's, on the base model itself")
    _add_limits(export)


def _add_inspect(inspect: argparse.ArgumentParser) -> None:
    inspect.add_argument("file", type=Path, metavar="FILE")


def _add_import(importer: argparse.ArgumentParser) -> None:
    importer.add_argument("file", type=Path, metavar="FILE_OR_DIR")
    importer.add_argument("--name", metavar="NAME", help="what you call it (default: as the file)")


def _add_merge(merge: argparse.ArgumentParser) -> None:
    _add_parts(merge)
    merge.add_argument("--name", required=True, metavar="NEW", help="what you call the new adapter")
    _add_limits(merge)


def _add_resize(resize: argparse.ArgumentParser) -> None:
    resize.add_argument("adapter", metavar="NAME")
    resize.add_argument("--name", required=True, metavar="NEW", help="what you call the new adapter")
    _add_limits(resize)


def _add_extract(extract: argparse.ArgumentParser) -> None:
    extract.add_argument("tuned", type=absolute_base, metavar="TUNED", help="the base model that was changed")
    extract.add_argument("--name", required=True, metavar="NEW", help="what you call the new adapter")
    _add_limits(extract)


def _add_parts(command: argparse.ArgumentParser) -> None:
    command.add_argument("adapters", type=_adapter_strength, nargs="+", metavar="NAME[=STRENGTH]",
                         help="an adapter and how strongly it acts (default: 1)")


def _add_limits(command: argparse.ArgumentParser) -> None:
    command.add_argument("--rank", type=int, metavar="R", help="largest rank of a layer")
    command.add_argument("--energy", type=_fraction, metavar="E",
                         help="share of each layer's change to keep, such as 0.99 (squared norm)")
    command.add_argument("--base", type=absolute_base, metavar="PATH_OR_ID",
                         help="base model, where it is needed and the adapter does not say it")


def _add_models(models: argparse.ArgumentParser) -> None:
    models.add_argument("action", choices=("scan", "show"), help="look through a folder, or at one base model")
    models.add_argument("what", metavar="DIR_OR_BASE", help="the folder; or 'embedded', a folder, a file, a hub id")


def _add_key(key: argparse.ArgumentParser) -> None:
    key.add_argument("action", choices=("make", "list", "delete"), help="what to do")
    key.add_argument("name", nargs="?", default="", metavar="NAME", help="what you call the key (not needed to list)")


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text} is no address; give an IP address such as 127.0.0.1, or a network such as 10.0.0.0/24") from None


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is no port; use 0 (the first free one) to 65535")
    return port


def _key_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} has no value; write KEY=VALUE, such as rank=16")
    return key, value


def _adapter_strength(text: str) -> tuple[str, float]:
    name, _, strength = text.partition("=")
    try:
        number = float(strength or 1)
    except ValueError:
        number = float("nan")
    if not abs(number) <= 100:   # also refuses what is no number
        raise argparse.ArgumentTypeError(f"{strength!r} is no strength; 0 is off, 1 is as trained")
    return name, number


def _fraction(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share; use a number above 0, and 1 at most")
    return share


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write WIDTHxHEIGHT in pixels, such as 512x512")
    return int(width), int(height)
