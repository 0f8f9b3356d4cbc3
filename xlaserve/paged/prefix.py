"""Names for KV blocks by what they hold: a digest over all tokens up to a block's end and over what else its KV depends on.

Two blocks with one digest hold the same KV, as sure as blake2b with 256 bits has no collisions. Plain Python, no JAX.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

DIGEST_BYTES = 32


def root_digest(*keys: str) -> bytes:
    """Where the chain of a sequence begins.

    Args:
        keys: what the KV of all its blocks depends on, or who may share it, besides the tokens: a salt, an adapter's name.
    """
    return blake2b(b"".join(_framed(key.encode("utf-8", "surrogatepass")) for key in keys), digest_size=DIGEST_BYTES).digest()


def chain(parent: bytes, tokens: Sequence[int], block_size: int, extra: bytes = b"") -> list[bytes]:
    """Digests of the full blocks that follow a block.

    Args:
        parent: digest of the block before the first, or the root.
        tokens: token ids from that block's end on, below 2^31; what fills no block is left out.
        block_size: tokens per block.
        extra: what these blocks hold besides token ids, such as the hash of an image that stands in them.
    """
    step = 4 * block_size
    data = array("i", tokens).tobytes()
    framed = _framed(extra)
    digests: list[bytes] = []
    for at in range(0, len(data) - step + 1, step):
        parent = blake2b(parent + framed + data[at : at + step], digest_size=DIGEST_BYTES).digest()
        digests.append(parent)
    return digests


def _framed(key: bytes) -> bytes:
    return len(key).to_bytes(4, "little") + key
