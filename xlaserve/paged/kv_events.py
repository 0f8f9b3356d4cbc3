"""What becomes findable in the KV cache and what is lost, for routers that send requests to where their prefix is. Plain Python, no JAX.

Events have vLLM's fields (`vllm/distributed/kv_events.py`). A block is named by the last 8 bytes of its digest, as an unsigned number.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

MEDIUM = "GPU"
"""vLLM's word for a device's own memory, whatever device: routers weigh media by name."""


class BlockStored(msgspec.Struct, tag=True, gc=False):
    """A run of blocks can be found from now on.

    Args:
        block_hashes: their names, in the order of the prefix.
        parent_block_hash: the block before the first; None at the start of a prefix.
        token_ids: of all of them.
        block_size: tokens of each.
        lora_id, lora_name: of the adapter; None where there is none.
        medium: where they are.
    """

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = MEDIUM
    lora_name: str | None = None


class BlockRemoved(msgspec.Struct, tag=True, gc=False):
    """Blocks cannot be found any more: others are written in their place."""

    block_hashes: list[int]
    medium: str | None = MEDIUM


class AllBlocksCleared(msgspec.Struct, tag=True, gc=False):
    """No block can be found."""


KVEvent = BlockStored | BlockRemoved | AllBlocksCleared


class KVEventLog:
    """Collects the events of an iteration.

    Args:
        publish: gets them, in their order, when the iteration has been decided; must not block.
        block_size: tokens per block.
    """

    def __init__(self, publish: Callable[[list[KVEvent]], None], block_size: int) -> None:
        self._publish = publish
        self._block_size = block_size
        self._events: list[KVEvent] = []

    def stored(self, digest: bytes, parent: bytes | None, tokens: list[int]) -> None:
        """A block can be found; consecutive ones become one event."""
        name, before = block_name(digest), None if parent is None else block_name(parent)
        last = self._events[-1] if self._events else None
        if isinstance(last, BlockStored) and last.block_hashes[-1] == before:
            last.block_hashes.append(name)
            last.token_ids += tokens
        else:
            self._events.append(BlockStored([name], before, tokens, self._block_size))

    def removed(self, digest: bytes) -> None:
        """A block is lost; successive ones become one event."""
        last = self._events[-1] if self._events else None
        if isinstance(last, BlockRemoved):
            last.block_hashes.append(block_name(digest))
        else:
            self._events.append(BlockRemoved([block_name(digest)]))

    def cleared(self) -> None:
        """All are lost."""
        self._events.append(AllBlocksCleared())

    def flush(self) -> None:
        """Hand on what has happened since the last time, if anything."""
        if self._events:
            events, self._events = self._events, []
            self._publish(events)


def block_name(digest: bytes) -> int:
    """What routers know a block by: vLLM's cut of a hash to 64 bits."""
    return int.from_bytes(digest[-8:], "big")
