"""The rules of the house, read from the source: rooms, sizes, words, and what keeps pages safe.

Every rule is a function from one source file to its offences. Each is shown to bite on a planted violation
before it is trusted with the tree.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
from __future__ import annotations

import ast
import doctest
import importlib
import os
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("app", "training", "adapters", "kernels")
MAY_IMPORT = {
    "app": {"training", "adapters"},
    "training": {"adapters", "kernels"},
    "adapters": {"kernels"},
    "kernels": set(),
}
LAYERS = """
kernels
adapters.core, adapters.kinds.low_rank, adapters.kinds.sparse, adapters.kinds, adapters.attach,
adapters.initialization, adapters.formats, adapters.quantization, adapters.fusion, adapters
training.config, training.base_models, training.data, training.sampling, training.loop, training.measures,
training.recipes,
training.compression, training.runs
app.text, app.store, app.store.drafts, app.jobs, app.services.prompts, app.services, app.services.create,
app.services.studio, app.services.library, app.services.settings, app.web.components, app.web.pages, app.web, app.cli
training.embedded_base
"""
"""Packages from the ground up, separated by commas: each may import what stands before it. The last one makes the
embedded base model and what comes with it: nothing that a user runs imports it."""
FOREIGN = {   # what a room must not import: `adapters` works on any nn.Module, `training` has no face
    "app": {"triton"},
    "training": {"gradio", "fastapi", "starlette", "huey", "triton"},
    "adapters": {"diffusers", "transformers", "accelerate", "gradio", "fastapi", "starlette", "huey", "triton"},
    "kernels": {"diffusers", "transformers", "accelerate", "gradio", "fastapi", "starlette", "huey", "safetensors"},
}
CATCH_ALLS = {"utils.py", "util.py", "helpers.py", "helper.py", "common.py", "misc.py", "__init__.py"}
TAGS = """
a article aside b button code details dialog div em figure footer form h[1-6] header i iframe img input label li link
main nav ol option p path pre script section select small span strong style summary svg table td textarea th tr ul video
"""
TAG = re.compile(rf"</?(?:{'|'.join(TAGS.split())})[\s>/]", re.I)


@dataclass(frozen=True)
class Source:
    """One Python file of a room: its place in the tree and what it says."""

    path: Path   # relative to the root, so that the first part is the room
    text: str

    @property
    def tree(self) -> ast.Module:
        return parsed(self.text)

    @property
    def room(self) -> str:
        return self.path.parts[0]

    @property
    def module(self) -> str:
        return ".".join(("atelier", *self.path.with_suffix("").parts))

    def at(self, node: ast.AST, what: str) -> str:
        return f"{self.path.as_posix()}:{getattr(node, 'lineno', 1)} {what}"


Rule = Callable[[Source], Iterator[str]]
RULES: dict[str, Rule] = {}


@cache
def parsed(text: str) -> ast.Module:
    return ast.parse(text)


def rule(function: Rule) -> Rule:
    RULES[function.__name__] = function
    return function


def sources(root: Path) -> list[Source]:
    """Every Python file of the four rooms under a root."""
    files = sorted(path for room in ROOMS for path in (root / room).rglob("*.py"))
    return [Source(path.relative_to(root), path.read_text(encoding="utf-8")) for path in files]


def imported(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Every import in a file, inside functions too, as (node, absolute dotted name)."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = source.module.split(".")[: -node.level] if node.level else []
            start = ".".join((*above, *filter(None, [node.module])))
            yield from ((node, f"{start}.{alias.name}") for alias in node.names)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def jitted(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function is a GPU kernel, or a part of one."""
    return any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)


def texts(tree: ast.AST) -> Iterator[ast.Constant]:
    """String constants, docstrings left out: those are not shown to anybody."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    prose = {id(n.body[0].value) for n in ast.walk(tree)
             if isinstance(n, documented) and n.body and isinstance(n.body[0], ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node


# --- the rules -------------------------------------------------------------------------------------------------

@rule
def imports_only_from_rooms_below(source: Source) -> Iterator[str]:
    for node, name in imported(source):
        first, *rest = name.split(".")
        target = rest[0] if first == "atelier" and rest else None
        if first in ROOMS:
            yield source.at(node, f"imports {name}: say atelier.{name}")
        elif target is not None and target not in MAY_IMPORT[source.room] | {source.room}:
            yield source.at(node, f"imports {name}, but {source.room} may import only {MAY_IMPORT[source.room]}")
        elif first in FOREIGN[source.room]:
            yield source.at(node, f"imports {name}, which has no place in {source.room}")


@rule
def imports_only_from_packages_before_it(source: Source) -> Iterator[str]:
    order = [name.strip() for name in LAYERS.replace("\n", ",").split(",") if name.strip()]
    own = ".".join(source.path.parent.parts)
    if own not in order:
        yield source.at(source.tree, f"is in {own}, which has no place in LAYERS")
        return
    for node, name in imported(source):
        inside = [package for package in order if name.startswith(f"atelier.{package}.")]
        target = max(inside, key=len, default=own)
        if order.index(target) > order.index(own):
            yield source.at(node, f"imports {name}, but {target} stands above {own}")


@rule
def imports_triton_only_in_its_files(source: Source) -> Iterator[str]:
    for node, name in imported(source):
        if name.split(".")[0] == "triton" and not source.path.stem.endswith("_triton"):
            yield source.at(node, "imports triton: machines without a GPU must be able to import this file")


@rule
def has_a_telling_name(source: Source) -> Iterator[str]:
    if source.path.name in CATCH_ALLS:
        yield source.at(source.tree, "is a name for anything: say what the file is for")


@rule
def fits_on_a_few_screens(source: Source) -> Iterator[str]:
    lines = len(source.text.splitlines())
    if lines > 400:
        yield source.at(source.tree, f"has {lines} lines; 400 are allowed")
    for node in functions(source.tree):
        limit = 90 if jitted(node) else 50
        if length(node) > limit:
            yield source.at(node, f"{node.name} has {length(node)} lines; {limit} are allowed")
        positional = [a for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
        if len(positional) > 6 and limit == 50:
            yield source.at(node, f"{node.name} takes {len(positional)} positional arguments; 6 are allowed")


SMALL_WORDS = set("a an the of to and or is are it its that this in on for with by from as at be has have all".split())


@rule
def documents_what_is_public(source: Source) -> Iterator[str]:
    """Every function, method and class whose name does not begin with an underscore, overrides and nested ones too."""
    for node in (source.tree, *definitions(source.tree)):
        name = getattr(node, "name", source.path.stem)
        text = ast.get_docstring(node)
        if not text and (isinstance(node, ast.Module) or not name.startswith("_")):
            yield source.at(node, f"{name} has no docstring")
        elif text and not isinstance(node, ast.Module) and says_nothing(name, text):
            yield source.at(node, f"{name} is documented by words that its name has already: {text}")


def definitions(tree: ast.AST) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef))


def says_nothing(name: str, text: str) -> bool:
    """Whether a docstring has fewer than two words beside those of the name, or sends the reader elsewhere."""
    own = {word.rstrip("s") for word in re.findall(r"[a-z0-9]+", re.sub(r"([A-Z])", r" \1", name).lower())}
    new = {word.rstrip("s") for word in re.findall(r"\w+", text.lower())} - own - SMALL_WORDS
    return len(new) < 2 or text.startswith("See the base class")


@rule
def says_why_it_is_short(source: Source) -> Iterator[str]:
    """Under 30 lines, a file's docstring says why these stand alone: they would fit into a neighbour."""
    why = re.compile(r"\b(because|alone|apart|own file)\b")
    if len(source.text.splitlines()) < 30 and not why.search((ast.get_docstring(source.tree) or "").lower()):
        yield source.at(source.tree, "is under 30 lines: say in its docstring why it stands alone, or merge it")


@rule
def annotates_everything(source: Source) -> Iterator[str]:
    for node in functions(source.tree):
        if jitted(node):
            continue   # what a kernel's arguments are is decided by its launch
        args = node.args
        every = (*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg)))
        bare = [a.arg for a in every if a.annotation is None and a.arg not in ("self", "cls")]
        if bare or node.returns is None:
            yield source.at(node, f"{node.name} leaves {', '.join(bare) or 'what it returns'} without a type")


@rule
def keeps_to_public_names(source: Source) -> Iterator[str]:
    """What a library calls private is used in one file, `<library>_internals.py`, whose test names what has moved."""
    if source.path.stem.endswith("_internals"):
        return
    for node, name in imported(source):
        if not name.startswith("atelier.") and any(_is_private(part) for part in name.split(".")):
            yield source.at(node, f"imports {name}, which is private: see kernels/torch_internals.py and its like")
    own = _private_names_of_ours() | private_names(source.tree)
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in own:
            yield source.at(node, f"uses {ast.unparse(node)}, which is private: see kernels/torch_internals.py")


def private_names(tree: ast.AST) -> set[str]:
    """Private names that a file defines or assigns to."""
    named = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)]
    stored = [n.attr if isinstance(n, ast.Attribute) else n.id for n in named if isinstance(n.ctx, ast.Store)]
    return {name for name in (*stored, *(node.name for node in definitions(tree))) if _is_private(name)}


@cache
def _private_names_of_ours() -> set[str]:
    of_named_tuples = {"_fields", "_replace", "_asdict", "_make"}
    return of_named_tuples.union(*(private_names(source.tree) for source in sources(ROOT)))


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@rule
def prints_only_on_the_command_line(source: Source) -> Iterator[str]:
    """Terminals belong to `atelier` and to the `main` of a module that is run with `python -m`."""
    mains = [f for f in functions(source.tree) if f.name == "main"]
    allowed = {id(n) for main in mains for n in ast.walk(main)}
    for node in ast.walk(source.tree):
        speaks = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "input")
        if speaks and id(node) not in allowed and not source.path.match("app/cli/*.py"):
            yield source.at(node, "prints: only the command line talks to a terminal")


@rule
def keeps_no_state_in_modules(source: Source) -> Iterator[str]:
    tables = {name for node in source.tree.body for name in _assigned_collections(node)}
    for name in tables:
        if not name.isupper():
            yield source.at(source.tree, f"{name} is mutable and belongs to the module; constants are UPPER_CASE")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Global):
            yield source.at(node, f"global {', '.join(node.names)}: pass it instead")
        if (name := _changed_name(node)) in tables:
            yield source.at(node, f"changes the constant table {name}")


def _assigned_collections(node: ast.stmt) -> Iterator[str]:
    """Names that a module-level statement binds to a list, dict or set."""
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    literal = isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp)
    makers = {"list", "dict", "set", "defaultdict", "deque", "OrderedDict", "Counter", "WeakValueDictionary"}
    made = isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] in makers
    if literal or made:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]   # type: ignore[union-attr]
        yield from (t.id for t in targets if isinstance(t, ast.Name))


def _changed_name(node: ast.AST) -> str | None:
    """The name of the collection that an expression changes in place, if it does."""
    methods = {"append", "add", "update", "pop", "clear", "extend", "remove", "setdefault", "insert", "discard"}
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        return ast.unparse(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in methods:
        return ast.unparse(node.func.value)
    return None


@rule
def escapes_what_it_puts_into_pages(source: Source) -> Iterator[str]:
    """Only `{{value}}` escapes, and only a Panel makes it safe; pieces put together must be our own constants."""
    if source.room != "app":
        return
    for node in texts(source.tree):
        for sign in ("{{{", "{{&", "${", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"):
            if sign in str(node.value) and sign != node.value:
                yield source.at(node, f"{sign} does not escape: use {{{{ }}}} or textContent")
    for node in ast.walk(source.tree):
        pieces = _pieces(node)
        markup = any(TAG.search(piece) for p in pieces if (piece := _text(p)))
        if markup and not all(_text(p) is not None or _our_own(p) for p in pieces):
            yield source.at(node, "builds HTML from values: use a template with {{ }}, which escapes")
        if source.path.name != "panel.py" and ast.unparse(node) in ("gr.HTML", "gradio.HTML"):
            yield source.at(node, "uses gr.HTML: its values can run as scripts; use a Panel")


def _pieces(node: ast.AST) -> list[ast.expr]:
    """What an expression puts together into one text: f-strings, %, format and +."""
    if isinstance(node, ast.JoinedStr):
        return [v.value if isinstance(v, ast.FormattedValue) else v for v in node.values]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod | ast.Add):
        return [node.left, node.right]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return [node.func.value, *node.args, *(k.value for k in node.keywords)]
    return []


def _text(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _our_own(node: ast.expr) -> bool:
    """Whether a value is a constant of ours: `TITLE`, `words.TITLE`, `PATHS[…]`, `icon("close")` or text of these."""
    match node:
        case ast.Name(id=name) | ast.Attribute(value=ast.Name(), attr=name) | ast.Subscript(value=ast.Name(id=name)):
            return name.isupper()
        case ast.Call(func=ast.Name(id="icon"), args=[ast.Constant()]):
            return True
        case _:
            pieces = _pieces(node)
            return bool(pieces) and all(_text(p) is not None or _our_own(p) for p in pieces)


TALK_TO_OTHER_TOOLS = [f"adapters/formats/{name}.py" for name in (
    "write_foreign", "group_layers", "layer_parts", "peft_config", "export_metadata", "compatibility", "module_names")]


@rule
def speaks_our_words(source: Source) -> Iterator[str]:
    """Other tools' names for the same things live in the files that talk to other tools."""
    if source.path.as_posix() in TALK_TO_OTHER_TOOLS:
        return
    foreign = re.compile(r"\blora_(?:[AB]|up|down|alpha)\b|\bnetwork_(?:dim|alpha)\b|\bmultiplier\b")
    for number, line in enumerate(source.text.splitlines(), 1):
        if found := foreign.search(line):
            yield f"{source.path.as_posix()}:{number} says {found[0]}: see the glossary"


RUNS_DATA = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
# `embedded_base` reads only what it wrote a moment ago, on the machine of a developer; the other, one old format.
MAY_UNPICKLE = ("training/embedded_base/ema_trainer.py", "training/embedded_base/build.py",
                "training/loop/optimizer_state.py")   # fmt: skip


@rule
def runs_nothing_that_data_brings(source: Source) -> Iterator[str]:
    """No pickle, in any disguise, and no text that becomes code or a shell's command."""
    for node, name in imported(source):
        if name.split(".")[0] in RUNS_DATA:
            yield source.at(node, f"imports {name}, which runs what a file says")
    for node in (n for n in ast.walk(source.tree) if isinstance(n, ast.Call)):
        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        match ast.unparse(node.func):
            case "torch.load" | "torch.save" if source.path.as_posix() not in MAY_UNPICKLE:
                yield source.at(node, "reads or writes a pickle: use safetensors and JSON")
            case "torch.load" if options.get("weights_only") != "True":
                yield source.at(node, "reads a pickle without weights_only=True")
            case "eval" | "exec" | "compile" | "os.system" | "os.popen" | "builtins.eval" | "builtins.exec":
                yield source.at(node, "makes code of text")
        if options.get("shell") == "True" or options.get("allow_pickle") == "True":
            yield source.at(node, "starts a shell, or reads pickles")
        if options.get("trust_remote_code", "False") != "False":
            yield source.at(node, "runs code that comes with a model")


METADATA_KEY = re.compile(rf"atelier\.(?!(?:{'|'.join(ROOMS)}|assets|png)\b)[a-z_]+")
METADATA_OWNER = "adapters/formats/adapter_info.py"


@rule
def names_metadata_in_one_file(source: Source) -> Iterator[str]:
    """The text entries of our files, `atelier.*`: other code goes through AdapterInfo."""
    if source.path.as_posix() == METADATA_OWNER:
        return
    for node in texts(source.tree):
        if METADATA_KEY.fullmatch(str(node.value)):
            yield source.at(node, f"names {node.value}: use a field of AdapterInfo")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.JoinedStr) and len(node.values) > 1 and _text(node.values[0]) == "atelier.":
            yield source.at(node, "puts a metadata key together: use a field of AdapterInfo")


# --- the rules bite ---------------------------------------------------------------------------------------------

PLANTED = [
    ("imports_only_from_rooms_below", "adapters/x.py", "import atelier.training.config.train_config"),
    ("imports_only_from_rooms_below", "adapters/x.py", "def f():\n    from ..app import cli"),
    ("imports_only_from_rooms_below", "app/pages/x.py", "from atelier import kernels"),
    ("imports_only_from_rooms_below", "app/x.py", "from atelier.kernels.wavelet import haar"),
    ("imports_only_from_rooms_below", "training/x.py", "from adapters.mix import Mix"),
    ("imports_only_from_rooms_below", "adapters/x.py", "import diffusers.models"),
    ("imports_only_from_rooms_below", "training/x.py", "from gradio import Blocks"),
    ("imports_only_from_packages_before_it", "adapters/core/x.py", "from atelier.adapters.kinds.lora import Lora"),
    ("imports_only_from_packages_before_it", "app/store/x.py", "def f():\n    from atelier.app.jobs import jobs"),
    ("imports_only_from_packages_before_it", "app/web/components/x.py", "import atelier.app.web.pages.studio"),
    ("imports_only_from_packages_before_it", "adapters/misc/x.py", "NUMBER = 1"),
    ("imports_only_from_packages_before_it", "app/store/x.py", "from atelier.training.embedded_base import judge"),
    ("imports_triton_only_in_its_files", "kernels/wavelet.py", "import triton.language as tl"),
    ("has_a_telling_name", "app/utils.py", ""),
    ("has_a_telling_name", "adapters/__init__.py", ""),
    ("fits_on_a_few_screens", "app/x.py", "\n" * 401),
    ("fits_on_a_few_screens", "app/x.py", "def f():\n" + "    f()\n" * 50),
    ("fits_on_a_few_screens", "app/x.py", "def f(a, b, c, d, e, f, g): ..."),
    ("documents_what_is_public", "app/x.py", "'''A file.'''\ndef f(): ..."),
    ("documents_what_is_public", "app/x.py", "'''A file.'''\nclass C:\n    '''A class.'''\n    def m(self): ..."),
    ("documents_what_is_public", "app/x.py", "NUMBER = 1"),
    ("documents_what_is_public", "adapters/x.py", "'A file.'\nclass C(A):\n    'A kind.'\n    def delta(self): ..."),
    ("documents_what_is_public", "app/x.py", "'A file.'\ndef f():\n    'Two words.'\n    def g(): ..."),
    ("documents_what_is_public", "app/x.py", "'A file.'\ndef save_mix():\n    'Saves the mix.'"),
    ("documents_what_is_public", "app/x.py", "'A file.'\ndef f():\n    'See the base class for more of this.'"),
    ("says_why_it_is_short", "app/x.py", "'''Sizes in words.'''\nNUMBER = 1"),
    ("annotates_everything", "app/x.py", "def f(a) -> None: ..."),
    ("annotates_everything", "app/x.py", "def f(a: int): ..."),
    ("annotates_everything", "app/x.py", "def f(*rest) -> None: ..."),
    ("keeps_to_public_names", "adapters/x.py", "def f(conv): return conv._conv_forward(1)"),
    ("keeps_to_public_names", "training/x.py", "def f():\n    from torch._subclasses import fake_tensor"),
    ("keeps_to_public_names", "adapters/x.py", "class C:\n    def f(self): return self._buffers"),
    ("prints_only_on_the_command_line", "training/x.py", "def f():\n    print('here')"),
    ("keeps_no_state_in_modules", "app/x.py", "loaded = {}"),
    ("keeps_no_state_in_modules", "app/x.py", "_cache: dict[str, int] = dict()"),
    ("keeps_no_state_in_modules", "app/x.py", "TABLE = {}\ndef f(x):\n    TABLE[x] = 1"),
    ("keeps_no_state_in_modules", "app/x.py", "TABLE = []\ndef f(x):\n    TABLE.append(x)"),
    ("keeps_no_state_in_modules", "app/x.py", "base = None\ndef f():\n    global base\n    base = 1"),
    ("escapes_what_it_puts_into_pages", "app/x.py", "CARD = '<b>{{{name}}}</b>'"),
    ("escapes_what_it_puts_into_pages", "app/x.py", "CARD = '<b>${value}</b>'"),
    ("escapes_what_it_puts_into_pages", "app/x.py", "JS = 'element.innerHTML = value'"),
    ("escapes_what_it_puts_into_pages", "app/x.py", "def f(name): return f'<b>{name}</b>'"),
    ("escapes_what_it_puts_into_pages", "app/x.py", "def f(name): return '<b>%s</b>' % name"),
    ("escapes_what_it_puts_into_pages", "app/x.py", "def f(name): return '<b>{}</b>'.format(name)"),
    ("escapes_what_it_puts_into_pages", "app/x.py", "def f(name): return '<b>' + name"),
    ("escapes_what_it_puts_into_pages", "app/x.py", "def f(name): return f'<b>{TITLE}</b><i>{name.title()}</i>'"),
    ("escapes_what_it_puts_into_pages", "app/x.py", "import gradio as gr\ngr.HTML(name)"),
    ("speaks_our_words", "adapters/x.py", "lora_alpha = 1"),
    ("runs_nothing_that_data_brings", "app/x.py", "def f():\n    import pickle"),
    ("runs_nothing_that_data_brings", "app/x.py", "from joblib import load"),
    ("runs_nothing_that_data_brings", "training/x.py", "torch.load(path, weights_only=True)"),
    ("runs_nothing_that_data_brings", "training/x.py", "torch.save(state, path)"),
    ("runs_nothing_that_data_brings", "training/loop/optimizer_state.py", "torch.load(path)"),
    ("runs_nothing_that_data_brings", "app/x.py", "np.load(path, allow_pickle=True)"),
    ("runs_nothing_that_data_brings", "app/x.py", "subprocess.run(text, shell=True)"),
    ("runs_nothing_that_data_brings", "app/x.py", "exec(text)"),
    ("runs_nothing_that_data_brings", "training/x.py", "Model.from_pretrained(base, trust_remote_code=yes)"),
    ("names_metadata_in_one_file", "app/x.py", "name = text.get('atelier.name', '')"),
    ("names_metadata_in_one_file", "training/x.py", "key = f'atelier.{name}'"),
]
ALLOWED = """'''Everything here is as it should be, and short because it is an example.'''
from __future__ import annotations
from pathlib import Path
from atelier.training.config import TrainConfig
from .words import HELLO
TABLE: dict[str, int] = {"a": 1}
CARD = '<b>{{name}}</b>'
CARDS = f'<ul>{HELLO}{words.TITLE}{icon("close")}{PATHS[name]}{CARD + "<li>"}{{{{value}}}}</ul>'
class Kind(Adapter):
    '''Low-rank matrices.'''
    def delta(self, weight: Tensor) -> Tensor:
        '''ΔW in the shape of the weight.'''
class Card:
    '''An adapter as the library shows it.'''
    def title(self, name: str) -> str:
        '''The name and a greeting.'''
        return f"{name} < {HELLO}"
    def _hidden(self) -> None: ...
def read(path: Path, config: TrainConfig) -> int:
    '''Looks the number of a name up.'''
    own = {}
    own[path] = TABLE["a"]
    return own[path]
"""


@pytest.mark.parametrize(("name", "path", "text"), PLANTED)
def test_a_rule_finds_what_breaks_it(name: str, path: str, text: str, tmp_path: Path) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(text, encoding="utf-8")
    [source] = sources(tmp_path)
    offences = list(RULES[name](source))
    assert offences and all(path in offence for offence in offences)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_tried_and_lets_good_code_pass(name: str) -> None:
    assert name in {planted for planted, *_ in PLANTED}
    assert not list(RULES[name](Source(Path("app/services/card.py"), ALLOWED)))


# --- the tree keeps them ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", RULES)
def test_the_tree_keeps_the_rule(name: str) -> None:
    offences = [offence for source in sources(ROOT) for offence in RULES[name](source)]
    assert not offences, "\n" + "\n".join(offences)


def test_functions_are_short() -> None:
    lengths = [length(f) for source in sources(ROOT) for f in functions(source.tree)]
    assert statistics.median(lengths) <= 8


def test_no_file_imports_itself_in_a_circle() -> None:
    files = sources(ROOT)
    names = {source.module for source in files}
    graph = {source.module: _imports(source) & names for source in files}
    while leaves := {name for name, targets in graph.items() if not targets & graph.keys()}:
        graph = {name: targets for name, targets in graph.items() if name not in leaves}
    assert not graph, f"these files import one another in a circle: {sorted(graph)}"


def test_what_a_person_runs_loads_nothing_that_made_the_embedded_base() -> None:
    code = ("import sys\nimport atelier.app.services.engine, atelier.app.store.adapter_embeddings\n"
            "print([name for name in sys.modules if 'embedded_base' in name])")   # fmt: skip
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.returncode) == ("[]", 0), result.stderr[-2000:]


def _imports(source: Source) -> set[str]:
    """Modules that a file imports, inside functions too."""
    names = [name for _, name in imported(source)]
    return {*names, *(name.rpartition(".")[0] for name in names)} - {source.module}


def test_the_tree_keeps_one_name_for_one_class() -> None:
    statements = [node for source in sources(ROOT) for node in source.tree.body]
    names = Counter(node.name for node in statements if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1 and not name.startswith("_")] == []


def test_no_folder_is_a_flat_shelf() -> None:
    files = [source.path for source in sources(ROOT)] + [*(ROOT / "benchmarks").rglob("*.py")]
    folders = Counter(file.parent for file in files)
    assert max(folders.values()) <= 25, f"the fullest: {folders.most_common(3)}"


def test_functions_of_benchmarks_say_what_they_give() -> None:
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "benchmarks").rglob("*.py")}
    assert [f"{file}: {node.name}" for file, tree in trees.items() for node in definitions(tree)
            if not node.name.startswith("_") and not ast.get_docstring(node)] == []   # fmt: skip


# --- texts and pictures of the whole project --------------------------------------------------------------------

def project_files() -> list[Path]:
    """Every text file that belongs to the project: what git tracks or would track, else everything but builds."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        paths = [ROOT / line for line in listed.stdout.splitlines()]
    else:
        paths = [p for p in ROOT.rglob("*") if not {".venv", ".git", "build"} & set(p.relative_to(ROOT).parts)]
    return [p for p in paths if p.is_file() and b"\0" not in p.read_bytes()[:4096]]


def test_no_path_of_somebodys_machine_and_nothing_left_to_do() -> None:
    places = re.compile(r"(?<![\w.~}/-])/(?:work|root|opt|tmp|mnt)/\w")
    homes = re.compile(r"(?<![\w.~}/-])/(?:home|Users)/\w")   # tests may invent people
    later = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|X" r"XX)\b")
    offences = []
    for path in project_files():
        if path == Path(__file__) or path.suffix in {".json", ".jsonl", ".svg"}:
            continue
        invented = path.is_relative_to(ROOT / "tests")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if found := places.search(line) or later.search(line) or (not invented and homes.search(line)):
                offences.append(f"{path.relative_to(ROOT)}:{number} has {found[0]}")
    assert not offences, "\n" + "\n".join(offences)


def test_pages_load_scripts_that_escape() -> None:
    unsafe = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function")
    scripts = [p for p in project_files() if p.suffix in {".js", ".html"}]
    assert [str(p) for p in scripts if unsafe.search(p.read_text(encoding="utf-8"))] == []


def test_contributing_stays_short() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 60


def test_names_lead_into_this_tree() -> None:
    found = Path(importlib.import_module("atelier.adapters.core.base").__file__ or "").resolve()
    assert found == ROOT / "adapters" / "core" / "base.py", "another copy of Atelier is installed here: run make setup"


DOCUMENTED = [source.module for source in sources(ROOT) if ">>> " in source.text]


@pytest.mark.parametrize("module", DOCUMENTED)
def test_examples_in_docstrings_are_true(module: str) -> None:
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted and not results.failed


# --- README ---------------------------------------------------------------------------------------------------

def commands(text: str, program: str) -> list[list[str]]:
    """Lines of the text's code blocks that call a program, as words; continued lines are joined."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text.replace("\\\n", " "), re.M | re.S)
    words = [line.partition(" #")[0].split() for block in blocks for line in block.splitlines()]
    return [w for w in words if w and w[0].rpartition("/")[2] == program]


def help_of(*command: str) -> str:
    result = subprocess.run([sys.executable, "-m", "atelier.app.cli.main", *command, "--help"], capture_output=True,
                            text=True, cwd=ROOT, env={**os.environ, "COLUMNS": "200"}, check=True)
    return result.stdout


def test_commands_in_the_readme_exist() -> None:
    shown = commands((ROOT / "README.md").read_text(encoding="utf-8"), "atelier")
    known = help_of()
    assert len(shown) >= 10
    for _, name, *arguments in shown:
        assert re.search(rf"^\s+{name}\b", known, re.M), f"atelier --help does not list {name}"
        text = help_of(name) if name != "--help" else known
        for option in (a.partition("=")[0] for a in arguments if a.startswith("--")):
            assert option in text, f"atelier {name} --help does not list {option}"


def test_make_targets_in_the_readme_exist() -> None:
    known = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")]
    assert {w[1] for text in texts for w in commands(text, "make")} <= set(known)
    assert {name for text in texts for name in re.findall(r"`make ([a-z]+)`", text)} <= set(known)
