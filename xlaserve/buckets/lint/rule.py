"""What a rule is, what it is given, and how a check becomes one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from xlaserve.buckets.lint.finding import Hit, NotChecked
from xlaserve.buckets.lint.module import Module, Op, Value
from xlaserve.buckets.lint.ranges import Contract, Range, index_ranges
from xlaserve.platforms.neuron_targets import Target


@dataclass(frozen=True, slots=True)
class Facts:
    """What the maker of a graph knows of it and its module does not say.

    Args:
        contract: what the host puts into arguments.
        donated: beginnings of the names of all arguments that are donated.
        jax_version: of the JAX that lowered it.
        width_tokens: tokens that the graph's block tables reach; 0 where it has none.
        full_width: whether that is the longest context of the ladder.
        generates: whether it computes one token per row.
        length: tokens per row of a context graph; 0 for others.
        native_attention: whether attention is a native kernel.
    """

    contract: Contract
    donated: tuple[str, ...]
    jax_version: str
    width_tokens: int = 0
    full_width: bool = False
    generates: bool = False
    length: int = 0
    native_attention: bool = False


@dataclass(frozen=True)
class Subject:
    """One module under lint; one object serves all targets.

    Args:
        module: the module.
        facts: what its maker knows; None where it was found in a file.
    """

    module: Module
    facts: Facts | None = None

    @cached_property
    def ops(self) -> list[Op]:
        """Every operation."""
        return list(self.module.ops())

    @cached_property
    def users(self) -> dict[Value, list[Op]]:
        """For each value the operations that take it."""
        return self.module.users()

    @cached_property
    def indices(self) -> dict[Op, Range]:
        """For each gather and scatter the interval of its indices."""
        return index_ranges(self.module, self.facts.contract if self.facts else {})

    def named(self, *names: str) -> Iterator[Op]:
        """The operations of these names."""
        return (op for op in self.ops if op.name in names)


Check = Callable[[Subject, Target], Iterator[Hit | NotChecked]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Args:
        id: N01 to N27.
        must: what must hold.
        severity: "error", "warning" or both.
        source: what it rests on.
        limit: what this check cannot prove without the compiler or the device; empty where nothing is left open.
        check: finds where it does not hold.
    """

    id: str
    must: str
    severity: str
    source: str
    limit: str
    check: Check


def rule(id: str, must: str, *, severity: str, source: str, limit: str = "") -> Callable[[Check], Rule]:
    """Makes a rule of a check."""
    return lambda check: Rule(id, must, severity, source, limit, check)
