"""The page of all adapter kinds, made from the catalog.

    python -m atelier.adapters.kinds.kinds_page > docs/adapters.md
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import fields

from atelier.adapters.core.base import Adapter
from atelier.adapters.kinds.catalog import KINDS

_HEAD = """\
# Adapter kinds

Written by `python -m atelier.adapters.kinds.kinds_page`, from the docstrings and settings that the program itself uses.

Every kind works on linear layers and on convolutions, with or without stride, starts as no change at all, and can be
mounted beside any other. *Other tools*: a kind that is an exact low-rank pair can be exported as a plain LoRA of the
rank given by its formula; the others are cut to one by SVD, or written whole ([interop](interop.md)). The names in a
formula are explained below it: `rows` are a layer's outputs, `features` its inputs, `taps` the area of its kernel,
`columns` = features · taps.

At a strength s every kind draws with W + s · ΔW. For DoRA, TLoRA, SODA and OFT, whose ΔW comes from a rotation or from
new lengths, that is a straight line between the base model and the adapter: half of the strength is not half of the
rotation.

| kind | name | update | other tools | source |
|---|---|---|---|---|
"""


def page() -> str:
    """The whole page as Markdown."""
    rows = "".join(_row(kind) for kind in KINDS.values())
    return _HEAD + rows + "".join(line for kind in KINDS.values() for line in _section(kind))


def _row(kind: type[Adapter]) -> str:
    update, _, _ = _parts(kind)
    papers = re.findall(r"arXiv\s+(\d{4}\.\d{5})", inspect.getdoc(kind) or "")
    source = f"[{papers[0]}](https://arxiv.org/abs/{papers[0]})" if papers else ""
    return f"| `{kind.kind}` | {kind.title} | {update} | {'LoRA' if kind.is_low_rank() else '–'} | {source} |\n"


def _section(kind: type[Adapter]) -> Iterator[str]:
    _, first, rest = _parts(kind)
    yield f"\n## {kind.title} (`{kind.kind}`)\n\n{first}\n"
    if rest:
        yield f"\n{rest}\n"
    if options := fields(kind.settings):
        yield "\n| setting | default | |\n|---|---|---|\n"
        for option in options:
            choices = option.metadata["choices"]
            help = option.metadata["help"] + (f" One of: {', '.join(choices)}." if choices else "")
            yield f"| `{option.name}` | {option.default} | {help} |\n"


def _parts(kind: type[Adapter]) -> tuple[str, str, str]:
    """Equation alone, the first paragraph, the others."""
    first, _, rest = (inspect.getdoc(kind) or "").replace("``", "`").partition("\n\n")
    first, rest = (text.replace("|", "\\|").replace("*", "\\*").strip() for text in (first, rest))
    line = first.splitlines()[0]
    return re.split(r"   \(|\.$", line)[0].strip(), first, rest


def main() -> None:
    """Print the page."""
    sys.stdout.write(page())


if __name__ == "__main__":
    main()
