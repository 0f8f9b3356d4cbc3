"""AWS Trainium and Inferentia through the Neuron PJRT plugin: bfloat16, blocks of 128 tokens, no dynamic control flow in graphs."""

from __future__ import annotations

from xlaserve.platforms.platform import Platform

NEURON = Platform(
    name="neuron",
    jax_name="neuron",
    dtype="bfloat16",
    block_size=128,
    max_num_seqs=16,
    max_num_batched_tokens=1024,
    attention="gather",
    branches=False,
    top_k="neuron",
    install="Install the Neuron driver and jax-neuronx from AWS's package index as docs/platforms.md shows, and check with `neuron-ls`.",
)
