"""Accelerators that are not here: known by name, with their memory, and refused where they are of another platform."""

from __future__ import annotations

import pytest

from xlaserve.buckets.targets import TARGETS, AbsentDevice, target_platform
from xlaserve.errors import ConfigError


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
    with pytest.raises(ConfigError, match=r"target must be one of h100, .* got 'b7'"):
        target_platform("cuda", "b7")
    with pytest.raises(ConfigError, match="target trn2 is of the platform neuron, not of cuda"):
        target_platform("cuda", "trn2")
