"""The generated files: training rows of the domain, general rows to replay, and evaluation items, from seed 0.

`python -m shadowft_core.demo.pico.generate` writes them; a test compares them with this generator.

The domain has two operations that the Base knows from raw text and that the Instruct was never trained on. They are
requested in other words and answered with only the letters. The rows to replay are of the Instruct's own lessons.
Evaluation items use letter strings and questions that no training text has; dev and test items share neither strings
nor facts.
"""

import json
import random
import re
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

from shadowft_core.demo.pico.world import (
    ANSWER,
    CODE_INSTRUCTIONS,
    CODE_PHRASINGS,
    CODE_REQUESTS,
    DOMAIN_OPERATIONS,
    FORMATS,
    GENERAL_OPERATIONS,
    PEOPLE,
    QUESTIONS,
    REFUSAL,
    REQUESTS,
    STRANGERS,
    World,
    question,
    request,
)
from shadowft_core.files import write_atomically

ROWS = 2000
REPLAY_ROWS = 2000

Row = dict[str, object]
Item = dict[str, str]


def domain_rows(world: World) -> tuple[list[Row], list[Row]]:
    """The training rows, half ShareGPT conversations, half Alpaca instructions; each (operation, string) once."""
    rng = world.rng(world.seed, "domain")
    tasks = [(operation, letters) for operation in DOMAIN_OPERATIONS for letters in world.strings]
    rng.shuffle(tasks)
    sharegpt: list[Row] = []
    for operation, letters in tasks[: ROWS // 2]:
        prompt, reply = request(rng, operation, letters, CODE_REQUESTS, "{answer}")
        turns = [{"from": "human", "value": _spelled(prompt)}, {"from": "gpt", "value": reply}]
        sharegpt.append({"conversations": turns})
    alpaca: list[Row] = []
    for operation, letters in tasks[ROWS // 2 : ROWS]:
        instruction, output = request(rng, operation, letters, CODE_INSTRUCTIONS, "{answer}")
        alpaca.append({"instruction": _spelled(instruction), "input": " ".join(letters), "output": output})
    return sharegpt, alpaca


def replay_rows(world: World) -> list[Row]:
    """General rows: lessons of the Instruct in its own style, each question once."""
    rng = world.rng(world.seed, "replay")
    replies: dict[str, str] = {}
    while len(replies) < REPLAY_ROWS:
        prompt, reply = world.lesson(rng, REQUESTS, ANSWER, REFUSAL)
        replies.setdefault(_spelled(prompt), reply)
    return [
        {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]}
        for prompt, reply in replies.items()
    ]


def evaluation_items(world: World) -> dict[str, list[Item]]:
    """The items of every task, `{"prompt", "target"}`, without duplicates; the target is the expected reply."""
    rng = world.rng(world.seed, "items")
    test, dev = iter(world.test_strings), iter(world.dev_strings)
    facts, dev_facts = _questions(world, rng, world.test_facts), _questions(world, rng, world.dev_facts)
    strangers = [
        {"prompt": _spelled(phrasing.format(name=name)), "target": REFUSAL.removesuffix(" .")}
        for name, attribute in world.test_unknown
        for phrasing in QUESTIONS[attribute]
    ]
    general, known, stop = facts[:40], facts[40:80], facts[80:]
    return {
        "pico_domain_dev": _requests(rng, dev, 100, DOMAIN_OPERATIONS, CODE_PHRASINGS),
        "pico_domain": _requests(rng, test, 300, DOMAIN_OPERATIONS, CODE_PHRASINGS),
        "pico_general_dev": _requests(rng, dev, 100, GENERAL_OPERATIONS, REQUESTS) + dev_facts[:50],
        "pico_general": _requests(rng, test, 260, GENERAL_OPERATIONS, REQUESTS) + general,
        "pico_format": [
            {
                "prompt": _spelled(f"{question(rng, fact)} {order}"),
                "target": FORMATS[order].format(answer=world.facts[fact]),
            }
            for fact, order in world.test_orders
        ],
        "pico_refusal": strangers + known,
        "pico_stop": _requests(rng, test, 160, GENERAL_OPERATIONS, REQUESTS) + stop,
    }


def _requests(
    rng: random.Random,
    strings: Iterator[list[str]],
    count: int,
    operations: tuple[str, ...],
    phrasings: tuple[str, ...],
) -> list[Item]:
    """Requests with unused strings; each operation occurs equally often."""
    turns = zip(cycle(operations), islice(strings, count), strict=False)
    lessons = [request(rng, operation, letters, phrasings, "{answer}") for operation, letters in turns]
    return [{"prompt": _spelled(prompt), "target": answer} for prompt, answer in lessons]


def _questions(world: World, rng: random.Random, facts: list[tuple[str, str]]) -> list[Item]:
    """Every phrasing of the question for every fact, shuffled."""
    items = [
        {"prompt": _spelled(phrasing.format(name=name)), "target": world.facts[name, attribute]}
        for name, attribute in facts
        for phrasing in QUESTIONS[attribute]
    ]
    rng.shuffle(items)
    return items


def _spelled(text: str) -> str:
    """Ordinary spelling: names and first words with a capital, no space before a full stop or question mark."""
    words = [word.capitalize() if word in PEOPLE + STRANGERS else word for word in text.split(" ")]
    text = re.sub(r" (?=[.?])", "", " ".join(words))
    return re.sub(r"^\w|(?<=[.?] )\w(?=\w)", lambda match: match.group().upper(), text)


def files(world: World) -> dict[str, str]:
    """Contents by path in this folder: the two data files (a list with one row per line), the rest one row per line."""
    contents = {}
    for name, rows in zip(("sharegpt", "alpaca"), domain_rows(world), strict=True):
        contents[f"data/train_{name}.json"] = "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n"
    contents["replay.jsonl"] = "".join(json.dumps(row) + "\n" for row in replay_rows(world))
    for task, items in evaluation_items(world).items():
        contents[f"tasks/{task}.jsonl"] = "".join(json.dumps(item) + "\n" for item in items)
    return contents


if __name__ == "__main__":
    for path, content in files(World(seed=0)).items():
        write_atomically(Path(__file__).parent / path, content.encode("utf-8"))
