"""KV blocks as numbers: which are free, and how many sequences hold each. Plain Python, no JAX.

Block 0 is the null block: it is never handed out, and padding reads and writes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

NULL_BLOCK = 0


class BlockPool:
    """Reference-counted blocks 1 to num_blocks - 1.

    Args:
        num_blocks: blocks in the device's arrays, the null block included; at least 2.
        block_size: tokens per block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"num_blocks must be at least 2 (one is the null block), got {num_blocks}")
        self.block_size = block_size
        self.capacity = num_blocks - 1
        self._references = [0] * num_blocks
        # The block that was freed longest ago is handed out first.
        self._free: deque[int] = deque(range(1, num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now."""
        return len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks with one reference each, or None, and nothing taken, where fewer are free."""
        if count > len(self._free):
            return None
        blocks = [self._free.popleft() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """One more reference to each block.

        Raises:
            ValueError: a block is not allocated.
        """
        for block in blocks:
            if self._references[block] < 1:
                raise ValueError(f"block {block} is not allocated and cannot be shared")
            self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One reference less to each block; blocks without references become free.

        Raises:
            ValueError: a block is not allocated.
        """
        for block in blocks:
            if self._references[block] < 1:
                raise ValueError(f"block {block} is not allocated and cannot be released")
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free.append(block)
