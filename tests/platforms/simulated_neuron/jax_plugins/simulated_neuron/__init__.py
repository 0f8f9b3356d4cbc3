"""A PJRT plugin of four cores that calls itself `neuron`, computes on the CPU, and compiles what the lint lets pass and nothing else.

JAX finds it where the folder around `jax_plugins` is on PYTHONPATH, and as it finds an installed plugin: it imports the members of that
namespace and calls their `initialize`.
"""

from __future__ import annotations

from jax._src import xla_bridge

from .compiler import compile_instead, record
from .proxy import Proxy

_PROXY = Proxy("neuron", "trn2", compile_instead, lambda: record(event="load"))


def initialize() -> None:
    """Registers the plugin; its client starts when JAX first asks for devices."""
    xla_bridge.register_plugin("neuron", c_api=_PROXY.capsule, priority=400)
