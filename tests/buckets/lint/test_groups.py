"""Groups of devices, in every form that modules write them in."""

from __future__ import annotations

import pytest

from tests.buckets.lint.lowered import hlo, lint, said
from xlaserve.buckets.lint.groups import listed_groups, mesh_groups


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("{}", []),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("mesh['tp'=4] {'tp'}", [[0, 1, 2, 3]]),
        ("mesh['dp'=2, 'tp'=2] {'tp'}", [[0, 1], [2, 3]]),
        ("mesh['dp'=2, 'tp'=2] {'dp'}", [[0, 2], [1, 3]]),
        ("mesh['dp'=2, 'tp'=2] {'dp', 'tp'}", [[0, 1, 2, 3]]),
        ("mesh['tp'=4] {'other'}", "mesh['tp'=4] {'other'}"),
    ],
)
def test_hlo(text: str, groups: object) -> None:
    assert listed_groups(text) == groups


def test_groups_that_are_not_read_do_not_pass_silently() -> None:
    text = """HloModule m

add {
  a = f32[] parameter(0)
  b = f32[] parameter(1)
  ROOT c = f32[] add(a, b)
}

ENTRY e {
  x = f32[4]{0} parameter(0)
  ROOT y = f32[4]{0} all-reduce(x), replica_groups={}, to_apply=add
}
"""
    report = lint(hlo(text))
    assert not said(report, "N25")
    assert "N25" in {unchecked.rule for unchecked in report.unchecked}


def test_a_mesh_that_lists_its_devices_is_not_read() -> None:
    assert mesh_groups('<["tp"=2], device_ids=[1, 0]>', ["tp"], "as written") == "as written"
