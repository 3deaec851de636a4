"""What the Mix Lab says, and why an adapter is suggested for a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from atelier.adapters.core.byte_size import format_bytes

TITLE = "Mix Lab"
LEAD = "Draw with several adapters at once: see what they do to each other, compare the methods, and share the mix."
METHOD = "Method"
METHODS = {
    "sum": "Sum: all added", "normalised": "Normalised: strengths scaled to add up to 1",
    "gated": "Gated: each layer decides, for every position and step",
    "switch": "Switch: adapters take turns, each turn a tenth of the steps",
    "composite": "Composite: the average of what each would draw",
    "dare": "DARE: a random fifth of each, made five times as strong",
    "ties": "TIES: the largest values, where their signs agree", "svd": "SVD: the sum, cut to the rank of one adapter",
    "concat": "Concatenation: the sum, as one file",
    "np": "NP-LoRA: removes from the first what would disturb the second (two adapters)",
    "k": "K-LoRA: in each layer the first early on, then the second (two adapters)",
    "break-for-make": "Break-for-Make: content half and style half (two adapters of the kind split)",
}
FIND = "Find adapters"
FIND_HINT = "Name or trigger word; empty shows those that fit the prompt"
SUGGESTED = "Adapters: press to add or remove"
PLAN = "What this mix does"
ADD_TWO = "Add a second adapter to see how the two affect each other."
NO_LAYER_IN_COMMON = "They change different layers, so neither affects what the other does in any of them."
ALL_OFF = "Every strength is 0, so the base model draws alone."
WORST = "Layers where they meet most"
BOTH_STRENGTHS = "Both strengths at once"
NINE = "Draw nine, from neither to both"
SWAP = "Swap the two"
CORNERS = "Left column: none of the first adapter. Top row: none of the second."
TWO_FOR_PAD = "Add exactly two adapters to move both strengths at once."
NOT_LIVE = ("This method's nine pictures can't be drawn at once. Choose Sum, NP-LoRA, K-LoRA or Break-for-Make for "
            "them.")
SHARE, DOWNLOAD_FILE = "Share as a file", "Download the mix file"
OPEN_FILE = "Open a mix file"
NOT_A_MIX = "This file is no mix of Atelier. Choose a file that “Share as a file” has written."
WHEN = "When each adapter acts"
WHEN_HINT = "From the first step (left) to the last (right). Higher is stronger."
WHERE = "Where each adapter acts"
WHERE_HINT = "Paint over the picture. An adapter with nothing painted acts everywhere."
REGION_PROMPT = "Prompt of this part"
ADD_REGION, REMOVE_REGION = "Add a part with its own prompt", "Remove"
RECTANGLE = "Drag rectangles"
SIDE_BY_SIDE = "Side by side"
SIDE_BY_SIDE_HINT = "Each adapter draws a field of its own, from left to right, so that none reaches another."
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


def advice(verdict: str, names: tuple[str, str], overlap: float, lost: float) -> str:
    """What the weights of a Mix say about drawing with it.

    Args:
        verdict: of ``Interference.verdict``.
        names: the two that overlap most.
        overlap: how much, beyond chance, 0 … 1.
        lost: share of all updates that cancels in their sum; below 0 they reinforce each other.

    >>> advice("", ("fox", "ink"), 0.02, 0.01)
    'The adapters hardly overlap: a plain sum keeps all of them.'
    """
    one, two = names
    match verdict:
        case "cancel":
            return (f"{one} and {two} work against each other: a plain sum loses {100 * lost:.0f} %. Let them take "
                    "turns (Switch), or have them act at different steps.")
        case "reinforce":
            return (f"{one} and {two} make similar changes, so their sum is too strong. Lower the strengths, or use "
                    "Normalised.")
        case "overlap":
            return (f"{one} and {two} use some of the same directions ({100 * overlap:.0f} % more than chance), so "
                    "each affects the other. Compare the methods, and lower the one that dominates.")
    return "The adapters hardly overlap: a plain sum keeps all of them."


def weighted(names: Sequence[str], strengths: Sequence[float]) -> str:
    """A sum as a person would write it.

    >>> weighted(["rex", "ink"], [0.8, -0.5])
    '0.8 × rex − 0.5 × ink'
    """
    terms = [f"{'−' if value < 0 else '+'} {abs(value):.3g} × {name}"
             for name, value in zip(names, strengths, strict=True)]   # fmt: skip
    return " ".join(terms).removeprefix("+ ")


def what_it_does(method: str, names: Sequence[str], strengths: Sequence[float]) -> str:
    """What a method will do with these adapters, before anything is drawn.

    >>> what_it_does("switch", ["rex", "ink"], [0.8, 0.5])
    'rex and ink take turns, each at its strength (0.8, 0.5), for a tenth of the steps at a time.'
    >>> what_it_does("normalised", ["rex", "ink"], [1.5, 0.5])
    'Adds 0.75 × rex + 0.25 × ink: your strengths, scaled to add up to 1.'
    """
    listed, added = listing(names), weighted(names, strengths)
    values = ", ".join(f"{value:.3g}" for value in strengths)
    whole = max(1.0, sum(map(abs, strengths)))
    scaled = weighted(names, [value / whole for value in strengths])
    first, last = names[0], names[-1]
    return {
        "sum": f"Adds {added} to the weights of the base model.",
        "concat": f"Adds {added} to the weights; as a file, the factors of all stand side by side.",
        "svd": f"Adds {added}, then cuts each layer's sum to the rank of one adapter.",
        "normalised": f"Adds {scaled}: your strengths, scaled to add up to 1.",
        "gated": f"Adds {added}; trained gates weaken or strengthen each in every layer, position and step.",
        "switch": f"{listed} take turns, each at its strength ({values}), for a tenth of the steps at a time.",
        "composite": (f"Predicts each step with {listed} one by one, at {values}, and takes the average. A picture "
                      f"takes about {len(names)} times as long."),
        "dare": f"Keeps a random fifth of each update's values, five times as strong, and adds {added}.",
        "ties": f"Keeps each update's largest values where the signs of {listed} agree, and adds {added}.",
        "np": (f"Removes from {first} (content) half of what lies in the directions that {last} (style) reads, and "
               f"adds {added}."),
        "k": (f"In each layer {first} (content) acts in the first steps and {last} (style) after it, at {values}. "
              "As one file it is their average."),
        "break-for-make": f"Takes the content half of {first} and the style half of {last}, at {values}.",
    }[method]


def only_one(name: str, strength: float) -> str:
    """What a mix of one adapter does.

    >>> only_one("rex", 0.8)
    'Only rex acts, at strength 0.8.'
    """
    return f"Only {name} acts, at strength {strength:.3g}."


def only_two(name: str, number: int) -> str:
    """Why a method of two adapters can't be used.

    >>> only_two("NP-LoRA", 3)
    'NP-LoRA combines exactly two adapters, and 3 have a strength other than 0.'
    """
    return f"{name} combines exactly two adapters, and {number} have a strength other than 0."


def listing(names: Sequence[str]) -> str:
    """Names in a sentence.

    >>> listing(["a"]), listing(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def directions(one: str, two: str, opposed: int, shared: int) -> str:
    """In how many layers two adapters work against each other.

    >>> directions("rex", "ink", 0, 24)
    'rex and ink both change 24 layers, and in none of them do they pull in opposite directions.'
    >>> directions("rex", "ink", 12, 24)
    'rex and ink both change 24 layers, and pull in opposite directions in 12 of them.'
    """
    tail = f"pull in opposite directions in {opposed} of them" if opposed else (
        "in none of them do they pull in opposite directions")
    return f"{one} and {two} both change {shared} layers, and {tail}."


def use_method(name: str) -> str:
    """A button that chooses a method."""
    return f"Use {name}"


def method_title(method: str) -> str:
    """A method's name without its explanation.

    >>> method_title("ties"), method_title("np")
    ('TIES', 'NP-LoRA')
    """
    return METHODS[method].partition(":")[0]


def pad(across: str, upwards: str) -> str:
    """What the pad's directions mean.

    >>> pad("rex", "ink")
    'Strengths: rex to the right, ink upwards'
    """
    return f"Strengths: {across} to the right, {upwards} upwards"


def both_strengths(one: str, two: str, strengths: tuple[float, float]) -> str:
    """A place on the pad.

    >>> both_strengths("rex", "ink", (0.5, 2.0))
    'rex 0.5, ink 2'
    """
    return f"{one} {strengths[0]:g}, {two} {strengths[1]:g}"


def missing(name: str, kind: str, size: int, trigger: str, hash: str) -> str:
    """An adapter of a mix file that is not here.

    >>> missing("ink", "lora", 1_200_000, "ink", "1a2b3c4d5e6f7890")
    'ink is missing here (lora, 1.2 MB, trigger word “ink”, hash 1a2b3c4d5e6f). Ask for its file and import it.'
    """
    facts = [kind, format_bytes(size) if size else "", f"trigger word “{trigger}”" if trigger else "",
             f"hash {hash[:12]}" if hash else ""]   # fmt: skip
    return f"{name} is missing here ({', '.join(filter(None, facts))}). Ask for its file and import it."


def renamed(name: str, here: str) -> str:
    """An adapter of a mix file that has another name here."""
    return f"{name} is named {here} here."


def other_file(name: str) -> str:
    """An adapter of the same name that is not the one of a mix file."""
    return f"The {name} here is another file than the one of the mix, so pictures may differ."


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


def overlap(pair: str, where: str, share: float, direction: int) -> str:
    """One cell of the interference map; direction: 1 for the same, −1 for opposite ones, 0 for unrelated ones.

    >>> overlap("fox and ink", "mid attn2.to_k", 0.25, -1)
    'fox and ink, mid attn2.to_k: 25 % in common, in opposite directions'
    """
    how = ("with unrelated changes", "in the same direction", "in opposite directions")[direction]
    return f"{pair}, {where}: {100 * share:.0f} % in common, {how}"


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


def region_name(number: int) -> str:
    """A part of the picture with a prompt of its own, counted from 1."""
    return f"Part {number}"
