"""What the Mix Lab says on its Fusion tab, and why an adapter is suggested for a prompt."""

from __future__ import annotations

from collections.abc import Sequence

TITLE = "Fusion"
LEAD = "Several adapters in one picture: describe it, add the adapters that fit, and choose how they are combined."
METHOD = "How they are combined"
METHODS = {
    "sum": "Sum: all added", "normalised": "Normalised: strengths scaled to add up to 1",
    "gated": "Gated: each layer decides, for every position and step",
    "switch": "Switch: adapters take turns, each turn a tenth of the steps",
    "composite": "Composite: the average of what each would draw",
    "dare": "DARE: a random fifth of each, made five times as strong",
    "ties": "TIES: the largest values, where their signs agree", "svd": "SVD: the sum, cut to the rank of one adapter",
    "concat": "Concatenation: the sum, as one file",
}
FIND = "Find adapters"
SUGGESTED = "Suggested adapters"
WHEN = "When each adapter acts"
WHEN_HINT = "From the first step (left) to the last (right). Higher is stronger."
WHERE = "Where each adapter acts"
WHERE_HINT = "Paint over the picture. An adapter with nothing painted acts everywhere."
EVERYWHERE, ALWAYS = "Everywhere", "Always"
COMPARE = "Compare all methods"
DRAW_AND_SAVE = "Draw and save to the gallery"
IN_GALLERY = "Saved to the gallery."
NAME = "Name"
SAVE = "Save the mix"
FUSE = "Fuse into one adapter"
CANNOT_FUSE = "This mix changes with the step, the position or the picture, so it can't be fused into one adapter."
OPEN = "Open a saved mix"
EMPTY = "Add two or more adapters to draw them together."
NO_PROMPT = "Describe the picture, and include the trigger words of your adapters."
GATES_BY_LAYER = "How strongly each adapter acts in each layer"
GATES_BY_STEP = "The same, from the first step to the last"
INTERFERENCE = "Where the adapters interfere"
INTERFERENCE_HINT = ("How much two adapters read and write the same directions, layer by layer. "
                     "Hatched: they work against each other.")

# --- why an adapter is suggested
READS_NO_PROMPT = "it changes no layers that read the prompt"
NOTHING_FOUND = "No adapter fits this prompt. Try other words, or train one: atelier train PICTURES --name NAME"


def advice(names: tuple[str, str], overlap: float, lost: float) -> str:
    """What the weights of a Mix say about drawing with it.

    Args:
        names: the two that overlap most.
        overlap: how much, beyond chance, 0 … 1.
        lost: share of all updates that cancels in their sum; below 0 they reinforce each other.

    >>> advice(("fox", "ink"), 0.02, 0.01)
    'The adapters hardly overlap: a plain sum keeps all of them.'
    """
    one, two = names
    if lost > 0.1:
        return (f"{one} and {two} work against each other: a plain sum loses {100 * lost:.0f} %. Let them take turns "
                "(Switch), or have them act at different steps.")
    if lost < -0.3:
        return (f"{one} and {two} make similar changes, so their sum is too strong. Lower the strengths, or use "
                "Normalised.")
    if overlap > 0.15:
        return (f"{one} and {two} use some of the same directions ({100 * overlap:.0f} % more than chance), so each "
                "affects the other. Compare the methods, and lower the one that dominates.")
    return "The adapters hardly overlap: a plain sum keeps all of them."


def gate(adapter: str, where: str, value: float) -> str:
    """One cell of a heat map of gates.

    >>> gate("fox", "mid attn2.to_k", 0.834)
    'fox, mid attn2.to_k: 0.83'
    """
    return f"{adapter}, {where}: {value:.2f}"


def gate_scale(low: float, high: float) -> str:
    """What the lightest and the darkest cell stand for.

    >>> gate_scale(0.83, 1.21)
    'Light is 0.83, dark is 1.21. 1 is the same as in a plain sum, 0 is off.'
    """
    return f"Light is {low:.2f}, dark is {high:.2f}. 1 is the same as in a plain sum, 0 is off."


def moment(share: float) -> str:
    """A point between the first step and the last.

    >>> moment(0.25)
    '25 % of the steps'
    """
    return f"{100 * share:.0f} % of the steps"


def handle(adapter: str, share: float, level: float) -> str:
    """One handle of a curve.

    >>> handle("fox", 0.25, 0.5)
    'fox, at 25 % of the steps: strength 50 %'
    """
    return f"{adapter}, at {moment(share)}: strength {100 * level:.0f} %"


def field(adapter: str, column: int, row: int) -> str:
    """Label of a region's field: whose region, and which column and row."""
    return f"{adapter}, column {column}, row {row}"


def pair(one: str, two: str) -> str:
    """Two adapters as one title."""
    return f"{one} and {two}"


def overlap(pair: str, where: str, share: float, cosine: float) -> str:
    """One cell of the interference map.

    >>> overlap("fox and ink", "mid attn2.to_k", 0.25, -0.1)
    'fox and ink, mid attn2.to_k: 25 % in common, in opposite directions'
    """
    how = "opposite directions" if cosine < 0 else "the same direction"
    return f"{pair}, {where}: {100 * share:.0f} % in common, in {how}"


def saved(name: str) -> str:
    """Shown when a mix was saved."""
    return f"{name} was saved. You can open it again below."


def fused(name: str, error: float) -> str:
    """Shown when a mix became one adapter.

    >>> fused("both", 0.012)
    'both was added to the library. Its effect on the UNet differs from that of the mix by 1.2 %.'
    """
    return (f"{name} was added to the library. Its effect on the UNet differs from that of the mix by "
            f"{100 * error:.2g} %.")


def fits_by_weights(share: float) -> str:
    """How well an adapter's weights fit a prompt; ``share`` of those trained on other things would fit worse.

    >>> fits_by_weights(0.973)
    'Its weights fit this prompt better than those of 97 % of adapters trained on other things'
    """
    if share < 0.5:
        return "Its weights fit this prompt no better than those of an unrelated adapter"
    return (f"Its weights fit this prompt better than those of {min(99, int(share * 100))} % of adapters trained on "
            "other things")


def fits_by_words(shared: Sequence[str], why: str) -> str:
    """Why an adapter is suggested whose weights could not be compared with a prompt.

    >>> fits_by_words(["fox", "red"], no_retriever("SD 1.5"))
    'Its name or trigger word matches fox, red. Its weights were not compared: no retriever is trained for SD 1.5'
    """
    return f"Its name or trigger word matches {', '.join(shared)}. Its weights were not compared: {why}"


def no_retriever(base: str) -> str:
    """Why weights are not compared with a prompt, for a base model without a retriever."""
    return f"no retriever is trained for {base or 'its base model'}"


def fit_and_last_prompt(fit: str, prompts: Sequence[str]) -> str:
    """The whole reason: how well it fits, and the prompt it last drew.

    >>> fit_and_last_prompt("It fits", ["a rex fox", "a fox"]), fit_and_last_prompt("It fits", [])
    ('It fits. Last used for “a rex fox”.', 'It fits.')
    """
    last = next(filter(None, prompts), "")
    return f"{fit}. Last used for “{last}”." if last else f"{fit}."
