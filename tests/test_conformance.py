"""The conformance kit run on this project, and tests that the kit detects every kind of wrong result."""

import shutil
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.conformance import oracle
from tests.conformance.__main__ import main
from tests.conformance.cases import CASES, Case
from tests.conformance.hostile import MARKER
from tests.conformance.inputs import Start
from tests.conformance.kit import Kit, Verdict
from tests.conformance.tools import Answer, one_pass, shadowft
from tests.fixtures.models import write_weights

BY_ID = {case.id: case for case in CASES}


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit(tmp_path_factory.mktemp("conformance"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_shadowft_passes_every_case(kit: Kit, case: Case) -> None:
    outcome = kit.run(case, shadowft)
    assert outcome.verdict == Verdict.PASS, f"{case.about}: {outcome.verdict}: {outcome.note}"
    assert outcome.answer is not None
    if outcome.answer.error is not None:
        assert issubclass(outcome.answer.error, case.error), outcome.answer
        assert "\n" not in outcome.answer.last_line


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_one_pass_passes_every_case(kit: Kit, case: Case) -> None:
    outcome = kit.run(case, one_pass)
    assert outcome.verdict in (Verdict.PASS, Verdict.NOT_ASKED), f"{case.about}: {outcome.verdict}: {outcome.note}"
    if outcome.answer is not None and outcome.answer.error is not None:
        assert issubclass(outcome.answer.error, case.error), outcome.answer


def test_every_case_has_its_own_name() -> None:
    assert len(BY_ID) == len(CASES)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_the_oracle_converts_experts_as_transformers_does(tmp_path: Path, family: str) -> None:
    Start(family).build(tmp_path / "split")
    Start(family, fused=True).build(tmp_path / "fused")
    split, fused = (oracle.tensors_of(tmp_path / layout / "base") for layout in ("split", "fused"))
    for converted, expected in ((oracle.fuse(split), fused), (oracle.split(fused, family == "mixtral"), split)):
        assert {n: a.tobytes() for n, a in converted.items()} == {n: a.tobytes() for n, a in expected.items()}


# Tools that each make one mistake.


def writing(change: Callable[[Path], oracle.Tensors]) -> Callable[[Path, bool, str], Answer]:
    def tool(case: Path, adapter: bool, dtype: str) -> Answer:
        out = case / "made" / "out"
        shutil.copytree(case / "instruct", out)
        write_weights(out, change(case))
        return Answer(0, "")

    return tool


def without_one_tensor(case: Path) -> oracle.Tensors:
    found = oracle.plain(case)
    found["model.norm.weight"] = oracle.tensors_of(case / "instruct")["model.norm.weight"]
    return found


def one_key_less(case: Path) -> oracle.Tensors:
    found = oracle.plain(case)
    del found["model.norm.weight"]
    return found


def rounded_twice(case: Path) -> oracle.Tensors:
    """The delta is rounded to bfloat16 before it is added."""
    base, tuned, instruct = (oracle.tensors_of(case / role) for role in ("base", "tuned", "instruct"))
    return {
        n: (a.astype(np.float32) + (tuned[n] - base[n]).astype(ml_dtypes.bfloat16).astype(np.float32)).astype(a.dtype)
        for n, a in instruct.items()
    }


def one_bit(case: Path) -> oracle.Tensors:
    found = oracle.plain(case)
    found["model.norm.weight"].view(np.uint16)[5] ^= 1
    return found


def one_entry(case: Path) -> oracle.Tensors:
    found = oracle.plain(case)
    found["model.norm.weight"].view(np.uint16)[5] ^= 4
    return found


@pytest.mark.parametrize(
    ("change", "verdict", "note"),
    [
        (oracle.plain, Verdict.PASS, ""),
        (lambda case: oracle.tensors_of(case / "instruct"), Verdict.SILENT, "no delta in lm_head.weight"),
        (without_one_tensor, Verdict.SILENT, "no delta in model.norm.weight (1 in all)"),
        (one_key_less, Verdict.SILENT, "model.norm.weight is missing (1 in all)"),
        (one_bit, Verdict.ROUNDING, "by up to 1 units"),
        (one_entry, Verdict.SILENT, "by up to 4 units"),
    ],
)
def test_the_kit_detects_wrong_weights(
    kit: Kit, change: Callable[[Path], oracle.Tensors], verdict: Verdict, note: str
) -> None:
    outcome = kit.run(BY_ID["llama"], writing(change))
    assert outcome.verdict == verdict
    assert note in outcome.note


def test_the_kit_distinguishes_rounding_and_layout_from_wrong_weights(kit: Kit) -> None:
    assert kit.run(BY_ID["llama"], writing(rounded_twice)).verdict == Verdict.ROUNDING
    for finer in ("float16", "float32"):
        assert kit.run(BY_ID[finer], writing(rounded_twice)).verdict == Verdict.SILENT
    outcome = kit.run(BY_ID["mixtral"], writing(lambda case: oracle.fuse(oracle.plain(case))))
    assert (outcome.verdict, outcome.note) == (Verdict.PASS, "under other names")


def test_the_kit_detects_wrong_refusals(kit: Kit) -> None:
    def refuses(case: Path, adapter: bool, dtype: str) -> Answer:
        return Answer(1, "no")

    def leaves(case: Path, adapter: bool, dtype: str) -> Answer:
        writing(oracle.plain)(case, adapter, dtype)
        return Answer(1, "no")

    def runs_code(case: Path, adapter: bool, dtype: str) -> Answer:
        (case / MARKER).mkdir()
        return Answer(1, "no")

    assert kit.run(BY_ID["llama"], refuses).verdict == Verdict.REFUSED
    assert kit.run(BY_ID["nan-tuned"], refuses).verdict == Verdict.PASS
    assert kit.run(BY_ID["mixed-mixtral"], refuses).verdict == Verdict.PASS, "converted or refused, both are right"
    assert kit.run(BY_ID["nan-tuned"], leaves).verdict == Verdict.LEFT
    assert kit.run(BY_ID["nan-tuned"], writing(oracle.plain)).verdict == Verdict.ACCEPTS
    assert kit.run(BY_ID["pickle-tuned"], runs_code).verdict == Verdict.SILENT


def test_the_kit_detects_wrong_folders(kit: Kit) -> None:
    def bare(case: Path, adapter: bool, dtype: str) -> Answer:
        writing(one_key_less)(case, adapter, dtype)
        (case / "made" / "out" / "generation_config.json").write_text("{}")
        (case / "made" / "out" / "chat_template.jinja").unlink()
        return Answer(0, "")

    assert kit.run(BY_ID["loads"], writing(oracle.plain)).verdict == Verdict.PASS
    outcome = kit.run(BY_ID["loads"], bare)
    assert (outcome.verdict, "model.norm.weight" in outcome.note) == (Verdict.WRONG, True)
    outcome = kit.run(BY_ID["files"], bare)
    assert outcome.note == "chat_template.jinja is missing, generation_config.json differs"


def test_the_command_line_fills_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "table.md"
    copies = "cp -r {instruct} {out}"  # ignores {tuned} and {base}
    asked = ["--tool", f"{copies} && true {{tuned}}", "--tool", f"{copies} && true {{adapter}}", "--only", "zero"]
    assert main([*asked, "--markdown", str(file)]) == 1
    text = file.read_text()
    assert text == capsys.readouterr().out
    assert "| zero | the tuned model is the Base | refused | accepts | - |" in text
    assert "| zero-lora | an adapter before its first step | refused | - | accepts |" in text
    assert main(["--tool", "false {tuned} {out}", "--only", "zero"]) == 0


@pytest.mark.parametrize(
    "arguments", [["--tool", "shadowfft"], ["--tool", "cp {tuned}"], ["--tool", "peft", "--only", "x-x"]]
)
def test_an_empty_table_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert arguments[-1] in capsys.readouterr().err
