"""What the named API says where a value can't be used. Its endpoints' descriptions are their docstrings."""

from __future__ import annotations

STARTED_FROM = "It was drawn from a picture: give that to start."


def not_a_table(name: str, example: str) -> str:
    """A value that is no table of names and values.

    >>> not_a_table("adapters", "{'rex': 0.8}")
    "adapters must be a table of names and values, such as {'rex': 0.8}."
    """
    return f"{name} must be a table of names and values, such as {example}."


def not_a_number(name: str, value: object) -> str:
    """A value that is no finite number."""
    return f"{name} is {value!r:.80}, but a number is needed."


def not_a_text(name: str) -> str:
    """A value that is no text."""
    return f"{name} must be a text."


def not_files(name: str) -> str:
    """A value that is no list of files."""
    return f"{name} must be files, each uploaded with gradio_client's handle_file()."


def no_command(given: object, known: str) -> str:
    """A command that jobs don't have."""
    return f"There is no command {given!r:.80}. The commands are: {known}."


def unknown_key(name: str, key: object, known: str) -> str:
    """A table has a name that means nothing."""
    return f"{name} has no {key!r:.80}. It can have: {known}."


def wrong_regions(why: str) -> str:
    """Parts of a picture whose prompts can't be read."""
    return (f"The regions can't be used: {why[:200]}. Give a list such as "
            "[{'prompt': 'a red fox', 'region': [0, 0, 0.5, 1]}].")   # fmt: skip


def wrong_adapter(name: str, why: str) -> str:
    """An adapter of a drawing whose details can't be read."""
    return (f"The adapter {name!r:.80} can't be used: {why[:200]}. A number is its strength; or give a table such as "
            "{'strength': 0.8, 'blocks': {'mid': 0}, 'curve': [0, 1, 1]}.")
