"""Environment variables as options: what is given counts more, and what cannot be read is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xlaserve.engine.environment import with_environment
from xlaserve.errors import ConfigError
from xlaserve.platforms.neuron_options import NeuronOptions


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, {}),
        ({"XLASERVE_PLATFORM": "neuron"}, {"device": "neuron"}),
        ({"NEURON_CONTEXT_LENGTH_BUCKETS": "128, 512"}, {"context_buckets": (128, 512)}),
        ({"NEURON_TOKEN_GEN_BUCKETS": "2048"}, {"generate_buckets": (2048,)}),
        ({"NEURON_CC_FLAGS": "-O1 --a='b c'"}, {"neuron": NeuronOptions(environment_flags=("-O1", "--a=b c"))}),
        ({"XLASERVE_PLATFORM": "", "NEURON_CONTEXT_LENGTH_BUCKETS": "", "NEURON_CC_FLAGS": ""}, {}),
    ],
)
def test_variables_stand_in_for_options(environ: dict[str, str], wanted: dict[str, Any]) -> None:
    assert with_environment({}, environ) == wanted
    nothing_given = {"device": None, "context_buckets": None, "generate_buckets": None, "neuron": None}
    assert with_environment({**nothing_given, "seed": 3}, environ) == {**nothing_given, "seed": 3, **wanted}


def test_what_is_given_counts_more() -> None:
    given = {"device": "cpu", "context_buckets": (64,), "generate_buckets": (64,)}
    environ = {"XLASERVE_PLATFORM": "neuron", "NEURON_CONTEXT_LENGTH_BUCKETS": "128", "NEURON_TOKEN_GEN_BUCKETS": "128"}
    assert with_environment(given, environ) == given


def test_compiled_artifacts_are_loaded_or_kept(tmp_path: Path) -> None:
    environ = {"NEURON_COMPILED_ARTIFACTS": str(tmp_path)}
    assert with_environment({}, environ) == {"compile_cache": str(tmp_path)}
    (tmp_path / "manifest.json").write_text("{}")
    assert with_environment({}, environ) == {"artifacts": str(tmp_path)}
    assert with_environment({"artifacts": "mine"}, environ) == {"artifacts": "mine"}


def test_compiler_flags_are_beside_other_options() -> None:
    merged = with_environment({"neuron": NeuronOptions(logical_nc_config=2, flags=("--b",))}, {"NEURON_CC_FLAGS": "--a"})
    assert merged["neuron"] == NeuronOptions(logical_nc_config=2, flags=("--b",), environment_flags=("--a",))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("NEURON_CONTEXT_LENGTH_BUCKETS", "128,"),
        ("NEURON_CONTEXT_LENGTH_BUCKETS", "128 512"),
        ("NEURON_TOKEN_GEN_BUCKETS", "0"),
        ("NEURON_TOKEN_GEN_BUCKETS", "[128]"),
        ("NEURON_CC_FLAGS", "--a='b"),
    ],
)
def test_variables_that_cannot_be_read_are_named(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=name):
        with_environment({}, {name: text})
