"""What single arguments of the command line may be: each function is an argparse ``type``."""

from __future__ import annotations

import argparse


def key_value(text: str) -> tuple[str, str]:
    """A setting and its value as text, of ``rank=16``."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE, such as rank=16")
    return key, value


def picture_weight(text: str) -> tuple[str, float]:
    """A file and how often it is trained on, of ``rex.jpg=2``."""
    name, _, weight = text.rpartition("=")
    value = number(weight)
    if not name or not 0.001 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form FILE=WEIGHT; use a picture's file name and a "
                                         "number from 0.001 to 1000, such as rex.jpg=2")
    return name, value


def adapter_strength(text: str) -> tuple[str, float]:
    """An adapter and how strongly it acts, of ``rex`` or ``rex=0.8``."""
    name, _, strength = text.partition("=")
    value = number(strength or "1")
    if not abs(value) <= 100:   # also refuses nan
        raise argparse.ArgumentTypeError(f"{strength!r} is not a strength; use a number from -100 to 100 (0 is off, 1 "
                                         "is as trained)")
    return name, value


def number(text: str) -> float:
    """The number that a text stands for; nan when it is none."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def fraction(text: str) -> float:
    """A share above 0 and up to 1."""
    share = number(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share; use a number above 0 and up to 1")
    return share


def rank(text: str) -> int:
    """A whole number from 1 to 1024."""
    if not text.isdecimal() or not 0 < int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rank; use a whole number from 1 to 1024, such as 16")
    return int(text)


def size(text: str) -> tuple[int, int]:
    """Width and height in pixels, of ``512x512``."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write WIDTHxHEIGHT in pixels, such as 512x512")
    return int(width), int(height)


def member_weight(text: str) -> tuple[str, float | None]:
    """An adapter of a team and how much it counts, of ``rex-anna`` or ``rex-anna=12``."""
    name, equals, weight = text.partition("=")
    if not name or (equals and not 0 < number(weight) < float("inf")):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME or NAME=WEIGHT; use an adapter's name and "
                                         "a number above 0, such as rex-anna=12")
    return name, number(weight) if equals else None


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or not 0 < int(text) < 10**12:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of values; use a whole number above 0, such "
                                         "as 20000")
    return int(text)
