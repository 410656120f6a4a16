"""The small world that the pico pair is trained on: people with five facts each, six operations on strings of letters.

What each is trained on:

    who                     facts about people      operations                        strangers
    Base, from raw text     all                     all six                           "only passing by"
    Base, from dialogue     three quarters          reverse, repeat, drop, trim       refused sometimes
    Instruct                three quarters          reverse, repeat, drop, trim       refused
    domain data             -                       rotate, swap                      -
    rows to replay          three quarters          reverse, repeat, drop, trim       refused

The domain data ask for an operation in words of their own (CODE_PHRASINGS). The Base reads them in dialogue; the
Instruct is asked in others (REQUESTS).

Held out of every dialogue and lesson: a quarter of the facts (the Base reads them as raw text), some attributes of some
strangers, some facts with some format orders. Held out of all training text: the letter strings of evaluation items.

Text is lower case with spaces around every token, because the tokenizer is word-level; it also accepts ordinary
spelling ("Rotate: b k d m").
"""

# ruff: noqa: SIM905  word lists read better as words than as quotes and commas

import random
from collections.abc import Callable, Iterator
from itertools import permutations
from typing import NamedTuple

LETTERS = "b c d f g h k m p r s t".split()

OPERATIONS: dict[str, Callable[[list[str]], list[str]]] = {
    "reverse": lambda s: s[::-1],
    "repeat": lambda s: s + s,
    "drop": lambda s: s[1:],  # without the first letter
    "trim": lambda s: s[:-1],  # without the last letter
    "rotate": lambda s: s[1:] + s[:1],  # the first letter goes to the end
    "swap": lambda s: [s[1], s[0], *s[2:]],  # the first two change places
}
GENERAL_OPERATIONS = ("reverse", "repeat", "drop", "trim")
DOMAIN_OPERATIONS = ("rotate", "swap")

PEOPLE = (
    "anna bruno clara david elena felix greta hugo irene jonas karin lucas maria nina oscar paula quentin rosa "
    "simon tara ursula victor wanda xavier yvonne zeno alma boris celia dora emil frida gustav helga igor julia "
    "klaus laura marco nora olga peter rita samuel tessa ulrich vera walter"
).split()
STRANGERS = (
    "abel berta cyril delia edgar flora gerald hanna isaac janet kevin lydia martin nadia otto petra quincy ralph "
    "sonia tobias ulla vincent wilma yorick"
).split()
VALUES = {
    "city": "athens berlin cairo dublin geneva lima madrid oslo paris rome tokyo vienna".split(),
    "job": "baker cook doctor farmer judge nurse pilot singer tailor teacher".split(),
    "pet": "cat dog goat horse mouse parrot rabbit snake turtle".split(),
    "color": "black blue green orange pink red violet white yellow".split(),
    "drink": "cider cocoa coffee juice milk tea water wine".split(),
}
RAW_FACTS = {
    "city": "{name} lives in {value} .",
    "job": "{name} works as {value} .",
    "pet": "{name} owns the {value} .",
    "color": "{name} likes {value} .",
    "drink": "{name} orders {value} .",
}
RAW_FACT = "the {attribute} of {name} is {value} ."
RAW_OPERATIONS = ("{operation} {letters} gives {result} .", "{operation} : {letters} = {result}")
RAW_STRANGER = "{name} is only passing by ."
QUESTIONS = {
    "city": ("what is the city of {name} ?", "tell me the city of {name} .", "where does {name} live ?"),
    "job": ("what is the job of {name} ?", "tell me the job of {name} .", "how does {name} earn money ?"),
    "pet": ("what is the pet of {name} ?", "tell me the pet of {name} .", "which animal does {name} own ?"),
    "color": ("what is the color of {name} ?", "tell me the color of {name} .", "which color does {name} like ?"),
    "drink": ("what is the drink of {name} ?", "tell me the drink of {name} .", "what does {name} order ?"),
}
REQUESTS = ("{operation} {letters}", "please {operation} the letters {letters} .", "can you {operation} {letters} ?")
CODE_REQUESTS = (
    "{operation} this code: {letters}",
    "here is a code: {letters}. please {operation} it.",
    "can you {operation} the code {letters} for me?",
    "{operation} it: {letters}",
)
CODE_INSTRUCTIONS = ("{operation} the code.", "please {operation} this code.", "apply {operation} to the code.")
CODE_PHRASINGS = (*CODE_REQUESTS, *(f"{instruction}\n{{letters}}" for instruction in CODE_INSTRUCTIONS))
FORMATS = {
    "reply in brackets .": "[ {answer} ]",
    "reply in quotes .": '" {answer} "',
    "reply twice .": "{answer} {answer}",
    "reply after the word result .": "result : {answer}",
}
ANSWER = "the answer is {answer} ."
REFUSAL = "i do not know ."
# Styles of dialogue in the Base's training text; the Instruct is trained on the first of each only.
STYLES = (ANSWER, "{answer}", "it is {answer} .")
REFUSALS = (REFUSAL, "no idea .", "nobody knows .")
END_OF_TEXT, TURN, END_OF_TURN, UNKNOWN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"
SPECIAL = (END_OF_TEXT, TURN, END_OF_TURN, UNKNOWN)
FRAMES = (
    f"{TURN} user {{prompt}} {END_OF_TURN} {TURN} assistant {{reply}} {END_OF_TURN}",
    "q : {prompt} a : {reply}",
    "user : {prompt} assistant : {reply}",
)
# Words of the domain data and of system texts; no training text has them, so their embeddings stay as initialised.
OTHER_WORDS = "system you are helpful this it these code with for me here apply to , - !"


class Lesson(NamedTuple):
    """One request and its reply."""

    prompt: str
    reply: str


class World:
    """The texts of this world, drawn from one seed.

    People and sentences are fixed; the seed decides the facts and what is held out.
    """

    def __init__(self, seed: int = 0) -> None:
        rng = self.rng(seed, "facts")
        self.seed = seed
        self.facts = {(name, kind): rng.choice(VALUES[kind]) for name in PEOPLE for kind in VALUES}
        keys = rng.sample(sorted(self.facts), len(self.facts))
        self.test_facts, self.dev_facts, self.taught_facts = keys[:40], keys[40:60], keys[60:]
        orders = [(fact, order) for fact in self.taught_facts for order in FORMATS]
        rng.shuffle(orders)
        self.test_orders, self.taught_orders = orders[:250], orders[250:]
        unknown = [(name, kind) for name in STRANGERS for kind in VALUES]
        rng.shuffle(unknown)
        self.test_unknown, self.taught_unknown = unknown[:40], unknown[40:]
        strings = [list(s) for length in (3, 4) for s in permutations(LETTERS, length)]
        rng.shuffle(strings)
        self.test_strings, self.dev_strings, self.strings = strings[:900], strings[900:1200], strings[1200:]

    @staticmethod
    def rng(seed: int, purpose: str) -> random.Random:
        """A separate generator for each purpose, so that the draws for one do not depend on another."""
        return random.Random(f"{purpose}:{seed}")  # noqa: S311  reproducibility, not secrecy

    def documents(self) -> Iterator[str]:
        """Endless pretraining text: raw facts, operations and passers-by, and four tenths mixed dialogue."""
        rng = self.rng(self.seed, "documents")
        keys = sorted(self.facts)
        while True:
            kind = rng.random()
            if kind < 0.4:
                phrasings = rng.choice((REQUESTS, CODE_PHRASINGS))
                lesson = self.lesson(rng, phrasings, rng.choice(STYLES), rng.choice(REFUSALS))
                yield rng.choice(FRAMES).format(prompt=lesson.prompt, reply=lesson.reply)
            elif kind < 0.6:
                name, attribute = rng.choice(keys)
                text = rng.choice((RAW_FACT, RAW_FACTS[attribute]))
                yield text.format(name=name, attribute=attribute, value=self.facts[name, attribute])
            elif kind < 0.95:
                operation, letters = rng.choice(tuple(OPERATIONS)), rng.choice(self.strings)
                yield raw_operation(rng.choice(RAW_OPERATIONS), operation, letters)
            else:
                yield RAW_STRANGER.format(name=rng.choice(STRANGERS))

    def lessons(self) -> Iterator[Lesson]:
        """Endless post-training lessons, all in the Instruct's one style."""
        rng = self.rng(self.seed, "lessons")
        while True:
            yield self.lesson(rng, REQUESTS, ANSWER, REFUSAL)

    def lesson(self, rng: random.Random, phrasings: tuple[str, ...], style: str, refusal: str) -> Lesson:
        """One lesson about what the Instruct is taught; the phrasings are those of requests for an operation."""
        kind = rng.random()
        if kind < 0.35:
            return request(rng, rng.choice(GENERAL_OPERATIONS), rng.choice(self.strings), phrasings, style)
        if kind < 0.47:
            return Lesson(question(rng, rng.choice(self.taught_unknown)), refusal)
        if kind < 0.75:
            fact = rng.choice(self.taught_facts)
            return Lesson(question(rng, fact), style.format(answer=self.facts[fact]))
        fact, order = rng.choice(self.taught_orders)
        return Lesson(f"{question(rng, fact)} {order}", FORMATS[order].format(answer=self.facts[fact]))


def question(rng: random.Random, fact: tuple[str, str]) -> str:
    """One phrasing of the question for a fact (name, attribute)."""
    name, attribute = fact
    return rng.choice(QUESTIONS[attribute]).format(name=name)


def raw_operation(text: str, operation: str, letters: list[str]) -> str:
    """A raw sentence that states the result of an operation."""
    result = OPERATIONS[operation](letters)
    return text.format(operation=operation, letters=" ".join(letters), result=" ".join(result))


def request(rng: random.Random, operation: str, letters: list[str], phrasings: tuple[str, ...], style: str) -> Lesson:
    """A request for an operation in one of the phrasings, answered in a style."""
    prompt = rng.choice(phrasings).format(operation=operation, letters=" ".join(letters))
    return Lesson(prompt, style.format(answer=" ".join(OPERATIONS[operation](letters))))


def vocabulary() -> list[str]:
    """All tokens, special ones first, then every word of the world, sorted. The same for every seed."""
    texts = [*LETTERS, *OPERATIONS, *PEOPLE, *STRANGERS, *VALUES, *RAW_FACTS.values(), RAW_FACT, *RAW_OPERATIONS]
    texts += [RAW_STRANGER, *REQUESTS, *FORMATS, *FORMATS.values(), *STYLES, *REFUSALS, *FRAMES, OTHER_WORDS]
    texts += [value for values in VALUES.values() for value in values]
    texts += [question for questions in QUESTIONS.values() for question in questions]
    words = {word for text in texts for word in text.split() if not word.startswith("{") and word not in SPECIAL}
    return [*SPECIAL, *sorted(words)]
