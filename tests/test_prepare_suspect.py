"""Rows that are used but look wrong: counted, with examples."""

import pytest

from shadowft_core.prepare.suspect import ERROR, KINDS, PLACEHOLDER, REFUSAL, TEMPLATE, suspects
from tests.fixtures.data import Stage, lines, talk

SUSPECT = {  # question, reply: kind
    ("hi", "Hello! I am {{name}}, built by {{ author }}."): PLACEHOLDER,
    ("Write a letter.", "Dear Sir,\nyours,\n[Your Name]"): PLACEHOLDER,
    ("Write a mail.", "Hi <insert name here>, I am ill."): PLACEHOLDER,
    ("What is 2 + 2?", "TODO"): PLACEHOLDER,
    ("What is 2 + 3?", "The answer is {answer}."): PLACEHOLDER,
    ("Name a river.", "502 Bad Gateway\nnginx"): ERROR,
    ("Name a lake.", "Rate limit exceeded. Try again in 20 s."): ERROR,
    ("Name a sea.", '{"error": {"message": "overloaded"}}'): ERROR,
    ("Name a hill.", "<!DOCTYPE html><html><title>Just a moment</title>"): ERROR,
    ("Who won?", "As an AI language model, I follow no sports."): REFUSAL,
    ("Open the door.", "I'm sorry, but I can't assist with that."): REFUSAL,
    ("你喜欢什么？", "作为一个人工智能助手，我无法拥有喜好。"): REFUSAL,
    ("### Instruction:\nAdd 1 and 2.\n### Response:\n", "3"): TEMPLATE,
    ("[INST] Add 1 and 2. [/INST]", "3"): TEMPLATE,
    ("Add 1 and 2.", "3<|im_end|>"): TEMPLATE,
}
PLAIN = [
    ("Simplify.", r"We get \(\frac{{a}}{b}\) and [1, 2] < [3]."),
    ("Greet in Python.", 'def greet(name):\n    print(f"Hello {answer} [name]")'),
    ("Greet in Vue.", "<p>{{ name }}</p>"),
    ("Link?", "See [name](https://example.org)."),
    ("What does 404 mean?", "404 Not Found means that the page does not exist."),
    ("Write a web page.", "<!DOCTYPE html><html></html>"),
    ("Who are you?", "I am an AI assistant. As an AI assistant, I can help you."),
    ("Are you well?", "I'm sorry to hear that you are ill."),
    ("### Summary\nA text about 3 # signs", "## Response times\nThey fell. Most I cannot explain."),
    ("What does {{name}} mean in a template?", "It stands for a name."),
    ("What does TODO mean?", "TODO marks what remains to be done."),
]


@pytest.mark.parametrize(
    ("said", "kind"), SUSPECT.items(), ids=[f"{kind}, {said[1][:20]}" for said, kind in SUSPECT.items()]
)
def test_suspect_replies_are_found(said: tuple[str, str], kind: str) -> None:
    assert list(suspects(talk(*said)["messages"])) == [kind]


@pytest.mark.parametrize("said", PLAIN, ids=[asked for asked, _ in PLAIN])
def test_usual_replies_are_not_suspect(said: tuple[str, str]) -> None:
    assert suspects(talk(*said)["messages"]) == {}


def test_suspect_rows_are_used_counted_and_shown(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [talk(f"{number}?", f"{'x ' * 200}{{{{name}}}} {number}") for number in range(7)]
    (stage.data / "rows.jsonl").write_bytes(lines([talk("a plain row"), *rows, rows[0], talk("and another")]))
    report = stage.run()
    about = report["suspect"][PLACEHOLDER]
    assert (report["rows_used"], about["rows"], len(about["examples"])) == (9, 7, 5), "the duplicate does not count"
    first = about["examples"][0]
    assert first["source"] == "rows.jsonl:2"
    assert "{{name}} 0" in first["text"]
    assert len(first["text"]) <= 200
    assert list(report["suspect"]) == [PLACEHOLDER]
    told = [line for line in capsys.readouterr().err.splitlines() if "suspect" in line]
    assert len(told) == 1
    assert told[0].startswith(f"prepare: suspect, {PLACEHOLDER}: 7 rows, such as rows.jsonl:2: x x")
    assert len(KINDS) == 4


def test_the_examples_are_rows_that_are_used(stage: Stage) -> None:
    """Though rows that are test items, and so left out, come first."""
    (stage.tasks / "items.jsonl").write_bytes(lines([{"question": f"{number}?"} for number in range(6)]))
    rows = [talk(f"{number}?", f"I am {{{{name}}}} {number}") for number in range(12)]
    (stage.data / "rows.jsonl").write_bytes(lines(rows))
    about = stage.run()["suspect"][PLACEHOLDER]
    assert about["rows"] == 6
    assert [one["source"] for one in about["examples"]] == [f"rows.jsonl:{line}" for line in range(7, 12)]
