"""How a picture was drawn, written as A1111 writes it into its pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from atelier.app.store.picture_metadata import NamedAdapter


def parameters_text(
    prompt: str, negative: str, adapters: Sequence[NamedAdapter], values: Mapping[str, object]
) -> str:
    """Write what ``picture_metadata.read_texts`` reads, as A1111 does; its parser gets every prompt and value back.

    Args:
        prompt, negative: the prompts. A line may not begin with the words that begin the negative prompt, and there is
            no way to escape them, so they get a space.
        adapters: with hashes as A1111 computes them, or "".
        values: keys in A1111's words; "" and None are left out.
    """
    tags = "".join(f" <lora:{part.name}:{part.strength:g}>" for part in adapters)
    hashes = ", ".join(f"{part.name}: {part.hash}" for part in adapters if part.hash)
    lines = [_plain_lines(prompt.strip()) + tags]
    if negative.strip():
        lines.append(f"Negative prompt: {_plain_lines(negative.strip())}")
    given = {**values, "Lora hashes": hashes}
    told = [f"{key}: {_quoted(str(value))}" for key, value in given.items() if value not in ("", None)]
    return "\n".join([*lines, ", ".join(told)])


def _plain_lines(prompt: str) -> str:
    return re.sub(r"^(\s*Negative prompt):", r"\1 :", prompt, flags=re.MULTILINE)


def _quoted(value: str) -> str:
    is_plain = not re.search(r'[,:\n"]', value) and value == value.strip()
    return value if is_plain else json.dumps(value, ensure_ascii=False)
