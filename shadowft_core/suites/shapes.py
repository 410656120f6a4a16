"""Public copies of benchmarks in other shapes than a hub's, turned into the columns that the harness reads.

A shape is recognised by the columns of the first row; words of the path tell benchmarks of equal columns apart.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Shape:
    """`columns` of a row; `words`, one of which is in the path (letters and digits alone are compared).

    `splits`: words, one of which is in the file's name, for each split that the file can be; None: it holds this split
    whatever its name.
    """

    columns: frozenset[str]
    convert: Callable[[Row], Row]
    splits: dict[str, tuple[str, ...] | None]
    words: tuple[str, ...] = ()
    needs_word: bool = False
    names: tuple[str, ...] = ()
    """configurations of the data set that the file can be; any when empty"""
    is_of: Callable[[Row, str | None], bool] = lambda row, name: True
    """whether a row belongs to a configuration"""

    def fits(self, path: Path, first: Row, name: str | None, split: str) -> bool:
        """Whether a file with this first row holds that split."""
        if not self.columns <= first.keys() or split not in self.splits:
            return False
        if self.names and name not in self.names:
            return False
        stem = set(re.split(r"[^a-z0-9]+", path.name.lower()))
        wanted = self.splits[split]
        if wanted is not None and not stem & set(wanted):
            return False
        return not self.needs_word or self.has_word(path.parts)

    def has_word(self, place: str | tuple[str, ...]) -> bool:
        """Whether a name, or the last parts of a path, have one of the shape's words."""
        plain = re.sub(r"[^a-z0-9]", "", "".join(place if isinstance(place, str) else place[-3:]).lower())
        return any(word in plain for word in self.words)


def _only(*columns: str) -> Callable[[Row], Row]:
    return lambda row: {name: row[name] for name in columns}


def _asked(row: Row) -> str:
    """The question of a `query`, without the words around it."""
    return re.sub(r"\s*(Answer:)?\s*$", "", str(row["query"])).removeprefix("Question: ").strip()


def _lettered(question: str) -> Callable[[Row], Row]:
    def convert(row: Row) -> Row:
        labels = list(LETTERS[: len(row["choices"])])
        return {
            question: _asked(row),
            "choices": {"text": row["choices"], "label": labels},
            "answerKey": labels[row["gold"]],
        }

    return convert


def _arc_release(row: Row) -> Row:
    asked = row["question"]
    choices = {key: [choice[key] for choice in asked["choices"]] for key in ("text", "label")}
    return {"question": asked["stem"], "choices": choices, "answerKey": row["answerKey"]}


def _truthful_csv(row: Row) -> Row:
    def parts(text: str) -> list[str]:
        return [part.strip() for part in text.split(";") if part.strip()]

    best, right, wrong = row["Best Answer"].strip(), parts(row["Correct Answers"]), parts(row["Incorrect Answers"])
    return {
        "question": row["Question"].strip(),
        "mc1_targets": {"choices": [best, *wrong], "labels": [1] + [0] * len(wrong)},
        "mc2_targets": {"choices": [*right, *wrong], "labels": [1] * len(right) + [0] * len(wrong)},
    }


def _truthful_json(row: Row) -> Row:
    targets = {
        key: {"choices": list(row[key]), "labels": list(row[key].values())} for key in ("mc1_targets", "mc2_targets")
    }
    return {"question": row["question"], **targets}


def _winogrande(row: Row) -> Row:
    first, second = row["context_options"]
    common = 0
    while common < min(len(first), len(second)) and first[common] == second[common]:
        common += 1
    common = first.rfind(" ", 0, common) + 1  # whole words
    return {
        "sentence": f"{first[:common]}_ {row['continuation']}",
        "option1": first[common:],
        "option2": second[common:],
        "answer": str(row["gold"] + 1),
    }


def _piqa(row: Row) -> Row:
    return {"goal": _asked(row), "sol1": row["choices"][0], "sol2": row["choices"][1], "label": row["gold"]}


def _boolq(row: Row) -> Row:
    passage, _, question = row["query"].removeprefix("Passage: ").rpartition("\nQuestion: ")
    label = row["gold"] if row["choices"] == ["no", "yes"] else 1 - row["gold"]
    return {"passage": passage, "question": question.rstrip().removesuffix("?"), "label": label}


def _copa(row: Row) -> Row:
    premise, _, word = row["query"].rstrip().rpartition(" ")
    return {
        "premise": premise.rstrip(",") + ".",
        "question": {"because": "cause", "therefore": "effect"}[word],
        "choice1": row["choices"][0],
        "choice2": row["choices"][1],
        "label": row["gold"],
    }


def _hellaswag(row: Row) -> Row:
    label, _, context = row["query"].partition(": ")
    endings = [str(choice) for choice in row["choices"]]
    return {"activity_label": label, "ctx_a": context, "ctx_b": "", "endings": endings, "label": str(row["gold"])}


def _aime(row: Row) -> Row:
    return {"ID": str(row.get("id", "")), "Problem": row["problem"], "Answer": str(row["answer"])}


QUERY = frozenset(("query", "choices", "gold"))
TEST: dict[str, tuple[str, ...] | None] = {"test": ("test",), "train": ("train",)}
VALID: dict[str, tuple[str, ...] | None] = {"validation": None}
ALL: dict[str, tuple[str, ...] | None] = {"test": None}

SHAPES: dict[str, tuple[Shape, ...]] = {
    "openai/gsm8k": (Shape(frozenset(("question", "answer")), _only("question", "answer"), TEST, ("gsm8k",)),),
    "allenai/ai2_arc": tuple(
        shape
        for name, word in (("ARC-Easy", "arceasy"), ("ARC-Challenge", "arcchallenge"))
        for shape in (
            Shape(QUERY, _lettered("question"), ALL, (word,), True, (name,)),
            Shape(frozenset(("question", "answerKey")), _arc_release, TEST, (word,), True, (name,)),
        )
    ),
    "truthfulqa/truthful_qa": (
        Shape(frozenset(("Question", "Best Answer", "Incorrect Answers")), _truthful_csv, VALID),
        Shape(frozenset(("question", "mc1_targets", "mc2_targets")), _truthful_json, VALID),
    ),
    "openai/openai_humaneval": (
        Shape(
            frozenset(("task_id", "prompt", "entry_point", "canonical_solution", "test")),
            _only("task_id", "prompt", "canonical_solution", "test", "entry_point"),
            ALL,
            ("humaneval",),
        ),
    ),
    "EleutherAI/hendrycks_math": (
        Shape(
            frozenset(("problem", "solution", "level", "type")),
            _only("problem", "level", "type", "solution"),
            TEST,
            ("math",),
            is_of=lambda row, name: re.sub(r"[^a-z]+", "_", row["type"].lower().replace("&", "and")) == name,
        ),
    ),
    "HuggingFaceH4/MATH-500": (
        Shape(
            frozenset(("problem", "solution", "answer", "subject")),
            _only("problem", "solution", "answer", "subject"),
            ALL,
            ("math500",),
        ),
    ),
    "Maxwell-Jia/AIME_2024": (
        Shape(
            frozenset(("ID", "Problem", "Answer")),
            lambda row: {"ID": row["ID"], "Problem": row["Problem"], "Answer": str(row["Answer"])},
            {"train": None},
            ("aime24", "aime2024"),
        ),
        Shape(frozenset(("problem", "answer", "id")), _aime, {"train": None}, ("aime24", "aime2024"), True),
    ),
    "ChilleD/SVAMP": (
        Shape(frozenset(("Body", "Question", "Answer")), _only("Body", "Question", "Answer"), ALL, ("svamp",)),
    ),
    "google/IFEval": (
        Shape(
            frozenset(("key", "prompt", "instruction_id_list", "kwargs")),
            _only("key", "prompt", "instruction_id_list", "kwargs"),
            {"train": None},
            ("ifeval",),
        ),
    ),
    "allenai/winogrande": (
        Shape(frozenset(("context_options", "continuation", "gold")), _winogrande, VALID, ("winogrande",)),
        Shape(
            frozenset(("sentence", "option1", "option2", "answer")),
            _only("sentence", "option1", "option2", "answer"),
            {"validation": ("dev", "validation")},
            ("winogrande",),
        ),
    ),
    "baber/piqa": (Shape(QUERY, _piqa, VALID, ("piqa",), True),),
    "allenai/openbookqa": (Shape(QUERY, _lettered("question_stem"), ALL, ("openbookqa",), True),),
    "Rowan/hellaswag": (Shape(QUERY, _hellaswag, VALID, ("hellaswag",), True),),
    "aps/super_glue": (
        Shape(QUERY, _boolq, VALID, ("boolq",), True, ("boolq",)),
        Shape(QUERY, _copa, VALID, ("copa",), True, ("copa",)),
    ),
}
