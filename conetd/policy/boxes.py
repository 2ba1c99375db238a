"""Which disjoint boxes cover the same packets as a pile of overlapping ones.

nftables' concatenated interval sets (pipapo) take only elements that overlap none of the others, so what rules
allow is cut into disjoint boxes first. Cutting can explode: n wide-and-flat boxes crossing n narrow-and-tall ones
make n² pieces. A box that would be cut into many is therefore kept whole for a further layer, a set of its own.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

_PIECES = 8  # a box cut into more than this goes to the next layer, where twice as many are allowed


class Box(NamedTuple):
    """Packets of one IP version by protocol, destination address and destination port; all ends are included.

    A box of a set without ports has the ports 0 to 65535.
    """

    protocol_first: int
    protocol_last: int
    address_first: int
    address_last: int
    port_first: int = 0
    port_last: int = 65535


Span = tuple[int, int]
Rectangle = tuple[int, int, int, int]  # address first and last, port first and last


def merge(spans: Iterable[Span]) -> list[Span]:
    """The same integers as sorted spans that neither overlap nor touch. Reversed spans hold none."""
    merged: list[Span] = []
    end = -2
    for first, last in sorted(spans):
        if first > last:
            continue
        if first <= end + 1 and merged:
            if last > end:
                merged[-1] = (merged[-1][0], last)
                end = last
        else:
            merged.append((first, last))
            end = last
    return merged


def subtract(spans: Sequence[Span], holes: Sequence[Span]) -> list[Span]:
    """What of the spans lies in none of the holes. Both as `merge` returns them, and so is the result."""
    if not holes:
        return list(spans)
    left: list[Span] = []
    number = 0
    for first, last in spans:
        while number < len(holes) and holes[number][1] < first:
            number += 1
        at = number
        while at < len(holes) and holes[at][0] <= last:
            if holes[at][0] > first:
                left.append((first, holes[at][0] - 1))
            first = holes[at][1] + 1
            at += 1
        if first <= last:
            left.append((first, last))
    return left


def covers(spans: Sequence[Span], first: int, last: int) -> bool:
    """Whether one of the spans, as `merge` returns them, holds all of first to last."""
    at = bisect_right(spans, first, key=lambda span: span[0]) - 1
    return at >= 0 and spans[at][1] >= last


def layers(rectangles: Iterable[Rectangle]) -> list[list[Rectangle]]:
    """The same area as lists of rectangles that are disjoint within each list. The first list holds most of it."""
    left = _joined(rectangles)
    found: list[list[Rectangle]] = []
    pieces = _PIECES
    while left:
        if len(left) == 1:
            found.append(left)
            break
        disjoint, left = _sweep(left, pieces)
        found.append(disjoint)
        pieces *= 2
    return found


def _joined(rectangles: Iterable[Rectangle]) -> list[Rectangle]:
    """Join rectangles of the same addresses, then those of the same ports: what documents mostly consist of."""
    by_address: dict[Span, list[Span]] = {}
    for first, last, low, high in rectangles:
        by_address.setdefault((first, last), []).append((low, high))
    by_ports: dict[Span, list[Span]] = {}
    for addresses, ports in by_address.items():
        for span in merge(ports) if len(ports) > 1 else ports:
            by_ports.setdefault(span, []).append(addresses)
    return sorted(
        (first, last, low, high)
        for (low, high), addresses in by_ports.items()
        for first, last in (merge(addresses) if len(addresses) > 1 else addresses)
    )


def _sweep(rectangles: Sequence[Rectangle], pieces: int) -> tuple[list[Rectangle], list[Rectangle]]:
    """Cut the rectangles, sorted by first address, into disjoint ones; also return those it left for later.

    Going up the addresses, ports in force are sets of bits (one bit for each stretch between two port borders), and
    how many rectangles cover each port is counted in binary, one integer for each digit of all counters: a step
    costs a few operations on long integers however many rectangles are open.
    """
    borders = sorted({port for _, _, low, high in rectangles for port in (low, high + 1)})
    index = {port: number for number, port in enumerate(borders)}
    counters: list[int] = []
    union = 0
    open_pieces: list[tuple[int, int, int]] = []  # sorted: first bit, bit behind the last, first address
    ends: list[tuple[int, int]] = []  # heap: last address, mask
    done: list[Rectangle] = []
    later: list[Rectangle] = []

    def close(last: int, mask: int) -> int:
        remaining = _decrement(counters, mask)
        for low, high in _runs(union & ~remaining):
            at = bisect_left(open_pieces, (low, 0, 0))
            while at and open_pieces[at - 1][1] > low:
                at -= 1
            while at < len(open_pieces) and open_pieces[at][0] < high:
                start, stop, since = open_pieces.pop(at)
                done.append((since, last, borders[start], borders[stop] - 1))
                for one, behind in _runs(remaining & ((1 << stop) - (1 << start))):
                    open_pieces.insert(at, (one, behind, last + 1))
                    at += 1
        return remaining

    for rectangle in rectangles:
        first, last, low, high = rectangle
        while ends and ends[0][0] < first:
            union = close(*heappop(ends))
        mask = (1 << index[high + 1]) - (1 << index[low])
        added = mask & ~union
        if (added & ~(added << 1)).bit_count() > pieces:
            later.append(rectangle)
            continue
        for one, behind in _runs(added):
            insort(open_pieces, (one, behind, first))
        union |= mask
        _increment(counters, mask)
        heappush(ends, (last, mask))
    while ends:
        union = close(*heappop(ends))
    return [piece for piece in done if piece[0] <= piece[1]], later


def _runs(bits: int) -> Iterator[Span]:
    """Where stretches of set bits begin, and the bit behind their end."""
    while bits:
        low = bits & -bits
        carried = bits + low  # clears the lowest stretch and sets the bit behind it
        yield low.bit_length() - 1, (carried & -carried).bit_length() - 1
        bits &= carried


def _increment(counters: list[int], carry: int) -> None:
    for digit, value in enumerate(counters):
        counters[digit] = value ^ carry
        carry &= value
        if not carry:
            return
    counters.append(carry)


def _decrement(counters: list[int], borrow: int) -> int:
    """Take one from the counters of these bits; return which are still above nought."""
    union = 0
    for digit, value in enumerate(counters):
        if borrow:
            counters[digit] = value ^ borrow
            borrow &= ~value
        union |= counters[digit]
    return union
