"""Engine hf: answers equal to the bare harness item by item, and how each of them ended."""

from typing import Any

import pytest

from shadowft_core.evaluate import load_folder
from shadowft_core.evaluate.engines import Reply
from shadowft_core.evaluate.engines.hf import Hf
from tests.fixtures.evaluation import LETTERS, World


class Heard:
    """A hook for answers, as the harness calls it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, Any]] = []

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        self.calls.append((kind, request, answer))


@pytest.fixture(scope="module")
def lms(world: World) -> tuple[Any, Any]:
    """The bare harness and ours around the same model, with batches of 4."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    model, tokenizer = load_folder(world.instruct), AutoTokenizer.from_pretrained(world.instruct)
    bare = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, add_bos_token=False)
    return bare, Hf(world.instruct, tokenizer, 4).lm(model)


def texts() -> list[tuple[str, dict[str, Any]]]:
    """Prompts of several lengths, some of them equal, with two kinds of settings, in no order."""
    settings = [{"until": ["<end>"], "max_gen_toks": 5}, {"until": ["k", "q"], "max_gen_toks": 7, "do_sample": False}]
    asked = [(f"{'say b ' * (i % 3)}<user> say {LETTERS[i % 20]} <end> <bot>", settings[i % 5 > 2]) for i in range(23)]
    return [asked[i * 7 % 23] for i in range(23)]


def pairs() -> list[tuple[str, str]]:
    """Contexts and continuations; several share a context and differ in the last token alone, some are equal."""
    return [
        (f"{'say b ' * (i % 4)}<user> say {LETTERS[i % 6]} <end> <bot>", f" {'b ' * (i % 2)}{LETTERS[i * 5 % 7]}")
        for i in range(41)
    ]


def requests(kind: str, asked: list[Any]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, arguments, at) for at, arguments in enumerate(asked)]  # type: ignore[arg-type]


def test_texts_equal_those_of_the_bare_harness(lms: tuple[Any, Any]) -> None:
    heard = []
    for lm in lms:
        lm.set_cache_hook(hook := Heard())
        heard.append((lm.generate_until(requests("generate_until", texts()), disable_tqdm=True), hook.calls))
    (bare, bare_calls), (ours, our_calls) = heard
    assert ours == bare
    assert our_calls == bare_calls, "the same batches in the same order"
    assert len({*bare}) > 3
    assert all(type(answer) is Reply for answer in [*ours, *(answer for _, _, answer in our_calls)])


def test_likelihoods_equal_those_of_the_bare_harness(lms: tuple[Any, Any]) -> None:
    heard = []
    for lm in lms:
        lm.set_cache_hook(hook := Heard())
        heard.append((lm.loglikelihood(requests("loglikelihood", pairs()), disable_tqdm=True), hook.calls))
    (bare, bare_calls), (ours, our_calls) = heard
    assert ours == bare, "to the last bit"
    assert sorted(map(repr, our_calls)) == sorted(map(repr, bare_calls))
    assert {greedy for _, greedy in ours} == {True, False}


def test_a_likelihood_of_a_long_text_equals_that_of_the_bare_harness(lms: tuple[Any, Any]) -> None:
    asked = [(" ".join(LETTERS[i : i + 9] * 9),) for i in range(5)]  # 81 tokens in windows of 32
    bare, ours = (lm.loglikelihood_rolling(requests("loglikelihood_rolling", asked), disable_tqdm=True) for lm in lms)
    assert ours == bare


def test_a_reply_knows_how_it_ended(lms: tuple[Any, Any]) -> None:
    """`say X` is answered by `X <end>`. <end> is the model's end token; the other letters are stop texts."""
    asked = [
        ("<user> say a <end> <bot>", {"until": [], "max_gen_toks": 4}),
        ("<user> say b <end> <bot>", {"until": ["b"], "max_gen_toks": 4}),
        ("<user> say c <end> <bot>", {"until": ["z"], "max_gen_toks": 1}),
        ("<user> say d <end> <bot>", {"until": ["<end>"], "max_gen_toks": 2}),
    ]
    replies = lms[1].generate_until(requests("generate_until", asked), disable_tqdm=True)
    found = [(reply.strip(), reply.finish, reply.tokens) for reply in replies]
    assert found == [("a", "stop", 2), ("", "stop", 1), ("c", "length", 1), ("d", "stop", 2)]


def test_what_follows_a_stop_text_does_not_count(lms: tuple[Any, Any]) -> None:
    """One row of the batch goes on to the token limit, the others are padded or go on with it."""
    lm = lms[1]
    tokens = {word: lm.tokenizer.convert_tokens_to_ids(word) for word in ("a", "b", "<end>", "<pad>")}
    a, b, end, pad = tokens.values()
    rows = [[a, b, a, a, a], [a, end, pad, pad, pad], [a, a, a, a, a], [b, end, pad, pad, pad], [a, a, a, a, b]]
    found = [lm._end(row, {end}, ["b", "<end>"]) for row in rows]
    assert found == [("stop", 2), ("stop", 2), ("length", 5), ("stop", 1), ("stop", 5)]
    assert [lm._end(row, set(), []) for row in rows[2:4]] == [("length", 5), ("length", 5)]
    assert [lm._end(row, {end}, []) for row in rows[1:4]] == [("stop", 2), ("length", 5), ("stop", 2)]


def test_the_harness_can_cast_and_copy_a_reply() -> None:
    import copy

    reply = Reply("42", "length", 7)
    assert type(reply)("43") == "43"
    copied = copy.deepcopy(reply)
    assert (copied, copied.finish, copied.tokens) == ("42", "length", 7)
