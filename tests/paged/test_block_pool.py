"""The block pool and the block tables against plain models: nothing is given out twice, nothing is lost, block 0 belongs to nobody."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.tooling.properties import examples
from xlaserve.paged.block_pool import NULL_BLOCK, BlockPool
from xlaserve.paged.block_tables import BlockTables


class PoolMachine(RuleBasedStateMachine):
    """Random use of a pool beside a dict of reference counts, and a dict of what can be found, longest unused first."""

    def __init__(self) -> None:
        super().__init__()
        self.num_blocks = 9
        self.pool = BlockPool(self.num_blocks, 16)
        self.counts: dict[int, int] = {}
        self.held: list[list[int]] = []
        self.published: dict[bytes, int] = {}
        self.idle: list[int] = []

    @rule(count=st.integers(0, 10))
    def allocate(self, count: int) -> None:
        free = self.num_blocks - 1 - len(self.counts)
        blocks = self.pool.allocate(count)
        if count > free:
            assert blocks is None
            return
        assert blocks is not None
        assert len(set(blocks)) == len(blocks) == count
        assert NULL_BLOCK not in blocks
        assert not set(blocks) & set(self.counts), "a block was given out twice"
        assert all(0 < block < self.num_blocks for block in blocks)
        blank = free - len(self.idle)
        evicted, self.idle = self.idle[: max(0, count - blank)], self.idle[max(0, count - blank) :]
        assert set(blocks) & set(evicted) == set(evicted), "the longest unused are evicted, and only when nothing else is free"
        assert not set(blocks) & set(self.idle)
        self.published = {digest: block for digest, block in self.published.items() if block not in evicted}
        self.counts.update(dict.fromkeys(blocks, 1))
        self.held.append(blocks)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        blocks = data.draw(st.sampled_from(self.held))
        self.pool.share(blocks)
        for block in blocks:
            self.counts[block] += 1
        self.held.append(list(blocks))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        blocks = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pool.release(blocks)
        for block in blocks:
            self.counts[block] -= 1
            if not self.counts[block]:
                del self.counts[block]
                if block in self.published.values():
                    self.idle.append(block)

    @precondition(lambda self: self.counts)
    @rule(data=st.data(), digest=st.binary(min_size=1, max_size=1))
    def publish(self, data: st.DataObject, digest: bytes) -> None:
        block = data.draw(st.sampled_from(sorted(self.counts)))
        if block in self.published.values():
            with pytest.raises(ValueError, match=f"block {block} has been published"):
                self.pool.publish(block, digest)
        else:
            self.pool.publish(block, digest)
            self.published.setdefault(digest, block)

    @precondition(lambda self: self.published)
    @rule(data=st.data())
    def find_and_share(self, data: st.DataObject) -> None:
        digests = data.draw(st.lists(st.sampled_from(sorted(self.published)), unique=True))
        blocks = self.pool.find([*digests, b"unknown", *digests])
        assert blocks == [self.published[digest] for digest in digests]
        assert self.pool.num_idle(blocks) == len(set(blocks) & set(self.idle))
        self.pool.share(blocks)
        for block in blocks:
            self.counts[block] = self.counts.get(block, 0) + 1
        self.idle = [block for block in self.idle if block not in blocks]
        self.held.append(blocks)

    @rule()
    def forget(self) -> None:
        self.pool.forget()
        self.published, self.idle = {}, []

    @rule(data=st.data())
    def misuse(self, data: st.DataObject) -> None:
        """Releasing or sharing what nobody holds is refused and changes nothing."""
        block = data.draw(st.sampled_from([b for b in range(self.num_blocks) if b not in self.counts and b not in self.idle]))
        with pytest.raises(ValueError, match=f"block {block} is not allocated"):
            self.pool.release([block])
        with pytest.raises(ValueError, match=f"block {block} is not allocated"):
            self.pool.share([block])
        with pytest.raises(ValueError, match=f"block {block} is not allocated"):
            self.pool.publish(block, b"x")

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.pool.capacity == self.num_blocks - 1
        assert self.pool.num_free == self.pool.capacity - len(self.counts)
        assert self.pool.num_published == len(self.published)
        assert all(self.pool.holds(digest) for digest in self.published)

    def teardown(self) -> None:
        for blocks in self.held:
            self.pool.release(blocks)
        assert self.pool.num_free == self.pool.capacity
        assert sorted(self.pool.allocate(self.pool.capacity) or []) == list(range(1, self.num_blocks))


TestPool = PoolMachine.TestCase
TestPool.settings = examples(60)


@given(st.integers(0, 10_000), st.sampled_from((1, 2, 16, 128)))
@examples(200)
def test_blocks_for_tokens_is_the_smallest_number_that_holds_them(tokens: int, block_size: int) -> None:
    blocks = BlockPool(2, block_size).blocks_for(tokens)
    assert blocks * block_size >= tokens > (blocks - 1) * block_size


@pytest.mark.parametrize("num_blocks", [-1, 0, 1])
def test_a_pool_without_blocks_is_refused(num_blocks: int) -> None:
    with pytest.raises(ValueError, match=f"at least 2.*{num_blocks}"):
        BlockPool(num_blocks, 16)


def test_a_freed_block_rests_longest() -> None:
    pool = BlockPool(5, 16)
    pool.release(pool.allocate(1) or [])
    assert pool.allocate(4) == [2, 3, 4, 1]


def test_double_free_is_an_error() -> None:
    pool = BlockPool(5, 16)
    blocks = pool.allocate(2)
    assert blocks is not None
    pool.release(blocks)
    with pytest.raises(ValueError, match="is not allocated"):
        pool.release(blocks)
    assert pool.num_free == 4


def test_tables_hold_null_blocks_beyond_what_was_written() -> None:
    tables = BlockTables(3, 5)
    assert np.array_equal(tables.rows([0, 1, 2], 5), np.zeros((3, 5)))
    tables.append(1, 0, [7, 8])
    tables.append(1, 2, [9])
    tables.append(2, 0, [4])
    assert tables.rows([2, 1], 4).tolist() == [[4, 0, 0, 0], [7, 8, 9, 0]]
    assert tables.rows([1], 2).dtype == np.int32
    tables.clear(1)
    assert tables.rows([0, 1, 2], 5).tolist() == [[0] * 5, [0] * 5, [4, 0, 0, 0, 0]]


def test_rows_are_copies() -> None:
    """A step's input must not change when the host goes on while the device still reads it."""
    tables = BlockTables(2, 3)
    tables.append(0, 0, [5])
    taken, alone = tables.rows([0, 1], 3), tables.rows([0], 3)
    tables.append(0, 1, [6])
    tables.clear(0)
    assert taken.tolist() == [[5, 0, 0], [0, 0, 0]]
    assert alone.tolist() == [[5, 0, 0]]
    taken[:] = 9
    assert tables.rows([0, 1], 3).tolist() == [[0, 0, 0], [0, 0, 0]]
