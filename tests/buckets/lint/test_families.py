"""Every graph of every supported family, with the Neuron platform's choices, passes the lint for every target; nothing is compiled.

The same graphs with one choice made as for CPU do not: the lint can fail.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.tooling.tiny_models import FAMILIES, tiny_config
from xlaserve.buckets.graphs import GraphSpec, lower_for
from xlaserve.buckets.ladder import GenerateBucket, Ladder, make_ladder
from xlaserve.buckets.lint.contract import contract
from xlaserve.buckets.lint.hlo import hlo_text, read_hlo
from xlaserve.buckets.lint.ladder_lint import facts_of, lint_ladder
from xlaserve.buckets.lint.linter import Linter
from xlaserve.buckets.lint.one_device import one_device
from xlaserve.buckets.lint.ranges import Range
from xlaserve.buckets.lint.report import Report
from xlaserve.buckets.lint.rule import Subject
from xlaserve.buckets.lint.stablehlo import read_stablehlo
from xlaserve.models.registry import ARCHITECTURES, model_config
from xlaserve.platforms.neuron import NEURON
from xlaserve.platforms.neuron_targets import TARGETS

KNOWN = {"N01": "warning", "N15": "warning", "N24": "warning", "N26": "info", "N27": "warning"}
"""Operations in no list (xor, bitcast_convert), gathers by two indices, flattened KV, short chunks, and the JAX that runs the tests."""


def neuron_spec(family: str) -> GraphSpec:
    """A family's graphs as the Neuron platform has them."""
    return GraphSpec(
        model=model_config(tiny_config(family)),
        dtype=NEURON.dtype,
        num_blocks=9,
        block_size=NEURON.block_size,
        max_num_seqs=2,
        attention=NEURON.attention,
        branches=NEURON.branches,
        top_k=NEURON.top_k,
        experts=NEURON.experts,
    )


def ladder() -> Ladder:
    return make_ladder(max_model_len=256, max_num_seqs=2, max_num_batched_tokens=256, block_size=NEURON.block_size, static_width=True)


def one_graph(spec: GraphSpec, known: Any = None) -> Report:
    """The lint of the largest token-generation graph."""
    bucket = GenerateBucket(2, 2)
    module = lower_for(spec, bucket, "neuron").compiler_ir("stablehlo")
    linter = Linter(TARGETS["trn2"])
    for read in (read_stablehlo(module, "generate"), read_hlo(hlo_text(module), "generate")):
        linter.add(Subject(read, known or facts_of(spec, bucket, ladder())))
    return linter.report()


def errors(report: Report) -> set[str]:
    return {finding.rule for finding in report.findings if finding.severity == "error"}


def test_every_supported_architecture_has_a_tiny_model() -> None:
    assert {tiny_config(family)["architectures"][0] for family in FAMILIES} == set(ARCHITECTURES)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_graph_passes_for_every_target(family: str) -> None:
    reports = lint_ladder(neuron_spec(family), ladder(), list(TARGETS.values()), NEURON.jax_name)
    assert [report.target for report in reports] == ["trn1", "inf2", "trn2"]
    for report in reports:
        assert report.graphs == tuple(bucket.name for bucket in ladder().graphs)
        assert report.count("error") == 0, "\n".join(report.lines())
        assert not report.unchecked, "every rule has a verdict"
        assert {finding.rule: finding.severity for finding in report.findings}.items() <= KNOWN.items()
        assert all(finding.forms == ("stablehlo", "hlo") for finding in report.findings), "both forms say the same"
        assert all(finding.place.source for finding in report.findings if finding.op)


@pytest.mark.parametrize(("family", "cores"), [("llama3", 2), ("qwen2", 4)])
def test_every_graph_of_a_split_model_passes(family: str, cores: int) -> None:
    """As one core runs it, with its part of weights and KV: collectives and all, and nothing that is not in the whole model's graphs."""
    spec = replace(neuron_spec(family), tensor_parallel_size=cores)
    targets = [target for target in TARGETS.values() if cores in target.parallel]
    for report in lint_ladder(spec, ladder(), targets, NEURON.jax_name):
        assert report.graphs == tuple(bucket.name for bucket in ladder().graphs)
        assert report.count("error") == 0, "\n".join(report.lines())
        assert not report.unchecked
        assert {finding.rule: finding.severity for finding in report.findings}.items() <= KNOWN.items()
        assert all(finding.forms == ("stablehlo", "hlo") for finding in report.findings), "both forms say the same"
    [report] = lint_ladder(spec, one_step(), [replace(targets[0], parallel=(1,))], NEURON.jax_name)
    assert {finding.message for finding in report.findings if finding.rule == "N25"} == {
        f"{op} over {cores} cores; {targets[0].name} takes 1" for op in ("all_reduce", "all_gather")
    }


def test_a_split_model_is_read_as_one_core_has_it() -> None:
    spec, bucket = replace(neuron_spec("llama3"), tensor_parallel_size=2), GenerateBucket(2, 2)
    whole = read_stablehlo(one_device(lower_for(neuron_spec("llama3"), bucket, "neuron").compiler_ir("stablehlo")), "whole")
    module = read_stablehlo(one_device(lower_for(spec, bucket, "neuron").compiler_ir("stablehlo")), "part")
    shapes = {value.name: value.type.shape for value in module.main.arguments}
    assert shapes["kv[0]"] == (9, 1, 128, 16)
    assert shapes["batch"] == {value.name: value.type.shape for value in whole.main.arguments}["batch"]
    assert len(module.aliases) == len(whole.aliases) > 0
    names = [op.name for op in module.ops()]
    assert names.count("all_reduce") == 1 + 2 * spec.model.num_layers, "embedding, attention and MLP"
    assert names.count("all_gather") == 1, "logits"
    assert "partition_id" not in names


def one_step() -> Ladder:
    """The ladder with one token-generation graph alone."""
    return Ladder((), (GenerateBucket(2, 2),), NEURON.block_size)


@pytest.mark.parametrize(
    ("change", "broken"),
    [({"top_k": "sort"}, {"N02"}), ({"branches": True}, {"N02"}), ({"attention": "tiled"}, {"N07"})],
    ids=["sort", "branches", "tiled"],
)
def test_a_choice_for_cpu_does_not_pass(change: dict[str, Any], broken: set[str]) -> None:
    assert errors(one_graph(replace(neuron_spec("llama3"), **change))) == broken


def test_a_host_that_promises_less_does_not_pass() -> None:
    spec, bucket = neuron_spec("llama2"), GenerateBucket(2, 2)
    known = facts_of(spec, bucket, ladder())
    batch = contract(spec, bucket)["batch"]
    for place, highest in ((0, spec.max_num_seqs + 1), (1, 2 * spec.block_size), (-1, spec.num_blocks)):
        high = batch.high.copy()
        high[place] = highest
        wider = {**known.contract, "batch": Range(batch.low, high)}
        assert errors(one_graph(spec, replace(known, contract=wider))) & {"N15", "N16"}, "one more than there is"
    low = np.where(np.arange(len(batch.low)) == len(batch.low) - 1, -1, batch.low)
    found = one_graph(spec, replace(known, contract={**known.contract, "batch": Range(low, batch.high)}))
    assert {"N15", "N16"} <= errors(found), "padding of -1 is refused"
    assert "xlaserve/paged/attention.py" in "\n".join(found.lines())
