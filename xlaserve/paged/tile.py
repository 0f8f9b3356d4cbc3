"""How much KV one step of the tiled loop over a context reads. Imports no JAX: the plan of memory counts with it before any tracing."""

from __future__ import annotations

TILE_TOKENS = 2048
"""Tokens of KV that one step reads over all rows; larger tiles spill the caches, smaller ones pay the loop."""

LONGEST_TILE = 512
"""Tokens of KV that one step reads of a row at most."""


def tile_blocks(rows: int, width: int, block_size: int) -> int:
    """Blocks that one step reads of each of `rows` tables `width` blocks wide."""
    return min(width, max(1, TILE_TOKENS // (rows * block_size)), max(1, LONGEST_TILE // block_size))
