"""What a model is, as plain data: `ModelConfig` holds everything that shapes its graphs, read once from a Hugging Face config.

Families differ only in how they fill this in (one module each: llama, mistral, qwen2, qwen3, qwen3_moe, gemma2, gemma3). Imports no JAX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from xlaserve.errors import CheckpointError, UnsupportedModelError

Activation = Literal["silu", "gelu_tanh", "gelu"]
Quantization = Literal["int8"]

LoadFormat = Literal["auto", "dummy"]
"""Where weights come from: the model's files, or nowhere, as they are random."""

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
}


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Frequency scaling of Llama 3.1 and later: long wavelengths are stretched, short ones kept, the ones between blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding (Su et al., 2021): base frequency and an optional linear or llama3 scaling."""

    theta: float
    linear_factor: float = 1.0
    llama3: Llama3Scaling | None = None


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """What one layer's attention has of its own: its sliding window in tokens (None: all earlier tokens) and its rotary embedding."""

    window: int | None
    rope: Rope


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts.

    Args:
        count: experts in a layer.
        per_token: how many of them each token goes through.
        width: of one expert's gated MLP.
        normalized: whether the probabilities of a token's experts are made to add up to 1.
    """

    count: int
    per_token: int
    width: int
    normalized: bool


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only transformer.

    Args:
        family: the family's short name, such as "llama".
        vocab_size: rows of the embedding table.
        hidden_size: width of the residual stream.
        intermediate_size: width of the gated MLP.
        num_heads: query heads.
        num_kv_heads: key and value heads; divides num_heads.
        head_dim: width of one head.
        layers: one entry per decoder layer.
        max_position: longest sequence in tokens that the checkpoint was made for.
        norm_eps: epsilon of every RMSNorm.
        activation: of the gated MLP.
        tie_embeddings: logits come from the embedding table.
        qkv_bias, output_bias, mlp_bias: which projections have biases.
        qk_norm: RMSNorm on each query and key head before rotation.
        unit_offset_norm: norm weights are stored as their difference from 1 (Gemma).
        sandwich_norm: norms after attention and MLP too (Gemma 2 and 3).
        embedding_scale: factor on embeddings (Gemma: sqrt(hidden_size)).
        query_scale: factor on attention scores.
        attention_softcap, logit_softcap: x -> cap * tanh(x / cap) on scores and on logits (Gemma 2).
        experts: what layers have in place of the MLP, if anything.
        dense_layers: layers that have the MLP even so.
        shards: devices that the model is split over; where there are several, heads and MLP width are what one of them has.
        quantization: how weights of products and embeddings are kept; None for the model's dtype.
        panels: whether weights of products lie in panels, as the CPU kernels read them (`xlaserve.kernels.panels`).
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerAttention, ...]
    max_position: int
    norm_eps: float
    activation: Activation
    tie_embeddings: bool
    query_scale: float
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    unit_offset_norm: bool = False
    sandwich_norm: bool = False
    embedding_scale: float = 1.0
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    experts: Experts | None = None
    dense_layers: tuple[int, ...] = ()
    shards: int = 1
    quantization: Quantization | None = None
    panels: bool = False

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.layers)

    @property
    def vocab_rows(self) -> int:
        """Rows of the embedding table and of the output head on one device; the last device's are padded."""
        return -(-self.vocab_size // self.shards)

    @property
    def shard_counts(self) -> tuple[int, ...]:
        """How many devices the whole model can be split over."""
        return tuple(n for n in range(1, self.num_heads + 1) if self.unsplit(n) is None)

    def unsplit(self, shards: int) -> str | None:
        """What of the whole model cannot be split over so many devices, or None. Query heads, MLP and expert widths must divide evenly;
        key and value heads too, or else each of them be copied to the same number of devices.
        """
        if self.num_heads % shards:
            return f"{self.num_heads} query heads"
        if self.num_kv_heads % shards and shards % self.num_kv_heads:
            return f"{self.num_kv_heads} key and value heads"
        if self.experts is not None and self.experts.width % shards:
            return f"expert width of {self.experts.width}"
        if (self.experts is None or self.dense_layers) and self.intermediate_size % shards:
            return f"MLP width of {self.intermediate_size}"
        return None

    def shard(self, shards: int) -> ModelConfig:
        """The whole model as one of `shards` devices has it; `unsplit` must have said that it can be."""
        if shards == 1:
            return self
        return replace(
            self,
            num_heads=self.num_heads // shards,
            num_kv_heads=max(1, self.num_kv_heads // shards),
            intermediate_size=self.intermediate_size // shards,
            experts=self.experts and replace(self.experts, width=self.experts.width // shards),
            shards=shards,
        )

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Bytes of keys and values that one token leaves in all layers, at `itemsize` bytes a number."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * itemsize


class ConfigReader:
    """Typed reads from a Hugging Face `config.json`; every problem is an error that names the key."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer; a missing or null key gives `default`, or a CheckpointError where there is none."""
        value = self.raw.get(key)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"config.json: {key} is missing; the checkpoint is incomplete or of another kind.")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(f"config.json: {key} must be a positive integer, got {value!r}.")
        return value

    def number(self, key: str, default: float) -> float:
        """A number; a missing or null key gives `default`."""
        value = self.optional_number(key)
        return default if value is None else value

    def optional_number(self, key: str) -> float | None:
        """A number, or None where the key is missing or null."""
        value = self.raw.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"config.json: {key} must be a number, got {value!r}.")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """A boolean; a missing or null key gives `default`."""
        value = self.raw.get(key)
        return default if value is None else bool(value)

    def activation(self, *keys: str) -> Activation:
        """The MLP activation under the first of `keys` that is present; an unknown one is an UnsupportedModelError."""
        name = next((self.raw[key] for key in keys if self.raw.get(key) is not None), "silu")
        if name not in _ACTIVATIONS:
            raise UnsupportedModelError(
                f"config.json: activation {name!r} is not supported; supported are {', '.join(sorted(_ACTIVATIONS))}."
            )
        return _ACTIVATIONS[name]

    def rope(self, *, theta: float = 10_000.0, layer_type: str | None = None) -> Rope:
        """Rotary parameters, from `rope_theta` and `rope_scaling` or from the newer `rope_parameters`.

        Args:
            theta: base frequency where the config names none.
            layer_type: which entry to take where `rope_parameters` is keyed by layer type.

        Raises:
            UnsupportedModelError: a scaling other than default, linear and llama3.
        """
        parameters = self.raw.get("rope_parameters") or {}
        if layer_type is not None and layer_type in parameters:
            parameters = parameters[layer_type]
        scaling = parameters or self.raw.get("rope_scaling") or {}
        if not isinstance(scaling, Mapping):
            raise CheckpointError(f"config.json: rope_scaling must be an object, got {scaling!r}.")
        base = float(parameters.get("rope_theta") or self.number("rope_theta", theta))
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        if kind == "default":
            return Rope(base)
        try:
            if kind == "linear":
                return Rope(base, linear_factor=float(scaling["factor"]))
            if kind == "llama3":
                return Rope(
                    base,
                    llama3=Llama3Scaling(
                        factor=float(scaling["factor"]),
                        low_freq_factor=float(scaling["low_freq_factor"]),
                        high_freq_factor=float(scaling["high_freq_factor"]),
                        original_max_position=int(scaling["original_max_position_embeddings"]),
                    ),
                )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"config.json: rope scaling {kind!r} needs numbers that are missing or malformed: {error}.") from error
        raise UnsupportedModelError(f"config.json: rope scaling {kind!r} is not supported; supported are default, linear and llama3.")

    def windows(self, num_layers: int, window: int | None, default: Mapping[int, bool] | None = None) -> tuple[int | None, ...]:
        """Sliding window of each layer: from `layer_types` where present, else from `default` (layer -> slides), else `window` for all."""
        types = self.raw.get("layer_types")
        if types is not None:
            if len(types) != num_layers:
                raise CheckpointError(f"config.json: layer_types names {len(types)} layers, num_hidden_layers is {num_layers}.")
            unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
            if unknown:
                raise UnsupportedModelError(f"config.json: layer type {unknown[0]!r} is not supported.")
            return tuple(window if kind == "sliding_attention" else None for kind in types)
        return tuple(window if default is None or default[i] else None for i in range(num_layers))
