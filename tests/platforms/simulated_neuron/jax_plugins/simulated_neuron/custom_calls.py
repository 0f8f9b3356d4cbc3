"""What the AwsNeuron custom calls compute, as StableHLO that every compiler takes: a sort, which neuronx-cc would refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jax.extend.mlir import ir


def implement(module: Any) -> dict[str, int]:
    """Replace every AwsNeuron custom call of a module by a call of a function that computes the same.

    Args:
        module: an `ir.Module` in whose context this is called; it is changed.

    Returns:
        How many there were, by target.

    Raises:
        ValueError: one of them is not known here.
    """
    counts: dict[str, int] = {}
    for op in list(_operations(module.operation)):
        target = ir.StringAttr(op.attributes["call_target_name"]).value if op.name == "stablehlo.custom_call" else ""
        if not target.startswith("AwsNeuron"):
            continue
        if target != "AwsNeuronTopK":
            raise ValueError(f"the simulation has no {target}")
        name = f"aws_neuron_{len(module.body.operations)}"
        module.body.append(ir.Operation.parse(_top_k(op, name)))
        call = ir.Operation.create(
            "func.call",
            results=[result.type for result in op.results],
            operands=list(op.operands),
            attributes={"callee": ir.FlatSymbolRefAttr.get(name)},
            loc=op.location,
            ip=ir.InsertionPoint(op),
        )
        for old, new in zip(op.results, call.results, strict=True):
            old.replace_all_uses_with(new)
        op.erase()
        counts[target] = counts.get(target, 0) + 1
    return counts


def _operations(operation: Any) -> Iterator[Any]:
    for region in operation.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield inner.operation
                yield from _operations(inner.operation)


def _top_k(op: Any, name: str) -> str:
    """The largest numbers of each row, largest first, the lower index first among equals."""
    x = ir.RankedTensorType(op.operands[0].type)
    (rows, width), k = x.shape, int(ir.StringAttr(op.attributes["backend_config"]).value)
    values, places = (result.type for result in op.results)
    whole = f"tensor<{rows}x{width}xi32>"
    cut = f"[0:{rows}, 0:{k}]"
    return f"""
        func.func private @{name}(%x: {x}) -> ({values}, {places}) {{
          %ids = stablehlo.iota dim = 1 : {whole}
          %sorted:2 = "stablehlo.sort"(%x, %ids) <{{dimension = 1 : i64, is_stable = true}}> ({{
            ^bb0(%a: tensor<{x.element_type}>, %b: tensor<{x.element_type}>, %i: tensor<i32>, %j: tensor<i32>):
              %first = stablehlo.compare GT, %a, %b, FLOAT : (tensor<{x.element_type}>, tensor<{x.element_type}>) -> tensor<i1>
              stablehlo.return %first : tensor<i1>
          }}) : ({x}, {whole}) -> ({x}, {whole})
          %values = stablehlo.slice %sorted#0 {cut} : ({x}) -> {values}
          %places = stablehlo.slice %sorted#1 {cut} : ({whole}) -> {places}
          return %values, %places : {values}, {places}
        }}
    """
