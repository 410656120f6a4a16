"""Tools and their calls: printed as the template takes them, or the row is refused. Replies are printed whole."""

import json
from typing import Any

import pytest

from shadowft_core.params import Render
from shadowft_core.rendering import Renderer, RowError
from tests.rendering.stock import stock_templates, tokenizer_for
from tests.rendering.table import REPLY, USER, pieces

TOOLS = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}]
CALL = [{"type": "function", "function": {"name": "add", "arguments": {"number": 17}}}]
CALLED = [{"role": "assistant", "content": "", "tool_calls": json.dumps(CALL)}, {"role": "tool", "content": "r9"}]
WITHOUT_CALLS = {
    *("cohere", "cohere2", "deepseek_r1_distill", "gemma", "gemma3", "idefics3", "lfm2", "llama3", "llava_next"),
    *("phi3", "phi3_5", "qwen2_5_vl", "smolvlm"),
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}CALLS<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORMS = {  # how a template takes the calls
    "objects": "{{ m.tool_calls[0].function | tojson if m.tool_calls }}",
    "arguments as text": "{{ m.tool_calls[0].function.name + m.tool_calls[0].function.arguments if m.tool_calls }}",
    "without text": "{{ m.tool_calls[0].function | tojson if m.tool_calls and not m.content }}",
}


def made(template: str) -> Renderer:
    return Renderer(*tokenizer_for(template), Render())


def learned(renderer: Renderer, talk: list[dict[str, Any]], tools: list[Any] | None = None) -> list[str]:
    samples = renderer.samples(talk, tools)
    return [renderer.tokenizer.decode(piece) for sample in samples for piece in pieces(sample)]


@pytest.mark.parametrize("name", stock_templates())
def test_a_call_is_learned_or_its_row_is_refused(name: str) -> None:
    renderer = made(stock_templates()[name])
    talk = [USER[0], *CALLED, REPLY[0]]
    if name in WITHOUT_CALLS:
        with pytest.raises(RowError, match="does not print calls of tools and their results"):
            renderer.samples(talk)
        return
    first, last = learned(renderer, talk)
    assert "add" in first
    assert "17" in first
    assert "a1" in last
    assert any("r9" in sample.prompt for sample in renderer.samples(talk))


@pytest.mark.parametrize("form", FORMS)
def test_calls_are_given_as_the_template_takes_them(form: str) -> None:
    first, last = learned(made(CHATML.replace("CALLS", FORMS[form])), [USER[0], *CALLED, REPLY[0]])
    assert ("add" in first, '"number": 17' in first, last) == (True, True, "a1<|im_end|>")


def test_the_ids_of_calls_are_those_of_the_data() -> None:
    """Kimi-K2 prints them, and Mistral's templates also refuse any but nine letters and digits."""
    shown = "{{ m.tool_calls[0].id + (m.tool_calls[0].function | tojson) if m.tool_calls }}{{ m.tool_call_id }}"
    renderer = made(CHATML.replace("CALLS", shown))
    call = {"id": "abc123xyz", **CALL[0]}
    talk = [USER[0], CALLED[0] | {"tool_calls": json.dumps([call])}, CALLED[1] | {"tool_call_id": call["id"]}, REPLY[0]]
    assert learned(renderer, talk)[0].startswith("abc123xyz")
    assert renderer.samples(talk)[-1].prompt.count("abc123xyz") == 2
    with pytest.raises(RowError, match="prints the ids of calls, but a call has no id"):
        renderer.samples([USER[0], *CALLED, REPLY[0]])


def test_tools_that_the_template_does_not_print_refuse_the_row() -> None:
    renderer = made(CHATML.replace("CALLS", FORMS["objects"]))
    assert learned(renderer, [USER[0], REPLY[0]]) == ["a1<|im_end|>"]
    with pytest.raises(RowError, match="does not print the tools offered"):
        renderer.samples([USER[0], REPLY[0]], TOOLS)


def test_tools_that_only_a_system_text_brings_are_required() -> None:
    shown = "{{ tools[0].function.name if tools and m.role == 'system' }}"
    renderer = made(CHATML.replace("CALLS", shown))
    talk = [USER[0], REPLY[0]]
    [sample] = renderer.samples([{"role": "system", "content": "s"}, *talk], TOOLS)
    assert "sadd" in sample.prompt
    with pytest.raises(RowError, match="does not print the tools offered"):
        renderer.samples(talk, TOOLS)


@pytest.mark.parametrize(
    ("template", "said", "refusal"),
    [
        ("llama3_1", {"content": "wait", "tool_calls": json.dumps(CALL)}, "does not print the whole text of a reply"),
        ("qwen3", {"content": "see <think>x</think> there"}, "does not print the whole text of a reply"),
        ("deepseekv3", {"content": "tags such as </think> end it"}, "does not print the whole text of a reply"),
        (
            CHATML.replace("CALLS", FORMS["without text"]),
            {"content": "wait", "tool_calls": json.dumps(CALL)},
            "does not print the calls of a reply with text",
        ),
    ],
)
def test_a_reply_that_the_template_cuts_is_refused(template: str, said: dict[str, Any], refusal: str) -> None:
    renderer = made(stock_templates().get(template, template))
    reply = {"role": "assistant", **said}
    with pytest.raises(RowError, match=refusal):
        renderer.samples([USER[0], reply, *([CALLED[1], REPLY[0]] if "tool_calls" in said else [])])


def test_text_beside_a_call_is_learned_where_the_template_prints_both() -> None:
    first, _ = learned(
        made(stock_templates()["qwen3"]), [USER[0], CALLED[0] | {"content": "wait"}, CALLED[1], REPLY[0]]
    )
    assert (first.startswith("wait\n<tool_call>"), "17" in first) == (True, True)
