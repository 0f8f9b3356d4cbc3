"""Contestants take turns, fail alone, and their results become a report with goals met or not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import __main__ as peers
from benchmarks.peers.__main__ import main
from benchmarks.peers.comparison import Record, compare
from benchmarks.peers.contestants import CONTESTANTS, GROUPS, LLAMA_CPP, TRANSFORMERS, VLLM, XLASERVE, Contestant
from benchmarks.peers.engine import Run
from benchmarks.peers.engine_process import EngineFailed
from benchmarks.peers.goals import GOALS, Goal, outcome
from benchmarks.peers.report import report
from benchmarks.peers.workload import MEASURES
from benchmarks.results import replace_section

_TRIO = tuple(Contestant(kind, "float32", "float32", "float32") for kind in (XLASERVE, VLLM, TRANSFORMERS))
_MEASURES = [replace(measure, output_len=min(4, measure.output_len), turns=1) for measure in MEASURES[:2]]


class Machine:
    """Processes that share one log of who ran what, and a clock of the processors' work."""

    def __init__(self, *, slow: dict[str, float] | None = None, fails: dict[str, int] | None = None) -> None:
        self.turns: list[tuple[str, int]] = []
        self.open: set[str] = set()
        self.busy = 0.0
        self.slow = slow or {}
        self.fails = fails or {}

    def start(self, contestant: Contestant) -> FakeProcess:
        if self.fails.get(contestant.name) == 0:
            raise EngineFailed("it is not installed")
        self.open.add(contestant.name)
        return FakeProcess(contestant.name, self)

    def busy_seconds(self) -> float:
        self.busy += 1e6
        return self.busy


class FakeProcess:
    """Takes a tenth of a second a token, times how slow it is."""

    def __init__(self, name: str, machine: Machine) -> None:
        self.about: dict[str, Any] = {"versions": {"fake": "1"}, "settings": "none", "notes": []}
        self._name = name
        self._machine = machine
        self._runs = 0

    def run(self, prompts: list[list[int]], output_len: int) -> Run:
        self._runs += 1
        if self._runs == self._machine.fails.get(self._name):
            raise EngineFailed("out of luck")
        self._machine.turns.append((self._name, output_len))
        unit = 0.1 * self._machine.slow.get(self._name, 1.0)
        return Run(unit * output_len, unit, [[7] * output_len for _ in prompts])

    def cpu_seconds(self) -> float:
        return 0.0

    def close(self) -> None:
        self._machine.open.remove(self._name)


def _compared(machine: Machine, repeats: int = 3) -> dict[str, Record]:
    return compare(_TRIO, _MEASURES, repeats, machine.start, machine.busy_seconds)


def test_they_take_turns_and_the_first_changes() -> None:
    machine = Machine()
    _compared(machine)
    measured = machine.turns[len(_TRIO) * len(_MEASURES) :][1::2]  # each after a short run that does not count
    ours, vllm, transformers = (contestant.name for contestant in _TRIO)
    orders = [[name for name, _ in measured[at : at + 3]] for at in range(0, len(measured), 3)]
    first, second, third = [ours, vllm, transformers], [vllm, transformers, ours], [transformers, ours, vllm]
    assert orders == [first, first, second, second, third, third]
    assert not machine.open


def test_short_measures_have_several_turns_in_each_repeat() -> None:
    machine = Machine()
    measures = [_MEASURES[0], replace(_MEASURES[1], turns=2)]
    records = compare(_TRIO, measures, 2, machine.start, machine.busy_seconds)
    values = records["xlaserve float32"].values
    assert {name: len(column) for name, column in values.items()} == {"decode": 2, "ttft-128": 4}
    assert None not in values["ttft-128"]
    measured = machine.turns[len(_TRIO) * len(measures) :][1::2]
    assert [measured[at][1] for at in range(0, len(measured), 3)] == [4, 1, 1, 4, 1, 1]
    ours, vllm, transformers = (contestant.name for contestant in _TRIO)
    assert [measured[at][0] for at in range(0, len(measured), 3)] == [ours, ours, vllm, vllm, transformers, ours]


def test_values_of_all_repeats_are_kept() -> None:
    records = _compared(Machine(slow={"vLLM float32": 2.0}))
    assert records["xlaserve float32"].values == {"decode": [pytest.approx(10)] * 3, "ttft-128": [pytest.approx(100)] * 3}
    assert records["vLLM float32"].values["decode"] == [pytest.approx(5)] * 3
    assert records["vLLM float32"].tokens == [7] * 4
    assert all(share > 0 for share in records["vLLM float32"].elsewhere["decode"] if share is not None)


def test_one_that_is_missing_leaves_the_others_alone() -> None:
    machine = Machine(fails={"vLLM float32": 0})
    records = _compared(machine)
    assert records["vLLM float32"].failed == "it is not installed"
    assert records["vLLM float32"].values["decode"] == [None] * 3
    assert records["xlaserve float32"].values["decode"] == [pytest.approx(10)] * 3
    assert not machine.open


def test_one_that_fails_in_between_keeps_what_it_has() -> None:
    machine = Machine(fails={"vLLM float32": len(_MEASURES) + 6})  # of its runs; in each turn there are two
    records = _compared(machine)
    assert records["vLLM float32"].failed == "out of luck"
    assert records["vLLM float32"].values == {"decode": [pytest.approx(10), None, None], "ttft-128": [pytest.approx(100), None, None]}
    assert records["transformers float32"].values["decode"] == [pytest.approx(10)] * 3
    assert not machine.open


def test_everything_is_closed_when_it_is_interrupted() -> None:
    machine = Machine()

    def interrupted() -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(_TRIO, _MEASURES, 1, machine.start, interrupted)
    assert not machine.open


def test_one_that_generates_too_little_does_not_count() -> None:
    class Short(FakeProcess):
        def run(self, prompts: list[list[int]], output_len: int) -> Run:
            run = super().run(prompts, output_len)
            return replace(run, tokens=[tokens[:3] for tokens in run.tokens])

    machine = Machine()
    machine.start = lambda contestant: machine.open.add(contestant.name) or Short(contestant.name, machine)  # type: ignore[method-assign]
    records = _compared(machine)
    assert "not 4" in str(records["xlaserve float32"].failed)
    assert records["xlaserve float32"].values["decode"] == [None] * 3


def _record(**values: list[float | None]) -> Record:
    return Record("kind", "float32", "weights", values={name.replace("_", "-"): column for name, column in values.items()})


def test_goals_are_of_the_median_of_paired_ratios() -> None:
    goal = Goal("decode", "xlaserve float32", ("vLLM float32",), 1.2)
    theirs = _record(decode=[100, 100, 50])
    met = outcome(goal, {"xlaserve float32": _record(decode=[120, 90, 70]), "vLLM float32": theirs})
    assert (met.verdict, met.speedup and met.speedup.median) == ("met", 1.2)
    assert outcome(goal, {"xlaserve float32": _record(decode=[119, 90, 70]), "vLLM float32": theirs}).verdict == "not met"
    assert outcome(goal, {"xlaserve float32": _record(decode=[None]), "vLLM float32": theirs}).verdict == "not measured"
    assert outcome(goal, {"vLLM float32": theirs}).verdict == "not measured"


def test_less_time_to_the_first_token_is_better() -> None:
    goal = Goal("ttft-128", "xlaserve float32", ("vLLM float32",), 1.0)
    records = {"xlaserve float32": _record(ttft_128=[50]), "vLLM float32": _record(ttft_128=[49])}
    assert outcome(goal, records).verdict == "not met"


def test_of_two_rivals_the_faster_counts() -> None:
    goal = Goal("decode", "ours", ("slow", "fast"), 0.9)
    records = {"ours": _record(decode=[80]), "slow": _record(decode=[40]), "fast": _record(decode=[100])}
    found = outcome(goal, records)
    assert (found.rival, found.verdict) == ("fast", "not met")


def test_goals_name_contestants_and_measures_that_there_are() -> None:
    names = {contestant.name for contestant in CONTESTANTS}
    assert len(names) == len(CONTESTANTS)
    assert {contestant.group for contestant in CONTESTANTS} == set(GROUPS)
    for goal in GOALS:
        assert {goal.ours, *goal.rivals} <= names
        assert goal.measure in {measure.name for measure in MEASURES}


def _results() -> dict[str, Any]:
    missing = Contestant(LLAMA_CPP, "float32", "F32", "F32")
    machine = Machine(slow={"vLLM float32": 1.5}, fails={missing.name: 0})
    records = compare([*_TRIO, missing], _MEASURES, 2, machine.start, machine.busy_seconds)
    described = {"processor": "P", "features": ["avx2"], "cores": 2, "memory_gib": 4.0, "system": "S", "python": "3.11"}
    return {
        "when": "today",
        "commit": "abc",
        "machine": described,
        "cpus": [0, 1],
        "quick": False,
        "commands": ["python -m benchmarks.peers --write"],
        "records": {name: record.json() for name, record in records.items()},
    }


def test_the_report_tells_what_was_measured_and_what_not() -> None:
    text = report(json.loads(json.dumps(_results())))
    decode = MEASURES[0].title
    assert f"| {decode} | xlaserve float32 | vLLM float32 | 1.2 | 1.50 [1.50, 1.50] | met |" in text
    assert f"| {decode} | xlaserve int8 | llama.cpp Q8_0 | 0.9 |  | not measured |" in text
    assert "| xlaserve float32 | 10.0 [10.0, 10.0] | 100 [100, 100] | - | - | - | - |" in text
    assert "| vLLM float32 | 1.50 [1.50, 1.50] | 1.50 [1.50, 1.50] | - | - | - | - |" in text
    assert "- llama.cpp F32: **not run to the end**: it is not installed" in text
    assert "python -m benchmarks.peers --write" in text


@pytest.mark.parametrize(("elsewhere", "warns"), [(0.04, False), (1.6, True)])
def test_a_busy_machine_is_told(elsewhere: float, warns: bool) -> None:
    results = _results()
    for record in results["records"].values():
        record["elsewhere"] = {name: [elsewhere] * 2 for name in record["elsewhere"]}
    assert ("measure again on a quiet machine" in report(results)) is warns


def test_raw_results_can_be_reported_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "raw.json"
    raw.write_text(json.dumps(_results()))
    assert main(["--report", str(raw)]) == 1  # one failed
    assert "### Goals" in capsys.readouterr().out


def test_a_quick_run_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--quick"):
        main(["--quick", "--write"])
    raw = tmp_path / "raw.json"
    raw.write_text(json.dumps(_results() | {"quick": True}))
    with pytest.raises(SystemExit, match="--quick"):
        main(["--report", str(raw), "--write"])


def test_a_report_is_written_beside_other_sections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "RESULTS.md"
    replace_section(path, "profiles", "## Profiles")
    monkeypatch.setattr(peers, "RESULTS", path)
    raw = tmp_path / "raw.json"
    raw.write_text(json.dumps(_results()))
    main(["--report", str(raw), "--write"])
    assert path.read_text().index("## Profiles") < path.read_text().index("## CPU")
