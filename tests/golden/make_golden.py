"""Makes, checks and uses the reference values in this directory, with Hugging Face transformers and torch (float32, CPU).

Environment (Python 3.11; about 1 GB; the tests themselves need none of this):

    python3.11 -m venv torch-venv
    torch-venv/bin/pip install torch==2.13.0 transformers gguf safetensors ml_dtypes numpy tokenizers jinja2

From the repository root, with the two GGUF files (README.md in this directory says where they come from):

    torch-venv/bin/python tests/golden/make_golden.py --smollm2 SMOLLM2.gguf --gemma3 GEMMA3.gguf                    # write the files
    torch-venv/bin/python tests/golden/make_golden.py --smollm2 SMOLLM2.gguf --gemma3 GEMMA3.gguf --check            # recompute, compare
    torch-venv/bin/python tests/golden/make_golden.py --smollm2 SMOLLM2.gguf --gemma3 GEMMA3.gguf --compare-engine   # xlaserve, full logits

`--only tiny` (or smollm2, gemma3, text) does a part. `--compare-engine` also needs xlaserve itself in that environment.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import platform
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.golden import hf_reference, prompts, smollm2_text
from tests.golden.gemma3_text import GemmaText
from tests.golden.gguf_file import GGUFFile
from tests.golden.hf_reference import Reference
from tests.tooling import tiny_models
from tests.tooling.golden import GOLDEN, Greedy, LogitsSummary, summarize

PARTS = ("tiny", "beams", "smollm2", "gemma3", "text")

BEAM_FAMILIES = ("llama3", "qwen3", "gemma3")
BEAM_LENGTHS = (5, 60)
BEAM_STEPS = 24
BEAM_OPTIONS: tuple[dict[str, Any], ...] = (
    {"num_beams": 2, "length_penalty": 1.0, "early_stopping": False},
    {"num_beams": 4, "length_penalty": 1.0, "early_stopping": True},
    {"num_beams": 4, "length_penalty": 0.0, "early_stopping": "never"},
    {"num_beams": 5, "length_penalty": 2.0, "early_stopping": "never"},
    {"num_beams": 5, "length_penalty": 2.0, "early_stopping": False},
    {"num_beams": 8, "length_penalty": -1.0, "early_stopping": False},
    {"num_beams": 8, "length_penalty": 0.5, "early_stopping": True},
)
TINY_LENGTHS = (1, 17, 64, 150)
TINY_STEPS = 32
# A prompt is drawn again until every greedy choice is this clear, hundreds of times the numeric noise.
TINY_GAP = 0.01
CHAT_STEPS = 64
GEMMA_STEPS = 32

# Other processors and thread counts add float32 numbers in another order; transformers against itself stays far below this.
CHECK_TOLERANCE = 5e-4

Arrays = dict[str, np.ndarray]
Content = dict[str, Any]


def main() -> int:
    """Parse the command line and do what it says; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", type=Path, metavar="GGUF", help="SmolLM2-135M-Instruct.Q4_1.gguf (for smollm2, text)")
    parser.add_argument("--gemma3", type=Path, metavar="GGUF", help="Gemma 3 270M, Q4_K_M (for gemma3, text)")
    parser.add_argument("--only", choices=PARTS, action="append", help="do only this part (may be given several times)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="recompute and compare with the committed files; write nothing")
    mode.add_argument("--compare-engine", action="store_true", help="compare xlaserve's logits with transformers' at every position")
    args = parser.parse_args()
    parts: list[str] = list(args.only or PARTS)
    if args.compare_engine:
        parts = [part for part in parts if part not in ("beams", "text")]
    for option, needed_by in (("smollm2", ("smollm2", "text")), ("gemma3", ("gemma3", "text"))):
        if getattr(args, option) is None and set(parts) & set(needed_by):
            parser.error(f"--{option} is needed for {' and '.join(part for part in parts if part in needed_by)}")
    torch.set_num_threads(args.threads)

    if args.compare_engine:
        return compare_engine(parts, args.smollm2, args.gemma3)
    makers: dict[str, Callable[[], dict[str, Content | Arrays]]] = {
        "tiny": make_tiny,
        "beams": make_beams,
        "smollm2": lambda: make_smollm2(args.smollm2),
        "gemma3": lambda: make_gemma3(args.gemma3),
        "text": lambda: make_text(args.smollm2, args.gemma3),
    }
    problems: list[str] = []
    for part in parts:
        for name, content in makers[part]().items():
            if args.check:
                found = list(_differences(name, content))
                print(f"{name}: {'as committed' if not found else f'{len(found)} differences'}", flush=True)
                problems += found
            else:
                _write(GOLDEN / name, content)
                print(f"{name}: {(GOLDEN / name).stat().st_size:,} bytes", flush=True)
    for problem in problems[:50]:
        print(problem)
    return 1 if problems else 0


def make_tiny() -> dict[str, Content | Arrays]:
    """Full logits and greedy tokens of every tiny family."""
    out: dict[str, Content | Arrays] = {}
    families: Content = {}
    for family in tiny_models.FAMILIES:
        with tempfile.TemporaryDirectory() as directory:
            reference = hf_reference.load_directory(tiny_models.write_tiny(family, Path(directory)))
        random = np.random.Generator(np.random.PCG64(sum(family.encode())))
        cases: list[Content] = []
        arrays: Arrays = {}
        for i, length in enumerate(TINY_LENGTHS):
            while True:
                prompt = _draw(random, length, reference.vocab_size)
                greedy = reference.greedy(prompt, TINY_STEPS)
                if greedy.smallest_gap >= TINY_GAP:
                    break
            cases.append({"prompt": prompt, "greedy": asdict(greedy)})
            arrays[f"logits_{i}"] = reference.logits(prompt)
        families[family] = {"checksum": tiny_models.checksum(tiny_models.tiny_tensors(family)), "cases": cases}
        out[f"tiny_{family}.npz"] = arrays
    out["tiny.json"] = {"versions": _versions(), "families": families}
    return out


def make_beams() -> dict[str, Content | Arrays]:
    """Beam searches of some tiny families, with end-of-sequence ids that the models like to give."""
    families: Content = {}
    for family in BEAM_FAMILIES:
        with tempfile.TemporaryDirectory() as directory:
            reference = hf_reference.load_directory(tiny_models.write_tiny(family, Path(directory)))
        exact = Reference(copy.deepcopy(reference.model).double())
        random = np.random.Generator(np.random.PCG64(sum(family.encode()) + 1))

        common: Counter[int] = Counter()
        for _ in range(20):
            for tokens, _ in reference.beams(
                _draw(random, 20, reference.vocab_size), num_beams=4, max_new_tokens=BEAM_STEPS, eos_token_id=[]
            ):
                common.update(set(tokens))
        eos_ids = [token for token, _ in common.most_common(8)]
        cases: list[Content] = []
        for options in BEAM_OPTIONS:
            for length in BEAM_LENGTHS:
                while True:
                    prompt = _draw(random, length, reference.vocab_size)
                    every = {**options, "max_new_tokens": BEAM_STEPS}
                    beams = reference.beams(prompt, eos_token_id=eos_ids, **every)
                    # Where float64 finds something else, two sequences are too close to tell which is better.
                    if [tokens for tokens, _ in beams] == [tokens for tokens, _ in exact.beams(prompt, eos_token_id=eos_ids, **every)]:
                        break
                cases.append({"prompt": prompt, "options": every, "tokens": [t for t, _ in beams], "scores": [s for _, s in beams]})
        checksum = tiny_models.checksum(tiny_models.tiny_tensors(family))
        families[family] = {"checksum": checksum, "eos_ids": eos_ids, "cases": cases}
    return {"beams.json": {"versions": _versions(), "families": families}}


def make_smollm2(path: Path) -> dict[str, Content | Arrays]:
    """Summaries of ten prompts and greedy tokens of twenty conversations."""
    file = GGUFFile(path)
    tokenizer = smollm2_text.tokenizer(file)
    reference = hf_reference.load_smollm2(path)
    cases: list[Content] = []
    summaries: list[LogitsSummary] = []
    for name, text, length in prompts.SMOLLM2:
        ids = tuple(tokenizer.encode(text, add_special_tokens=False))[:length]
        if length is not None and len(ids) != length:
            raise RuntimeError(f"prompt {name} has only {len(ids)} tokens")
        cases.append({"name": name, "text": tokenizer.decode(ids), "prompt": ids, "greedy": None, "continuation": ""})
        summaries.append(summarize(reference.logits(ids)))
    chats: list[Content] = []
    for messages in prompts.CHATS:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tuple(tokenizer.encode(rendered, add_special_tokens=False))
        greedy = reference.greedy(ids, CHAT_STEPS)
        chats.append({"messages": messages, "prompt": ids, "greedy": asdict(greedy), "continuation": tokenizer.decode(greedy.tokens)})
    return _real("smollm2", file, reference, cases, summaries, chats)


def make_gemma3(path: Path) -> dict[str, Content | Arrays]:
    """Summaries and greedy tokens of four prompts."""
    file = GGUFFile(path)
    reference = hf_reference.load_gemma3(path)
    text = GemmaText(file)
    cases: list[Content] = []
    summaries: list[LogitsSummary] = []
    for name, written, length in prompts.GEMMA3:
        ids = text.encode(written)[:length]
        greedy = reference.greedy(ids, GEMMA_STEPS)
        continuation = text.decode(greedy.tokens)
        cases.append({"name": name, "text": text.decode(ids), "prompt": ids, "greedy": asdict(greedy), "continuation": continuation})
        summaries.append(summarize(reference.logits(ids)))
    return _real("gemma3_270m", file, reference, cases, summaries, [])


def make_text(smollm2: Path, gemma3: Path) -> dict[str, Content | Arrays]:
    """Tokenizations with both models' vocabularies, chat renderings with SmolLM2's template."""
    gemma = GemmaText(GGUFFile(gemma3))
    tokenizations: list[Content] = []
    for text in prompts.TRICKY_FOR_GEMMA:
        ids = gemma.encode(text)[1:]
        if gemma.decode(ids) != text:
            raise RuntimeError(f"{text!r} comes back as {gemma.decode(ids)!r}")
        tokenizations.append({"text": text, "ids": ids, "decoded": text, "decoded_without_special": text})
    nothing: Content = {"special_tokens": {}, "templates": {}, "renderings": []}
    return {
        "smollm2_text.json": {"versions": _versions(), **smollm2_text.cases(GGUFFile(smollm2))},
        "gemma3_270m_text.json": {"versions": _versions(), **nothing, "tokenizations": tokenizations},
    }


@dataclass
class _Row:
    """One line of the comparison table."""

    family: str
    positions: int = 0
    largest: float = 0.0
    total: float = 0.0
    numbers: int = 0
    greedy: int = 0
    greedy_equal: int = 0

    def add(self, expected: np.ndarray, actual: np.ndarray) -> None:
        if actual.shape != expected.shape:
            raise RuntimeError(f"{self.family}: xlaserve returned logits {actual.shape}, transformers {expected.shape}")
        self.positions += len(expected)
        for start in range(0, len(expected), 64):
            difference = np.abs(actual[start : start + 64].astype(np.float64) - expected[start : start + 64])
            self.largest = max(self.largest, float(difference.max()))
            self.total += float(difference.sum())
            self.numbers += difference.size

    def add_greedy(self, prompt: tuple[int, ...], expected: Greedy, logits: np.ndarray) -> None:
        self.greedy += 1
        self.greedy_equal += logits[len(prompt) - 1 :].argmax(axis=1).tolist() == list(expected.tokens)

    def __str__(self) -> str:
        mean = self.total / max(self.numbers, 1)
        return f"| {self.family} | {self.positions} | {self.largest:.2e} | {mean:.2e} | {self.greedy_equal}/{self.greedy} |"


def compare_engine(parts: list[str], smollm2: Path | None, gemma3: Path | None) -> int:
    """Print xlaserve's distance from transformers, full logits at every position; returns 1 where it exceeds 2e-3 or tokens differ."""
    from tests.tooling.engine_logits import engine_logits

    print("| family | positions | max abs error | mean abs error | greedy equal |\n|---|---|---|---|---|")
    rows: list[_Row] = []

    def run(
        family: str, path: Path, reference: Reference, plain: list[tuple[int, ...]], continued: list[tuple[tuple[int, ...], int]]
    ) -> None:
        row = _Row(family)
        for prompt in plain:
            row.add(reference.logits(prompt), engine_logits(path, prompt))
        for prompt, steps in continued:
            greedy = reference.greedy(prompt, steps)
            # Greedy tokens are equal exactly when each is the argmax after the prompt and those before it.
            sequence = prompt + greedy.tokens[:-1]
            logits = engine_logits(path, sequence)
            row.add(reference.logits(sequence), logits)
            row.add_greedy(prompt, greedy, logits)
        print(row, flush=True)
        rows.append(row)

    if "tiny" in parts:
        content = json.loads((GOLDEN / "tiny.json").read_text(encoding="utf-8"))["families"]
        for family in tiny_models.FAMILIES:
            with tempfile.TemporaryDirectory() as directory:
                path = tiny_models.write_tiny(family, Path(directory))
                cases = [tuple(case["prompt"]) for case in content[family]["cases"]]
                run(family, path, hf_reference.load_directory(path), [], [(case, TINY_STEPS) for case in cases])
    if "smollm2" in parts and smollm2 is not None:
        content = json.loads((GOLDEN / "smollm2.json").read_text(encoding="utf-8"))
        chats = [(tuple(case["prompt"]), CHAT_STEPS) for case in content["chats"]]
        plain = [tuple(case["prompt"]) for case in content["prompts"]]
        run("SmolLM2-135M", smollm2, hf_reference.load_smollm2(smollm2), plain, chats)
    if "gemma3" in parts and gemma3 is not None:
        content = json.loads((GOLDEN / "gemma3_270m.json").read_text(encoding="utf-8"))
        cases = [tuple(case["prompt"]) for case in content["prompts"]]
        run("Gemma 3 270M", gemma3, hf_reference.load_gemma3(gemma3), [], [(case, GEMMA_STEPS) for case in cases])
    return 1 if any(row.largest > 2e-3 or row.greedy_equal < row.greedy for row in rows) else 0


def _real(
    name: str, file: GGUFFile, reference: Reference, cases: list[Content], summaries: list[LogitsSummary], chats: list[Content]
) -> dict[str, Content | Arrays]:
    """The two files of a real model; the summaries' rows follow each other in the order of the prompts."""
    arrays = {field.name: np.concatenate([getattr(part, field.name) for part in summaries]) for field in fields(LogitsSummary)}
    content = {
        "versions": _versions(),
        "source": file.path.name,
        "source_sha256": file.sha256(),
        "vocab_size": reference.vocab_size,
        "prompts": cases,
        "chats": chats,
    }
    return {f"{name}.json": content, f"{name}.npz": arrays}


def _draw(random: np.random.Generator, length: int, vocab_size: int) -> tuple[int, ...]:
    """A prompt of random tokens."""
    return tuple((random.random(length) * vocab_size).astype(int).tolist())


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "numpy", "gguf", "safetensors", "tokenizers", "jinja2")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{package: importlib.metadata.version(package) for package in packages},
    }


def _write(path: Path, content: Content | Arrays) -> None:
    if path.suffix == ".npz":
        np.savez_compressed(path, allow_pickle=False, **content)
        return
    text = json.dumps(content, indent=1, ensure_ascii=False)
    # Lists of numbers on one line each; a newline inside a string is written as \n, so real newlines are always layout.
    text = re.sub(r"\[[\s\d,.eE+-]*\]", lambda match: re.sub(r"\s+", " ", match.group()), text)
    path.write_text(text + "\n", encoding="utf-8")


def _differences(name: str, content: Content | Arrays) -> Iterator[str]:
    """What differs between fresh content and the committed file, as sentences."""
    if name.endswith(".json"):
        committed = json.loads((GOLDEN / name).read_text(encoding="utf-8"))
        yield from _json_differences(name, committed, json.loads(json.dumps(content)))
        return
    with np.load(GOLDEN / name, allow_pickle=False) as file:
        arrays = dict(file)
    if arrays.keys() != content.keys():
        yield f"{name}: arrays {sorted(arrays)} committed, {sorted(content)} computed"
        return
    for key, committed in arrays.items():
        computed = content[key]
        if committed.shape != computed.shape:
            yield f"{name} {key}: shape {committed.shape} committed, {computed.shape} computed"
        elif committed.dtype.kind == "f":
            largest = float(np.abs(committed - computed).max())
            if largest > CHECK_TOLERANCE:
                yield f"{name} {key}: largest difference {largest:.2e}"
        else:
            # Ids may change places only where their logits are equal but for noise.
            values = arrays["top_values"]
            crowded = np.abs(np.diff(values, axis=1)) < 2 * CHECK_TOLERANCE
            excused = np.pad(crowded, ((0, 0), (1, 0))) | np.pad(crowded, ((0, 0), (0, 1)))
            excused[:, -1] = True
            unlike = (committed != computed).reshape(len(committed), -1)
            wrong = int((unlike & ~excused[:, : unlike.shape[1]]).sum())
            if wrong:
                yield f"{name} {key}: {wrong} ids differ"


def _json_differences(where: str, committed: Any, computed: Any) -> Iterator[str]:
    if isinstance(committed, dict) and isinstance(computed, dict) and committed.keys() == computed.keys():
        for key in committed:
            if key not in ("versions", "source"):
                yield from _json_differences(f"{where} {key}", committed[key], computed[key])
    elif isinstance(committed, list) and isinstance(computed, list) and len(committed) == len(computed):
        for i, pair in enumerate(zip(committed, computed, strict=True)):
            yield from _json_differences(f"{where}[{i}]", *pair)
    elif isinstance(committed, float) and isinstance(computed, float):
        if abs(committed - computed) > CHECK_TOLERANCE:
            yield f"{where}: {committed} committed, {computed} computed"
    elif committed != computed:
        yield f"{where}: {str(committed)[:80]!r} committed, {str(computed)[:80]!r} computed"


if __name__ == "__main__":
    sys.exit(main())
