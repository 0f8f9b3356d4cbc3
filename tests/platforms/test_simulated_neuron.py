"""xlaserve on a device called `neuron`, from end to end: found as a plugin, compiled for through the lint, served, and equal to the CPU.

The device computes on the CPU and its compiler is the lint (`simulated_neuron/`), so this shows what is ours and JAX's to do: it shows
nothing of neuronx-cc. JAX finds its plugins once in a process, so everything here asks processes of a machine that has this one.
"""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.platforms.simulated_neuron.machine import FLAGS, GRAPHS, SIZES, Machine, make_machine
from tests.server.served import TIMEOUT, serving
from xlaserve.cli import main
from xlaserve.platforms.neuron_options import NeuronOptions

LONG = [7 + number % 90 for number in range(200)]
REQUESTS: list[dict[str, Any]] = [
    {"prompt": [5, 6, 7, 8], "temperature": 0},
    {"prompt": LONG, "temperature": 0},
    {"prompt": [5, 6, 7, 8], "seed": 1},
    {"prompt": LONG, "seed": 2, "temperature": 1.5, "top_p": 0.9, "min_p": 0.01},
    {"prompt": [9, 9, 9], "seed": 3, "top_k": 20, "presence_penalty": 1.0, "repetition_penalty": 1.2, "logit_bias": {"11": 3}},
    {"prompt": [[5, 6, 7], [8, 9]], "seed": 4, "n": 2},
]
STEPS = GRAPHS - {"seat", "copy", "blank"}
KV_AND_STATE = {"seat": 5, "copy": 4, "blank": 0}
"""Arrays that upkeep graphs update in place; steps update all: two a layer, and the five of the state."""


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("llama2")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return make_machine(tmp_path_factory.mktemp("neuron"))


@pytest.fixture(scope="module")
def portable(model: Path, machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs for the device, made where there is none: in this process."""
    directory = tmp_path_factory.mktemp("portable") / "a"
    assert main(["compile", str(model), "--platform=neuron", "--target=trn2", *FLAGS, f"--output={directory}"]) == 0
    return directory


@pytest.fixture(scope="module")
def compiled(model: Path, machine: Machine, portable: Path) -> tuple[str, list[dict[str, Any]]]:
    """What the machine says when it compiles these graphs into its compile cache, and what its compiler was given."""
    machine.events()
    return machine.xlaserve("compile", model, "--platform=neuron", *FLAGS, f"--artifacts={portable}"), machine.events()


def ask(url: str) -> list[Any]:
    """The choices of all requests, which are sent at once: more than the engine has room for."""

    async def one(client: httpx.AsyncClient, body: dict[str, Any]) -> Any:
        response = await client.post("/v1/completions", json={"max_tokens": 20, "ignore_eos": True, "logprobs": 3, **body})
        assert response.status_code == 200, response.text
        return response.json()["choices"]

    async def crowd() -> list[Any]:
        async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT) as client:
            return await asyncio.gather(*(one(client, body) for body in REQUESTS))

    return asyncio.run(crowd())


@pytest.fixture(scope="module")
def served(model: Path, machine: Machine, compiled: object) -> Generator[tuple[list[str], list[Any], list[dict[str, Any]]]]:
    """A start from the compile cache alone: what is printed, the answers, and what the plugin saw."""
    machine.events()
    with serving(model, "--device=neuron", "--artifacts-only", sizes=FLAGS, environment=machine.environment) as process:
        process.read_until_ready()
        answers = ask(process.url)
        yield process.lines, answers, machine.events()


def test_doctor_finds_the_cores(machine: Machine) -> None:
    report = json.loads(machine.xlaserve("doctor", "--json"))
    assert report["jax"]["backend"] == "neuron"
    assert [(device["id"], device["kind"]) for device in report["jax"]["devices"] if device["platform"] == "neuron"] == [
        (core, "trn2") for core in range(4)
    ]
    assert {name: known["available"] for name, known in report["platforms"].items()} == {"neuron": True, "cuda": False, "cpu": True}
    assert report["neuron"]["devices"][0]["cores"] == 4
    assert not [hint for hint in report["hints"] if "Neuron" in hint]


@pytest.fixture(scope="module")
def rejected(machine: Machine) -> dict[str, Any]:
    return machine.ask("rejected")


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("sort", "N02 sort"),
        ("top_k", "N02 sort"),
        ("argmax", "N04 reduce of 2 operands"),
        ("cond", "N02 case"),
        ("while", "N07 while"),
        ("threefry", "N14 20 rotations"),
        ("complex", "N10 c64"),
        ("AwsNeuronErf", "the simulation has no AwsNeuronErf"),
    ],
)
def test_its_compiler_refuses_what_the_lint_does(name: str, rule: str, rejected: dict[str, Any]) -> None:
    said = rejected["said"][name]
    assert "refused by the simulated neuronx-cc: " in said
    assert rule in said


def test_its_compiler_has_the_custom_call(rejected: dict[str, Any]) -> None:
    assert rejected["said"]["AwsNeuronTopK"] is None
    assert rejected["top_k"] == {"narrow": True, "wide": True}


def test_graphs_with_the_cpus_operations_do_not_compile(model: Path, machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "careless.py").write_text(
        "from dataclasses import replace\n"
        "from xlaserve.platforms.neuron import NEURON\n"
        "CARELESS = replace(NEURON, name='careless', attention='tiled', branches=True, top_k='sort')\n"
    )
    about = tmp_path / "careless-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: careless\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[xlaserve.platforms]\ncareless = careless:CARELESS\n")
    status, said = machine.fails("compile", model, "--platform=careless", *FLAGS, "--compile-threads=1", packages=tmp_path)
    assert status == 1
    last = said.splitlines()[-1]
    assert re.match(r"xlaserve: error: Graph generate-\d-2 does not compile for neuron: ", last), said
    for wanted in ("N02 case: ", "xlaserve/sampling/sampler.py:", "N02 sort: ", "N07 while ", "xlaserve/paged/attention.py:"):
        assert wanted in last


def test_graphs_from_elsewhere_are_compiled_here(portable: Path, compiled: tuple[str, list[dict[str, Any]]]) -> None:
    said, events = compiled
    assert f"graphs in {portable}: executables " in said
    assert set(re.findall(r"graph +\d/6  (\S+) +compiled from StableHLO in ", said)) == GRAPHS
    assert "platform  neuron (trn2)" in said
    assert " of 24,576 MiB: weights 1 MiB" in said, "a core's share of what neuron-ls tells"
    assert "costs of 3 graphs measured" in said
    assert {event["event"] for event in events} == {"compile"}
    assert sorted(event["module"] for event in events) == sorted(f"jit_{name.replace('-', '_')}" for name in GRAPHS), "and nothing else is"


def test_the_compiler_is_given_what_it_takes_with_its_flags(compiled: tuple[str, list[dict[str, Any]]]) -> None:
    for event in compiled[1]:
        name = event["module"].removeprefix("jit_").replace("_", "-")
        assert (event["errors"], event["cores"]) == ([], 1)
        assert event["custom_calls"] == ({"AwsNeuronTopK": 1} if name in STEPS else {}), name
        assert event["donated"] == KV_AND_STATE.get(name, 9), name
        family = "upkeep" if name not in STEPS else "context" if name.startswith("context") else "generate"
        assert tuple(shlex.split(event["flags"])) == NeuronOptions().compiler_flags(family), name


def test_a_second_start_compiles_nothing(served: tuple[list[str], list[Any], list[dict[str, Any]]]) -> None:
    lines, _, events = served
    assert next(line for line in lines if line.startswith("graphs in ")).endswith(": executables hit; StableHLO hit")
    assert {match[1] for line in lines if (match := re.match(r"graph +\d/6  (\S+) +loaded in ", line))} == GRAPHS
    assert "costs of 3 graphs are known" in lines
    assert [event["event"] for event in events] == ["load"] * len(GRAPHS)


@pytest.fixture(scope="module")
def wanted(model: Path, machine: Machine) -> list[Any]:
    """The CPU's answers, from the same machine, where it is not JAX's default: what runs there must not stray to the device."""
    machine.events()
    with serving(model, "--device=cpu", sizes=FLAGS, environment=machine.environment) as process:
        process.read_until_ready()
        answers = ask(process.url)
    assert machine.events() == []
    return answers


def assert_equal(answers: list[Any], wanted: list[Any]) -> None:
    """Token for token, and probabilities but for the noise of another order of additions."""
    for request, found, reference in zip(REQUESTS, answers, wanted, strict=True):
        for ours, theirs in zip(found, reference, strict=True):
            assert (ours["text"], ours["logprobs"]["tokens"]) == (theirs["text"], theirs["logprobs"]["tokens"]), request
            assert ours["logprobs"]["token_logprobs"] == pytest.approx(theirs["logprobs"]["token_logprobs"], abs=1e-4)
            assert ours["logprobs"]["top_logprobs"] == [pytest.approx(top, abs=1e-4) for top in theirs["logprobs"]["top_logprobs"]]


def test_tokens_equal_the_cpus(served: tuple[list[str], list[Any], list[dict[str, Any]]], wanted: list[Any]) -> None:
    assert_equal(served[1], wanted)


@pytest.fixture(scope="module")
def cores(model: Path, machine: Machine, compiled: object) -> dict[str, Any]:
    return machine.ask("cores", model=str(model), device="neuron", **SIZES)


def test_an_executable_runs_in_place_on_every_core(cores: dict[str, Any]) -> None:
    assert list(cores["cores"]) == ["0", "1", "2", "3"]
    for core, found in cores["cores"].items():
        assert (found["platform"], found["kind"]) == ("neuron", "trn2")
        assert found["places"] == [int(core)], "KV, state and tokens stay where the executable was loaded"
        assert found["deleted"], "what is donated cannot be used again"
        assert found["in_place"]
        assert found["aliased"]
    assert len({(tuple(found["token"]), found["cache"]) for found in cores["cores"].values()}) == 1


def test_the_device_changes_nothing_in_what_is_traced(cores: dict[str, Any]) -> None:
    """The stored graphs are those that were made without it."""
    assert cores["traced"] == dict.fromkeys(cores["traced"], True)
    assert set(cores["traced"]) == GRAPHS


def test_a_model_split_over_cores_gives_the_same_tokens(model: Path, machine: Machine, wanted: list[Any]) -> None:
    """The compiler is given what each core runs, with its collectives, and a second start loads it onto both cores."""
    machine.events()
    flags = [*FLAGS, "--tensor-parallel-size=2"]
    machine.xlaserve("compile", model, "--platform=neuron", *flags)
    made = machine.events()
    assert {event["module"].removeprefix("jit_").replace("_", "-") for event in made} == GRAPHS
    for event in made:
        name = event["module"].removeprefix("jit_").replace("_", "-")
        assert (event["errors"], event["cores"]) == ([], 2)
        assert event["donated"] == KV_AND_STATE.get(name, 9), name
    with serving(model, "--device=neuron", "--artifacts-only", sizes=flags, environment=machine.environment) as process:
        process.read_until_ready()
        assert_equal(ask(process.url), wanted)
    assert {event["event"] for event in machine.events()} == {"load"}
