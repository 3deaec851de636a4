"""Prompts as A1111 reads them: ``(word:1.2)``, ``(word)``, ``[word]``, ``BREAK`` and ``<lora:name:0.8>``.

Pure text. What the weights do to the text embeddings is in ``prompt_features.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

EMPHASIS = 1.1   # of one pair of parentheses; brackets divide by it
_TOKEN = re.compile(
    r"\\[()\[\]\\]|\(|\[|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|\)|\]|\bBREAK\b|[^\\()\[\]:B]+|.", re.DOTALL)
_ADAPTER = re.compile(r"<(?:lora|lyco):([^:<>]+)(?::([^:<>]*))?(?::[^<>]*)?>")


@dataclass(frozen=True, slots=True)
class WeightedText:
    """A piece of a prompt and how much its words count; 1 is as usual."""

    text: str
    weight: float = 1.0


def parse_weights(prompt: str) -> list[list[WeightedText]]:
    """Split a prompt at BREAK and weight its pieces; an unclosed parenthesis counts to the end.

    >>> parse_weights("a (red:1.5) fox")
    [[WeightedText(text='a ', weight=1.0), WeightedText(text='red', weight=1.5), WeightedText(text=' fox', weight=1.0)]]
    >>> parse_weights("[x] BREAK \\\\(y")[1]
    [WeightedText(text=' (y', weight=1.0)]
    """
    parts: list[list[list[str | float]]] = [[]]   # parts, pieces: text and weight
    open_at: list[tuple[str, int]] = []           # kind of bracket, number of its first piece in the part

    def close(kind: str, factor: float) -> bool:
        """Multiply the weights since the last bracket, if it is of this kind; else False."""
        if not open_at or open_at[-1][0] != kind:
            return False
        _, first = open_at.pop()
        for piece in parts[-1][first:]:
            piece[1] = float(piece[1]) * factor
        return True

    for match in _TOKEN.finditer(prompt):
        text, weight = match[0], match[1]
        if text in ("(", "["):
            open_at.append((text, len(parts[-1])))
        elif (
            (weight is not None and close("(", float(weight)))
            or (text == ")" and close("(", EMPHASIS)) or (text == "]" and close("[", 1 / EMPHASIS))
        ):   # fmt: skip
            continue
        elif text == "BREAK":
            parts.append([])
            open_at.clear()
        else:
            parts[-1].append([text[1:] if text[0] == "\\" and len(text) == 2 else text, 1.0])
    while open_at:
        kind, _ = open_at[-1]
        close(kind, EMPHASIS if kind == "(" else 1 / EMPHASIS)
    return [_joined(part) for part in parts]


def _joined(pieces: list[list[str | float]]) -> list[WeightedText]:
    """Neighbours of one weight become one piece."""
    found: list[WeightedText] = []
    for text, weight in pieces:
        if found and found[-1].weight == weight:
            found[-1] = WeightedText(found[-1].text + str(text), found[-1].weight)
        else:
            found.append(WeightedText(str(text), float(weight)))
    return found


def split_adapters(prompt: str) -> tuple[str, list[tuple[str, float]]]:
    """Take ``<lora:name:strength>`` out of a prompt: what is left, and names with strengths (1 where none is given).

    >>> split_adapters("a fox <lora:rex:0.8> in snow")
    ('a fox in snow', [('rex', 0.8)])
    """
    found = [(name.strip(), _strength(strength)) for name, strength in _ADAPTER.findall(prompt)]
    if not found:
        return prompt, []
    lines = [re.sub(r"\s{2,}", " ", _ADAPTER.sub("", line)).strip() for line in prompt.split("\n")]
    return "\n".join(lines).strip(), found


def _strength(text: str) -> float:
    try:
        strength = float(text)
    except ValueError:
        return 1.0
    return strength if abs(strength) < 1e6 else 1.0   # neither infinite nor no number
