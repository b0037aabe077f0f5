"""The memory of a card as its driver hands it out to the caching allocator."""

from dataclasses import dataclass


@dataclass(slots=True)
class DeviceMemory:
    """What the driver can give at most (None: any amount), what the allocator has, and the most that it had; bytes."""

    capacity: int | None = None
    reserved: int = 0
    peak: int = 0

    def take(self, num_bytes: int) -> bool:
        """Whether the driver gives `num_bytes` more."""
        if self.capacity is not None and self.reserved + num_bytes > self.capacity:
            return False
        self.reserved += num_bytes
        self.peak = max(self.peak, self.reserved)
        return True

    def give_back(self, num_bytes: int) -> None:
        """Return memory to the driver."""
        self.reserved -= num_bytes

    def forget_peak(self) -> None:
        """Let the peak start from what is held now."""
        self.peak = self.reserved
