"""How a width is split: into modes for tensor networks, into heads and blocks for Kronecker products."""

from __future__ import annotations

from functools import cache


@cache
def divisors(n: int) -> tuple[int, ...]:
    """All divisors of ``n``, smallest first.

    >>> divisors(12)
    (1, 2, 3, 4, 6, 12)
    """
    return tuple(d for d in range(1, n + 1) if n % d == 0)


@cache
def modes(n: int) -> tuple[int, int, int]:
    """Three factors of ``n`` with the smallest sum, so that tensor cores over them are smallest; smallest first.

    >>> modes(320), modes(1280), modes(11)
    ((5, 8, 8), (8, 10, 16), (1, 1, 11))
    """
    triples = ((a, b, n // a // b) for a in divisors(n) for b in divisors(n // a) if a <= b <= n // a // b)
    return min(triples, key=sum)


def largest_divisor(n: int, most: int) -> int:
    """The largest divisor of ``n`` that is at most ``most``: how many equal heads or blocks it has.

    >>> largest_divisor(320, 8), largest_divisor(30, 8), largest_divisor(11, 8)
    (8, 6, 1)
    """
    return max(d for d in divisors(n) if d <= most)
