"""The linear kernel against the plain arithmetic that it stands for, and what it promises beyond that: one answer for a row, to the last
bit, whatever is computed beside it and by however many threads.
"""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlaserve.kernels.library import Library, library
from xlaserve.kernels.linear import linear
from xlaserve.kernels.packs import Packed
from xlaserve.kernels.panels import PanelRows, as_matrix, panel_shape
from xlaserve.models.config import Activation
from xlaserve.models.operations import Norm, Weights, XlaOperations, plain_linear
from xlaserve.models.quantization import project, quantize

pytestmark = pytest.mark.usefixtures("native")

ROWS = 260
"""More than one block of rows (252)."""
EPS = 1e-5


@dataclass(frozen=True)
class Layer:
    """A layer, and what stands around it. Few sizes are multiples of a vector's, or of a tile's; weights that divide into panels do."""

    inputs: int = 100
    outputs: int = 46
    dtype: Literal["float32", "bfloat16"] = "float32"
    int8: bool = False
    norm: bool = False
    unit_offset: bool = False
    bias: bool = False
    activation: Activation | None = None
    residual: bool = False

    @property
    def tolerance(self) -> float:
        """Of the largest result of a row. A bfloat16 has 8 bits, and the kernel rounds to it less often than the plain graph; int8 rounds
        what comes from the norm to 16 bits, one step of which is 3e-5.
        """
        if self.dtype == "bfloat16":
            return 2e-2
        return 2e-4 if self.int8 and self.norm else 2e-5


@dataclass(frozen=True)
class Arrays:
    """A layer's parameters, and rows to go through it."""

    x: jax.Array
    weights: Weights
    norm: Norm | None
    residual: jax.Array | None


def in_panels(matrix: np.ndarray) -> np.ndarray:
    """As weights are loaded for the kernel."""
    shape = panel_shape(*matrix.shape, matrix.dtype.itemsize)
    if len(shape) == 2:
        return matrix
    panels = np.empty(shape, matrix.dtype)
    PanelRows(panels)[:] = matrix
    return panels


@functools.cache
def arrays(layer: Layer) -> Arrays:
    rng = np.random.default_rng(0)
    dtype = jnp.dtype(layer.dtype)

    def normal(*shape: int, mean: float = 0.0, deviation: float = 1.0) -> np.ndarray:
        return rng.normal(mean, deviation, shape)

    weight, scale = normal(layer.outputs, layer.inputs), None
    if layer.int8:
        weight, scale = (jnp.asarray(array) for array in quantize(weight))
    weight = in_panels(np.asarray(jnp.asarray(weight, None if layer.int8 else dtype)))
    # Rows of different sizes, one of zeros among them: an int8 row's scale is its own.
    x = normal(ROWS, layer.inputs) * np.exp(normal(ROWS, 1))
    x[3] = 0
    bias = jnp.asarray(normal(layer.outputs), dtype) if layer.bias else None
    norm = Norm(jnp.asarray(normal(layer.inputs, mean=1 - layer.unit_offset, deviation=0.3), dtype), EPS, layer.unit_offset)
    return Arrays(
        jnp.asarray(x, dtype),
        Weights(jnp.asarray(weight), scale, bias),
        norm if layer.norm else None,
        jnp.asarray(normal(ROWS, layer.outputs // (1 if layer.activation is None else 2)), dtype) if layer.residual else None,
    )


@functools.cache
def kernel(layer: Layer) -> Callable[..., jax.Array]:
    """`call(x, residual, lengths)` of one layer."""
    own = arrays(layer)
    norm = {} if own.norm is None else {"norm": own.norm.weight, "eps": own.norm.eps, "unit_offset": own.norm.unit_offset}

    @jax.jit
    def call(x: jax.Array, residual: jax.Array | None = None, lengths: jax.Array | None = None) -> jax.Array:
        weight, scale, bias = own.weights
        return linear(x, weight, scale, lengths=lengths, bias=bias, activation=layer.activation, residual=residual, **norm)

    return call


def by_kernel(layer: Layer) -> np.ndarray:
    """All rows at once."""
    own = arrays(layer)
    return np.asarray(kernel(layer)(own.x, own.residual))


def by_xla(layer: Layer) -> np.ndarray:
    own = arrays(layer)

    def attend(*_: Any, **options: Any) -> jax.Array:
        raise AssertionError("there is no attention in a linear layer")

    @jax.jit
    def call(x: jax.Array, residual: jax.Array | None) -> jax.Array:
        return XlaOperations(attend).linear(x, own.weights, norm=own.norm, activation=layer.activation, residual=residual)

    return np.asarray(call(own.x, own.residual))


AROUND: dict[str, dict[str, Any]] = {
    "alone": {},
    "norm": {"norm": True},
    "norm, unit offset": {"norm": True, "unit_offset": True},
    "bias": {"bias": True},
    "residual": {"residual": True},
    "silu": {"activation": "silu"},
    "gelu_tanh": {"activation": "gelu_tanh"},
    "gelu": {"activation": "gelu"},
    "all": {"norm": True, "bias": True, "activation": "silu", "residual": True},
}
KINDS: dict[str, dict[str, Any]] = {
    f"{dtype}{', int8' * int8}": {"dtype": dtype, "int8": int8} for dtype in ("float32", "bfloat16") for int8 in (False, True)
}
SIZES = [(5, 6), (16, 4), (64, 40), (129, 34), (200, 1030), (1100, 70), (4, 64), (100, 64), (132, 1024), (1100, 192), (2200, 192)]

kinds = pytest.mark.parametrize("kind", KINDS)
sizes = pytest.mark.parametrize(("inputs", "outputs"), SIZES)


@kinds
@pytest.mark.parametrize("around", AROUND)
def test_it_computes_what_the_graph_computes(kind: str, around: str) -> None:
    check(Layer(**KINDS[kind], **AROUND[around]))


@kinds
@sizes
def test_sizes(kind: str, inputs: int, outputs: int) -> None:
    check(Layer(inputs, outputs, **KINDS[kind], **AROUND["all"]))


def check(layer: Layer) -> None:
    found, expected = (array.astype(np.float64) for array in (by_kernel(layer), by_xla(layer)))
    assert found.shape == expected.shape == (ROWS, layer.outputs // (1 if layer.activation is None else 2))
    size = np.abs(expected).max(axis=1, keepdims=True)
    size = np.maximum(size, np.median(size))  # a row's few numbers may all be small differences of larger ones
    assert size.min() > 0
    assert (np.abs(found - expected) <= layer.tolerance * size).all()


@kinds
@pytest.mark.parametrize("around", ["alone", "norm"])
def test_rows_that_are_pages_apart(kind: str, around: str) -> None:
    """The kernel moves them to places of their own, where there are many."""
    layer = Layer(2048, 64, **KINDS[kind], **AROUND[around])
    check(layer)
    own, together = arrays(layer), by_kernel(layer)
    for count in (1, 7, 8, 12, 13):
        assert (np.asarray(kernel(layer)(own.x[:count])) == together[:count]).all(), count


@kinds
def test_parameters_in_packs(kind: str) -> None:
    """They are read where they lie: what is around them is no number."""
    layer = Layer(100, 64, **KINDS[kind], **AROUND["all"])
    own = arrays(layer)
    assert own.norm is not None

    def packed(parameter: jax.Array, before: int) -> Packed:
        around = 127 if parameter.dtype == jnp.int8 else np.nan
        parts = (np.full(before, around), np.asarray(parameter, np.float32).reshape(-1), np.full(64, around))
        return Packed(jnp.asarray(np.concatenate(parts), parameter.dtype), before, parameter.shape)

    weight, scale, bias = (None if part is None else packed(part, 64 * (2 + i)) for i, part in enumerate(own.weights))
    assert weight is not None
    around = {"norm": packed(own.norm.weight, 128), "eps": EPS, "bias": bias, "activation": layer.activation}
    found = jax.jit(lambda x, residual: linear(x, weight, scale, residual=residual, **around))(own.x, own.residual)
    assert (np.asarray(found) == by_kernel(layer)).all()
    plain = jax.jit(lambda x: plain_linear(x, Weights(weight, scale, bias)))(own.x)
    assert (np.asarray(plain) == np.asarray(jax.jit(lambda x: plain_linear(x, own.weights))(own.x))).all()


def test_a_large_result() -> None:
    """Of 2 MiB: it gets huge pages."""
    check(Layer(8, 2112))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("inputs", "outputs"), [*SIZES, (3, 2), (63, 7)])
def test_int8_is_what_project_gives_bit_for_bit(dtype: Literal["float32", "bfloat16"], inputs: int, outputs: int) -> None:
    layer = Layer(inputs, outputs, dtype, int8=True)
    own = arrays(layer)
    expected = jax.jit(project)(own.x, as_matrix(own.weights.weight), own.weights.scale)
    assert (by_kernel(layer) == np.asarray(expected)).all()


def test_int8_of_what_is_no_number_stays_visible() -> None:
    own = arrays(Layer(int8=True))
    for wrong in (np.nan, np.inf, -np.inf):
        found = np.asarray(kernel(Layer(int8=True))(own.x.at[5, 7].set(wrong)))
        assert not np.isfinite(found[5]).any()
        assert np.isfinite(np.delete(found, 5, axis=0)).all()


@kinds
@pytest.mark.parametrize(("inputs", "outputs"), [(129, 34), (100, 64)])
def test_a_row_is_the_same_in_any_company(kind: str, inputs: int, outputs: int) -> None:
    """Alone, and among as many as there are; what is not there is zero."""
    layer = Layer(inputs, outputs, **KINDS[kind], **AROUND["all"])
    own, together = arrays(layer), by_kernel(layer)
    assert own.residual is not None
    for row in range(ROWS):
        assert (np.asarray(kernel(layer)(own.x[row : row + 1], own.residual[row : row + 1])) == together[row]).all(), row
    for count in range(ROWS + 1):
        found = np.asarray(kernel(layer)(own.x[None], own.residual[None], jnp.array([count], jnp.int32)))[0]
        assert (found[:count] == together[:count]).all(), count
        assert not found[count:].any(), count


@kinds
@sizes
def test_a_row_is_the_same_alone(kind: str, inputs: int, outputs: int) -> None:
    layer = Layer(inputs, outputs, **KINDS[kind], **AROUND["norm"])
    own, together = arrays(layer), by_kernel(layer)
    for row in (0, 3, 61, 62, ROWS - 2, ROWS - 1):
        assert (np.asarray(kernel(layer)(own.x[row : row + 1])) == together[row]).all(), row


@kinds
def test_places_without_a_token_become_zeros(kind: str) -> None:
    """Whatever they hold, and wherever in the batch they are."""
    layer = Layer(**KINDS[kind], **AROUND["all"])
    own, together = arrays(layer), by_kernel(layer)
    assert own.residual is not None
    lengths = np.array([0, 3, 26, 1, 25], np.int32)
    real = np.arange(ROWS // 5) < lengths[:, None]
    x, residual = (jnp.where(real[..., None], array.reshape(*real.shape, -1), np.nan) for array in (own.x, own.residual))
    found = np.asarray(kernel(layer)(x, residual, lengths))
    assert (found[real] == together.reshape(found.shape)[real]).all()
    assert not found[~real].any()
    assert not np.asarray(kernel(layer)(x, residual, np.zeros(5, np.int32))).any()
    # Of rows of one token, as the output head has them, any number above 0 means that there is one.
    lengths = np.arange(ROWS, dtype=np.int32) % 3
    found = np.asarray(kernel(layer)(own.x, own.residual, lengths))
    assert (found[lengths > 0] == together[lengths > 0]).all()
    assert not found[lengths == 0].any()


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu"])
@pytest.mark.parametrize("outputs", [46, 64])
def test_activations_of_any_number(activation: Activation, outputs: int) -> None:
    """From where they are 0 to where they are the number itself, and of what is none."""
    numbers = np.array([-1e30, -1e4, -200, -88.5, -87, -30, -5, -1, -1e-3, -0.0, 0, 1e-20, 0.5, 2, 9, 87, 88.5, 1e4, 1e30], np.float32)
    half = outputs // 2
    weight = np.zeros((outputs, 2), np.float32)
    weight[:half, 0], weight[half:, 1] = 1, 1  # so that the activation's number is the first of x, and what it multiplies the second
    x = np.stack([numbers, np.ones_like(numbers)], 1)
    call = jax.jit(lambda x: linear(x, jnp.asarray(in_panels(weight)), activation=activation))
    found = np.asarray(call(x))
    graph = {"silu": jax.nn.silu, "gelu_tanh": jax.nn.gelu, "gelu": functools.partial(jax.nn.gelu, approximate=False)}[activation]
    expected = np.asarray(graph(numbers), np.float64)
    assert (found == found[:, :1]).all()
    assert (np.abs(found[:, 0] - expected) <= 1e-6 * np.maximum(np.abs(expected), np.minimum(np.abs(numbers), 1))).all()
    assert np.isnan(np.asarray(call(np.array([[np.nan, 1]], np.float32)))).all()


def test_float32_results_of_bfloat16() -> None:
    own = arrays(Layer(dtype="bfloat16"))
    found = jax.jit(lambda x: linear(x, own.weights.weight, dtype=jnp.float32))(own.x)
    assert found.dtype == jnp.float32
    assert (np.asarray(found.astype(jnp.bfloat16)) == by_kernel(Layer(dtype="bfloat16"))).all()


def floats(*shape: int, dtype: str = "float32") -> jax.Array:
    return jnp.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": floats(8)}, "x must have 2 dimensions or more, and weight 2 or 4"),
        ({"weight": floats(6, 8, 1)}, "x must have 2 dimensions or more, and weight 2 or 4"),
        ({"weight": floats(2, 7, 32, 1)}, "weight must have as many columns as x"),
        ({"weight": Packed(floats(50), 3, (6, 8))}, "weight must have as many numbers as its shape says"),
        ({"weight": Packed(floats(50), -1, (6, 8))}, "weight must have as many numbers as its shape says"),
        ({"norm": Packed(floats(20), 13, (8,))}, "norm must be as long as x's rows"),
        ({"bias": Packed(floats(20), 15, (6,))}, "bias must be one for each output"),
        ({"weight": floats(4, 8, 16, 1)}, "panels must be of 32 outputs, and their words of 4 bytes"),
        ({"weight": floats(2, 4, 32, 2)}, "panels must be of 32 outputs, and their words of 4 bytes"),
        ({"weight": floats(3, 8, 32, 1), "activation": "silu"}, "each half of a gated layer must have whole panels"),
        ({"x": floats(2, 8, dtype="float16")}, "x must be float32 or bfloat16"),
        ({"x": floats(2, 9)}, "weight must have as many columns as x"),
        ({"weight": floats(6, 8, dtype="bfloat16")}, "weight must have x's type, or be int8"),
        ({"weight": floats(6, 8, dtype="float16")}, "weight must be float32, bfloat16 or int8"),
        ({"weight": floats(7, 8), "activation": "silu"}, "the weight of a gated layer must have an even number of rows"),
        ({"weight": floats(6, 8, dtype="int8")}, "int8 weights need a float32 scale for each output"),
        ({"weight": floats(6, 8, dtype="int8"), "scale": floats(5)}, "int8 weights need a float32 scale for each output"),
        ({"weight": floats(6, 8, dtype="int8"), "scale": floats(6, dtype="bfloat16")}, "int8 weights need a float32 scale for each output"),
        ({"norm": floats(7)}, "norm must be as long as x's rows"),
        ({"norm": floats(8, dtype="bfloat16")}, "norm, bias and residual must have x's type"),
        ({"bias": floats(5)}, "bias must be one for each output"),
        ({"residual": floats(2, 5)}, "residual must be shaped as y"),
        ({"residual": floats(2, 6, dtype="bfloat16")}, "norm, bias and residual must have x's type"),
        ({"lengths": jnp.zeros(3, jnp.int32)}, "lengths must be int32, one for each sequence of x"),
        ({"lengths": floats(2)}, "lengths must be int32, one for each sequence of x"),
        ({"dtype": jnp.int32}, "y must be float32 or bfloat16"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"x": floats(2, 8), "weight": floats(6, 8)} | change
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"xlaserve_linear: {message}"):
        linear(given.pop("x"), given.pop("weight"), given.pop("scale", None), **given)


def digest() -> str:
    """Of results of every kind."""
    assert library() is not None
    found = [by_kernel(Layer(200, outputs, **kind, **AROUND["all"])) for kind in KINDS.values() for outputs in (1024, 1030)]
    return hashlib.sha256(b"".join(array.tobytes() for array in found)).hexdigest()


def test_one_thread_computes_what_many_do() -> None:
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); from tests.kernels.test_linear import digest; print(digest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [digest()]


@pytest.mark.parametrize("name", ["avx2", "avx512", "avx512_vnni"])
def test_lesser_instruction_sets_compute_the_same(native: Library, name: str) -> None:
    known = ["avx2", "avx512", "avx512_vnni", "avx512_bf16"]
    if known.index(name) >= known.index(native.instruction_set):
        pytest.skip(f"the other tests are of {native.instruction_set}")
    chosen = (
        "test_sizes",
        "test_int8_is_what_project_gives_bit_for_bit",
        "test_a_row_is_the_same_in_any_company",
        "test_places_without_a_token_become_zeros",
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *(f"{__file__}::{test}" for test in chosen)]
    done = subprocess.run(command, env={**os.environ, "XLASERVE_CPU_ISA": name}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
