"""What is learned of a conversation, under every stock template and under the odd ones."""

import json
from typing import Any

import pytest

from shadowft_core.errors import TrainError
from shadowft_core.params import Render
from shadowft_core.rendering import IGNORED, Renderer, RowError
from tests.rendering.stock import CONTROL, stock_templates, tokenizer_for
from tests.rendering.table import CONVERSATIONS, PAGE, REPLY, THOUGHT, USER, page, pieces

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def made(template: str, **settings: Any) -> Renderer:
    return Renderer(*tokenizer_for(template), Render(**settings))


@pytest.mark.parametrize("case", CONVERSATIONS)
@pytest.mark.parametrize("name", stock_templates())
def test_each_reply_is_learned_once_behind_the_prompt_of_inference(name: str, case: str) -> None:
    renderer, messages = made(stock_templates()[name]), CONVERSATIONS[case]
    if name == "qwen3_5_nothink" and "thought" in case:
        with pytest.raises(RowError, match="ends the thought"):
            renderer.samples(messages)
        return
    if name == "gemma" and case == "system":
        with pytest.raises(RowError, match=r"no system turn; set render\.system to fold"):
            renderer.samples(messages)
        return
    samples = renderer.samples(messages)
    stops = {renderer.tokenizer.decode([stop]) for stop in renderer.stops}
    thinking = any("reasoning_content" in message for message in messages)
    folded = renderer._folded(messages, renderer.template)
    texts = []
    for sample in samples:
        assert len(sample.input_ids) == len(sample.labels)
        assert all(label in (IGNORED, token) for label, token in zip(sample.labels, sample.input_ids, strict=True))
        *_, last = pieces(sample)
        end = renderer.tokenizer.decode(last[-1:])
        shown = renderer.tokenizer.decode(last)
        assert shown.startswith(sample.reply)
        assert CONTROL.sub("", shown.removeprefix(sample.reply)).strip("\n") in ("", "</s>")
        assert end in stops
        texts += [renderer.tokenizer.decode(piece) for piece in pieces(sample)]
    replies = [message for message in messages if message["role"] == "assistant"]
    for reply, text in zip(replies, texts, strict=True):
        assert text.count(reply["content"]) == 1
        assert text.count(reply.get("reasoning_content", reply["content"])) == 1
    prompt = renderer.template.render(folded[:-1], prompt=True, thinking=thinking)
    assert samples[-1].prompt == prompt


@pytest.mark.parametrize("name", stock_templates())
def test_ids_are_those_of_the_whole_text(name: str) -> None:
    renderer = made(stock_templates()[name])
    [sample] = renderer.samples(CONVERSATIONS["one turn"])
    text = renderer.tokenizer.decode(sample.input_ids)
    assert text.startswith(sample.prompt + sample.reply)
    ids = renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == sample.input_ids


def test_the_page_is_what_the_code_does() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.rendering.table"


def test_a_tokenizer_that_puts_a_blank_before_a_text_puts_none_before_a_reply() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {letter: at for at, letter in enumerate("▁abcdefghijklmnopqrstuvwxyz0123456789<|>_:\n")}
    raw = Tokenizer(models.BPE(vocab=words, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    raw.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    [sample] = Renderer(tokenizer, {tokenizer.eos_token_id}, Render()).samples(
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "madrid"}]
    )
    [piece] = pieces(sample)
    assert tokenizer.convert_ids_to_tokens(piece) == [*"madrid", "<eos>"]


@pytest.mark.parametrize("question", ["en", "im_end", "<"])
def test_a_question_that_is_a_part_of_the_stop_token_leaves_one_sequence(question: str) -> None:
    turns = [("user", "hi"), ("assistant", "yes"), ("user", question), ("assistant", "no")]
    samples = made(CHATML).samples([{"role": role, "content": content} for role, content in turns])
    assert len(samples) == 1


def test_a_reply_of_weight_0_is_context() -> None:
    renderer = made(CHATML)
    turns = [USER[0], REPLY[0] | {"weight": 0}, USER[1], REPLY[1] | {"weight": 1}]
    [sample] = renderer.samples(turns)
    assert [renderer.tokenizer.decode(piece) for piece in pieces(sample)] == ["a2<|im_end|>"]
    assert "a1<|im_end|>" in sample.prompt
    with pytest.raises(RowError, match="no reply to learn"):
        renderer.samples(turns[:2])


def test_only_an_inner_reply_is_learned_when_the_last_has_weight_0() -> None:
    renderer = made(CHATML)
    [sample] = renderer.samples([USER[0], REPLY[0], USER[1], REPLY[1] | {"weight": 0}])
    assert [renderer.tokenizer.decode(piece) for piece in pieces(sample)] == ["a1<|im_end|>"]
    assert (sample.prompt.count("q1"), sample.prompt.count("q2"), sample.reply) == (1, 0, "a1")


def test_thoughts_as_the_policy_has_them() -> None:
    template, turns = stock_templates()["qwen3"], CONVERSATIONS["two thoughts"]
    texts = {}
    for policy in ("keep", "last", "none"):
        renderer = made(template, thinking=policy)
        texts[policy] = [
            [renderer.tokenizer.decode(piece) for piece in pieces(sample)] for sample in renderer.samples(turns)
        ]
    thought = "<think>\n{t}\n</think>\n\n{a}<|im_end|>"
    first, second = thought.format(t="t1", a="a1"), thought.format(t="t2", a="a2")
    assert texts == {"keep": [[first], [second]], "last": [[second]], "none": [["a1<|im_end|>", "a2<|im_end|>"]]}


def test_an_empty_thought_is_in_the_prompt_where_inference_sends_it() -> None:
    [sample] = made(stock_templates()["qwen3"]).samples(CONVERSATIONS["one turn"])
    assert sample.prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert sample.reply == "a1"


def test_an_empty_thought_that_no_prompt_sends_is_learned() -> None:
    template = CHATML.replace(
        "{{ m.content }}",
        "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}",
    )
    [sample] = made(template).samples(CONVERSATIONS["one turn"])
    assert (sample.prompt[-12:], sample.reply) == ("|>assistant\n", "<think>\n\n</think>\n\na1")


def test_where_the_template_writes_no_end_the_stop_is_learned() -> None:
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer, _ = tokenizer_for(template + "<|user|><|assistant|>")
    tokenizer.chat_template = template
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    for stops, end in (({tokenizer.eos_token_id}, "</s>"), ({tokenizer.eos_token_id, user}, "<|user|>")):
        renderer = Renderer(tokenizer, stops, Render())
        [sample] = renderer.samples(CONVERSATIONS["one turn"])
        assert renderer.tokenizer.decode(pieces(sample)[-1]) == f"a1{end}"
        assert sample.reply == "a1"


def test_a_template_without_system_turns_folds_or_refuses_them() -> None:
    template = stock_templates()["gemma"]
    [sample] = made(template, system="fold").samples(CONVERSATIONS["system"])
    assert "user\ns\n\nq1<end_of_turn>" in sample.prompt
    with pytest.raises(RowError, match="system"):
        made(template).samples(CONVERSATIONS["system"])


def test_a_developer_is_the_system_where_the_template_knows_none() -> None:
    renderer = made(
        CHATML.replace(
            "{{ m.role }}", "{% if m.role == 'developer' %}{{ raise_exception('no') }}{% endif %}{{ m.role }}"
        )
    )
    [sample] = renderer.samples([{"role": "developer", "content": "s"}, *CONVERSATIONS["one turn"]])
    assert sample.prompt.startswith("<|im_start|>system\ns<|im_end|>")


def test_a_control_token_in_a_text_refuses_its_row() -> None:
    with pytest.raises(RowError, match=r"control token <\|im_end\|>"):
        made(CHATML).samples([{"role": "user", "content": "a<|im_end|>b"}, REPLY[0]])
    with pytest.raises(RowError, match="control token"):
        made(stock_templates()["qwen3"]).samples([USER[0], REPLY[0] | {"reasoning_content": "<|im_start|>"}])


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("place", ["arguments", "name of a turn", "tool"])
def test_a_control_token_in_a_call_or_a_tool_refuses_its_row(place: str) -> None:
    """In the arguments of a call it would end what is learned of the call."""
    call, tool, name = json.dumps([CALL]), TOOL, "add"
    if place == "arguments":
        call = call.replace("1", '"<|im_end|>"')
    elif place == "tool":
        tool = json.loads(json.dumps(TOOL).replace("adds", "<|im_end|>"))
    else:
        name = "<|im_end|>"
    talk = [
        USER[0],
        {"role": "assistant", "content": "", "tool_calls": call},
        {"role": "tool", "name": name, "content": "2"},
        REPLY[0],
    ]
    with pytest.raises(RowError, match=r"control token <\|im_end\|>"):
        made(stock_templates()["qwen3"]).samples(talk, [tool])


def test_tools_and_their_calls_reach_the_template() -> None:
    call = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    tools = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}]
    turns = [
        USER[0],
        {"role": "assistant", "content": "", "tool_calls": json.dumps(call)},
        {"role": "tool", "name": "add", "content": "2"},
        REPLY[0],
    ]
    renderer = made(stock_templates()["qwen3"])
    samples = renderer.samples(turns, tools)
    texts = [renderer.tokenizer.decode(piece) for sample in samples for piece in pieces(sample)]
    assert any('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>' in text for text in texts)
    assert texts[-1] == "a1<|im_end|>"
    assert "adds" in samples[-1].prompt


def test_1280_turns_are_rendered_a_fixed_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = made(CHATML)
    count = 0
    whole = renderer.template.render

    def counted(*arguments: Any, **options: Any) -> str:
        nonlocal count
        count += 1
        return whole(*arguments, **options)

    monkeypatch.setattr(renderer.template, "render", counted)
    turns = [{"role": role, "content": f"{role} {n}"} for n in range(640) for role in ("user", "assistant")]
    [sample] = renderer.samples(turns)
    assert [renderer.tokenizer.decode(piece) for piece in pieces(sample)] == [
        f"assistant {n}<|im_end|>" for n in range(640)
    ]
    assert count < 8


def test_many_turns_are_rendered_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, template in stock_templates().items():
        renderer = made(template)
        turns = [turn for n in range(6) for turn in (USER[0] | {"content": f"q{n}"}, REPLY[0] | {"content": f"a{n}"})]
        few = renderer.samples(turns)
        monkeypatch.setattr("shadowft_core.rendering.samples.MANY", 2)
        assert renderer.samples(turns) == few, name
        monkeypatch.undo()


def test_a_template_that_prints_no_reply_is_refused() -> None:
    with pytest.raises(TrainError, match="does not print"):
        made("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}")


def test_a_refusal_of_the_template_names_its_words() -> None:
    template = CHATML + "{% if messages[0].content == 'odd' %}{{ raise_exception('odd words') }}{% endif %}"
    with pytest.raises(RowError, match="odd words"):
        made(template).samples([{"role": "user", "content": "odd"}, REPLY[0]])


def test_thoughts_are_refused_where_the_prompt_ends_them() -> None:
    with pytest.raises(RowError, match="ends the thought"):
        made(stock_templates()["qwen3_5_nothink"]).samples([USER[0], THOUGHT[0]])


def test_a_question_that_is_a_part_of_the_header_hides_no_thought(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shadowft_core.rendering.samples.MANY", 1)
    thought = {"role": "assistant", "content": "yes", "reasoning_content": "because"}
    turns = [{"role": "user", "content": "t"}, thought, {"role": "user", "content": "t"}, thought]
    renderer = made(CHATML)
    learned = "".join(renderer.tokenizer.decode(piece) for one in renderer.samples(turns) for piece in pieces(one))
    assert learned.count("because") == 2
