"""Rules on custom calls and random numbers: N08, N09, N14."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from pathlib import Path

from xlaserve.buckets.lint.finding import Hit, NotChecked
from xlaserve.buckets.lint.module import Op
from xlaserve.buckets.lint.rule import Subject, rule
from xlaserve.buckets.lint.rules_ops import is_callback
from xlaserve.platforms.neuron_targets import Target

_KNOWN = """
    AwsNeuronErf AwsNeuronGelu AwsNeuronGeluApprxTanh AwsNeuronGeluBackward AwsNeuronSilu AwsNeuronSiluBackward AwsNeuronRmsNorm
    AwsNeuronSoftmax AwsNeuronSoftmaxBackward AwsNeuronCollectiveMatmul AwsNeuronIntMatmult AwsNeuronArgMax AwsNeuronArgMin AwsNeuronTopK
    AwsNeuronDropoutMaskV1 AwsNeuronCustomNativeKernel AwsNeuronCustomOp AwsNeuronDevicePrint ResizeNearest ResizeBilinear
    ResizeNearestGrad AwsNeuronLNCShardingConstraint AwsNeuronTransferWithStaticRing AwsNeuronModuleMarkerStart-Forward
    AwsNeuronModuleMarkerEnd-Forward AwsNeuronModuleMarkerStart-Backward AwsNeuronModuleMarkerEnd-Backward NeuronBoundaryMarker-Start
    NeuronBoundaryMarker-End
"""
KNOWN = frozenset(_KNOWN.split())
"""The targets that EVRF015 lists."""

_SHARDING = ("Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "xla.sdy.")
_KERNEL = "AwsNeuronCustomNativeKernel"
_MOST = 16384
_WIDE_K = 16
_ROTATIONS = 4


@rule(
    "N08",
    "Custom calls have a target that neuronx-cc knows, api_version 2, a string as backend_config, and a kernel file that exists.",
    severity="error",
    source="EVRF015, EHCA005, EVRF059",
    limit="Whether a kernel was traced with an NKI that this compiler takes (EVRF065) only the compiler says.",
)
def known_custom_calls(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    for op in subject.named("custom_call"):
        target = str(op.attributes.get("call_target_name"))
        if is_callback(op) or target.startswith(_SHARDING):
            continue
        if target not in KNOWN:
            yield Hit(f"custom call to {target}, which neuronx-cc does not know", op)
        elif op.attributes.get("api_version", 1) != 2:
            yield Hit(f"custom call to {target} has api_version {op.attributes.get('api_version', 1)}; it must be 2", op)
        elif op.attributes.get("has_side_effect") or op.attributes.get("custom_call_has_side_effect"):
            yield Hit(f"custom call to {target} is marked to have side effects", op)
        elif not isinstance(op.attributes.get("backend_config", ""), str):
            yield Hit(f"custom call to {target} has a backend_config that is no string", op)
        elif target == _KERNEL and (problem := _kernel_problem(str(op.attributes.get("backend_config", "")))):
            yield Hit(problem, op)


def _kernel_problem(config: str) -> str | None:
    try:
        path = json.loads(base64.b64decode(config, validate=True))["klir_binary"]["binary"]
    except (binascii.Error, ValueError, KeyError, TypeError):
        return f"{_KERNEL}: backend_config is not base64 of a JSON object with klir_binary.binary"
    # A relative path is looked up from where the compiler runs, as here.
    return None if Path(path).is_file() else f"{_KERNEL}: the kernel file {path} does not exist"


@rule(
    "N09",
    "AwsNeuronTopK takes one float operand of rank 2, and k from 1 to 16384; wide rows are cut in two stages.",
    severity="error, warning",
    source="EVRF013, EVRF014; reports of ISGV902 on rows of 32768",
)
def top_k(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    for op in subject.named("custom_call"):
        if op.attributes.get("call_target_name") != "AwsNeuronTopK":
            continue
        kind, config = op.operands[0].type, str(op.attributes.get("backend_config", ""))
        k = int(config) if config.isdecimal() else 0
        if len(op.operands) != 1 or not kind.is_float or len(kind.shape) != 2:
            yield Hit(f"AwsNeuronTopK of {', '.join(str(value.type) for value in op.operands)}; it takes one float [rows, n]", op)
        elif not 1 <= k <= min(_MOST, kind.shape[1] or _MOST):
            yield Hit(f"AwsNeuronTopK with k {config!r} over {kind.shape[1]}; it must be from 1 to {_MOST} and no more than the row", op)
        elif (kind.shape[1] or 0) > _MOST and k >= _WIDE_K:
            yield Hit(f"AwsNeuronTopK over {kind.shape[1]} at once; beyond {_MOST} it crashed the compiler: use two stages", op, "warning")


@rule(
    "N14",
    "No threefry; rng_bit_generator only with the default algorithm, and better none: seeds from the host give the same tokens everywhere.",
    severity="error, warning",
    source="EVRF006; JAX NeuronX known issues (PRNG); archived neuron-cc operator list (ignores the seed)",
)
def random_numbers(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    for op in subject.named("rng_bit_generator"):
        algorithm = op.attributes.get("rng_algorithm")
        if algorithm != "DEFAULT":
            yield Hit(f"rng_bit_generator with algorithm {algorithm}; only the default one is taken", op)
        else:
            yield Hit("rng_bit_generator may ignore its seed", op, "warning")
    rotations = [op for op in subject.named("or", "add", "xor") if _is_rotation(op)]
    if len(rotations) >= _ROTATIONS:
        yield Hit(f"{len(rotations)} rotations of bits, as threefry has them; hash a seed from the host instead", rotations[0])


def _is_rotation(op: Op) -> bool:
    """(x << a) | (x >> b)."""
    shifts = [value.producer for value in op.operands]
    if len(shifts) != 2 or shifts[0] is None or shifts[1] is None:
        return False
    return {shifts[0].name, shifts[1].name} == {"shift_left", "shift_right_logical"} and shifts[0].operands[0] is shifts[1].operands[0]
