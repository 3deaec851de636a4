"""Sentences of the web app that have a value in them."""

from __future__ import annotations

from datetime import datetime
from html import escape
from math import ceil

from atelier.app.text.words import EXPERT_SAME


def left(seconds: float) -> str:
    """Time left, as a person would say it.

    >>> left(42), left(330)
    ('42 s left', '6 min left')
    """
    if seconds < 90:
        return f"{seconds:.0f} s left"
    return f"{seconds / 60:.0f} min left" if seconds < 5400 else f"{seconds / 3600:.1f} h left"


def sorry(error: Exception) -> str:
    """An error's message as Gradio wants it: it would read angle brackets as HTML."""
    return escape(str(error))


def too_many_pictures(most: int) -> str:
    """Said on each picture beyond the limit."""
    return f"not taken: {most} pictures are the most"


def duplicate(name: str, other: str) -> str:
    """Said on a picture that was dropped before."""
    return f"{name} shows the same picture as {other}, so it is used once."


def no_picture_for(name: str) -> str:
    """Said of a text file that was dropped without its picture."""
    return f"{name} is no caption, because no picture here has its name. Drop the picture, then the text once more."


def picture_count(usable: int, refused: int) -> str:
    """Under the dropped pictures.

    >>> picture_count(5, 1)
    '5 pictures to learn from, 1 not used'
    """
    if not usable and not refused:
        return ""
    text = f"{usable} picture{'' if usable == 1 else 's'} to learn from"
    return f"{text}, {refused} not used" if refused else text


def expert_changes(count: int) -> str:
    """How far the settings are from the preset."""
    return EXPERT_SAME if not count else f"{count} setting{'' if count == 1 else 's'} changed from the preset."


def needs(needed: int, room: int, *, exactly: bool) -> str:
    """What a run takes of the memory, before it starts.

    >>> needs(1_340_000_000, 16_040_000_000, exactly=True)
    'Needs about 1.3 GB of the 16.0 GB free here.'
    """
    return f"Needs {'about' if exactly else 'less than'} {size(needed)} of the {size(room)} free here."


def needs_levers(needed: int, room: int, levers: str) -> str:
    """The same where it fits only in a more sparing way."""
    return f"Needs about {size(needed)}, and {size(room)} are free here: {levers}."


def base_title(title: str, kind: str, precision: str = "") -> str:
    """A base model among others to choose from; of a compressed one it says the bits."""
    return " · ".join((title, kind, *([precision.upper()] if precision.startswith("w") else [])))


def base_facts(kind: str, prediction: str, precision: str, count: int, adapters: int) -> str:
    """What a base model is, in one line.

    >>> base_facts("Stable Diffusion 1.x", "epsilon", "fp16", 2_130_000_000, 1)
    'Stable Diffusion 1.x · predicts epsilon · fp16 · 2.1 GB · fits 1 adapter of yours'
    """
    fits = f"fits {adapters} adapter{'' if adapters == 1 else 's'} of yours" if adapters else ""
    return " · ".join(filter(None, (kind, f"predicts {prediction}", precision, size(count), fits)))


def no_folder(path: object) -> str:
    """Why a folder with base models is not taken."""
    return f"{path} is no folder on the machine that Atelier runs on. Check the path, or leave the line away."


def needs_password(host: str) -> str:
    """Why a server is not opened to the network."""
    return (f"With --host {host} other machines could reach Atelier, so it needs a password. "
            f"Set one in the environment variable ATELIER_PASSWORD, or leave --host away to serve this machine alone.")


def wait_to_sign_in(seconds: float) -> str:
    """Said when the password was wrong too often.

    >>> wait_to_sign_in(0.3), wait_to_sign_in(120)
    ('The password was wrong too often. Try again in 1 s.', 'The password was wrong too often. Try again in 2 min.')
    """
    wait = f"{ceil(seconds)} s" if seconds <= 90 else f"{ceil(seconds / 60)} min"
    return f"The password was wrong too often. Try again in {wait}."


def uploads_full(taken: float, most: float) -> str:
    """Said when all uploads together are too much.

    >>> uploads_full(9_500_000_000, 10_000_000_000)
    'Files that were uploaded lately take 9.5 of 10.0 GB, too much for another one. Try again tomorrow, or restart.'
    """
    return (f"Files that were uploaded lately take {taken / 1e9:.1f} of {most / 1e9:.1f} GB, too much for another one. "
            "Try again tomorrow, or restart.")


def cannot_listen(host: str, port: int, reason: str) -> str:
    """Why a port could not be taken."""
    return (f"Atelier can't listen on {host}, port {port}: {reason}. Choose another port with --port, "
            f"or leave --port away to take the first free one.")


def served_at(host: str, port: int) -> str:
    """The line that tells where the Studio is."""
    shown = "127.0.0.1" if host == "0.0.0.0" else host
    return f"Atelier is open at http://{shown}:{port}  (stop it with Ctrl+C)"


def moment(time: datetime) -> str:
    """A time of this machine, short."""
    return f"{time.day} {time:%b, %H:%M}"


def run_about(step: int, of: int, started: datetime | None) -> str:
    """Under a run's name in the list."""
    steps = f"{step} of {of} steps"
    return f"{steps} · {moment(started)}" if started else steps


def recipe(kind: str, subject: str, started: datetime | None) -> str:
    """Under a run's name on its own page."""
    return f"{kind} · {subject} · {moment(started)}" if started else f"{kind} · {subject}"


def preview(step: int, prompt: str) -> str:
    """Under a preview."""
    return f"Step {step}: {prompt}"


def chart(loss: float, step: int) -> str:
    """The loss chart for those who can't see it."""
    return f"Loss at step {step}: {loss:.4g}"


def unreadable(name: str, reason: str) -> str:
    """Said of a file among the adapters that can't be opened."""
    return f"{name} is passed over: {reason}"


def size(count: int) -> str:
    """Bytes for people.

    >>> size(312_400), size(18_900_000)
    ('312 KB', '18.9 MB')
    """
    if count < 1e6:
        return f"{count / 1e3:.0f} KB"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def pictures(count: int) -> str:
    """A number of pictures; nothing when it is unknown."""
    return f"{count} picture{'' if count == 1 else 's'}" if count else ""


def off(most: float, mean: float) -> str:
    """How far the layers of an exported file are from the adapter's.

    >>> off(0.0123, 0.004)
    '1.2 % at most, 0.4 % on average'
    """
    return f"{most:.1%} at most, {mean:.1%} on average".replace("%", " %")


def more(count: int) -> str:
    """Under a wall that shows only the first.

    >>> more(0), more(12)
    ('', '12 more: search for them.')
    """
    return f"{count:,} more: search for them." if count > 0 else ""


def brought_in(name: str, notes: str) -> str:
    """Said of a file that came into the library."""
    return f"{name} is in your library. {notes}".strip()


def too_many_adapters(most: int) -> str:
    """Said when one more is taken up."""
    return f"{most} adapters at once are the most. Put one back first."


def missing(names: list[str]) -> str:
    """Said when a picture was drawn with adapters that are gone."""
    return f"Not in your library any more: {', '.join(names)}. The picture would come out different."


def processor(count: int) -> str:
    """A machine without a graphics card."""
    return f"processor, {count} cores"


def doing(state: str, percent: int) -> str:
    """What a run is about, in the job bar."""
    return f"{state} {percent} %" if percent else state


def strengths(content: float, style: float) -> str:
    """A place on the Mix Lab's pad.

    >>> strengths(0.5, 2.0)
    'thing 0.5, style 2'
    """
    return f"thing {content:g}, style {style:g}"


def fits_by_weights(share: float) -> str:
    """How well an adapter's weights fit a prompt; ``share`` of those made for something else would fit worse.

    >>> fits_by_weights(0.973)
    'Its weights fit these words better than those of 97 % of adapters made for something else'
    """
    if share < 0.5:
        return "Its weights fit these words no better than a stranger's"
    return f"Its weights fit these words better than those of {min(99, int(share * 100))} % of adapters made for " \
           "something else"


def fits_by_words(shared: list[str], why: str) -> str:
    """Why an adapter is proposed whose weights could not be compared with a prompt.

    >>> fits_by_words(["fox", "red"], no_reader("SD 1.5"))
    'It is called by your words fox, red; its weights were not compared: nothing was trained that reads SD 1.5'
    """
    return f"It is called by your words {', '.join(shared)}; its weights were not compared: {why}"


def no_reader(base: str) -> str:
    """Why weights are not compared with words, for a base model without a retriever."""
    return f"nothing was trained that reads {base or 'its base model'}"


def fit_and_drew(fit: str, prompts: list[str]) -> str:
    """The whole reason: how well it fits, and the last thing that it drew.

    >>> fit_and_drew("It fits", ["a rex fox", "a fox"]), fit_and_drew("It fits", [])
    ('It fits; it drew “a rex fox”.', 'It fits.')
    """
    drew = next(filter(None, prompts), "")
    return f"{fit}; it drew “{drew}”." if drew else f"{fit}."
