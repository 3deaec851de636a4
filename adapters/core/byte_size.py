"""Numbers of bytes for people. A file of its own because every room writes some, and this is the room below all."""

_UNITS = ("B", "kB", "MB", "GB")
_DECIMALS = (0, 0, 1, 1)


def format_bytes(count: float) -> str:
    """A number of bytes in decimal units; megabytes and gigabytes with a decimal where it says something.

    >>> format_bytes(512), format_bytes(312_400), format_bytes(18_940_000), format_bytes(16_010_000_000)
    ('512 B', '312 kB', '18.9 MB', '16 GB')
    """
    power = 0
    while power < 3 and round(count, _DECIMALS[power]) >= 1000:
        count, power = count / 1000, power + 1
    return f"{count:.{_DECIMALS[power]}f}".removesuffix(".0") + f" {_UNITS[power]}"
