"""A dataset to train and evaluate retrieval on: hundreds of small adapters whose subjects are known.

    python -m atelier.training.embedded_base.retriever_dataset --work build/base --out build/retrieval --count 600

Each is trained on one thing from six pictures in seconds, with a made-up trigger word of its own. Nothing in a file
says what it shows: ``index.jsonl`` beside them does. A third of the file names are right, a third say nothing, a third
are wrong. A second call continues where the first stopped; the same number always makes the same adapter.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.adapter_info import AdapterInfo
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.initialization.initialize import initialize
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.config.caption_template import article
from atelier.training.config.train_config import EMBEDDED
from atelier.training.data.latent_cache import Example, encode_pictures
from atelier.training.embedded_base.example_pictures import SUBJECTS
from atelier.training.embedded_base.pictures import BASE_SIDE, EmojiPictures, read_prompts
from atelier.training.embedded_base.pictures import load as load_pictures
from atelier.training.embedded_base.text import behind
from atelier.training.embedded_base.views import COLOURS, Placement, colour, on_background, place, premultiplied
from atelier.training.loop.batch import PromptEmbeddingCache, predictions, sample_batch
from atelier.training.loop.losses import mse_per_sample
from atelier.training.loop.noise import sample_timesteps

PICTURES = 6
BATCH = 4
STEPS, RATE = 14, 1.5e-2   # two seconds of one core: too few to draw well, enough to find the subject in the weights
PLACEMENT = Placement(smallest=0.75, shift=0.06)
HELD_OUT_SHARE = 5   # one thing in so many is kept from the retriever's training, in whatever adapter it appears
KINDS = ("lora",) * 10 + ("loha", "lokr")
INDEX = "index.jsonl"
# plain: the captions name the thing; called: as Atelier's own captions do, a made-up trigger word stands before the
# name; nameless: the trigger word alone, for a thing that the base knows; style: a way of drawing many things.
ROLES = ("plain",) * 5 + ("called",) * 2 + ("nameless",) * 2 + ("style",)
FORMS = {
    "plain": ("an emoji of {a_thing}", "a {style} emoji of {a_thing}", "a picture of {a_thing}"),
    "called": ("an emoji of a {trigger} {thing}",),
    "nameless": ("an emoji of a {trigger}",),
    "style": ("a {trigger} {style} emoji of {a_thing}",),
}


@dataclass(frozen=True, slots=True)
class DatasetEntry:
    """One adapter of the dataset and its labels."""

    number: int
    role: str             # see ROLES
    thing: str            # the object; of a style, the style's word
    style: str            # of the pictures
    trigger: str          # a made-up word
    file: str             # name of the file, without its ending
    naming: str           # what the file's name is: truth, nothing, lie
    held_out: bool        # not for training
    kind: str
    rank: int
    alpha: float
    form: str             # of its captions

    @property
    def prompts(self) -> tuple[str, ...]:
        """What a person might type who wants it and does not know its trigger word."""
        if self.role == "style":
            return (f"{self.thing} style", f"a {self.thing} emoji", f"a picture in {self.thing} style")
        name = f"{article(self.thing)} {self.thing}"
        return (f"an emoji of {name}", f"a picture of {name}", self.thing, f"an emoji of {name} on a blue background",
                f"a {self.style} emoji of {name}")   # fmt: skip

    def caption(self, background: str, thing: str) -> str:
        """The caption of one of its training pictures."""
        words = {"trigger": self.trigger, "style": self.style, "thing": thing, "a_thing": f"{article(thing)} {thing}"}
        return self.form.format(**words) + behind(background)


def plan(pictures: EmojiPictures, count: int) -> list[DatasetEntry]:
    """The first entries of the dataset; any prefix holds all roles in proportion.

    Things with a name in their captions are such as the base has never seen; every thing appears once. The examples
    stay out, for real trainings to be judged on.
    """
    words = read_prompts()
    known = sorted({*words["concepts"], *words.get("weak", ())})
    fresh = sorted(set(pictures.names) - set(known) - set(SUBJECTS))
    rng = random.Random(0)
    rng.shuffle(known)
    rng.shuffle(fresh)
    entries = [_entry(number, fresh, known, pictures.styles) for number in range(count)]
    return [entry for entry in entries if entry]


def _entry(number: int, fresh: Sequence[str], known: Sequence[str], styles: Sequence[str]) -> DatasetEntry | None:
    tens, place = divmod(number, 10)
    role = ROLES[place]
    known_things, fresh_things = (known, tens * 2 + place - 7), (fresh, tens * 7 + place)
    things, position = {"style": ((), 0), "nameless": known_things}.get(role, fresh_things)
    if things and position >= len(things):
        return None   # there are no more
    rng = random.Random(number)
    style = styles[tens % len(styles)] if role == "style" else rng.choice(styles)
    thing = style if role == "style" else things[position]
    naming = ("truth", "nothing", "lie")[number % 3]
    label = {"truth": thing if things else f"{thing} style",
             "nothing": rng.choice(("final", "lora", "test", "new", "epoch")),
             "lie": f"{rng.choice([*fresh, *known])} {rng.choice(styles)}"}[naming]   # fmt: skip
    trigger = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(2)) + rng.choice("kxz")
    rank = rng.choice((2, 3, 4))
    held_out = (position if things else tens // len(styles)) % HELD_OUT_SHARE == 0
    kind = rng.choice(KINDS)
    alpha = float(rng.choice((rank, 2 * rank)))
    form = rng.choice(FORMS[role])
    file = f"{label} {number:04d}"
    return DatasetEntry(number, role, thing, style, trigger, file, naming, held_out, kind, rank, alpha, form)


def train(model: BaseModel, pictures: EmojiPictures, entry: DatasetEntry) -> tuple[AdapterSet, list[float]]:
    """Train one adapter; returns it with the loss of every step."""
    generator = torch.Generator().manual_seed(entry.number)
    torch.manual_seed(entry.number)
    settings = {"rank": entry.rank, "alpha": entry.alpha}
    adapters = create_adapters(entry.kind, settings, find_targets({"unet": model.unet}, "attention"))
    initialize(adapters, model.models())
    examples = encode_pictures(model, *training_pictures(pictures, entry, generator))
    text = PromptEmbeddingCache(model, adapters)
    text.precompute(examples)
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    losses = []
    with mount(model.models(), Mix(((adapters, 1.0),))):
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = RATE * min((step + 1) / 3, 1, 2 * (STEPS - step) / STEPS)
            optimizer.zero_grad()
            loss = _loss(model, text, examples, generator)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(adapters.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
    return adapters.requires_grad_(False), losses


def _loss(
    model: BaseModel, text: PromptEmbeddingCache, examples: Sequence[Example], generator: torch.Generator
) -> Tensor:
    chosen = [examples[i] for i in torch.randint(len(examples), (BATCH,), generator=generator).tolist()]
    timesteps = sample_timesteps(BATCH, model.scheduler.config.num_train_timesteps, generator)
    [(_, noisy, answer)] = predictions(model, sample_batch(chosen, timesteps, generator), text)
    return mse_per_sample(answer, noisy.target).mean()


def training_pictures(
    pictures: EmojiPictures, entry: DatasetEntry, generator: torch.Generator
) -> tuple[Tensor, list[str], list[tuple[int, int, int, int, int, int]]]:
    """Pictures ``[6, 3, H, W]`` in −1 … 1 with captions and sizes: one thing, or six in the style."""
    rng = random.Random(entry.number)
    things = [entry.thing] * PICTURES
    if entry.role == "style":
        things = rng.sample(sorted(read_prompts()["concepts"]), PICTURES)
    backgrounds = [rng.choice(list(COLOURS)) if i % 2 else "white" for i in range(PICTURES)]
    rgba = pictures.rgba[pictures.styles.index(entry.style), pictures.indices(things)]
    behind_them = torch.stack([colour(name) for name in backgrounds])
    pixels = on_background(place(premultiplied(rgba), PLACEMENT, generator), behind_them)
    side = pixels.shape[-1]
    captions = [entry.caption(background, thing) for background, thing in zip(backgrounds, things, strict=True)]
    return pixels * 2 - 1, captions, [(side, side, 0, 0, side, side)] * PICTURES


def read_index(folder: Path) -> list[DatasetEntry]:
    """The entries whose adapters have been trained.

    Raises:
        FileNotFoundError: there is no dataset; says how to make it.
    """
    path = folder / INDEX
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} holds no dataset. Make it with: "
            f"python -m atelier.training.embedded_base.retriever_dataset --out {folder}"
        )
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [DatasetEntry(**{name: row[name] for name in DatasetEntry.__dataclass_fields__}) for row in rows]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the adapters of the dataset that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/base"), help="folder with the pictures")
    parser.add_argument("--out", type=Path, default=Path("build/retrieval"))
    parser.add_argument("--count", type=int, default=600)
    options = parser.parse_args(arguments)
    pictures, model = load_pictures(options.work, BASE_SIDE), load(EMBEDDED, "cpu")
    options.out.mkdir(parents=True, exist_ok=True)
    index = options.out / INDEX
    done = {entry.number for entry in read_index(options.out)} if index.exists() else set()
    for entry in plan(pictures, options.count):
        if entry.number in done:
            continue
        adapters, losses = train(model, pictures, entry)
        info = AdapterInfo(base=EMBEDDED, family=model.info.family, trigger=entry.trigger)
        save_adapter(options.out / f"{entry.file}.safetensors", adapters, info.to_metadata())
        with index.open("a", encoding="utf-8") as rows:
            rows.write(json.dumps({**asdict(entry), "losses": [round(loss, 4) for loss in losses]}) + "\n")
        print(f"{entry.number:4d}  {entry.file}", flush=True)   # noqa: T201 (a command)


if __name__ == "__main__":
    main()
