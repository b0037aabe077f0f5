"""Segments of device memory that torch's caching allocator gets from cudaMalloc: each is a piece of its own."""

from calibration.allocator.device_memory import DeviceMemory
from calibration.allocator.memory_blocks import Block, BlockPool
from profiles.overheads import overheads

_TOP = 1 << 60
"""Above all addresses that are ever taken."""


class CudaSegments:
    """Segments from cudaMalloc, which grow by whole segments and shrink by those that are free as a whole.

    `max_split_size` is torch's setting in bytes: larger blocks are not split, and go back to the driver first.
    """

    def __init__(self, device: DeviceMemory, max_split_size: int | None) -> None:
        self._device = device
        self._max_split_size = max_split_size
        self._facts = overheads().allocator
        self._bottom = 0
        self._top = _TOP

    def find(self, pool: BlockPool, size: int) -> Block | None:
        """The smallest free block for `size` bytes, where it may be used for them (get_free_block)."""
        block = next(pool.at_least(size), None)
        if block is None or self._max_split_size is None:
            return block
        if size < self._max_split_size:
            return block if block.size < self._max_split_size else None
        # max_non_split_rounding_size is by default the size of a large segment.
        return block if block.size < size + self._facts.large_segment_bytes else None

    def grow(self, pool: BlockPool, size: int) -> Block | None:
        """A new segment for `size` bytes, or None where the driver has no more (alloc_block)."""
        num_bytes = self._segment_bytes(pool, size)
        if not self._device.take(num_bytes):
            return None
        block = Block(self._address(num_bytes), num_bytes, pool)
        pool.add(block)
        return block

    def _address(self, num_bytes: int) -> int:
        """The address of a new segment, which only breaks ties between blocks of one size.

        The driver does not say how it chooses. In the runs of FIT on a T4 without quantization, all seven reserve to
        the MiB what is simulated if segments of their own size fall from above; if they rise, one is 9 % off.
        """
        if num_bytes not in (self._facts.small_segment_bytes, self._facts.large_segment_bytes):
            self._top -= num_bytes
            return self._top
        self._bottom += num_bytes
        return self._bottom - num_bytes

    def splits(self, block: Block, size: int) -> bool:
        """Whether what `size` bytes leave of the block serves other requests (should_split)."""
        rest = block.size - size
        if block.pool.is_small:
            return rest >= self._facts.block_bytes
        return (self._max_split_size is None or size < self._max_split_size) and rest > self._facts.small_request_bytes

    def release_oversize(self, pool: BlockPool, size: int) -> bool:
        """Whether enough went back for `size` bytes, of blocks too large to split (release_available_cached_blocks)."""
        if self._max_split_size is None:
            return False
        wanted = max(size, self._max_split_size)
        enough = next(pool.at_least(wanted), None)
        if enough is not None:
            self._release(enough)
            return True
        released = 0
        for block in reversed(pool.blocks()):
            if released >= wanted or block.size < self._max_split_size:
                break
            released += block.size
            self._release(block)
        return released >= wanted

    def release(self, pool: BlockPool) -> None:
        """Return every segment that is free as a whole (release_blocks)."""
        for block in pool.blocks():
            if block.whole:
                self._release(block)

    def collect_garbage(self, pool: BlockPool, target_bytes: int) -> None:
        """Return whole segments, those unused for the longest time first, until `target_bytes` are back.

        Each round returns what is at least as old as the average (garbage_collect_cached_blocks).
        """
        ages = {block: pool.num_requests - block.born for block in pool.blocks() if block.whole}
        while target_bytes > 0 and ages:
            threshold = sum(ages.values()) / len(ages)
            old = [block for block, age in ages.items() if age >= threshold]
            for block in old:
                target_bytes -= block.size
                del ages[block]
                self._release(block)

    def _segment_bytes(self, pool: BlockPool, size: int) -> int:
        """Bytes of a new segment for a request of `size` bytes (get_allocation_size)."""
        if pool.is_small:
            return self._facts.small_segment_bytes
        if size < self._facts.own_segment_from_bytes:
            return self._facts.large_segment_bytes
        grain = self._facts.own_segment_rounding_bytes
        return -(-size // grain) * grain

    def _release(self, block: Block) -> None:
        block.pool.remove(block)
        self._device.give_back(block.size)
