"""Reads HLO: the text that XLA prints and dumps, and serialized `HloModuleProto`s by way of it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxlib import _jax  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]

from xlaserve.buckets._compat import hlo
from xlaserve.buckets.lint.groups import listed_groups
from xlaserve.buckets.lint.module import Block, Module, Op, Place, Tensor, Value
from xlaserve.errors import ArtifactError

_NAMES = {
    "dot": "dot_general",
    "broadcast": "broadcast_in_dim",
    "conditional": "case",
    "opt-barrier": "optimization_barrier",
    "round-nearest-afz": "round_nearest_afz",
    "rng-bit-generator": "rng_bit_generator",
}
_ATTRIBUTES = {
    "direction": "comparison_direction",
    "lhs_contracting_dims": "lhs_contracting_dimensions",
    "rhs_contracting_dims": "rhs_contracting_dimensions",
    "lhs_batch_dims": "lhs_batching_dimensions",
    "rhs_batch_dims": "rhs_batching_dimensions",
    "custom_call_target": "call_target_name",
    "to_apply": "callee",
}
_DIMENSIONS = {"broadcast_in_dim": "broadcast_dimensions", "transpose": "permutation"}
_API_VERSIONS = {"API_VERSION_ORIGINAL": 1, "API_VERSION_STATUS_RETURNING": 2, "API_VERSION_STATUS_RETURNING_UNIFIED": 3}
_TYPED_FFI = 4

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+)(?: \(.*\) -> .*)? \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r" ([a-z][\w\-]*)\(")
_TENSOR = re.compile(r"([a-z]\w*)\[([^\]]*)\]")
_NUMBER = re.compile(r"-?(?:inf|nan|true|false|[\d.]+(?:e[+-]?\d+)?)")


def hlo_text(module: Any) -> str:
    """HLO text, with places, of a StableHLO module: what the compiler's front end makes of it."""
    content = io.BytesIO()
    module.operation.write_bytecode(content)
    return _text(_jax.mlir.mlir_module_to_xla_computation(content.getvalue(), use_tuple_args=False, return_tuple=False).as_hlo_module())


def proto_text(content: bytes) -> str:
    """HLO text of a serialized `HloModuleProto`.

    Raises:
        ArtifactError: it is none.
    """
    try:
        return _text(hlo.HloModule.from_serialized_hlo_module_proto(content))
    except Exception as error:  # the binding raises kinds of its own
        raise ArtifactError(f"is not an HloModuleProto: {str(error).splitlines()[0]}") from error


def _text(module: Any) -> str:
    options = hlo.HloPrintOptions()
    options.print_metadata = True
    options.print_large_constants = False
    return module.to_string(options)


def read_hlo(text: str, name: str) -> Module:
    """The module as data.

    Args:
        text: HLO text of one module.
        name: what findings call it.

    Raises:
        ArtifactError: it is not HLO text.
    """
    return _Reader(text, name).read()


class _Reader:
    def __init__(self, text: str, name: str) -> None:
        self._lines = text.splitlines()
        self._name = name
        self._tables: dict[str, dict[int, str]] = {}
        self._bodies: dict[str, list[re.Match[str]]] = {}
        self._blocks: dict[str, Block] = {}
        self._entry = ""

    def read(self) -> Module:
        if not self._lines or not self._lines[0].startswith("HloModule"):
            raise ArtifactError("is not HLO text: it does not begin with HloModule")
        self._split()
        if not self._entry:
            raise ArtifactError("is not HLO text: it has no ENTRY computation")
        entry = self._block(self._entry)
        called = {name: block for name, block in self._blocks.items() if name in self._called}
        aliases: dict[int, int | None] = {}
        header = self._lines[0]
        for output, argument in re.findall(r"\{(\d*)\}: \((\d+), \{\}, (?:may|must)-alias\)", header):
            aliases[int(argument)] = int(output or 0)
        if donors := re.search(r"buffer_donor=\{([^=]*)\}", header):
            aliases |= {int(argument): None for argument in re.findall(r"\((\d+), ", donors[1])}
        return Module(self._name, "hlo", entry, {"main": entry, **called}, aliases)

    def _split(self) -> None:
        table: dict[int, str] | None = None
        body: list[re.Match[str]] = []
        for line in self._lines[1:]:
            if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
                table = self._tables.setdefault(line, {})
            elif table is not None and line and line[0].isdigit():
                number, _, content = line.partition(" ")
                table[int(number)] = content
            elif found := _COMPUTATION.match(line):
                body = self._bodies.setdefault(found[2], [])
                self._entry = found[2] if found[1] else self._entry
            elif found := _INSTRUCTION.match(line):
                body.append(found)
        self._called: set[str] = set()

    def _block(self, name: str) -> Block:
        if name in self._blocks:
            return self._blocks[name]
        if name not in self._bodies:
            raise ArtifactError(f"is not HLO text: computation {name} is missing")
        self._blocks[name] = block = Block()
        values: dict[str, list[Value]] = {}
        arguments: dict[int, list[Value]] = {}
        for found in self._bodies[name]:
            root, own, rest = found[1], found[2], found[3]
            opcode = _OPCODE.search(rest)
            if opcode is None:
                raise ArtifactError(f"is not HLO text: {rest[:60]!r} has no operation")
            types = [_tensor(*t) for t in _TENSOR.findall(rest[: opcode.start()])]
            if not types:
                types = [Tensor("token", ())] if "token" in rest[: opcode.start()] else []
            inside, after = _balanced(rest, opcode.end())
            attributes = dict(_pairs(after))
            if opcode[1] == "parameter":
                label = _metadata(attributes).get("op_name", "") if name == self._entry else ""
                arguments[int(inside)] = values[own] = [Value(t, None, 0, label) for t in types]
            elif opcode[1] == "tuple":
                values[own] = [value for operand in _operands(inside) for value in values[operand]]
            elif opcode[1] == "get-tuple-element":
                values[own] = [values[_operands(inside)[0]][int(attributes["index"])]]
            else:
                op = self._op(opcode[1], types, inside, attributes, values)
                values[own] = list(op.results)
                block.ops.append(op)
            if root:
                block.returns = tuple(values[own])
        flat = [value for number in sorted(arguments) for value in arguments[number]]
        for number, value in enumerate(flat):
            value.index = number
        block.arguments = tuple(flat)
        return block

    def _op(self, opcode: str, types: list[Tensor], inside: str, raw: dict[str, str], values: dict[str, list[Value]]) -> Op:
        name = _NAMES.get(opcode, opcode.replace("-", "_"))
        attributes = _attributes(name, raw, types)
        operands: list[Value] = []
        if name == "constant":
            attributes["value"] = _constant(inside, types[0])
        elif name != "iota":
            operands = [value for operand in _operands(inside) for value in values[operand]]
        names = [found for key in ("to_apply", "condition", "body", "true_computation", "false_computation") if (found := raw.get(key))]
        names += re.findall(r"%?([\w.\-]+)", raw.get("branch_computations", ""))
        names = [found.lstrip("%") for found in names]
        blocks = tuple(self._block(found) for found in names)
        if name == "call":
            self._called.add(names[0])
            attributes["callee"], blocks = names[0], ()
        metadata = _metadata(raw)
        op = Op(name, tuple(operands), (), attributes, blocks, lambda: self._place(metadata))
        op.results = tuple(Value(t, op, number) for number, t in enumerate(types))
        return op

    def _place(self, metadata: dict[str, str]) -> Place:
        op_name = metadata.get("op_name", "")
        if "source_file" in metadata:
            return Place(op_name, f"{metadata['source_file']}:{metadata.get('source_line', '0')}")
        frame = self._tables.get("StackFrames", {}).get(int(metadata.get("stack_frame_id", "0")), "")
        location = self._tables.get("FileLocations", {}).get(_field(frame, "file_location_id"), "")
        file = self._tables.get("FileNames", {}).get(_field(location, "file_name_id"), "").strip('"')
        return Place(op_name, f"{file}:{_field(location, 'line')}" if file else "")


def _field(text: str, name: str) -> int:
    found = re.search(rf"\b{name}=(\d+)", text)
    return int(found[1]) if found else 0


def _tensor(dtype: str, sizes: str) -> Tensor:
    return Tensor(dtype, tuple(None if "<=" in n or "?" in n else int(n) for n in sizes.split(",") if n))


def _balanced(text: str, start: int) -> tuple[str, str]:
    """What is inside the parenthesis opened just before `start`, and what follows it."""
    depth, quoted = 1, False
    for at in range(start, len(text)):
        c = text[at]
        if c == '"' and text[at - 1] != "\\":
            quoted = not quoted
        elif not quoted and c in "({[":
            depth += 1
        elif not quoted and c in ")}]":
            depth -= 1
            if depth == 0:
                return text[start:at], text[at + 1 :]
    raise ArtifactError(f"is not HLO text: unbalanced {text[:60]!r}")


def _parts(text: str) -> Iterator[str]:
    """Pieces between commas that stand outside of brackets and quotes."""
    depth, quoted, start = 0, False, 0
    for at, c in enumerate(text):
        if c == '"' and (at == 0 or text[at - 1] != "\\"):
            quoted = not quoted
        elif quoted:
            continue
        elif c in "({[":
            depth += 1
        elif c in ")}]":
            depth -= 1
        elif c == "," and depth == 0:
            yield text[start:at].strip()
            start = at + 1
    yield text[start:].strip()


def _operands(text: str) -> list[str]:
    """Names of operands; older texts print their types before them."""
    return [part.split()[-1].lstrip("%") for part in _parts(re.sub(r"/\*.*?\*/", "", text)) if part]


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for part in _parts(text):
        key, equals, value = part.partition("=")
        if equals:
            yield key.strip(), value.strip()


def _metadata(raw: dict[str, str]) -> dict[str, str]:
    text = raw.get("metadata", "")
    return {key: quoted or plain for key, quoted, plain in re.findall(r'(\w+)=(?:"((?:[^"\\]|\\.)*)"|([^\s}]+))', text)}


def _attributes(name: str, raw: dict[str, str], types: list[Tensor]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, text in raw.items():
        key = _ATTRIBUTES.get(key, key)
        if key == "dimensions":
            numbers = _numbers(text)
            if name == "concatenate":
                out["dimension"] = numbers[0]
            else:
                out[_DIMENSIONS.get(name, key)] = numbers
        elif key == "slice":
            bounds = [[int(n) for n in part.split(":")] for part in re.findall(r"\[([\d:]+)\]", text)]
            out |= {
                "start_indices": tuple(b[0] for b in bounds),
                "limit_indices": tuple(b[1] for b in bounds),
                "strides": tuple(b[2] if len(b) > 2 else 1 for b in bounds),
            }
        elif key == "window" and name == "reduce_window":
            out |= _window(text, len(types[0].shape))
        elif key == "api_version":
            out[key] = _API_VERSIONS.get(text, _TYPED_FFI)
        elif key == "algorithm":
            out["rng_algorithm"] = text.removeprefix("rng_").upper()
        elif key == "replica_groups":
            out[key] = listed_groups(text)
        elif text.startswith('"'):
            out[key] = text[1:-1].replace('\\"', '"')
        elif text.startswith("{") and re.fullmatch(r"\{[\d,\s]*\}", text):
            out[key] = _numbers(text)
        elif text.lstrip("-").isdigit():
            out[key] = int(text)
        else:
            out[key] = text == "true" if text in ("true", "false") else text
    if name == "custom_call":
        out.setdefault("api_version", 1)
    if name == "slice" and "start_indices" not in out:
        out |= {"start_indices": (), "limit_indices": (), "strides": ()}
    return out


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"-?\d+", text))


def _window(text: str, rank: int) -> dict[str, Any]:
    fields = dict(re.findall(r"(\w+)=(\S+?)(?=[\s}])", text))

    def sizes(key: str) -> tuple[int, ...]:
        return tuple(int(n) for n in fields[key].split("x")) if key in fields else (1,) * rank

    return {"window_dimensions": sizes("size"), "base_dilations": sizes("lhs_dilate"), "window_dilations": sizes("rhs_dilate")}


def _constant(text: str, kind: Tensor) -> Any:
    if "..." in text:
        return None
    words = _NUMBER.findall(re.sub(r"/\*.*?\*/", "", text))
    try:
        if kind.dtype == "pred":
            return np.array([word == "true" for word in words])
        return np.array([int(word) for word in words]) if kind.is_integer else np.array([float(word) for word in words])
    except ValueError:
        return None
