"""PyTorch's CUDA caching allocator on one stream of one card: what it takes from the driver for what a run asks of it.

A model of c10/cuda/CUDACachingAllocator.cpp (read at pytorch/pytorch@001074d and ROCm/pytorch@08b2238; constants of
torch 2.13). What follows a function of torch names it. Left out: other streams, memory pools of CUDA graphs, rounding
to powers of two.
"""

from dataclasses import dataclass

from calibration.allocator.cuda_segments import CudaSegments
from calibration.allocator.device_memory import DeviceMemory
from calibration.allocator.expandable_segments import ExpandableSegments
from calibration.allocator.memory_blocks import Block, BlockPool
from planner.memory.tape import rounded
from profiles.overheads import overheads


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of `PYTORCH_ALLOC_CONF` that decide how much is reserved, and the size of the card.

    `max_split_size` is in bytes, as is `capacity`: what the driver can give to the allocator, which is the memory of
    the card less the context and what other processes hold. None: without limit. As in torch, garbage is collected
    only under a limit.
    """

    expandable_segments: bool = False
    max_split_size: int | None = None
    garbage_collection_threshold: float | None = None
    capacity: int | None = None

    def __post_init__(self) -> None:
        threshold, least = self.garbage_collection_threshold, overheads().allocator.large_segment_bytes
        if threshold is not None and not 0 < threshold < 1:
            raise ValueError(f"garbage_collection_threshold is {threshold}, but is a share between 0 and 1")
        if self.max_split_size is not None and self.max_split_size < least:
            raise ValueError(f"max_split_size is {self.max_split_size}, but torch takes no less than {least} bytes")
        if self.capacity is not None and self.capacity < 0:
            raise ValueError(f"capacity is {self.capacity}, but a card has no less than 0 bytes")


@dataclass(frozen=True, slots=True)
class Peak:
    """The most bytes in blocks that are in use, and the most taken from the driver; not always at one moment."""

    allocated: int
    reserved: int


class CachingAllocator:
    """The state of the allocator.

    `allocated` is the bytes of the blocks in use; `retries` counts how often the cache was emptied to go on.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.allocated = 0
        self.retries = 0
        self._peak_allocated = 0
        self._small_request_bytes = overheads().allocator.small_request_bytes
        self._small = BlockPool(is_small=True)
        self._large = BlockPool(is_small=False)
        self._device = DeviceMemory(settings.capacity)
        segments = ExpandableSegments if settings.expandable_segments else CudaSegments
        self._segments: CudaSegments | ExpandableSegments = segments(self._device, settings.max_split_size)

    @property
    def reserved(self) -> int:
        """Bytes taken from the driver, and not given back."""
        return self._device.reserved

    def allocate(self, num_bytes: int) -> Block | None:
        """A block for `num_bytes` (at least one), or None where memory has run out (malloc)."""
        size = rounded(num_bytes)
        pool = self._small if size <= self._small_request_bytes else self._large
        pool.num_requests += 1
        block = self._segments.find(pool, size) or self._new_block(pool, size)
        if block is None:
            return None
        pool.remove(block)
        if self._segments.splits(block, size):
            pool.add(block.cut(size))
        block.free = False
        self.allocated += block.size
        self._peak_allocated = max(self._peak_allocated, self.allocated)
        return block

    def free(self, block: Block) -> None:
        """Give a block back to its pool, joined with its free neighbours (free_block)."""
        self.allocated -= block.size
        block.free = True
        block.absorb(block.before)
        block.absorb(block.after)
        block.pool.add(block)

    def empty_cache(self) -> None:
        """Return to the driver what no block needs, as `torch.cuda.empty_cache()` does (release_cached_blocks)."""
        self._segments.release(self._large)
        self._segments.release(self._small)

    def free_blocks(self) -> list[Block]:
        """The blocks that are cached, smallest first, of the small pool and then of the large one."""
        return self._small.blocks() + self._large.blocks()

    def peak(self) -> Peak:
        """The peaks since this was last called; those that follow start from what is held now."""
        peak = Peak(self._peak_allocated, self._device.peak)
        self._peak_allocated = self.allocated
        self._device.forget_peak()
        return peak

    def _new_block(self, pool: BlockPool, size: int) -> Block | None:
        """A block from the driver; failing that, blocks go back to it first: some of the largest, then all."""
        self._collect_garbage()
        block = self._segments.grow(pool, size)
        if block is None and self._segments.release_oversize(pool, size):
            block = self._segments.grow(pool, size)
        if block is None:
            self.retries += 1
            self.empty_cache()
            block = self._segments.grow(pool, size)
        return block

    def _collect_garbage(self) -> None:
        threshold, capacity = self.settings.garbage_collection_threshold, self.settings.capacity
        if threshold is None or capacity is None:
            return
        excess = self.reserved - int(threshold * capacity)
        if excess > 0:
            self._segments.collect_garbage(self._large, excess)
