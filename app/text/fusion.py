"""Sentences of the Fusion page that have a value in them."""

from __future__ import annotations


def advice(names: tuple[str, str], overlap: float, lost: float) -> str:
    """What the weights of a Mix say about drawing with it.

    Args:
        names: the two that overlap most.
        overlap: how much, beyond chance, 0 … 1.
        lost: share of all updates that cancels in their sum; below 0 they reinforce one another.

    >>> advice(("fox", "ink"), 0.02, 0.01)
    'They hardly meet: the plain sum keeps all of them.'
    """
    one, two = names
    if lost > 0.1:
        return (f"{one} and {two} push against each other, and {100 * lost:.0f} % is lost in the plain sum: let them "
                "act one after the other (switch), or give each a time of its own.")
    if lost < -0.3:
        return (f"{one} and {two} want much the same, so their sum is too strong: lower the strengths, or take the "
                "normalised sum.")
    if overlap > 0.15:
        return (f"{one} and {two} use the same directions ({100 * overlap:.0f} % beyond chance): what one changes the "
                "other sees. Compare the methods, and lower the one that wins.")
    return "They hardly meet: the plain sum keeps all of them."


def gate(adapter: str, where: str, opened: float) -> str:
    """One cell of a heat map of gates.

    >>> gate("fox", "mid attn2.to_k", 0.834)
    'fox, mid attn2.to_k: 0.83'
    """
    return f"{adapter}, {where}: {opened:.2f}"


def gate_scale(low: float, high: float) -> str:
    """What light and dark mean.

    >>> gate_scale(0.83, 1.21)
    'Light is 0.83, dark 1.21; 1 is as in the plain sum, 0 nothing.'
    """
    return f"Light is {low:.2f}, dark {high:.2f}; 1 is as in the plain sum, 0 nothing."


def moment_of(share: float) -> str:
    """A place in the course of drawing."""
    return f"{100 * share:.0f} % drawn"


def handle(adapter: str, share: float, level: float) -> str:
    """One handle of a curve."""
    return f"{adapter}, {moment_of(share)}: {100 * level:.0f} %"


def spot(adapter: str, across: int, down: int) -> str:
    """One field of a region."""
    return f"{adapter}, column {across}, row {down}"


def united(name: str, error: float) -> str:
    """Said of a mix that became one file."""
    return f"{name} is in the library. The UNet's answers differ by {100 * error:.2g} % of what the adapters change."


def pair(one: str, two: str) -> str:
    """Two adapters as one title."""
    return f"{one} and {two}"


def meets(pair: str, where: str, overlap: float, cosine: float) -> str:
    """One cell of the map of meetings.

    >>> meets("fox and ink", "mid attn2.to_k", 0.25, -0.1)
    'fox and ink, mid attn2.to_k: 25 % in common, against each other'
    """
    how = "against each other" if cosine < 0 else "the same way"
    return f"{pair}, {where}: {100 * overlap:.0f} % in common, {how}"


def saved(name: str) -> str:
    """Said of a mix that was saved."""
    return f"{name} is saved. Open it again below."


def too_many(most: int) -> str:
    """Said when one more adapter is taken up."""
    return f"{most} adapters at once are the most here. Put one back first."
