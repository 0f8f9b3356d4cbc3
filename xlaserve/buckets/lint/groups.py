"""Which devices a collective joins, from the ways in which modules write it."""

from __future__ import annotations

import re
from math import prod

import numpy as np

Groups = list[list[int]] | str
"""Device numbers of each group, or the text of a form that is not read."""


def listed_groups(text: str) -> Groups:
    """HLO's forms: `{{0,1},{2,3}}`, a reshaped and transposed iota `[2,2]<=[4]` or `[2,2]<=[2,2]T(1,0)`, `mesh['tp'=4] {'tp'}`."""
    if text.startswith("mesh["):
        return mesh_groups(text.partition("]")[0], re.findall(r"'(\w+)'", text.partition("{")[2]), text)
    if "<=" in text:
        shape, _, source = text.partition("<=")
        sizes, _, order = source.partition("T")
        ids = np.arange(prod(_numbers(sizes))).reshape(_numbers(sizes))
        return (ids.transpose(_numbers(order)) if order else ids).reshape(_numbers(shape)).tolist()
    return [list(_numbers(group)) for group in re.findall(r"\{([\d,\s]+)\}", text)]


def mesh_groups(mesh: str, joined: list[str], text: str) -> Groups:
    """Groups over axes of a mesh.

    Args:
        mesh: its axes in order, with names in either kind of quotes: `"dp"=2, "tp"=4`.
        joined: the names of the axes that a group spans.
        text: what to give back where the mesh lists its devices, or does not have the axes.
    """
    sizes = {name: int(size) for name, size in re.findall(r"""["'](\w+)["']=(\d+)""", mesh)}
    if not joined or not set(joined) <= set(sizes) or "device_ids" in mesh:
        return text
    names = list(sizes)
    order = [names.index(name) for name in names if name not in joined] + [names.index(name) for name in joined]
    ids = np.arange(prod(sizes.values())).reshape(tuple(sizes.values())).transpose(order)
    return ids.reshape(-1, prod(sizes[name] for name in joined)).tolist()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text))
