"""Chat templates and templates of tasks that would run for long, or fill the memory."""

import resource
import time
from functools import cache
from typing import Any

import pytest
from jinja2 import TemplateError

from shadowft_core.errors import TrainError
from shadowft_core.files import templatecosts
from shadowft_core.files.templatecosts import TemplateLimit
from shadowft_core.loading import limit_chat_templates
from shadowft_core.params import Render
from shadowft_core.rendering import Renderer
from shadowft_core.suites.consent import isolate_templates
from tests.rendering.stock import stock_templates, tokenizer_for

TEXT, LIST = "{% set ns = namespace(x='x') %}", "{% set ns = namespace(x=['x'], y=['x']) %}"
OFTEN = "{% for a in range(60) %}"
CALLS = [{"function": {"name": "f", "arguments": {"x": "v", "y": [1, {"a": None}]}}, "type": "function", "id": "abc"}]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "q é"},
    {"role": "assistant", "content": "<think>t</think>a", "reasoning_content": "t"},
    {"role": "user", "content": "word " * 500},
    {"role": "assistant", "content": "", "tool_calls": CALLS},
    {"role": "tool", "name": "f", "content": "r", "tool_call_id": "abc"},
    {"role": "assistant", "content": "done"},
]
HOSTILE = [
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{% for b in range(100000) if b == 'x' %}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}",
    "{{ range(10**9) }}",
    "{{ 'x' * 2000000000 }}",
    "{{ [0] * 2000000000 }}",
    "{{ 10 ** (10 ** 10) }}",
    f"{LIST}{OFTEN}{{% set ns.x = ns.x * 2 %}}{{% endfor %}}",
    f"{TEXT}{OFTEN}{{% set ns.x = ns.x + ns.x %}}{{% endfor %}}",
    f"{TEXT}{OFTEN}{{% set ns.x = ns.x ~ ns.x %}}{{% endfor %}}",
    f"{TEXT}{OFTEN}{{% set ns.x = ns.x ~ ns.x %}}{{% endfor %}}{{{{ ns.x }}}}",
    f"{LIST}{OFTEN}{{% set ns.x = [ns.x, ns.x] %}}{{% set ns.y = (ns.y, ns.y) %}}{{% endfor %}}{{{{ ns.x == ns.y }}}}",
    f"{LIST}{OFTEN}{{% set ns.x = dict(a=ns.x, b=ns.x) %}}{{% endfor %}}{{{{ ns.x|tojson }}}}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1, varargs, varargs) }}{% endif %}{{ varargs }}{% endmacro %}{{ m(60) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{w}}'.format_map({'w': 1000000000}) }}",
    "{{ ('x' * 100000).join(range(100000)|map('string')) }}",
    "{{ range(100000)|join('x' * 100000) }}",
    "{% set x = 'x' * 100000 %}{{ x.replace('x', x) }}",
    "{{ 'x'|center(1000000000) }}",
    "{{ 'x'.zfill(1000000000) }}",
    "{{ 'x'|indent(1000000000, true) }}",
    "{{ 'x'|list|tojson(indent=1000000000) }}",
    "{{ ('x' * 100000000).split('x')|length }}{{ ('x' * 100000000).split('')|length }}",
    "{% set x = 'a' * 10000000 %}{{ x.strip('b' * 10000000 + 'a') }}",
    "{{ 2|round(1000000000, 'ceil') }}",
    "{{ (5).to_bytes(1000000000, 'big') }}",
    "{% for i in range(100000) %}{% for j in range(1000) %}" + "text" * 1000 + "{% endfor %}{% endfor %}",
    "x" * 100_001,
]


def rendered(template: str) -> str:
    tokenizer, _ = tokenizer_for("")
    tokenizer.chat_template = template
    return str(tokenizer.apply_chat_template(TURNS[:2], tokenize=False))


@pytest.mark.parametrize("template", HOSTILE, ids=range(len(HOSTILE)))
def test_a_template_beyond_the_limits_is_refused_in_seconds_and_without_memory(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templatecosts, "TEMPLATE_SECONDS", 0.5)
    limit_chat_templates()
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(TemplateLimit):
        rendered(template)
    assert time.thread_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10  # KiB


def test_each_conversation_has_the_limits_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where transformers takes the text in pieces, to mark the replies."""
    tokenizer, _ = tokenizer_for("")
    tokenizer.chat_template = (
        "{% for m in messages %}{% generation %}{% for i in range(60) %}{{ m.content + '!' }}{% endfor %}"
        "{% endgeneration %}{% endfor %}"
    )
    limit_chat_templates()
    monkeypatch.setattr(templatecosts, "TEMPLATE_BYTES", 60_000)
    monkeypatch.setattr(templatecosts, "_OFTEN", 1)
    masked = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    for _ in range(5):
        tokenizer.apply_chat_template(TURNS[:2], **masked)
        tokenizer.apply_chat_template(TURNS[:2], tokenize=False)
    monkeypatch.setattr(templatecosts, "TEMPLATE_BYTES", 2_000)
    for settings in (masked, {"tokenize": False}):
        with pytest.raises(TemplateLimit):
            tokenizer.apply_chat_template(TURNS[:2], **settings)


@pytest.mark.parametrize("template", ["(" * 500, "[" * 90, "9" * 5000, "not " * 5000], ids=lambda text: text[0])
def test_a_template_that_cannot_be_compiled_is_refused(template: str) -> None:
    from jinja2 import TemplateError

    limit_chat_templates()
    with pytest.raises(TemplateError):
        rendered("{{ " + template + " }}")


def test_templates_within_the_limits_give_the_text_that_transformers_gives() -> None:
    from transformers.utils import chat_template_utils as theirs

    def texts(template: str) -> list[str]:
        found = []
        for number in range(1, len(TURNS) + 1):
            for options in ({}, {"tools": TOOLS}, {"enable_thinking": False}, {"add_generation_prompt": True}):
                try:
                    text = theirs.render_jinja_template(
                        [TURNS[:number]], chat_template=template, bos_token="<s>", **options
                    )
                    found.append(str(text[0][0]))
                except Exception as error:
                    found.append(f"{type(error).__name__}: {error}")
        return found

    limit_chat_templates()
    ours, stock = theirs._compile_jinja_template, stock_templates()
    original = cache(theirs._cached_compile_jinja_template)
    try:
        for name in ("cohere2", "deepseekv3", "gemma3", "glm4moe", "gptoss", "llama3_1", "phi3", "qwen3"):
            theirs._compile_jinja_template = ours
            within = texts(stock[name])
            theirs._compile_jinja_template = original
            assert within == texts(stock[name]), name
    finally:
        theirs._compile_jinja_template = ours


@pytest.mark.parametrize(("folder", "named"), [("models/own", "models/own"), ("", r"fetch\.instruct")])
def test_a_renderer_names_the_model_and_the_limit(folder: str, named: str) -> None:
    tokenizer, stops = tokenizer_for("")
    tokenizer.chat_template, tokenizer.name_or_path = "{{ 'x' * 2000000000 }}", folder
    with pytest.raises(
        TrainError, match=f"^{named}: its chat template exceeds a limit: .* 1907 MiB, the limit is 256 MiB"
    ):
        Renderer(tokenizer, stops, Render())


@pytest.mark.parametrize("template", [5, {"default": None}, {"default": ["x"]}])
def test_a_template_that_is_no_text_is_refused(template: Any) -> None:
    tokenizer, stops = tokenizer_for("")
    tokenizer.chat_template = template
    with pytest.raises(TrainError, match="expected a chat template that is text"):
        Renderer(tokenizer, stops, Render())


def test_templates_of_tasks_have_the_limits() -> None:
    from lm_eval import utils

    isolate_templates()
    assert utils.apply_template("{{ q|regex_replace('a', 'b') }} {{ 3 * 4 }}\n", {"q": "banana"}) == "bbnbnb 12\n"
    with pytest.raises(TemplateLimit):
        utils.apply_template("{{ q * 2000000000 }}", {"q": "x"})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("'(a|aa)+$', ''", r"pattern '\(a\|aa\)\+\$': more than 1 s"),
        ("'(a', ''", "pattern '\\(a': not well formed|missing \\)"),
        ("'a{900}{900}', ''", "once its repeats are expanded"),
        ("'a', '\\\\9'", "invalid group reference"),
        ("'a', none", "expected text, pattern, replacement"),
        ("none, 'a'", "expected text, pattern, replacement"),
    ],
)
def test_a_pattern_of_a_task_file_has_a_limit_of_time(arguments: str, said: str) -> None:
    isolate_templates()
    from lm_eval import utils

    begun = time.process_time()
    with pytest.raises(TemplateError, match=said):
        utils.apply_template(f"{{{{ q|regex_replace({arguments}) }}}}", {"q": "a" * 60 + "b"})
    assert time.process_time() - begun < 10
