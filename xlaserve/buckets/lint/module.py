"""A lowered module as plain data, the same for StableHLO and HLO, so that every rule is written once.

Operations have StableHLO's names ("dot_general"), element types have HLO's ("s32", "pred"), tuples are taken apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

Form = Literal["stablehlo", "hlo"]

_IN_PACKAGE = re.compile(r"^.*/(?=xlaserve/)")
_BITS = {"pred": 8, "token": 0}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A type: element type, and sizes of dimensions; None is a size that only run time knows, or only bounds."""

    dtype: str
    shape: tuple[int | None, ...]

    @property
    def static(self) -> bool:
        """Whether every size is known."""
        return None not in self.shape

    @property
    def size(self) -> int:
        """Number of elements; dimensions of unknown size count as 1."""
        return prod(n for n in self.shape if n is not None)

    @property
    def bytes(self) -> int:
        """Bytes of the elements."""
        return -(-self.size * dtype_bits(self.dtype) // 8)

    @property
    def is_integer(self) -> bool:
        """Whether elements are integers; booleans are not."""
        return self.dtype[0] in "su" and self.dtype[1:].isdecimal()

    @property
    def is_float(self) -> bool:
        """Whether elements are real floating-point numbers."""
        return self.dtype[0] == "f" or self.dtype == "bf16"

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join('?' if n is None else str(n) for n in self.shape)}]"


def dtype_bits(dtype: str) -> int:
    """Bits of one element of an HLO element type."""
    if dtype in _BITS:
        return _BITS[dtype]
    digits = "".join(c for c in dtype.partition("e")[0] if c.isdecimal())
    return int(digits) if digits else 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where an operation comes from.

    Args:
        op_name: JAX's path of transformations and names, such as "jit(step)/CausalLM/model/layers.0/mlp/dot_general".
        source: file and line, "xlaserve/models/layers.py:56"; empty where the module does not tell.
    """

    op_name: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        # Files of this package are named from the package on, so that findings are the same on every machine.
        object.__setattr__(self, "source", _IN_PACKAGE.sub("", self.source))

    def __str__(self) -> str:
        return f"{self.source} ({self.op_name})" if self.source and self.op_name else self.source or self.op_name or "place unknown"


@dataclass(eq=False, slots=True)
class Value:
    """What an operation or a block's argument gives.

    Args:
        type: its type.
        producer: the operation; None for arguments.
        index: which of the producer's results or the block's arguments.
        name: of arguments of the whole module, "kv[0]"; else empty.
    """

    type: Tensor
    producer: Op | None = None
    index: int = 0
    name: str = ""


@dataclass(eq=False, slots=True)
class Op:
    """One operation.

    Args:
        name: StableHLO's, without the dialect where that is `stablehlo` or `func`.
        operands, results: its values.
        attributes: the ones that rules read, under StableHLO's names, as plain Python values.
        blocks: bodies: the computation of a reduce, the condition and the body of a while.
        locate: finds the place; asked only for findings.
    """

    name: str
    operands: tuple[Value, ...]
    results: tuple[Value, ...]
    attributes: dict[str, Any]
    blocks: tuple[Block, ...]
    locate: Callable[[], Place]


@dataclass(eq=False, slots=True)
class Block:
    """A body: arguments, operations in order, and what it returns."""

    arguments: tuple[Value, ...] = ()
    ops: list[Op] = field(default_factory=list)
    returns: tuple[Value, ...] = ()


@dataclass(eq=False, slots=True)
class Module:
    """One lowered graph.

    Args:
        name: the graph's.
        form: which form it was read from.
        main: its entry.
        functions: what `call` operations name.
        aliases: number of a donated argument -> the result that takes its buffer; None where that is left to the compiler.
        polymorphic: whether it was exported with symbolic sizes.
    """

    name: str
    form: Form
    main: Block
    functions: dict[str, Block]
    aliases: dict[int, int | None]
    polymorphic: bool = False

    def ops(self) -> Iterator[Op]:
        """Every operation, bodies and functions included, each once."""
        for block in (self.main, *(block for block in self.functions.values() if block is not self.main)):
            yield from walk(block)

    def place(self, op: Op) -> Place:
        """Where an operation comes from; one in a function that does not tell comes from where the function is first called."""
        found = op.locate()
        if found.source:
            return found
        owner = next((name for name, block in self.functions.items() if any(inner is op for inner in walk(block))), None)
        call = next((c for c in self.ops() if c.name == "call" and c.attributes.get("callee") == owner), None)
        return found if call is None or call is op else self.place(call)

    def users(self) -> dict[Value, list[Op]]:
        """For each value the operations that take it."""
        found: dict[Value, list[Op]] = {}
        for op in self.ops():
            for operand in op.operands:
                found.setdefault(operand, []).append(op)
        return found


def walk(block: Block) -> Iterator[Op]:
    """Every operation of a block and of the bodies in it."""
    for op in block.ops:
        yield op
        for inner in op.blocks:
            yield from walk(inner)


def constant_of(value: Value) -> Any | None:
    """The number that a value holds everywhere, seen through broadcasts, reshapes and conversions; None where it is no such constant."""
    while value.producer is not None:
        op = value.producer
        if op.name == "constant":
            content = op.attributes.get("value")
            return content[0].item() if content is not None and len(content) and (content == content[0]).all() else _nan(content)
        if op.name not in ("broadcast_in_dim", "reshape", "convert"):
            return None
        value = op.operands[0]
    return None


def _nan(content: Any) -> float | None:
    return float("nan") if content is not None and len(content) and bool((content != content).all()) else None
