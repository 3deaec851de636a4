"""Caption templates: a sentence with places such as ``{trigger}`` and ``{subject}`` for words."""

from __future__ import annotations

import re

_SOUNDS_LIKE_YOU = ("uni", "use", "usu", "ufo", "uku", "eu", "one")   # a unicorn, a used cup, a euro


def article(words: str) -> str:
    """The indefinite article for the words that follow.

    >>> article("anchor"), article("unicorn"), article("umbrella"), article("house")
    ('an', 'a', 'an', 'a')
    """
    first = words.lower()
    return "an" if first[:1] in tuple("aeiou") and not first.startswith(_SOUNDS_LIKE_YOU) else "a"


def fill_template(template: str, **words: str) -> str:
    """Put each word where its name stands in braces; an article right before it fits it. Other braces stay.

    >>> fill_template("a {trigger} emoji of an {subject} on {grass}", trigger="ink", subject="fox")
    'an ink emoji of a fox on {grass}'
    >>> fill_template("a {trigger} {subject}", trigger="", subject="owl")
    'an owl'
    """
    for name, word in words.items():
        place = "{" + name + "}"
        if word:
            template = re.sub(rf"\b(a)n?(\s+{re.escape(place)})", rf"\1{article(word)[1:]}\2", template, flags=re.I)
            template = template.replace(place, word)
        else:
            template = re.sub(rf"{re.escape(place)}\s*", "", template)
    return template
