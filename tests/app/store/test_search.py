"""Finding adapters: by their weights where that is possible, by their words where it is not, and saying which."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from atelier.adapters.core.base import Spec
from atelier.adapters.formats.low_rank import lora_from_factors
from atelier.adapters.formats.native import read_tensors, save_adapter
from atelier.adapters.retrieval import Retriever, RetrieverSizes, save_retriever
from atelier.app.cli.main import main
from atelier.app.store import adapter_embeddings as embeddings
from atelier.app.store import search as finding
from atelier.app.store.gallery import save_picture
from atelier.app.store.home import Home, open_home
from atelier.app.store.library import adapter_hash, find_adapter
from atelier.app.store.search import propose_adapters
from atelier.training.base_models.bundled import text_encoder_hash
from atelier.training.sampling.prompt_features import PromptEncoder

LAYERS = [Spec(f"unet.mid_block.attentions.0.transformer_blocks.0.attn2.{name}", (8, 192)) for name in ("to_k", "to_v")]
WORDS = ("violin", "castle", "penguin", "rocket")


@pytest.fixture(scope="module")
def prompt_encoder() -> PromptEncoder:
    return PromptEncoder.load()


@pytest.fixture(scope="module")
def weights(tmp_path_factory, prompt_encoder: PromptEncoder) -> Path:
    """A retriever that was never taught, but whose probes see the features of words as they are."""
    torch.manual_seed(0)
    retriever = Retriever(LAYERS, RetrieverSizes(192, echo=64, view=1, width=8)).requires_grad_(False)
    directions = torch.linalg.qr(torch.cat([features_of(prompt_encoder, word) for word in WORDS]).T)[0].T
    for probes in (retriever.echo.probes, retriever.echo.word_probes):
        probes.zero_()
        probes[: len(directions)] = directions
    retriever.share.fill_(1.0)   # the other reading knows nothing
    retriever.chance.copy_(torch.tensor([0.3, 0.1]))
    path = tmp_path_factory.mktemp("retriever") / "embedded.safetensors"
    save_retriever(path, retriever, {"family": "embedded", "text_encoder": text_encoder_hash()})
    return path


def features_of(prompt_encoder: PromptEncoder, word: str) -> torch.Tensor:
    features, mask = prompt_encoder([word])
    return features[mask]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, prompt_encoder: PromptEncoder) -> Path:
    """Adapters whose names and words tell of another thing than their weights do."""
    folder = tmp_path_factory.mktemp("shelf") / "adapters"
    folder.mkdir()
    for number, word in enumerate(WORDS):
        features = features_of(prompt_encoder, word)
        dice = torch.Generator().manual_seed(number)
        pairs = {spec: (torch.randn(8, len(features), generator=dice), features) for spec in LAYERS}
        lie = WORDS[(number + 1) % len(WORDS)]
        save_adapter(folder / f"{lie}.safetensors", lora_from_factors(pairs),
                     {"atelier.family": "embedded", "atelier.trigger": lie, "atelier.subject": lie})   # fmt: skip
    return folder


@pytest.fixture
def home(own_home, weights: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A library of liars, read by the retriever above."""
    monkeypatch.setattr(embeddings, "RETRIEVER", weights)
    home = open_home(own_home)
    shutil.copytree(shelf, home.adapters, dirs_exist_ok=True)
    return home


def liar(word: str) -> str:
    """The name of the adapter whose weights answer to a word."""
    return WORDS[(WORDS.index(word) + 1) % len(WORDS)]


@pytest.mark.parametrize("word", WORDS)
def test_weights_decide_whatever_files_are_called(home: Home, word: str):
    first, *_ = propose_adapters(home, word)
    assert first.name == liar(word)
    assert first.reason.startswith("Its weights fit this prompt better than those of ")


def test_renaming_changes_names_and_nothing_else(home: Home):
    before = propose_adapters(home, "a violin")
    for path in sorted(home.adapters.iterdir()):
        path.rename(path.with_name(f"x{path.name}"))
    after = propose_adapters(home, "a violin")
    assert [p.name for p in after] == [f"x{p.name}" for p in before]
    assert [p.reason for p in after] == [p.reason for p in before]
    assert [p.score for p in after] == pytest.approx([p.score for p in before], abs=1e-6)


def test_what_is_said_in_a_file_is_not_read(home: Home):
    before = [p.score for p in propose_adapters(home, "a violin")]
    for path in home.adapters.iterdir():
        words = {"atelier.family": "embedded", "atelier.trigger": "violin", "atelier.subject": "violin"}
        found = read_tensors(path)
        pairs = {spec: (found[f"{spec.name}.up"], found[f"{spec.name}.down"]) for spec in LAYERS}
        save_adapter(path, lora_from_factors(pairs), words)
    assert [p.score for p in propose_adapters(home, "a violin")] == pytest.approx(before, abs=1e-6)


def test_embeddings_are_computed_once_and_again_when_the_index_is_gone(home: Home, monkeypatch: pytest.MonkeyPatch):
    before = propose_adapters(home, "a castle")
    index = home.state / embeddings.INDEX_FILE
    with monkeypatch.context() as patched:
        patched.setattr(embeddings, "_embed", lambda *_: pytest.fail("was computed again"))
        assert propose_adapters(home, "a castle") == before
    for damage in (index.unlink, lambda: index.write_bytes(b"no index")):
        damage()
        assert propose_adapters(home, "a castle") == before and index.exists()


def test_an_index_of_another_retriever_is_not_used(home: Home):
    propose_adapters(home, "a castle")
    path = home.state / embeddings.INDEX_FILE
    reader = embeddings.retriever_for("embedded")
    assert reader and len(embeddings._read_index(path, reader.version).files) == len(WORDS)
    assert not embeddings._read_index(path, "another").files


def test_a_file_that_changed_is_embedded_again(home: Home):
    first, *_, last = propose_adapters(home, "a castle")
    path, other = (home.adapters / f"{proposal.name}.safetensors" for proposal in (first, last))
    shutil.copy(other, path)
    scores = {proposal.name: proposal.score for proposal in propose_adapters(home, "a castle")}
    assert scores[first.name] == pytest.approx(last.score, abs=1e-6)


def test_other_bases_are_found_by_their_words_and_it_says_so(home: Home):
    pairs = {LAYERS[0]: (torch.randn(8, 2), torch.randn(2, 192))}
    words = {"atelier.family": "sd1", "atelier.title": "dreams", "atelier.trigger": "zfx", "atelier.subject": "red fox"}
    save_adapter(home.adapters / "one.safetensors", lora_from_factors(pairs), words)
    found = {p.name: p for p in propose_adapters(home, "a fox at night", limit=20)}
    assert found["one"].score > 0
    assert found["one"].reason == ("Its name or trigger word matches fox. Its weights were not compared: "
                                   "no retriever is trained for dreams.")
    assert "one" not in {p.name for p in propose_adapters(home, "a violin", limit=20)}


def test_an_adapter_of_other_layers_is_found_by_its_words_and_it_says_so(home: Home):
    words = {"atelier.family": "embedded", "atelier.subject": "fox"}
    save_adapter(home.adapters / "conv.safetensors",
                 lora_from_factors({Spec("unet.conv_in", (4, 6)): (torch.ones(4, 1), torch.ones(1, 6))}), words)
    found = {p.name: p.reason for p in propose_adapters(home, "a fox", limit=20)}
    assert "no layers" in found["conv"]


def test_a_base_that_was_trained_anew_has_no_reader(home: Home, weights: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embeddings, "RETRIEVER", Path(shutil.copy(weights, home.path)))
    monkeypatch.setattr(embeddings, "text_encoder_hash", lambda: "another")
    assert [p.name for p in propose_adapters(home, "a violin")] == ["violin"]   # by its words


def test_it_shows_what_an_adapter_drew_under_whatever_name(home: Home):
    card = find_adapter(home, liar("rocket"))
    part = {"name": "old", "sha256": adapter_hash(card), "kind": "lora", "strength": 1.0}
    recipe = {"prompt": "a rocket at night", "negative": "", "seed": 0, "steps": 1, "guidance": 3.0, "base": "embedded"}
    drawn = save_picture(home, Image.new("RGB", (8, 8)), {**recipe, "adapters": [part]})
    save_picture(home, Image.new("RGB", (8, 8)), {**recipe, "adapters": [{**part, "strength": 0.0}]})
    first, second, *_ = propose_adapters(home, "a rocket")
    assert first.name == card.name and first.pictures == (drawn,)
    assert first.reason.endswith(" Last used for “a rocket at night”.")
    assert second.pictures == ()


def test_a_damaged_file_and_an_empty_prompt_stop_nothing(home: Home):
    shutil.copy(home.adapters / "violin.safetensors", home.adapters / "cut.safetensors")
    path = home.adapters / "cut.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert len(propose_adapters(home, "a castle")) == len(WORDS)
    assert propose_adapters(home, "  ") == []
    assert len(propose_adapters(home, "a castle", limit=2)) == 2


def test_words_that_every_prompt_has_find_nothing():
    assert finding.content_words("a picture of an emoji on the") == set()


def test_the_command_answers_people_and_programs(home: Home, capsys: pytest.CaptureFixture[str]):
    assert main(["find", "a violin", "--home", str(home.path), "--limit", "1"]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split() == ["NAME", "FIT", "WHY"] and line.startswith(liar("violin"))
    assert main(["find", "a violin", "--home", str(home.path), "--json"]) == 0
    assert f'"name": "{liar("violin")}"' in capsys.readouterr().out
    for path in home.adapters.iterdir():
        path.unlink()
    assert main(["find", "a violin", "--home", str(home.path)]) == 0
    assert "No adapter fits" in capsys.readouterr().out
