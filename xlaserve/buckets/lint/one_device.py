"""A StableHLO module for several devices as one of them runs it: rules then see what each device's compiler and memory get."""

from __future__ import annotations

from typing import Any

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import func

_ALIASING = "tf.aliasing_output"


def one_device(module: Any) -> Any:
    """The module whose `main` is the body of the one computation over a mesh that its `main` was, as `on_each_device` makes it.

    Any other module is given back as it is.

    Args:
        module: an `ir.Module`; what is given back shares its operations.
    """
    with module.context, ir.Location.unknown(module.context):
        main = next((function for function in module.body.operations if _is_main(function)), None)
        if main is None or not main.regions[0].blocks:
            return module
        outer = main.regions[0].blocks[0]
        *constants, manual, _ = outer.operations
        if manual.operation.name != "sdy.manual_computation" or any(op.operation.name != "stablehlo.constant" for op in constants):
            return module
        # Arguments come in their order, after constants that JAX keeps out of the computation.
        hoisted = [op.operation.results[0] for op in constants]
        if list(manual.operation.operands) != [*hoisted, *outer.arguments]:
            return module
        inner = manual.operation.regions[0].blocks[0]
        taken = list(inner.arguments)[len(constants) :]
        *body, end = inner.operations
        results = list(end.operation.operands)
        kind = ir.FunctionType.get([argument.type for argument in taken], [result.type for result in results])
        with ir.InsertionPoint(main):
            function = func.FuncOp("main_of_one_device", kind)
        block = function.regions[0].blocks.append(*kind.inputs, arg_locs=[argument.location for argument in outer.arguments])
        for mine, argument in zip((*hoisted, *block.arguments), inner.arguments, strict=True):
            argument.replace_all_uses_with(mine)
        with ir.InsertionPoint(block):
            returned = func.ReturnOp(list(end.operation.operands))
        for op in (*constants, *body):
            op.operation.move_before(returned.operation)
        function.attributes["arg_attrs"] = ir.ArrayAttr.get(_aliases(main, len(taken)))
        main.operation.erase()
        function.attributes["sym_name"] = ir.StringAttr.get("main")
        # Collectives of newer versions of JAX name the mesh that they run over; else nothing does any more.
        text = str(function)
        for mesh in [op for op in module.body.operations if op.operation.name == "sdy.mesh"]:
            if f"@{ir.StringAttr(mesh.operation.attributes['sym_name']).value}" not in text:
                mesh.operation.erase()
    return module


def _is_main(function: Any) -> bool:
    return function.operation.name == "func.func" and ir.StringAttr(function.attributes["sym_name"]).value == "main"


def _aliases(main: Any, count: int) -> list[Any]:
    """Attributes of arguments, with what they say of donation alone: sizes and places of the whole are no more true."""
    marks = [ir.DictAttr(mark) for mark in ir.ArrayAttr(main.attributes["arg_attrs"])] if "arg_attrs" in main.attributes else []
    kept = [ir.DictAttr.get({_ALIASING: mark[_ALIASING]} if _ALIASING in mark else {}) for mark in marks]
    return kept or [ir.DictAttr.get({})] * count
