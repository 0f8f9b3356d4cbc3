"""The library of CPU kernels as this process has it: loaded once, its functions known to XLA under their names.

Imports JAX only where functions are made known to it.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlaserve.kernels.build import COMMAND, LIBRARY, BuildError, ffi_headers, source_digest, stamp, unsupported

if TYPE_CHECKING:
    import numpy as np

ABI = 5
"""What this side expects of the library: names, operands, attributes and meaning of the calls."""

TARGETS: tuple[str, ...] = (
    "xlaserve_linear",
    "xlaserve_attention",
    "xlaserve_chain",
    "xlaserve_argmax",
    "xlaserve_zeros",
    "xlaserve_copy_blocks",
)
"""Functions that graphs may call; XLA knows them by the names that they have in the library."""


@dataclass(frozen=True, slots=True)
class Library:
    """The loaded library.

    Args:
        instruction_set: the best that it has for this CPU, such as "avx512_bf16".
        functions: its C functions.
    """

    instruction_set: str
    functions: ctypes.CDLL

    @property
    def version(self) -> str:
        """What graphs that call it depend on."""
        return f"cpu-{ABI}"

    def read(self, data: np.ndarray[Any, Any]) -> float:
        """Read every byte of a contiguous array once, with all the threads that kernels compute with.

        Returns:
            The seconds that it took.
        """
        return self.functions.xlaserve_read(data.ctypes.data, data.nbytes)


def library() -> Library | None:
    """The library, ready to be called from graphs; None where there is none, and `absence` says why."""
    found = _registered(LIBRARY)
    return found if isinstance(found, Library) else None


def absence() -> str | None:
    """Why `library` gives none, and what to do about it; None where it gives one."""
    found = _registered(LIBRARY)
    return found if isinstance(found, str) else None


@cache
def open_library(path: Path = LIBRARY) -> Library | str:
    """The library as it is loaded, of which XLA knows nothing yet, or why there is none."""
    if (why := unsupported()) is not None:
        return why
    if not path.is_file():
        return f"they are not built; `{COMMAND}` builds them where there is a C++ compiler"
    found = stamp(path)
    if found is None or found[0] != source_digest():
        return f"{path.name} is not built from the sources beside it; `{COMMAND}` builds it anew"
    try:
        here = ffi_headers()[1]
    except BuildError as error:
        return str(error)
    if found[1] > here:  # a client that is given such functions does not start
        return f"{path.name} is built with a newer JAX than this one; `{COMMAND}` builds it with this one"
    try:
        functions = ctypes.CDLL(str(path))
        functions.xlaserve_instruction_set.restype = ctypes.c_char_p
        functions.xlaserve_read.restype, functions.xlaserve_read.argtypes = ctypes.c_double, (ctypes.c_void_p, ctypes.c_size_t)
        abi, instruction_set = functions.xlaserve_abi(), functions.xlaserve_instruction_set().decode()
    except (OSError, AttributeError) as error:
        return f"{path.name} does not load ({error}); `{COMMAND}` builds it for this machine once it is removed"
    if abi != ABI:
        return f"{path.name} is of version {abi}, and version {ABI} is needed; `{COMMAND}` builds it anew"
    if not instruction_set:
        return "this CPU has no AVX2"
    return Library(instruction_set, functions)


@cache
def _registered(path: Path) -> Library | str:
    found = open_library(path)
    if isinstance(found, str):
        return found
    import jax.ffi

    for name in TARGETS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(found.functions, name)), platform="cpu", api_version=1)
    return found
