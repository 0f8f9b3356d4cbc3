"""Every rule finds a small graph that breaks it, and is silent about one that does the same thing as it should be done."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from tests.buckets.lint.lowered import facts, hlo, lint, lower, said, stablehlo
from xlaserve.buckets.lint.module import Place
from xlaserve.buckets.lint.ranges import between
from xlaserve.buckets.lint.rule import Subject
from xlaserve.buckets.lint.rules import RULES
from xlaserve.sampling.sampler import argmax

Maker = Callable[[], list[Subject]]
BOTH = ("stablehlo", "hlo")
F32, S32 = jnp.float32, jnp.int32


def shape(*sizes: int, dtype: Any = F32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def of(function: Callable[..., Any], *arguments: Any, **options: Any) -> Maker:
    return lambda: lower(function, *arguments, **options)


def call(target: str, *results: Any, version: int = 2, config: str = "", **options: Any) -> Callable[..., Any]:
    return jax.ffi.ffi_call(target, list(results), custom_call_api_version=version, legacy_backend_config=config, **options)


def top_k(width: int, k: int, dtype: Any = F32) -> Maker:
    return of(call("AwsNeuronTopK", shape(2, k, dtype=dtype), shape(2, k, dtype=S32), config=str(k)), shape(2, width, dtype=dtype))


def kernel(path: str) -> Maker:
    config = base64.b64encode(json.dumps({"klir_binary": {"binary": path}}).encode()).decode()
    return of(call("AwsNeuronCustomNativeKernel", shape(2), config=config), shape(2))


def take(mode: str) -> Callable[[Any, Any], Any]:
    return lambda x, i: x.at[i].get(mode=mode)


def put(x: Any, i: Any, y: Any) -> Any:
    return x.at[i].set(y, mode="promise_in_bounds")


def windows(function: Callable[..., Any], **options: Any) -> Maker:
    plain: dict[str, Any] = {"window_dimensions": (4,), "window_strides": (1,), "padding": "VALID"}
    return of(functools.partial(jax.lax.reduce_window, init_value=0.0, computation=function, **plain, **options), shape(64))


def summed(axis_size: int) -> Maker:
    mesh = AbstractMesh((axis_size,), ("tp",), axis_types=(AxisType.Auto,))
    spread = PartitionSpec("tp")

    def total(x: Any) -> Any:
        return jax.shard_map(lambda part: jax.lax.psum(part, "tp"), mesh=mesh, in_specs=spread, out_specs=PartitionSpec())(x)

    return of(total, shape(axis_size * 4))


def pair_max(x: Any) -> Any:
    ids = jax.lax.broadcasted_iota(S32, x.shape, 1)
    return jax.lax.reduce((x, ids), (-1e30, 0), lambda a, b: (jnp.maximum(a[0], b[0]), jnp.maximum(a[1], b[1])), (1,))


IOTA = """HloModule m

ENTRY e {
  x = f32[4,8]{1,0} parameter(0)
  i = s32[%d]{0} iota(), iota_dimension=0
  ROOT y = f32[%d,8] gather(x, i), offset_dims={1}, collapsed_slice_dims={0}, start_index_map={0}, index_vector_dim=1, slice_sizes={1,8}
}
"""
BOUNDED = """HloModule m

ENTRY e {
  x = f32[<=4]{0} parameter(0)
  ROOT y = f32[<=4]{0} negate(x)
}
"""
DYNAMIC = """func.func public @main(%a: tensor<?xf32>) -> tensor<?xf32> {
  %b = stablehlo.negate %a : tensor<?xf32>
  return %b : tensor<?xf32>
}
"""
BRANCHES = """func.func public @main(%x: tensor<f32>) -> tensor<f32> {
  %i = stablehlo.constant dense<0> : tensor<i32>
  %y = "stablehlo.case"(%i) ({ stablehlo.return %x : tensor<f32> }, { stablehlo.return %x : tensor<f32> }) : (tensor<i32>) -> tensor<f32>
  return %y : tensor<f32>
}
"""
GROUPS = """func.func public @main(%x: tensor<4xf32>) -> tensor<4xf32> {
  %y = "stablehlo.all_reduce"(%x) <{replica_groups = dense<[[0, 2], [1, 3]]> : tensor<2x2xi64>}> ({
  ^bb0(%a: tensor<f32>, %b: tensor<f32>):
    %c = stablehlo.add %a, %b : tensor<f32>
    stablehlo.return %c : tensor<f32>
  }) : (tensor<4xf32>) -> tensor<4xf32>
  return %y : tensor<4xf32>
}
"""

IN_RANGE = facts({"i": between(0, 3)})
LOOSE = facts({"i": between(-1, 3)})
DECODE: dict[str, Any] = {"width_tokens": 4096, "full_width": True, "generates": True}
ROWS = (shape(32, 128, 64), shape(2, 32, dtype=S32))


# Rule -> what breaks it, with the severity to expect, and what does not.
CASES: dict[str, tuple[list[tuple[Maker, str]], list[Maker]]] = {
    "N01": (
        [(of(jnp.cbrt, shape(4)), "error"), (of(jnp.bitwise_xor, shape(4, dtype=S32), shape(4, dtype=S32)), "warning")],
        [of(lambda x: jnp.exp(jnp.tanh(x)), shape(4))],
    ),
    "N02": (
        [
            (of(jnp.sort, shape(8)), "error"),
            (of(lambda x: jax.lax.top_k(x, 2), shape(8)), "error"),
            (of(lambda p, x: jax.lax.cond(p, jnp.sin, jnp.cos, x), shape(dtype=jnp.bool_), shape(8)), "error"),
            (of(lambda x: jnp.fft.fft(x).real, shape(8)), "error"),
            (of(lambda x: jax.lax.reduce_precision(x, 8, 7), shape(8)), "error"),
        ],
        [of(lambda p, x: jnp.where(p, jnp.sin(x), jnp.cos(x)), shape(dtype=jnp.bool_), shape(8))],
    ),
    "N03": ([(lambda: stablehlo(DYNAMIC), "error"), (lambda: hlo(BOUNDED), "error")], [of(jnp.negative, shape(4))]),
    "N04": ([(of(functools.partial(jnp.argmax, axis=1), shape(2, 8)), "error")], [of(argmax, shape(2, 8))]),
    "N05": (
        [
            (of(lambda x: jax.lax.reduce(x, 0.0, lambda a, b: a + b * b, (0,)), shape(8)), "error"),
            (of(lambda x, y: jax.lax.reduce(x, y, jax.lax.add, (0,)), shape(8), shape()), "error"),
        ],
        [of(lambda x: (jnp.sum(x), jnp.max(x), jnp.all(x > 0)), shape(8))],
    ),
    "N06": (
        [
            (windows(jax.lax.add, base_dilation=(2,)), "error"),
            (windows(jax.lax.add, window_dilation=(2,)), "error"),
            (of(jnp.cumsum, shape(4096)), "warning"),
        ],
        [windows(jax.lax.add), of(lambda x: jnp.tri(4096, dtype=F32) @ x, shape(4096))],
    ),
    "N07": (
        [
            (of(lambda n, x: jax.lax.fori_loop(0, n, lambda _, y: y * 2, x), shape(dtype=S32), shape(4)), "error"),
            (of(lambda x: jax.lax.while_loop(lambda y: jnp.sum(y) < 9, lambda y: y * 2, x), shape(4)), "error"),
        ],
        [
            of(lambda x: jax.lax.fori_loop(0, 5, lambda _, y: y * 2, x), shape(4)),
            of(lambda x: jax.lax.scan(lambda c, y: (c + y, c), 0.0, x), shape(4)),
        ],
    ),
    "N08": (
        [
            (of(call("MyKernel", shape(2)), shape(2)), "error"),
            (of(call("AwsNeuronSilu", shape(2), version=1), shape(2)), "error"),
            (of(call("AwsNeuronSilu", shape(2), has_side_effect=True), shape(2)), "error"),
            (kernel("/nowhere/kernel.klir"), "error"),
            (of(call("AwsNeuronCustomNativeKernel", shape(2), config="?"), shape(2)), "error"),
        ],
        [of(call("AwsNeuronSilu", shape(2)), shape(2)), kernel(__file__)],
    ),
    "N09": (
        [
            (top_k(512, 20, S32), "error"),
            (of(call("AwsNeuronTopK", shape(4, dtype=F32), shape(4, dtype=S32), config="4"), shape(8)), "error"),
            (of(call("AwsNeuronTopK", shape(2, 4), shape(2, 4, dtype=S32), config="512"), shape(2, 8)), "error"),
            (top_k(40000, 17000), "error"),
            (top_k(32768, 20), "warning"),
        ],
        [top_k(16384, 32), top_k(32768, 8), top_k(512, 20, jnp.bfloat16)],
    ),
    "N10": (
        [
            (of(lambda x: x + 1, shape(4, dtype=ml_dtypes.float8_e4m3fn)), "error"),
            (of(lambda x: x.astype(jnp.int4), shape(4)), "error"),
            (of(lambda x: x * 2, shape(4, dtype=jnp.complex64)), "error"),
            (of(lambda x: x + 1, shape(4, dtype=jnp.int16)), "warning"),
        ],
        [
            of(lambda x: x.astype(jnp.bfloat16) + x.astype(ml_dtypes.float8_e4m3).astype(jnp.bfloat16), shape(4)),
            of(lambda k: jax.random.bits(jax.random.wrap_key_data(k, impl="rbg"), (4,)), shape(4, dtype=jnp.uint32)),
        ],
    ),
    "N11": (
        [(of(jnp.matmul, shape(4, 4, dtype=jnp.int8), shape(4, 4, dtype=jnp.int8)), "error")],
        [of(lambda x, y: x @ y.astype(jnp.bfloat16), shape(4, 4, dtype=jnp.bfloat16), shape(4, 4, dtype=jnp.int8))],
    ),
    "N12": (
        [(of(lambda x, i: x.at[i].add(1, mode="promise_in_bounds"), shape(4, dtype=S32), shape(2, dtype=S32), known=IN_RANGE), "error")],
        [of(put, shape(4, dtype=S32), shape(2, dtype=S32), shape(2, dtype=S32), known=IN_RANGE)],
    ),
    "N13": ([(of(lambda x: x >> 1, shape(4, dtype=jnp.int16)), "error")], [of(lambda x: x >> 1, shape(4, dtype=S32))]),
    "N14": (
        [
            (of(lambda k: jax.random.uniform(jax.random.wrap_key_data(k, impl="threefry2x32"), (4,)), shape(2, dtype=jnp.uint32)), "error"),
            (of(lambda k: jax.lax.rng_bit_generator(k, (4,), algorithm=1), shape(4, dtype=jnp.uint32)), "error"),
            (of(lambda k: jax.lax.rng_bit_generator(k, (4,)), shape(4, dtype=jnp.uint32)), "warning"),
        ],
        [of(lambda x: (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D) | (x << 3), shape(4, dtype=jnp.uint32))],
    ),
    "N15": (
        [
            (of(take("fill"), shape(4, 8), shape(2, dtype=S32), known=IN_RANGE), "error"),
            (of(take("promise_in_bounds"), shape(4, 8), shape(2, dtype=S32), known=LOOSE), "error"),
            (lambda: hlo((IOTA % (4, 4)).replace("s32", "u32")), "error"),
            (of(lambda x, i: x.at[i, i].get(mode="promise_in_bounds"), shape(4, 8), shape(2, dtype=S32), known=IN_RANGE), "warning"),
            (of(lambda x: x.at[jnp.array([7])].get(mode="promise_in_bounds"), shape(4, 8)), "error"),
        ],
        [
            of(take("promise_in_bounds"), shape(4, 8), shape(2, dtype=S32), known=IN_RANGE),
            of(lambda x, i: x.at[jnp.clip(i, 0, 3)].get(mode="promise_in_bounds"), shape(4, 8), shape(2, dtype=S32), known=LOOSE),
        ],
    ),
    "N16": (
        [
            (of(put, shape(4), shape(2, dtype=S32), shape(2), known=facts({"i": between(0, 4)})), "error"),
            (of(lambda x, i: x.at[i].add(1, mode="promise_in_bounds"), shape(4), shape(2, dtype=S32), known=IN_RANGE), "error"),
        ],
        [
            of(put, shape(4), shape(2, dtype=S32), shape(2), known=IN_RANGE),
            of(lambda x, i, y: put(x, jnp.where(i < 0, 0, i), y), shape(4), shape(2, dtype=S32), shape(2), known=IN_RANGE),
        ],
    ),
    "N17": ([(lambda: hlo(IOTA % (9, 9)), "error")], [lambda: hlo(IOTA % (4, 4))]),
    "N18": (
        [(of(lambda x, m: jax.nn.softmax(jnp.where(m, x, -jnp.inf)), shape(4), shape(4, dtype=jnp.bool_)), "warning")],
        [of(lambda x, m: jax.nn.softmax(jnp.where(m, x, -1e30)), shape(4), shape(4, dtype=jnp.bool_))],
    ),
    "N19": (
        [
            (of(lambda kv: kv.at[0].set(1.0), shape(4), known=facts(donated=("kv",))), "error"),
            (of(lambda x: x.at[0].set(1.0), shape(4), known=facts(donated=("kv",)), donate=(0,)), "error"),
            (of(lambda kv: kv.at[0].set(1.0), shape(4)), "error"),
        ],
        [of(lambda kv, x: kv.at[0].set(x), shape(4), shape(), known=facts(donated=("kv",)), donate=(0,))],
    ),
    "N20": (
        [(lambda: hlo("HloModule m\n\nENTRY e {\n  t = token[] after-all()\n  ROOT i = (f32[2]{0}, token[]) infeed(t)\n}\n"), "error")],
        [of(jnp.negative, shape(4))],
    ),
    "N21": (
        [
            (of(jnp.negative, shape(5, 1 << 30)), "error"),
            (of(lambda x: x + np.arange(1 << 19, dtype=np.float32), shape(1 << 19)), "warning"),
        ],
        [of(lambda x, y: x + y, shape(1 << 19), shape(1 << 19)), of(lambda x: x + 1.0, shape(1 << 19))],
    ),
    "N22": (
        [
            (of(jnp.matmul, shape(1 << 14, 1 << 14), shape(1 << 14, 1 << 18)), "error"),
            (of(lambda x: jax.lax.fori_loop(0, 1_000_000, lambda _, y: y * 2, x), shape(4)), "warning"),
        ],
        [of(jnp.matmul, shape(1 << 10, 1 << 10), shape(1 << 10, 1 << 10))],
    ),
    "N23": ([(lambda: stablehlo(BRANCHES), "warning")], [of(jnp.sin, shape(4))]),
    "N24": (
        [(of(take("clip"), *ROWS, known=facts(**DECODE)), "warning")],
        [of(take("clip"), *ROWS, known=facts(**{**DECODE, "generates": False}))],
    ),
    "N25": ([(summed(3), "warning"), (lambda: stablehlo(GROUPS), "warning")], [summed(4)]),
    "N26": (
        [
            (of(jnp.sin, shape(4), known=facts(width_tokens=96)), "warning"),
            (of(jnp.sin, shape(4), known=facts(width_tokens=256, length=64)), "warning"),
            (of(jnp.sin, shape(4), known=facts(width_tokens=256, length=128, native_attention=True)), "warning"),
            (of(jnp.sin, shape(4), known=facts(width_tokens=256, length=128)), "info"),
        ],
        [
            of(jnp.sin, shape(4), known=facts(width_tokens=1024, length=1024, native_attention=True)),
        ],
    ),
    "N27": (
        [(of(jnp.sin, shape(4), known=facts(jax_version="0.12.1")), "warning")],
        [of(jnp.sin, shape(4), known=facts(jax_version="0.10.0"))],
    ),
}


def label(part: Any) -> str:
    return part if isinstance(part, str) else ""


def test_there_are_all_rules_and_a_case_for_each() -> None:
    ids = [f"N{number:02}" for number in range(1, 28)]
    assert [rule.id for rule in RULES] == ids == sorted(CASES)


@pytest.mark.parametrize(
    ("rule", "maker", "severity"),
    [(rule, *case) for rule, (bad, _) in CASES.items() for case in bad],
    ids=lambda x: x if type(x) is str else "",
)
def test_a_graph_that_breaks_the_rule(rule: str, maker: Maker, severity: str) -> None:
    subjects = maker()
    found = said(lint(subjects), rule)
    assert severity in found, f"{rule} says {found}"
    assert set(found[severity]) == {subject.module.form for subject in subjects}, "both forms show it"
    assert severity in next(r.severity for r in RULES if r.id == rule)


@pytest.mark.parametrize(
    ("rule", "maker"), [(rule, case) for rule, (_, good) in CASES.items() for case in good], ids=lambda x: x if type(x) is str else ""
)
def test_a_graph_that_keeps_the_rule(rule: str, maker: Maker) -> None:
    assert not said(lint(maker()), rule)


def test_targets_differ() -> None:
    def size(gib: int) -> list[Subject]:
        return lower(jnp.negative, shape(gib, 1 << 28))

    assert "error" in said(lint(size(6), "trn1"), "N21")
    assert not said(lint(size(6), "trn2"), "N21")
    assert not said(lint(summed(24)(), "inf2"), "N25")
    assert said(lint(summed(24)(), "trn1"), "N25")


def test_a_callback_cannot_even_be_lowered_for_neuron_but_is_found_where_it_was() -> None:
    with pytest.raises(ValueError, match="neuron"):
        lower(lambda x: jax.pure_callback(lambda y: y, shape(4), x), shape(4))
    call = 'custom-call(x), custom_call_target="xla_ffi_python_cpu_callback", api_version=API_VERSION_TYPED_FFI'
    found = lint(hlo(f"HloModule m\n\nENTRY e {{\n  x = f32[4]{{0}} parameter(0)\n  ROOT y = f32[4]{{0}} {call}\n}}\n"))
    assert said(found, "N20") == {"error": ("hlo",)}
    assert not said(found, "N08"), "one rule says it"


def test_without_facts_a_rule_says_that_it_has_no_verdict() -> None:
    report = lint(lower(take("promise_in_bounds"), shape(4, 8), shape(2, dtype=S32)))
    assert {unchecked.rule for unchecked in report.unchecked} == {"N15", "N19", "N24", "N26", "N27"}
    assert "unknown N15" in "\n".join(report.lines())
    assert [u["rule"] for u in report.as_json()["unchecked"]] == ["N15", "N19", "N24", "N26", "N27"]


def test_a_finding_says_where_it_is() -> None:
    report = lint(lower(lambda x: jax.lax.sort(x) + 1.0, shape(8), known=facts()))
    finding = next(finding for finding in report.findings if finding.rule == "N02")
    assert finding.op == "sort(f32[8]) -> f32[8]"
    assert finding.place.op_name.endswith("sort")
    file, _, line = finding.place.source.rpartition(":")
    assert Path(file).name == "test_rules.py"
    assert int(line) > 0
    assert finding.forms == BOTH
    assert finding.count == 1
    assert Place("a/b", "/home/x/xlaserve/xlaserve/models/layers.py:3").source == "xlaserve/models/layers.py:3"
