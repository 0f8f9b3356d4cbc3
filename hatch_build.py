"""Hatchling's build hook: a wheel gets the library of CPU kernels where it can be built, an editable install gets it in the checkout.

`XLASERVE_NATIVE` in the environment: 0 leaves it out, 1 makes it an error if it cannot be built.
"""

from __future__ import annotations

import os
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HEADERS = "jaxlib==0.10.0; python_version < '3.15'"
"""Has the headers of XLA's FFI: the oldest that xlaserve runs with, as a library runs with what it was built with and what is newer.
Where there is no such jaxlib, there are no kernels.
"""


class KernelsHook(BuildHookInterface[Any]):
    """Builds the library before the wheel is put together."""

    def dependencies(self) -> list[str]:
        """The headers, where they will be of use: jaxlib is a large package."""
        try:
            self._check()
        except self._build.BuildError:
            return []
        return [HEADERS]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, and tell hatchling what the wheel holds and where it can be installed."""
        build = self._build
        try:
            self._check()
            build.build()
        except (build.BuildError, OSError) as error:
            if os.environ.get("XLASERVE_NATIVE") == "1":
                raise
            first, _, rest = str(error).partition("\n")
            self.app.display_warning(f"xlaserve without CPU kernels: {first}")
            if rest:
                self.app.display_info(rest)
            if version == "editable":
                build.LIBRARY.unlink(missing_ok=True)
            return
        if version == "standard":
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-linux_x86_64"
            build_data["force_include"][str(build.LIBRARY)] = str(build.LIBRARY.relative_to(self.root))

    def _check(self) -> None:
        """BuildError where nothing is to be built."""
        if os.environ.get("XLASERVE_NATIVE") == "0":
            raise self._build.BuildError("XLASERVE_NATIVE=0 leaves them out")
        if (why := self._build.unsupported()) is not None:
            raise self._build.BuildError(why)
        self._build.find_compiler(os.environ)

    @property
    def _build(self) -> Any:
        """The module `xlaserve.kernels.build`, without importing xlaserve."""
        if not hasattr(self, "_module"):
            spec = spec_from_file_location("xlaserve_kernels_build", Path(self.root) / "xlaserve" / "kernels" / "build.py")
            assert spec is not None
            assert spec.loader is not None
            self._module = module_from_spec(spec)
            spec.loader.exec_module(self._module)
        return self._module
