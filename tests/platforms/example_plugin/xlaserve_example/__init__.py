"""A third party's platform for xlaserve, complete: one object, named by an entry point in the group `xlaserve.platforms`.

It runs on JAX's CPU client, which stands for the third party's own, with other choices than the CPU platform makes: blocks of 32 tokens,
attention that reads whole block tables, graphs without conditionals.
"""

from __future__ import annotations

from xlaserve.platforms.platform import Platform


class ExamplePlatform(Platform):
    """A device that has 2 GiB of memory of its own and a compiler with a version."""

    __slots__ = ()

    def memory(self) -> int | None:
        """Bytes of one device; its client would tell."""
        return 2 << 30

    def fingerprint(self) -> dict[str, str]:
        """Executables depend on the version of the compiler."""
        return {**super().fingerprint(), "example_compiler": "1.0"}


EXAMPLE = ExamplePlatform(
    name="example",
    jax_name="cpu",
    dtype="float32",
    block_size=32,
    max_num_seqs=2,
    max_num_batched_tokens=64,
    attention="gather",
    branches=False,
    top_k="sort",
    install="Install the example's driver.",
)
