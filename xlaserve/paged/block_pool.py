"""KV blocks as numbers: which are free, how many sequences hold each, and which can be found by what they hold. Plain Python, no JAX.

Block 0 is the null block: it is never handed out, and padding reads and writes it. A free block that was published keeps its content
until it is handed out again: blank blocks go first, then published ones, the one that was freed longest ago first.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

from xlaserve.paged.kv_events import KVEventLog

NULL_BLOCK = 0


class BlockPool:
    """Reference-counted blocks 1 to num_blocks - 1.

    Args:
        num_blocks: blocks in the device's arrays, the null block included; at least 2.
        block_size: tokens per block.
        events: told of published blocks that are lost; None where nobody wants to know.
    """

    def __init__(self, num_blocks: int, block_size: int, events: KVEventLog | None = None) -> None:
        if num_blocks < 2:
            raise ValueError(f"num_blocks must be at least 2 (one is the null block), got {num_blocks}")
        self.block_size = block_size
        self.events = events
        self.capacity = num_blocks - 1
        self._references = [0] * num_blocks
        # The block that was freed longest ago is handed out first, in both.
        self._blank: deque[int] = deque(range(1, num_blocks))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._digests: list[bytes | None] = [None] * num_blocks
        self._published: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now."""
        return len(self._blank) + len(self._idle)

    @property
    def num_published(self) -> int:
        """Blocks that can be found, free or not."""
        return len(self._published)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    def references(self, block: int) -> int:
        """How many hold a block."""
        return self._references[block]

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks with one reference each, or None, and nothing taken, where fewer are free."""
        if count > len(self._blank) + len(self._idle):
            return None
        blocks = [self._blank.popleft() if self._blank else self._evict() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """One more reference to each block, whether it is held already or free and published.

        Raises:
            ValueError: a block is not allocated, and not published either.
        """
        for block in blocks:
            if self._references[block] < 1:
                if block not in self._idle:
                    raise ValueError(f"block {block} is not allocated and cannot be shared")
                del self._idle[block]
            self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One reference less to each block; blocks without references become free.

        Of several published blocks the first ones are handed out first: release a sequence's blocks from its end.

        Raises:
            ValueError: a block is not allocated.
        """
        for block in blocks:
            if self._references[block] < 1:
                raise ValueError(f"block {block} is not allocated and cannot be released")
            self._references[block] -= 1
            if self._references[block] == 0:
                if self._digests[block] is None:
                    self._blank.append(block)
                else:
                    self._idle[block] = None

    def publish(self, block: int, digest: bytes) -> bool:
        """Let `block` be found by what it holds. Where another block holds the same, that one stays the one to be found.

        Returns:
            Whether what it holds could not be found before.

        Raises:
            ValueError: the block is not allocated, or has been published.
        """
        if self._references[block] < 1:
            raise ValueError(f"block {block} is not allocated and cannot be published")
        if self._digests[block] is not None:
            raise ValueError(f"block {block} has been published")
        if digest in self._published:
            return False
        self._published[digest] = block
        self._digests[block] = digest
        return True

    def find(self, digests: Iterable[bytes]) -> list[int]:
        """The blocks of a chain, up to the first that is not there. They may be evicted until they are shared."""
        blocks: list[int] = []
        for digest in digests:
            block = self._published.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def holds(self, digest: bytes) -> bool:
        """Whether a block with this content can be found."""
        return digest in self._published

    def num_idle(self, blocks: Iterable[int]) -> int:
        """How many of these published blocks nobody holds: sharing them takes them from what is free."""
        return sum(1 for block in blocks if not self._references[block])

    def forget(self) -> None:
        """No block can be found any more; those that are held stay held."""
        for digest, block in self._published.items():
            assert self._digests[block] == digest
            self._digests[block] = None
        self._published.clear()
        self._blank.extend(self._idle)
        self._idle.clear()
        if self.events is not None:
            self.events.cleared()

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        digest = self._digests[block]
        assert digest is not None
        del self._published[digest]
        self._digests[block] = None
        if self.events is not None:
            self.events.removed(digest)
        return block
