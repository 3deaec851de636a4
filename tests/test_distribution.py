"""What `pip install` of Atelier brings: every package, every asset and every library that is imported by name."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image
from test_house import ROOMS, ROOT

from atelier.training.config.assets import DISTRIBUTION

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = {"triton": "gpu", "resvg-py": "base", "redis": "redis"}   # of rooms, where somebody asked


def names(requirements: list[str]) -> set[str]:
    """Distributions that a list of requirements asks for, spelled in one way."""
    return {spelled(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def spelled(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def required(files: list[Path]) -> set[str]:
    """Distributions that Python files import by name, inside functions too."""
    owners = packages_distributions()
    tops = {name.split(".")[0] for path in files for name in imports(path)} - {"atelier", *sys.stdlib_module_names}
    return {spelled(owners.get(top, [top])[0]) for top in tops}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module


def test_what_is_imported_is_declared_and_nothing_else() -> None:
    declared = names(PROJECT["project"]["dependencies"])
    assert required(python_files(*ROOMS)) - set(EXTRAS) == declared


def test_what_only_an_extra_brings_is_in_that_extra() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert all(name in names(extras[extra]) for name, extra in EXTRAS.items())
    files = python_files("tests", "benchmarks")   # these import one another without `atelier.`
    own = {spelled(name) for path in files for name in path.relative_to(ROOT).with_suffix("").parts}
    assert required(files) - own <= names([*PROJECT["project"]["dependencies"], *extras["dev"], *extras["peers"]])


def test_pinned_versions_are_ones_that_are_asked_for() -> None:
    project = PROJECT["project"]
    asked = [Requirement(r) for r in [*project["dependencies"], *project["optional-dependencies"]["dev"]]]
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
            if not line.startswith("#")]   # fmt: skip
    specifiers = {spelled(r.name): r.specifier for r in asked}
    assert len(pins) > 10
    for pin in pins:
        [version] = [s.version for s in pin.specifier]
        assert specifiers[spelled(pin.name)].contains(version), f"constraints.txt pins {pin}"


def test_every_package_is_listed() -> None:
    folders = {path.parent for path in python_files(*ROOMS, "assets")}
    packages = {".".join(("atelier", *folder.relative_to(ROOT).parts)) for folder in folders}
    assert sorted(packages) == sorted(PROJECT["tool"]["setuptools"]["packages"])


def test_it_goes_by_one_name() -> None:
    assert PROJECT["project"]["name"] == DISTRIBUTION


# --- the wheel --------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what belongs to it, so that the build leaves nothing in the tree."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "assets", *ROOMS):
        (source / name).symlink_to(ROOT / name)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    [path] = out.glob("*.whl")
    return path


def test_the_wheel_holds_every_file_of_the_rooms_and_of_the_assets(wheel: Path) -> None:
    files = {path for path in [*python_files(*ROOMS), *(ROOT / "assets").rglob("*")]
             if path.is_file() and "__pycache__" not in path.parts}   # fmt: skip
    packed = set(zipfile.ZipFile(wheel).namelist())
    inside = {name for name in packed if name.startswith("atelier/")}
    assert inside == {f"atelier/{path.relative_to(ROOT).as_posix()}" for path in files}
    assert {name.rpartition("/")[2] for name in packed - inside} >= {"LICENSE", "NOTICE", "entry_points.txt"}


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Path:
    """An environment with the wheel in it, which borrows the libraries of the one that runs the tests."""
    place = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    python = place / "bin" / "python"
    install = ["-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, *install], check=True)
    [packages] = place.glob("lib/python*/site-packages")
    # A line of a .pth adds a folder without reading the .pth files in it, such as that of our editable installation.
    (packages / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return place


@pytest.mark.slow
def test_what_the_wheel_installs_trains_and_draws(installed: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(program: str, *arguments: str) -> str:
        return subprocess.run([installed / "bin" / program, *arguments], cwd=tmp_path, env=environment, check=True,
                              stdout=subprocess.PIPE, text=True).stdout   # fmt: skip

    assets = Path(run("python", "-c", "from atelier.training.config.assets import ASSETS; print(ASSETS)").strip())
    assert assets.is_relative_to(installed)
    assert "base" in json.loads(run("atelier", "doctor", "--json"))   # the embedded one, where it is whole
    run("atelier", "train", f"{assets}/examples/fox", "--name", "rex", "--subject", "fox", "--steps", "2")
    [drawn] = json.loads(run("atelier", "draw", "a rex fox", "--adapter", "rex", "--steps", "2", "--json"))
    with Image.open(drawn["path"]) as picture:
        recipe = json.loads(picture.text["atelier"])
    assert picture.size == (64, 64)
    assert recipe["version"] == PROJECT["project"]["version"]
