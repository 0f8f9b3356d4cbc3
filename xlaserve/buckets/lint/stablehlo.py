"""Reads StableHLO: JAX's modules as they are lowered, their text, and the portable bytes that `jax.export` writes."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from jax.extend.mlir import deserialize_portable_artifact, ir
from jax.interpreters import mlir

from xlaserve.buckets.lint.groups import Groups, mesh_groups
from xlaserve.buckets.lint.module import Block, Module, Op, Place, Tensor, Value
from xlaserve.errors import ArtifactError

_NAME = re.compile(r'loc\("([^"]*)"\(')
_SOURCE = re.compile(r'"([^"]*)":(\d+):\d+')
_LARGE = 1 << 16
_PORTABLE = b"ML\xefR\rStableHLO_v"
_REGION_RETURNS = ("stablehlo.return", "func.return")


def parse_stablehlo(content: str | bytes) -> Any:
    """An `ir.Module` from text, MLIR bytecode or a portable artifact.

    Raises:
        ArtifactError: it is none of these.
    """
    context: Any = mlir.make_ir_context()
    with context:
        try:
            if isinstance(content, bytes) and content.startswith(_PORTABLE):
                return deserialize_portable_artifact(content)
            return ir.Module.parse(content)
        except Exception as error:  # the bindings raise their own kinds, none of them public
            raise ArtifactError(f"is not StableHLO: {_first_line(error)}") from error


def read_stablehlo(module: Any, name: str) -> Module:
    """The module as data.

    Args:
        module: an `ir.Module`, such as `Lowered.compiler_ir()` gives.
        name: what findings call it.
    """
    with module.context:
        return _Reader(module, name).read()


class _Reader:
    def __init__(self, module: Any, name: str) -> None:
        self._module = module
        self._name = name
        self._values: dict[Any, Value] = {}
        self._meshes: dict[str, str] = {}

    def read(self) -> Module:
        functions: dict[str, Block] = {}
        aliases: dict[int, int | None] = {}
        for function in self._module.body.operations:
            if function.operation.name == "sdy.mesh":
                self._meshes[ir.StringAttr(function.attributes["sym_name"]).value] = str(function.attributes["mesh"])
            if function.operation.name != "func.func" or not function.regions[0].blocks:
                continue
            name = ir.StringAttr(function.attributes["sym_name"]).value
            functions[name] = self._block(function.regions[0].blocks[0], named=name == "main")
            if name == "main" and "arg_attrs" in function.attributes:
                for number, attributes in enumerate(ir.ArrayAttr(function.attributes["arg_attrs"])):
                    marks = ir.DictAttr(attributes)
                    if "tf.aliasing_output" in marks:
                        aliases[number] = ir.IntegerAttr(marks["tf.aliasing_output"]).value
                    elif "jax.buffer_donor" in marks:
                        aliases[number] = None
        if "main" not in functions:
            raise ArtifactError("has no function `main`")
        attributes = self._module.operation.attributes
        polymorphic = "jax.uses_shape_polymorphism" in attributes and bool(ir.BoolAttr(attributes["jax.uses_shape_polymorphism"]).value)
        return Module(self._name, "stablehlo", functions["main"], functions, aliases, polymorphic)

    def _block(self, block: Any, *, named: bool = False) -> Block:
        arguments = tuple(
            Value(tensor_of(argument.type), None, number, str(argument.location)[5:-2] if named else "")
            for number, argument in enumerate(block.arguments)
        )
        for argument, value in zip(block.arguments, arguments, strict=True):
            self._values[argument] = value
        out = Block(arguments)
        for view in block.operations:
            operation = view.operation
            operands = tuple(self._values[operand] for operand in operation.operands)
            if operation.name in _REGION_RETURNS:
                out.returns = operands
                continue
            blocks = tuple(self._block(inner) for region in operation.regions for inner in region.blocks)
            name = operation.name.removeprefix("stablehlo.").removeprefix("func.")
            attributes = _attributes(operation, name)
            if isinstance(attributes.get("replica_groups"), str):
                attributes["replica_groups"] = self._groups(attributes["replica_groups"])
            op = Op(name, operands, (), attributes, blocks, lambda location=operation.location: _place(str(location)))
            op.results = tuple(Value(tensor_of(result.type), op, number) for number, result in enumerate(operation.results))
            for result, value in zip(operation.results, op.results, strict=True):
                self._values[result] = value
            out.ops.append(op)
        return out

    def _groups(self, text: str) -> Groups:
        """Groups that name axes of a mesh of the module."""
        mesh = re.search(r"mesh = @(\w+)", text)
        axes = re.findall(r'name = "(\w+)"', text)
        return mesh_groups(self._meshes.get(mesh[1], "") if mesh else "", axes, text)


def tensor_of(kind: Any) -> Tensor:
    """A type; what is no tensor (a token) has the type's own name and no dimensions."""
    try:
        ranked = ir.RankedTensorType(kind)
    except ValueError:
        return Tensor("token" if "token" in str(kind) else str(kind), ())
    # Bounded sizes are dynamic to MLIR; the bounds are in the encoding.
    shape = tuple(None if ranked.is_dynamic_dim(i) else ranked.get_dim_size(i) for i in range(ranked.rank))
    return Tensor(_dtype(str(ranked.element_type)), shape)


def _dtype(text: str) -> str:
    if text == "i1":
        return "pred"
    if text.startswith("complex<"):
        return "c64" if "f32" in text else "c128"
    if text.startswith("ui"):
        return f"u{text[2:]}"
    if re.fullmatch(r"i\d+", text):
        return f"s{text[1:]}"
    return text.lower()


def _attributes(operation: Any, name: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key in operation.attributes:
        key = key if isinstance(key, str) else key.name
        try:
            attribute = operation.attributes[key]
        except TypeError:  # numbers that the bindings cannot show, such as complex ones
            out[key] = None
            continue
        out[key] = _constant(attribute) if name == "constant" and key == "value" else _plain(attribute)
    for key in ("dimension_numbers", "scatter_dimension_numbers", "dot_dimension_numbers"):
        if isinstance(out.get(key), dict):
            out |= out.pop(key)
    return out


def _plain(attribute: Any) -> Any:
    text = str(attribute)
    if text.startswith("#stablehlo<"):
        return text.rstrip(">").split()[-1]
    if text.startswith("#stablehlo.replica_group"):
        return text
    if text.startswith("#stablehlo."):
        return _record(text)
    if text.startswith("array<"):
        return tuple(int(n) for n in re.findall(r"-?\d+", text.partition(":")[2]))
    if text.startswith("dense<"):
        return _numbers(attribute)
    if text.startswith('"'):
        return ir.StringAttr(attribute).value
    if text.startswith("@"):
        return text[1:].strip('"')
    if text in ("true", "false"):
        return text == "true"
    if match := re.fullmatch(r"(-?\d+) : \w+", text):
        return int(match[1])
    return text


def _record(text: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, content in re.findall(r"(\w+) = (\[[^\]]*\]|\d+)", text):
        fields[key] = tuple(int(n) for n in re.findall(r"\d+", content)) if content[0] == "[" else int(content)
    return fields


def _numbers(attribute: Any) -> Any:
    try:
        return np.array(ir.DenseIntElementsAttr(attribute)).tolist()
    except ValueError:
        return str(attribute)


def _constant(attribute: Any) -> Any:
    """The content, flat: one element where all are the same; None where it is large or of a type that NumPy lacks."""
    try:
        dense = ir.DenseElementsAttr(attribute)
    except ValueError:
        return None
    if not dense.is_splat and ir.ShapedType(dense.type).has_static_shape and len(dense) > _LARGE:
        return None
    for kind in (ir.DenseFPElementsAttr, ir.DenseIntElementsAttr):
        try:
            typed = kind(attribute)
            return np.array([typed[number] for number in range(1 if dense.is_splat else len(dense))])
        except (ValueError, TypeError, IndexError):
            continue
    return None


def _place(location: str) -> Place:
    name, source = _NAME.match(location), _SOURCE.search(location)
    op_name = name[1] if name else ""
    if name is None and (bare := re.match(r'loc\("([^"]*)"\)', location)):
        op_name = bare[1]
    if source and source[1] == "-":  # text without places: MLIR names the line of that text
        return Place(op_name, f"line {source[2]}")
    return Place(op_name, f"{source[1]}:{source[2]}" if source else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
