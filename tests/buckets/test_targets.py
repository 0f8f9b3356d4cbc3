"""Accelerators that are not here: known by name, with their memory, and refused where they are of another platform."""

from __future__ import annotations

import pytest

from tests.tooling.tiny_models import tiny_config
from xlaserve.buckets.targets import TARGETS, AbsentDevice, target_platform
from xlaserve.engine.build import plan_graphs
from xlaserve.engine.config import EngineConfig
from xlaserve.errors import ConfigError
from xlaserve.models.registry import model_config
from xlaserve.platforms.neuron_targets import TARGETS as NEURON_TARGETS


def test_targets_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax.experimental import topologies

    def absent(**_options: object) -> object:
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(topologies, "get_topology_desc", absent)
    for name, target in TARGETS.items():
        platform = target_platform(target.platform, name)
        [found] = platform.devices()
        assert isinstance(found, AbsentDevice)
        assert ("pip install 'xlaserve[cuda13]'" in found.reason) == (target.platform == "cuda")
        assert platform.memory() == target.memory
        assert platform.fingerprint() == {"device_kind": target.device_kind, "platform_version": None}
        assert len(target_platform(None, name, 4).first_devices(4)) == 4
        assert platform.joined_devices() == (NEURON_TARGETS[name].parallel if target.platform == "neuron" else None)
    with pytest.raises(ConfigError, match=r"target must be one of h100, .* got 'b7'"):
        target_platform("cuda", "b7")
    with pytest.raises(ConfigError, match="target trn2 is of the platform neuron, not of cuda"):
        target_platform("cuda", "trn2")


def test_neuron_joins_certain_numbers_of_cores() -> None:
    config = EngineConfig(tensor_parallel_size=4)
    model = model_config(tiny_config("llama3"))
    message = "tensor_parallel_size 4 is not among the numbers of devices that this platform joins, 1, 2, 8, 16, 32. Sizes that work: 1, 2."
    with pytest.raises(ConfigError, match=message):
        plan_graphs(config, model, target_platform(None, "trn1", 4))
    limits, _, spec, weight_bytes = plan_graphs(config, model, target_platform(None, "trn2", 4))
    assert spec.tensor_parallel_size == limits.tensor_parallel_size == 4
    _, _, _, whole = plan_graphs(EngineConfig(), model, target_platform(None, "trn2"))
    assert whole / 4 < weight_bytes < whole / 3, "norms and copies of key heads are on each core"
