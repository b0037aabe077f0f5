"""How long the rows of a data set are, and what that means for a run: padding, packing, what a length cuts."""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil

from profiles.errors import ConfigError

LENGTH_STEP = 64
"""Lengths are rounded up to a multiple of this, which suits the tiles of matrix products."""

WHOLE_SHARE = 0.99
LONG_TAIL = 1.5
"""If the longest row is longer than this many times the length that keeps 99 % of the rows whole, it is not waited for:
memory would be kept free in every step for a row that nearly never comes."""


@dataclass(frozen=True)
class DataLengths:
    """Tokens of the rows of a data set, as pairs (tokens, number of rows), the shortest first."""

    counts: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if not self.counts:
            raise ConfigError("the data has no rows")

    @classmethod
    def of(cls, lengths: Iterable[int]) -> "DataLengths":
        """Those of rows with these numbers of tokens."""
        return cls.counted(Counter(lengths))

    @classmethod
    def counted(cls, counts: Mapping[int, int]) -> "DataLengths":
        """Those of `counts`, the number of rows by tokens."""
        return cls(tuple(sorted(counts.items())))

    @cached_property
    def num_rows(self) -> int:
        """All rows."""
        return sum(count for _, count in self.counts)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return self.counts[-1][0]

    def percentile(self, share: float) -> int:
        """Tokens that this share of the rows does not exceed."""
        wanted, seen = share * self.num_rows, 0
        for length, count in self.counts:
            seen += count
            if seen >= wanted:
                return length
        return self.longest

    def num_tokens(self, max_length: int) -> int:
        """Tokens of all rows, each cut to `max_length`."""
        return sum(min(length, max_length) * count for length, count in self.counts)

    def mean(self, max_length: int) -> float:
        """Tokens of an average row, cut to `max_length`."""
        return self.num_tokens(max_length) / self.num_rows

    def num_cut(self, max_length: int) -> int:
        """Rows that lose tokens at `max_length`."""
        return sum(count for length, count in self.counts if length > max_length)

    def share_cut(self, max_length: int) -> float:
        """Share of the rows that lose tokens at `max_length`."""
        return self.num_cut(max_length) / self.num_rows

    def expected_longest(self, batch: int, max_length: int) -> float:
        """Tokens to which a random batch of `batch` rows is padded, on average."""
        expected, below, seen = 0.0, 0.0, 0
        for length, count in self.counts:
            seen += count
            upto = (seen / self.num_rows) ** batch
            expected += min(length, max_length) * (upto - below)
            below = upto
        return expected

    def num_packed(self, max_length: int) -> int:
        """Rows of up to `max_length` tokens that best-fit decreasing, TRL's way to pack, makes of all rows."""
        cut: Counter[int] = Counter()
        for length, count in self.counts:
            cut[min(length, max_length)] += count
        room: Counter[int] = Counter()
        rooms: list[int] = []  # the keys of `room`, sorted
        packed = 0
        for length, count in sorted(cut.items(), reverse=True):
            left = count
            while left:
                place = bisect_left(rooms, length)
                if place == len(rooms):
                    # Nothing has room: new rows, each filled with as many of this length as it holds.
                    new = ceil(left / (max_length // length))
                    packed += new
                    full, rest = divmod(left, max_length // length)
                    _add(room, rooms, max_length - length * (max_length // length), full)
                    _add(room, rooms, max_length - length * rest, 1 if rest else 0)
                    break
                space = rooms[place]
                taken = min(left, room[space])
                _take(room, rooms, space, taken)
                _add(room, rooms, space - length, taken)
                left -= taken
        return packed


def _add(room: Counter[int], rooms: list[int], space: int, count: int) -> None:
    if count and space:
        if not room[space]:
            insort(rooms, space)
        room[space] += count


def _take(room: Counter[int], rooms: list[int], space: int, count: int) -> None:
    room[space] -= count
    if not room[space]:
        rooms.remove(space)


@dataclass(frozen=True, slots=True)
class ProposedLength:
    """A `max_length` for a data set, and the reason."""

    max_length: int
    why: str


def proposed_length(lengths: DataLengths, limit: int | None = None) -> ProposedLength:
    """The shortest length that cuts no row, or nearly none where a few rows are far longer than the rest.

    It is never more than `limit`, the positions of the model.
    """
    whole, most = _rounded(lengths.longest), _rounded(lengths.percentile(WHOLE_SHARE))
    if limit is not None and most > limit:
        cut = lengths.num_cut(limit)
        return ProposedLength(limit, f"the model has no more positions; cuts {cut:,} of {lengths.num_rows:,} rows")
    if whole <= LONG_TAIL * most and (limit is None or whole <= limit):
        return ProposedLength(whole, f"cuts no row; the longest has {lengths.longest:,} tokens")
    cut = lengths.num_cut(most)
    return ProposedLength(
        most,
        f"cuts {cut:,} of {lengths.num_rows:,} rows; to keep the longest whole, {lengths.longest:,} tokens, "
        f"memory would be kept for rows {lengths.longest / most:.1f} times as long",
    )


def _rounded(length: int) -> int:
    return ceil(length / LENGTH_STEP) * LENGTH_STEP
