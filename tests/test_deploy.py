"""What deployment files promise of the program: their flags, routes and paths are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.routing import APIRoute

from xlaserve.cli import build_parser
from xlaserve.server.app import create_app
from xlaserve.server.settings import ServerSettings
from xlaserve.server.state import ServerState

ROOT = Path(__file__).parents[1]
DOCKERFILES = sorted((ROOT / "deploy" / "docker").iterdir())


def instructions(dockerfile: Path) -> dict[str, list[str]]:
    """Its instructions by name, continued lines joined."""
    text = re.sub(r"\\\n", " ", "\n".join(line for line in dockerfile.read_text().splitlines() if not line.startswith("#")))
    found: dict[str, list[str]] = {}
    for line in filter(None, text.splitlines()):
        name, _, rest = line.partition(" ")
        found.setdefault(name, []).append(rest)
    return found


def routes() -> set[str]:
    return {route.path for route in create_app(ServerState(ServerSettings())).routes if isinstance(route, APIRoute)}


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    documents = yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "xlaserve.yaml").read_text())
    return {document["kind"]: document for document in documents}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.suffix)
def test_images_copy_and_start_what_is_there(dockerfile: Path) -> None:
    found = instructions(dockerfile)
    command = yaml.safe_load(found["ENTRYPOINT"][0])
    args = build_parser().parse_args([*command[1:], "a-model"])
    assert (args.command, args.host, args.port, args.model) == ("serve", "0.0.0.0", 8000, "a-model")
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in found["COPY"]:
        for source in shlex.split(line)[:-1]:
            assert (ROOT / source).exists()
            assert f"!{source}" in ignored, f"{source} is not sent to the builder"
    assert found["USER"] == ["xlaserve"]
    assert re.search(r"http://127.0.0.1:8000(/\w+)", found["HEALTHCHECK"][0])[1] in routes()  # type: ignore[index]
    extras = re.search(r'(?:"\.|whl\))\[([\w,-]+)\]"', " ".join(found["RUN"]))
    assert extras is not None
    declared = re.search(r"\[project\.optional-dependencies\](.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert declared is not None
    assert set(extras[1].split(",")) <= set(re.findall(r"^([\w-]+) = \[", declared[1], re.MULTILINE))


def test_probes_ask_routes_that_are_there(manifests: dict[str, Any]) -> None:
    (container,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {"startup": "/ready", "liveness": "/health", "readiness": "/ready"}
    assert {probe["path"] for probe in probes.values()} <= routes()
    assert {probe["port"] for probe in probes.values()} == {"http"}
    build_parser().parse_args(["serve", *container["args"]])


def test_a_pod_may_drain_before_it_is_killed(manifests: dict[str, Any]) -> None:
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    command = yaml.safe_load(instructions(DOCKERFILES[0])["ENTRYPOINT"][0])
    assert build_parser().parse_args(command[1:]).shutdown_timeout < pod["terminationGracePeriodSeconds"]


def test_names_fit_together(manifests: dict[str, Any]) -> None:
    pod = manifests["Deployment"]["spec"]["template"]
    assert manifests["Service"]["spec"]["selector"] == pod["metadata"]["labels"]
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == manifests["PersistentVolumeClaim"]["metadata"]["name"]
    assert pod["spec"]["containers"][0]["volumeMounts"][0]["mountPath"] in instructions(DOCKERFILES[0])["VOLUME"]
    assert pod["spec"]["containers"][0]["image"] == f"xlaserve:{DOCKERFILES[0].suffix[1:]}"
