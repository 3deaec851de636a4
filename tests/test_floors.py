"""The oldest versions that are allowed are above the holes known in them; `pip-audit` asks a database for the rest.

Where that database can be reached: `pip-audit --requirement constraints.txt`.
"""

from __future__ import annotations

import tomllib
from importlib.metadata import requires, version

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from test_house import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# The first version without the worst holes known, and what they let somebody do to a program like this one.
ASKED_FOR = {
    "pillow": ("12.3", "writes out of bounds in crop and paste (CVE-2026-59199), ImageCms (59205), PSD (25990)"),
    "gradio": ("6.16", "path traversal, cookies of others (CVE-2026-28414, 28415, 28416, 48545)"),
    "torch": ("2.6", "torch.load runs code in spite of weights_only (CVE-2025-32434)"),
    "transformers": ("5.5", "a config.json runs code: attention kernels (CVE-2026-4372), LightGlue (5241)"),
    "starlette": ("0.49.1", "a Range header takes quadratic time (CVE-2025-62727)"),
}
INSTALLED = {
    "python-multipart": ("0.0.22", "uploads in quadratic time (CVE-2024-53981), outside of their folder (2026-24486)"),
    "h11": ("0.16", "smuggled requests (CVE-2025-43859)"),
    "jinja2": ("3.1.6", "templates run code (CVE-2025-27516)"),
    "brotli": ("1.2", "a small answer unpacks to gigabytes (CVE-2025-6176)"),
    "requests": ("2.32.4", "credentials leak from .netrc (CVE-2024-47081)"),
    "urllib3": ("2.6", "a small answer unpacks without end (CVE-2025-66418, 66471)"),
    "setuptools": ("78.1.1", "path traversal in downloads (CVE-2025-47273)"),
}


def lowest(name: str) -> Version:
    """The oldest version of a library that pyproject.toml lets in."""
    [found] = [Requirement(text) for text in PROJECT["dependencies"] if Requirement(text).name == name]
    return max(Version(one.version) for one in found.specifier if one.operator in (">=", "==", "~="))


@pytest.mark.parametrize("name", ASKED_FOR)
def test_no_version_with_a_known_hole_is_asked_for(name: str) -> None:
    floor, hole = ASKED_FOR[name]
    assert lowest(name) >= Version(floor), hole
    assert Version(version(name)) >= Version(floor), hole


@pytest.mark.parametrize("name", INSTALLED)
def test_no_version_with_a_known_hole_came_along(name: str) -> None:
    floor, hole = INSTALLED[name]
    try:
        found = version(name)
    except ImportError:
        pytest.skip(f"{name} is not installed")
    assert Version(found) >= Version(floor), hole


def test_pillow_13_is_taken_as_soon_as_gradio_lets_it() -> None:
    """Pillow 12.3 has vulnerabilities that 13 fixes, among them a heap overflow in its JPEG decoder (CVE-2026-112403).

    Gradio 6.31, the newest when this was written, forbids Pillow 13. See "What is open" in docs/threats.md.
    """
    [asked] = [Requirement(text) for text in requires("gradio") or [] if text.lower().startswith("pillow")]
    assert not asked.specifier.contains("13.0.0") or lowest("pillow") >= Version("13"), "raise Pillow's floor to 13"
