"""Reading lowered modules: both forms say the same of a graph, and files of every kind are read or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tooling.tiny_models import tiny_config
from xlaserve.buckets.lint.files import lint_files, module_files
from xlaserve.buckets.lint.hlo import hlo_text, read_hlo
from xlaserve.buckets.lint.module import Module, Op
from xlaserve.buckets.lint.stablehlo import read_stablehlo
from xlaserve.cli import main
from xlaserve.errors import ArtifactError
from xlaserve.platforms.neuron_targets import TARGETS


def step(x: Any, kv: Any, i: Any) -> Any:
    table = np.array([[3, 1], [2, 7]], np.int32)

    def add(carry: Any, row: Any) -> Any:
        return carry + row, carry

    total, _ = jax.lax.scan(add, jnp.zeros(4), x)
    picked = x.at[i].get(mode="promise_in_bounds")[:, 1:3]
    return kv.at[i].set(x[:2], mode="promise_in_bounds"), jnp.argmax(total), picked @ table.astype(np.float32).T, jnp.sort(x, axis=1)


SHAPES = (jax.ShapeDtypeStruct((6, 4), jnp.float32), jax.ShapeDtypeStruct((8, 4), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32))


READ = (
    "comparison_direction",
    "collapsed_slice_dims",
    "start_index_map",
    "offset_dims",
    "scatter_dims_to_operand_dims",
    "inserted_window_dims",
    "update_window_dims",
    "index_vector_dim",
    "slice_sizes",
    "start_indices",
    "limit_indices",
    "lhs_contracting_dimensions",
    "rhs_contracting_dimensions",
    "iota_dimension",
)


def lowered() -> jax.stages.Lowered:
    return jax.jit(step, donate_argnums=1).trace(*SHAPES).lower(lowering_platforms=("neuron",))


def forms() -> tuple[Module, Module]:
    module = lowered().compiler_ir("stablehlo")
    return read_stablehlo(module, "g"), read_hlo(hlo_text(module), "g")


def test_both_forms_hold_the_same() -> None:
    ours, hlo = forms()
    assert {op.name for op in ours.ops()} - {op.name for op in hlo.ops()} <= {"call"}
    assert [str(value.type) for value in ours.main.arguments] == [str(value.type) for value in hlo.main.arguments]
    assert [value.name for value in ours.main.arguments] == [value.name for value in hlo.main.arguments] == ["x", "kv", "i"]
    assert [str(value.type) for value in ours.main.returns] == [str(value.type) for value in hlo.main.returns]
    assert ours.aliases == hlo.aliases == {1: 0}
    for name in ("gather", "scatter", "slice", "dot_general", "reduce", "while", "sort", "iota", "compare"):
        first, second = ([op for op in module.ops() if op.name == name] for module in (ours, hlo))
        assert sorted(map(types, first)) == sorted(map(types, second)), name
        assert attributes(first) == attributes(second), name


def types(op: Op) -> list[str]:
    return sorted(str(value.type) for value in (*op.operands, *op.results))  # loops carry values in another order


def attributes(ops: list[Op]) -> list[str]:
    """Those that rules read, of all operations, in no order."""
    return sorted(str({key: op.attributes[key] for key in READ if op.attributes.get(key, ()) != ()}) for op in ops)


def test_constants_are_read_in_both() -> None:
    for module in forms():
        contents = [op.attributes["value"] for op in module.ops() if op.name == "constant"]
        assert any(content is not None and sorted(content.tolist()) == [1, 2, 3, 7] for content in contents)


def test_places_are_the_same_in_both() -> None:
    ours, hlo = ({module.place(op) for op in module.ops() if op.name == "sort"} for module in forms())
    assert {place.source for place in ours} == {place.source for place in hlo}
    assert all(Path(place.source.rpartition(":")[0]).name == "test_forms.py" for place in ours)


def write_all(directory: Path) -> None:
    low = lowered()
    exported = jax.export.export(jax.jit(step, donate_argnums=1), platforms=["neuron"])(*SHAPES)
    (directory / "text.mlir").write_text(str(low.compiler_ir()))
    (directory / "portable.mlirbc").write_bytes(exported.mlir_module_serialized)
    (directory / "dumped.txt").write_text(low.compiler_ir("hlo").as_hlo_text())  # type: ignore[union-attr]
    (directory / "module.pb").write_bytes(low.compiler_ir("hlo").as_serialized_hlo_module_proto())  # type: ignore[union-attr]
    (directory / "notes.md").write_text("not a module")


def test_a_directory_of_modules(tmp_path: Path) -> None:
    write_all(tmp_path)
    files = module_files(tmp_path)
    assert [file.name for file in files] == ["dumped.txt", "module.pb", "portable.mlirbc", "text.mlir"]
    for file in files:
        report = lint_files([file], TARGETS["trn2"])
        assert {f.rule for f in report.findings if f.severity == "error"} == {"N02", "N04"}, file.name
        assert {u.rule for u in report.unchecked} >= {"N15", "N16", "N24", "N26", "N27"}


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.mlir", b"module {", "is not StableHLO"),
        ("a.mlir", b"module {}", "has no function `main`"),
        ("a.mlirbc", b"ML\xefR\rStableHLO_v1.0.0\0garbage", "is not StableHLO"),
        ("a.txt", b"hello", "does not begin with HloModule"),
        ("a.txt", b"HloModule m\n\nf {\n}\n", "no ENTRY"),
        ("a.hlo", b"\xff\xfe\x00", "is not text"),
        ("a.hlo", b"HloModule m\n\nENTRY e {\n  x = f32[2]{0} parameter(0\n}\n", "unbalanced"),
        ("a.pb", b"\xff" * 40, "is not an HloModuleProto"),
        ("a.stablehlo", b"anything", "is none that JAX"),
    ],
)
def test_a_damaged_file_is_named(name: str, content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name}: .*{problem}"):
        lint_files([tmp_path / name], TARGETS["trn1"])


def test_the_command_on_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_all(tmp_path)
    assert main(["lint", str(tmp_path), "--target", "trn1"]) == 1
    out = capsys.readouterr().out
    assert "error   N02  sort: the compiler has no sort" in out
    assert "unknown N27" in out
    assert "limit   N22" in out
    assert out.splitlines()[-1].startswith("trn1: 4 graphs, 27 rules: ")


def test_the_command_on_an_artifact_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def step(x: jax.Array) -> jax.Array:
        return jnp.sort(x) + 1

    shape = jax.ShapeDtypeStruct((4,), jnp.float32)
    exported = jax.export.export(jax.jit(step), platforms=["neuron"])(shape)
    (tmp_path / "generate-1-1.stablehlo").write_bytes(exported.serialize())
    assert main(["lint", str(tmp_path), "--target", "inf2"]) == 1
    out = capsys.readouterr().out
    assert "error   N02  sort: the compiler has no sort" in out
    assert out.splitlines()[-1].startswith("inf2: 1 graphs, 27 rules: ")


def test_a_models_folder_is_no_folder_of_modules(tmp_path: Path) -> None:
    (tmp_path / "merges.txt").write_text("a b")
    assert module_files(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert not module_files(tmp_path)


def test_the_command_on_a_model_that_is_only_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("qwen2")))
    sizes = ["--max-model-len", "128", "--max-num-seqs", "1", "--max-num-batched-tokens", "128"]
    assert main(["lint", str(tmp_path), "--target", "inf2", "--json", *sizes]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["target"] == "inf2"
    assert report["graphs"] == ["generate-1-1", "context-1x128-1", "seat", "copy", "blank"]
    assert report["counts"]["error"] == 0
    assert report["unchecked"] == []
    assert {finding["rule"] for finding in report["findings"]} >= {"N01"}
    assert all(finding["place"].startswith("xlaserve/") for finding in report["findings"] if finding["op"])
    assert "graph   5/5  blank" in captured.err


def test_the_command_on_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", str(tmp_path)]) == 1
    assert "holds no config.json" in capsys.readouterr().err
    assert main(["lint", str(tmp_path / "nowhere")]) == 1
    assert "There is no model" in capsys.readouterr().err
