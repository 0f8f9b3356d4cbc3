"""Loads stored executables onto each core of the simulated device in turn and runs a prompt there; traces every graph and compares it with
the stored one. Prints what came of it.

Takes JSON: the fields of an `EngineConfig`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import jax
import jax.export
import numpy as np

from xlaserve.buckets import executable
from xlaserve.buckets.graphs import entry
from xlaserve.buckets.ladder import BLANK
from xlaserve.buckets.layout import TOKENS_AT, Header, mask_width, table_at
from xlaserve.buckets.lint.stablehlo import parse_stablehlo
from xlaserve.buckets.portable import export
from xlaserve.engine.batch import empty_batch
from xlaserve.engine.build import make_plan, open_stores
from xlaserve.engine.config import EngineConfig
from xlaserve.models.layers import checkpoint_rows
from xlaserve.models.weights import load_weights

PROMPT = [5, 6, 7, 8, 9]


def main() -> None:
    config = EngineConfig(**json.loads(sys.argv[1]))
    plan = make_plan(config)
    spec, (context, *_) = plan.spec, plan.ladder.context
    store = open_stores(plan, config, lambda _line: None).cache
    batch = empty_batch(context, spec.max_num_seqs)
    batch[0, Header.SLOT], batch[0, Header.LENGTH] = 0, len(PROMPT)
    batch[0, TOKENS_AT : TOKENS_AT + len(PROMPT)] = PROMPT
    batch[0, table_at(context) :] = range(1, 1 + context.width)
    everything = np.full((context.rows, mask_width(spec.model.vocab_size)), -1, np.int32)

    def load(bucket: Any, core: Any) -> Any:
        content = store.executable(bucket.name)
        assert content is not None
        graph = entry(spec, bucket)
        return executable.load(bucket.name, content, graph.arguments, graph.results, [core])

    def run(core: Any) -> dict[str, Any]:
        params = load_weights(plan.checkpoint, spec.parameters(), [core], rows=checkpoint_rows(plan.model))
        step = load(context, core)
        kv, state = load(BLANK, core)()
        given = jax.tree.leaves((kv, state))
        before = [array.unsafe_buffer_pointer() for array in given]
        kv, state, output = step(params, kv, state, batch, everything)
        kept = jax.tree.leaves((kv, state))
        return {
            "platform": core.platform,
            "kind": core.device_kind,
            "places": sorted({device.id for array in (*kept, output.tokens) for device in array.devices()}),
            "deleted": all(array.is_deleted() for array in given),
            "in_place": [array.unsafe_buffer_pointer() for array in kept] == before,
            "aliased": executable.memory(step)["alias"] == sum(array.nbytes for array in kept),
            "token": np.asarray(output.tokens).tolist(),
            "cache": hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in kv)).hexdigest(),
        }

    cores = {core.id: run(core) for core in plan.platform.devices()}
    traced = {bucket.name: text(store.stablehlo(bucket.name)) == text(export(spec, bucket, "neuron")) for bucket in plan.ladder.graphs}
    print(json.dumps({"cores": cores, "traced": traced}))


def text(exported: bytes | None) -> str:
    """The module of an export without the places in its source, to which the caller's belong."""
    assert exported is not None
    module = parse_stablehlo(jax.export.deserialize(bytearray(exported)).mlir_module_serialized)
    return module.operation.get_asm(enable_debug_info=False)


if __name__ == "__main__":
    main()
