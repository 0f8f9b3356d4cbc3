"""What the mask of allowed tokens costs a token-generation graph, in microseconds: rows without a form, one with, all with.

    python benchmarks/mask_cost.py [--rows 8] [--vocab 49152] [--runs 200]

Two graphs of a small model with a large vocabulary take turns: one as it is served, and one that knows no mask. The host's part, filling a
mask, is measured with the demo model's vocabulary.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from xlaserve.buckets import graphs
from xlaserve.buckets.graphs import GraphSpec, lower
from xlaserve.buckets.ladder import GenerateBucket
from xlaserve.buckets.layout import Header, mask_width
from xlaserve.engine.batch import empty_batch
from xlaserve.engine.grammar import Grammars
from xlaserve.engine.structure import Structure
from xlaserve.models.checkpoint import open_checkpoint
from xlaserve.models.demo import demo_gguf
from xlaserve.models.registry import model_config
from xlaserve.sampling.structured import StructuredOutput

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def device_cost(rows: int, vocab: int, runs: int) -> None:
    """Prints medians of graphs that take turns."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "num_hidden_layers": 2,
        "vocab_size": vocab,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    spec = GraphSpec(model_config(config), "float32", 65, 16, rows, "tiled", branches=True, top_k="sort")
    bucket, device = GenerateBucket(rows, 32), jax.devices("cpu")[0]
    served, sample = lower(spec, bucket, [device]).compile(), graphs.sample

    def unmasked(logits: Any, given: Any, *, branches: bool) -> Any:
        return sample(logits, given._replace(structured=np.zeros(rows, bool)), branches=branches)

    graphs.sample = unmasked
    plain = lower(spec, bucket, [device]).compile()
    graphs.sample = sample
    rng = np.random.default_rng(1)
    params = tuple(jax.device_put(rng.normal(0, 0.02, p.shape).astype(np.float32), device) for p in spec.parameters().values())
    free, one, full = (empty_batch(bucket, rows) for _ in range(3))
    one[0, Header.STRUCTURED] = 1
    full[:, Header.STRUCTURED] = 1
    ones = np.full((rows, mask_width(vocab)), -1, np.int32)
    resident = jax.device_put(ones, device)
    ways: dict[str, tuple[Any, Any, Any]] = {
        "no mask in the graph": (plain, free, resident),
        "no row has a form": (served, free, resident),
        "one row has a form": (served, one, ones),
        "all rows have a form": (served, full, ones),
    }
    held: dict[Any, Any] = {
        run: jax.tree.map(lambda a: jax.device_put(np.zeros(a.shape, a.dtype), device), (spec.kv(), spec.state()))
        for run in (plain, served)
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, (run, batch, mask) in ways.items():
            begin = time.perf_counter()
            kv, state, output = run(params, *held[run], batch, mask)
            output.tokens.block_until_ready()
            taken[name].append(time.perf_counter() - begin)
            held[run] = kv, state
    print(f"generate, {rows} rows, {vocab} tokens in the vocabulary, medians (least) of {runs} runs in turns:")
    for name, times in taken.items():
        print(f"  {name:22} {1e6 * statistics.median(times):9.0f} us ({1e6 * min(times):.0f})")


def host_cost() -> None:
    """Prints what a worker takes for a token: to consume it, and to fill the next mask."""
    checkpoint = open_checkpoint(str(demo_gguf()))
    tokenizer = checkpoint.tokenizer()
    grammars = Grammars(lambda: tokenizer, tokenizer.vocab_size, checkpoint.eos_token_ids)
    timed("vocabulary", grammars.prepare)
    for form in (
        StructuredOutput(json_schema=SCHEMA),
        StructuredOutput(json_object=True),
        StructuredOutput(regex=r"[a-z]+@[a-z]+\.(com|org)"),
    ):
        structure = Structure(form)
        timed(f"{form.kind}: compile", lambda structure=structure: structure.begin(grammars))
        rng, times = np.random.default_rng(1), list[float]()
        while len(times) < 200 and not structure.complete and structure.error is None:
            bits = np.unpackbits(structure.mask.view(np.uint8), bitorder="little")
            token = int(rng.choice(np.flatnonzero(bits)))
            if token in checkpoint.eos_token_ids:
                break
            begin = time.perf_counter()
            structure.consume(token)
            times.append(time.perf_counter() - begin)
        print(f"  {form.kind}: a token takes {1e6 * statistics.median(times):.0f} us, {1e6 * max(times):.0f} at most, of {len(times)}")


def timed(name: str, work: Callable[[], None]) -> None:
    """Prints how long something takes."""
    begin = time.perf_counter()
    work()
    print(f"  {name} {1e3 * (time.perf_counter() - begin):.1f} ms")


def main() -> None:
    """Measures both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--runs", type=int, default=200)
    args = parser.parse_args()
    device_cost(args.rows, args.vocab, args.runs)
    host_cost()


if __name__ == "__main__":
    main()
