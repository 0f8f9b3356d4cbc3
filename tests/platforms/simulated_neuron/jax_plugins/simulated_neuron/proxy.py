"""XLA's CPU plugin behind other names: a copy of its table of functions in which a few are replaced.

The table and what its functions take are structs of PJRT's C API, `pjrt_c_api.h` in XLA; pypjrt has their layouts. Every function takes a
pointer to one struct and gives a pointer to an error, or null.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import lammps_jax_pjrt_cpu
from pypjrt import _abi as layouts

_Function = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
_Call = Callable[[int], int | None]

CompileInstead = Callable[[bytes], bytes]
"""Takes a program as JAX sends it and gives the one to compile; what it raises becomes the compiler's error."""


class Proxy:
    """The table; it must live as long as the process.

    Args:
        platform_name: what the client's platform is called.
        device_kind: what its devices are called.
        compile_instead: sees every program.
        on_load: told before an executable is made of bytes.
    """

    def __init__(self, platform_name: str, device_kind: str, compile_instead: CompileInstead, on_load: Callable[[], None]) -> None:
        library = ctypes.CDLL(str(lammps_jax_pjrt_cpu.PLUGIN_PATH))
        library.GetPjrtApi.restype = ctypes.c_void_p
        address: int = library.GetPjrtApi()
        size = ctypes.c_size_t.from_address(address).value
        self._table = ctypes.create_string_buffer(ctypes.string_at(address, size), size)
        (newest, *_) = layouts.available()
        self._abi: Any = layouts.load(*newest)[0]
        self._api = self._abi.PJRT_Api.from_buffer(self._table)
        self._callbacks: list[Any] = []
        self._compile_instead = compile_instead
        self._on_load = on_load
        self._name_instead("PJRT_Client_PlatformName", "platform_name", platform_name)
        self._name_instead("PJRT_TopologyDescription_PlatformName", "platform_name", platform_name)
        self._name_instead("PJRT_DeviceDescription_Kind", "device_kind", device_kind)
        self._replace("PJRT_Client_Compile", self._compile)
        self._replace("PJRT_Executable_DeserializeAndLoad", self._load)

    @property
    def capsule(self) -> object:
        """The table as `register_plugin` takes it."""
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self._table), b"pjrt_c_api", None)

    def _replace(self, name: str, function: Callable[[_Call, int, Any], int | None]) -> None:
        """Have `function` called in place of one of the table, with that one, the pointer and the struct that it points to."""
        kind = getattr(self._abi, f"{name}_Args")
        original: _Call = _Function(getattr(self._api, name))
        callback = _Function(lambda pointer: function(original, pointer, kind.from_address(pointer)))
        self._callbacks.append(callback)
        setattr(self._api, name, ctypes.cast(callback, ctypes.c_void_p).value)

    def _name_instead(self, name: str, field: str, text: str) -> None:
        content = ctypes.create_string_buffer(text.encode())

        def answer(original: _Call, pointer: int, args: Any) -> int | None:
            error = original(pointer)
            setattr(args, field, ctypes.addressof(content))
            setattr(args, f"{field}_size", len(text))
            return error

        self._replace(name, answer)

    def _compile(self, original: _Call, pointer: int, args: Any) -> int | None:
        given = self._abi.PJRT_Program.from_address(args.program)
        code, form = ctypes.string_at(given.code, given.code_size), ctypes.string_at(given.format, given.format_size)
        try:
            code = self._compile_instead(code)
        except Exception as error:  # nothing can be raised through XLA
            # The plugin makes the error: it names the form of a program when it does not know it.
            form = f"refused by the simulated neuronx-cc: {error if isinstance(error, ValueError) else repr(error)}".encode()
        kept = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(form, len(form))
        program = self._abi.PJRT_Program(ctypes.sizeof(self._abi.PJRT_Program), None, 0, len(code), 0, len(form))
        program.code, program.format = (ctypes.addressof(content) for content in kept)
        args.program = ctypes.addressof(program)
        return original(pointer)

    def _load(self, original: _Call, pointer: int, _args: Any) -> int | None:
        self._on_load()
        return original(pointer)
