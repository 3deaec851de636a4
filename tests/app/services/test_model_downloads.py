"""Known base models, and downloads in the background and on the command line, from a stand-in for the hub."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hub import Hub, serving_hub
from huggingface_hub import constants

from atelier.adapters.core.family import FAMILIES
from atelier.app.cli import main as command
from atelier.app.services import known_models as known_module
from atelier.app.services.create.expert_settings import default_values, run_settings
from atelier.app.services.known_models import downloadable_titles, known_models, memory_needs
from atelier.app.services.model_downloads import Download, ModelDownloads
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.hub import is_hub_id, needs_download
from atelier.training.base_models.identify import EMBEDDED_FOLDER

KNOWN = known_models()[0].id


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has the embedded base model under the names of others."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serving_hub({KNOWN: EMBEDDED_FOLDER, "owner/gated": EMBEDDED_FOLDER}, gated={"owner/gated"}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def wait(downloads: ModelDownloads, until: Callable[[Download], bool]) -> Download:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for download in downloads.all():
            if until(download):
                return download
        time.sleep(0.01)
    raise AssertionError(downloads.all())


def test_the_list_says_what_a_person_must_know():
    assert len({known.id for known in known_models()}) == len(known_models()) >= 4
    for known in known_models():
        assert is_hub_id(known.id)
        assert known.licence and known.about.endswith(".")
        assert FAMILIES[known.family].single_file
        # The fp16 weights of UNet, VAE and text encoders: 2 bytes each.
        weights = {"sd1": 859_520_964 + 83_653_863 + 123_060_480, "sd2": 865_910_724 + 83_653_863 + 340_387_840,
                   "sdxl": 2_567_463_684 + 83_653_863 + 123_060_480 + 694_659_840}[known.family]   # fmt: skip
        assert abs(known.bytes / (2 * weights) - 1) < 0.01


def test_a_model_is_downloaded_in_the_background(hub: Hub):
    downloads = ModelDownloads()
    assert "not downloaded yet" in downloadable_titles()[KNOWN]
    downloads.start(f" {KNOWN} ")
    done = wait(downloads, lambda download: not download.running)
    assert (done.id, done.error, done.percent) == (KNOWN, "", 100)
    assert done.of == sum(hub.sent.values())
    assert not needs_download(KNOWN)
    assert downloadable_titles()[KNOWN] == known_models()[0].title
    downloads.start(KNOWN)   # it is here: nothing begins
    assert not any(download.running for download in downloads.all())


def test_a_download_that_fails_says_why(hub: Hub):
    downloads = ModelDownloads()
    with pytest.raises(BaseError, match="such as owner/model"):
        downloads.start("../etc/passwd")
    downloads.start("owner/gated")
    assert "is gated" in wait(downloads, lambda download: not download.running).error
    downloads.start("owner/nothing")
    last = wait(downloads, lambda download: download.id == "owner/nothing" and not download.running)
    assert "no model owner/nothing" in last.error


def test_the_command_line_gets_a_model(hub: Hub, capsys: pytest.CaptureFixture[str]):
    assert command.main(["models", "get", KNOWN, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["family"], facts["precision"], facts["usable"]) == ("embedded", "fp16", True)
    asked = len(hub.asked)
    assert command.main(["models", "get", KNOWN]) == 0   # once more: nothing is asked
    assert len(hub.asked) == asked
    assert command.main(["models", "known", "--json"]) == 0
    capsys.readouterr()
    for id, words in (("owner/nothing", "no model owner/nothing"), ("owner/gated", "gated"), ("a", "owner/model"),
                      ("", "needs a model")):   # fmt: skip
        assert command.main(["models", "get", *([id] if id else [])]) == 1
        assert words in capsys.readouterr().err


def test_create_does_not_start_with_a_model_that_is_not_here(hub: Hub):
    keys = ["base", "steps", "kind", "prediction", "vae"]
    usual = default_values(keys, "normal", KNOWN)   # of its family, without asking anybody
    assert usual[1] == default_values(keys, "normal", "owner/nothing")[1] or usual
    values = [KNOWN, *usual[1:]]
    with pytest.raises(BaseError, match=re.escape(f"atelier models get {KNOWN}")):
        run_settings(keys, values, "normal\nembedded", "normal")
    assert hub.asked == []


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda", "xpu", "hpu"])
def test_what_known_models_need_depends_on_the_memory_here(monkeypatch: pytest.MonkeyPatch, device: str):
    known = next(known for known in known_models() if known.family == "sdxl")
    counts = known_module._memory_counts()["sdxl"]["xpu" if device == "hpu" else device]
    for work in ("draw", "train"):
        plain, least = counts[work]
        assert least <= plain
        for usable, expected in ((plain + 1, (plain, False)), (least + 1, (plain, least + 1 < plain)),
                                 (least - 1, (0, False))):   # fmt: skip
            total = int(usable / (1 - known_module.RESERVE)) + 1
            monkeypatch.setattr(known_module, "memory", lambda _, total=total: (0, total))
            needs = memory_needs(known, torch.device(device))
            assert (getattr(needs, work), getattr(needs, f"{work}_saves")) == expected
    # Weights alone, in 4 bytes on a processor, in 2 elsewhere.
    assert counts["draw"][0] > (4 if device == "cpu" else 2) * 2_567_463_684


def test_nothing_is_counted_for_the_page_of_known_models():
    downloads, before = ModelDownloads(), threading.enumerate()
    assert all(downloads.needs(known).draw >= 0 for known in known_models())
    assert threading.enumerate() == before


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", sorted({known.family for known in known_models()}))
def test_the_counts_of_known_models_are_those_of_the_code(family: str):
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from benchmarks.memory_table import count_family

    for device, works in count_family(family).items():
        for work, counts in works.items():   # other versions of the libraries allocate a little differently
            assert known_module._memory_counts()[family][device][work] == pytest.approx(counts, rel=0.05)
