"""Pieces of device memory as torch's caching allocator keeps them, and the pool of those that are free."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Block:
    """`size` bytes at `address`, between the neighbours `before` and `after` of the same segment.

    Only an expandable segment has blocks that are not `mapped`: addresses with no memory behind them. `born` is the
    number of requests that its pool had seen when the block became free; garbage collection reckons its age from it.
    """

    address: int
    size: int
    pool: "BlockPool"
    free: bool = True
    mapped: bool = True
    before: "Block | None" = None
    after: "Block | None" = None
    born: int = 0

    @property
    def end(self) -> int:
        """The first address behind the block."""
        return self.address + self.size

    @property
    def whole(self) -> bool:
        """Whether the block is all of its segment."""
        return self.before is None and self.after is None

    def cut(self, size: int) -> "Block":
        """Shorten this block to `size` bytes; the rest, a neighbour like it that belongs to no list yet."""
        rest = Block(self.address + size, self.size - size, self.pool, self.free, self.mapped, self, self.after)
        if self.after is not None:
            self.after.before = rest
        self.after, self.size = rest, size
        return rest

    def absorb(self, neighbour: "Block | None") -> None:
        """Take in a neighbour if it is free and mapped, or not, as this block is (try_merge_blocks)."""
        if neighbour is None or not neighbour.free or neighbour.mapped != self.mapped:
            return
        neighbour.pool.remove(neighbour)
        if neighbour is self.before:
            self.address, self.before = neighbour.address, neighbour.before
            if self.before is not None:
                self.before.after = self
        else:
            self.after = neighbour.after
            if self.after is not None:
                self.after.before = self
        self.size += neighbour.size


class BlockPool:
    """The free blocks that serve small requests, or those that serve large ones."""

    def __init__(self, is_small: bool) -> None:
        self.is_small = is_small
        self.num_requests = 0
        self._free: list[tuple[int, int, Block]] = []
        self._unmapped: list[tuple[int, Block]] = []

    def add(self, block: Block) -> None:
        """Enter a free block."""
        if block.mapped:
            block.born = self.num_requests
            insort(self._free, (block.size, block.address, block))
        else:
            insort(self._unmapped, (block.address, block))

    def remove(self, block: Block) -> None:
        """Take out a block that is free."""
        if block.mapped:
            del self._free[bisect_left(self._free, (block.size, block.address))]
        else:
            del self._unmapped[bisect_left(self._unmapped, (block.address,))]

    def at_least(self, size: int) -> Iterator[Block]:
        """Mapped free blocks of at least `size` bytes: smallest first, then lowest address (BlockComparatorSize)."""
        free = self._free
        for position in range(bisect_left(free, (size,)), len(free)):
            yield free[position][2]

    def blocks(self) -> list[Block]:
        """All mapped free blocks, smallest first."""
        return [block for _, _, block in self._free]

    def unmapped(self) -> Iterator[Block]:
        """Blocks with no memory behind them, lowest address first."""
        return (block for _, block in self._unmapped)
