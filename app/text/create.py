"""Sentences of the Create page that have a word in them; those without are in words.py."""

from __future__ import annotations


def word_with_meaning(word: str) -> str:
    """Why a word is not the best to call an adapter by.

    >>> word_with_meaning("fox")
    '“fox” means something to the base model already. That is fine alone; in a mix it pushes other things aside.'
    """
    return f"“{word}” means something to the base model already. That is fine alone; in a mix it pushes other things " \
           "aside."


def call_it(word: str) -> str:
    """A button with a better word."""
    return f"Call it “{word}” in prompts: that means nothing yet"


def called_by(word: str) -> str:
    """Said where an adapter is called by another word than its name."""
    return f"In a prompt, “{word}” calls it."
