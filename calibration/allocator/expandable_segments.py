"""The expandable segments of torch's caching allocator: one for each pool, to which memory is added page by page.

A segment is a range of addresses. A page of it has memory behind it from when a request first needs it until the
allocator, short of memory, gives back the pages on which nothing lies. Pages have 2 MiB in the small pool and 20 MiB in
the large one.
"""

from calibration.allocator.device_memory import DeviceMemory
from calibration.allocator.memory_blocks import Block, BlockPool
from profiles.overheads import overheads

# Torch takes 9/8 of the card's memory as addresses, and a second segment when they run out. More never run out.
_ADDRESSES = 1 << 60


class ExpandableSegments:
    """The segment of each pool.

    `max_split_size` is torch's setting in bytes; here it only forbids that a smaller request takes a larger block.
    """

    def __init__(self, device: DeviceMemory, max_split_size: int | None) -> None:
        self._device = device
        self._max_split_size = max_split_size
        self._facts = overheads().allocator

    def find(self, pool: BlockPool, size: int) -> Block | None:
        """The smallest free block for `size` bytes (get_free_block).

        A block before unmapped addresses counts as large as it can become, so the end of the segment is used last.
        """
        candidates = pool.at_least(size)
        block = next(candidates, None)
        if block is None:
            return None
        for other in candidates:
            if _expandable_bytes(other) >= _expandable_bytes(block):
                break
            block = other
        return block if self._may_hold(block, size) else None

    def grow(self, pool: BlockPool, size: int) -> Block | None:
        """A free block of at least `size` bytes, made by mapping pages behind the lowest addresses that have room.

        None where the driver has no more; pages mapped until then stay (try_allocate_expandable_block).
        """
        room = self._room(pool, size)
        block = room if room.mapped else self._map(room, size)
        while block is not None and block.size < size:
            assert block.after is not None, "room ends at an allocated block"
            block = self._map(block.after, size - block.size)
        return block

    def splits(self, block: Block, size: int) -> bool:
        """Whether what `size` bytes leave of the block serves other requests (should_split)."""
        return block.size - size >= self._facts.block_bytes

    def release_oversize(self, _pool: BlockPool, _size: int) -> bool:
        """False: blocks of an expandable segment do not go back one by one (release_available_cached_blocks)."""
        return False

    def release(self, pool: BlockPool) -> None:
        """Unmap every page on which nothing lies (release_blocks)."""
        for block in pool.blocks():
            self._unmap(block)

    def collect_garbage(self, _pool: BlockPool, _target_bytes: int) -> None:
        """Do nothing: expandable segments are left out (garbage_collect_cached_blocks)."""

    def _may_hold(self, block: Block, size: int) -> bool:
        """Torch applies the rules for large blocks here too, although it splits them (pytorch/pytorch#193400)."""
        if self._max_split_size is None:
            return True
        if size < self._max_split_size:
            return block.size < self._max_split_size
        return block.size < size + self._facts.large_segment_bytes

    def _room(self, pool: BlockPool, size: int) -> Block:
        """The first of neighbours, free or unmapped, that together have `size` bytes (find_expandable_block)."""
        for unmapped in pool.unmapped():
            before = unmapped.before
            first = before if before is not None and before.free else unmapped
            if _has_room(first, size):
                return first
        segment = Block(0, _ADDRESSES, pool, mapped=False)
        pool.add(segment)
        return segment

    def _map(self, block: Block, size: int) -> Block | None:
        """Put pages behind the first `size` bytes of an unmapped block; the free block that they are in (map_block)."""
        page = self._page_bytes(block.pool)
        num_bytes = -(-min(size, block.size) // page) * page
        if not self._device.take(num_bytes):
            return None
        block.pool.remove(block)
        if num_bytes < block.size:
            block.pool.add(block.cut(num_bytes))
        block.mapped = True
        block.absorb(block.before)
        block.absorb(block.after)
        block.pool.add(block)
        return block

    def _unmap(self, block: Block) -> None:
        """Take the whole pages out of a free block (unmap_block)."""
        page = self._page_bytes(block.pool)
        start, end = -(-block.address // page) * page, block.end // page * page
        if start >= end:
            return
        block.pool.remove(block)
        if end < block.end:
            block.pool.add(block.cut(end - block.address))
        if block.address < start:
            head, block = block, block.cut(start - block.address)
            head.pool.add(head)
        self._device.give_back(block.size)
        block.mapped = False
        block.absorb(block.before)
        block.absorb(block.after)
        block.pool.add(block)

    def _page_bytes(self, pool: BlockPool) -> int:
        return self._facts.small_segment_bytes if pool.is_small else self._facts.large_segment_bytes


def _expandable_bytes(block: Block) -> int:
    """The size of a block together with the unmapped addresses behind it."""
    after = block.after
    return block.size + (after.size if after is not None and not after.mapped else 0)


def _has_room(block: Block | None, size: int) -> bool:
    """Whether this block and those behind it, as far as they are not allocated, have `size` bytes."""
    while block is not None and block.free and size > 0:
        size -= block.size
        block = block.after
    return size <= 0
