"""Hostile and damaged chat templates, tokenizers and ends of replies, as trainings and evaluations read them."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from shadowft_core.evaluate.engines.server import generation_settings
from shadowft_core.params import Render
from shadowft_core.rendering import RowError, load_renderer
from shadowft_core.weights import open_checkpoint
from tests.fixtures.models import TEMPLATE
from tests.fuzz.child import in_child
from tests.fuzz.damage import bytes_damage, json_damage
from tests.fuzz.harness import Target, fuzzed
from tests.fuzz.test_models import make_model
from tests.rendering.stock import stock_templates
from tests.rendering.test_limits import CALLS, TOOLS

STOCK = stock_templates()
CALLED: list[dict[str, Any]] = [
    {"role": "system", "content": "a"},
    {"role": "user", "content": "b é"},
    {"role": "assistant", "content": "", "tool_calls": json.dumps(CALLS)},
    {"role": "tool", "name": "f", "content": "c", "tool_call_id": "abc"},
    {"role": "assistant", "content": "a b", "reasoning_content": "c"},
]
PLAIN = [CALLED[1], CALLED[4]]

# Split at two spaces. # stands for an expression, @ for statements, 7 for a number.
_LEAVES = (
    "messages  messages[0].content  'x'  ''  none  true  7  -1  0.5  1e308  10 ** 9  tools  [1, 2]  {'a': 1}  "
    "()  ().__class__  ''.__class__.__mro__  messages.__class__  self  self.__init__.__globals__  "
    "cycler.__init__  joiner  namespace  namespace(x=1)  range(7)  range(10 ** 12)  dict(a=1)  loop  caller  "
    "varargs  kwargs  undefined.x  messages[-1]  messages[99]  raise_exception  strftime_now  "
    "strftime_now('%Y' * 7)  raise_exception('x' * 7)"
)
_EXPRESSIONS = (
    "#  # + #  # * #  # ~ #  # % #  # ** #  # / #  # // #  -#  not #  # and #  # == #  # < #  # in #  # is #  "
    "#[#]  #[7:-1:7]  #[::-1]  (# if # else #)  [#, #]  {'a': #, #: #}  #.a  #.items()  #.format(#)  "
    "#.join(#)  #.split(#)  #.replace(#, #)  #.append(#)  #.__class__  #.mro()  #.__subclasses__()  #(#)  "
    "#(*#)  #(**#)  #|tojson  #|tojson(indent=7)  #|length  #|list  #|join(#)  #|replace(#, #)  #|map(#)  "
    "#|map(attribute=#)  #|selectattr(#)  #|batch(7)  #|slice(7)  #|indent(7)  #|center(7)  #|format(#)  "
    "#|attr('__class__')  #|attr(#)  #|sort  #|unique  #|groupby(#)  #|sum  #|string  #|safe  #|trim  "
    "#|truncate(7)  #|wordwrap(7)  #|xmlattr  #|urlize  #|pprint  #|int  #|float  #|round(7)  #|default(#)  "
    "#|first  #|last  #|random  #|reverse  #|upper  #|dictsort  #|items  #|filesizeformat  # is mapping  "
    "# is sequence  # is divisibleby(7)  # is sameas(#)  range(#)  namespace(a=#)  dict(#)  lipsum(7)"
)
_STATEMENTS = (
    "{{ # }}  {% if # %}@{% else %}@{% endif %}  "
    "{% for m in messages %}{{ m.role }}{{ m.content }}@{% endfor %}  {% for a in # %}@{% endfor %}  "
    "{% for a in # recursive %}@{{ loop(#) }}{% endfor %}  {% for a in # if # %}@{% endfor %}  "
    "{% set a = # %}@  {% set a %}@{% endset %}{{ a }}  "
    "{% set n = namespace(a=#) %}{% for a in # %}{% set n.a = # %}{% endfor %}  "
    "{% macro m(a) %}@{{ m(#) }}{% endmacro %}{{ m(#) }}  {% call(a) m(#) %}@{% endcall %}  "
    "{% filter upper %}@{% endfilter %}  {% include # %}  {% import # as a %}  {% extends # %}  "
    "{% block b %}@{{ super() }}{% endblock %}  {% with a = # %}@{% endwith %}  "
    "{% generation %}@{% endgeneration %}  {% raw %}{{ # }}{% endraw %}  {% do #.append(#) %}  {% break %}  "
    "{% autoescape true %}@{% endautoescape %}  {% trans %}@{% endtrans %}  "
    "{%- if loop.index0 -%}@{%- endif -%}  {% debug %}  @@  text"
)
NUMBERS = ["0", "1", "2", "3", "60", "100000", "10 ** 10", "10 ** 400", "-5", "0.1"]
ODD = [
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "\0",
    "\ud7ff",
    "\x1b[2J",
    "{% endfor %}",
    "{{ x",
    "{% if",
    "[" * 500,
    "((" * 3_000,
    "\r\n",
]


@st.composite
def templates(draw: st.DrawFn) -> bytes:
    """A template of a few statements and expressions in each other; most still print the conversation."""
    text, prints = "@@@", draw(st.integers(0, 3))
    for _ in range(draw(st.integers(2, 14))):
        found = [match.start() for match in re.finditer("[@#]", text)]
        if not found:
            break
        at = found[draw(st.integers(0, len(found) - 1))]
        choices = _STATEMENTS if text[at] == "@" else draw(st.sampled_from([_EXPRESSIONS, _LEAVES]))
        text = text[:at] + draw(st.sampled_from(choices.split("  "))) + text[at + 1 :]
    while (hole := re.search("#", text)) is not None:
        text = text[: hole.start()] + draw(st.sampled_from(_LEAVES.split("  "))) + text[hole.end() :]
    text = re.sub("7", lambda _: draw(st.sampled_from(NUMBERS)), text.replace("@", ""))
    return ((TEMPLATE if prints else "") + text).encode(errors="surrogatepass")


@st.composite
def damaged_templates(draw: st.DrawFn) -> bytes:
    """A template of a published model with pieces left out, doubled, replaced or taken from another one."""
    text = STOCK[draw(st.sampled_from(sorted(STOCK)))]
    for _ in range(draw(st.integers(1, 3))):
        pieces = re.split(r"(\{[{%#].*?[}%#]\}|\W)", text, flags=re.DOTALL)
        at, size = draw(st.integers(0, len(pieces) - 1)), draw(st.sampled_from([1, 1, 3, 40]))
        what = draw(st.sampled_from(["leave out", "double", "odd", "generated", "other"]))
        if what == "odd":
            pieces[at] = draw(st.sampled_from(ODD))
        elif what == "generated":
            pieces[at] = draw(templates()).decode(errors="replace")
        elif what == "other":
            other = re.split(r"(\{[{%#].*?[}%#]\})", STOCK[draw(st.sampled_from(sorted(STOCK)))], flags=re.DOTALL)
            pieces[at] = other[draw(st.integers(0, len(other) - 1))]
        else:
            pieces[at : at + size] = [] if what == "leave out" else pieces[at : at + size] * 2
        text = "".join(pieces)
    return text.encode(errors="surrogatepass")


def template_damage(raw: bytes) -> st.SearchStrategy[bytes]:
    """A chat template: generated, or a damaged one of a published model."""
    return st.one_of(templates(), damaged_templates(), bytes_damage(raw))


def make_templated(folder: Path) -> None:
    folder /= "model"
    make_model(folder, template=False)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    read_renderer(folder.parent)  # transformers is imported, and compiles names of types


def make_tokenized(folder: Path) -> None:
    folder /= "model"
    make_model(folder)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|end|>", "unk_token": "<unk>"}))
    (folder / "added_tokens.json").write_text(json.dumps({"<|end|>": 4}))
    normal = {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "a"}
    split = {"type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Removed", "invert": False}
    tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
    tokenizer |= {"normalizer": {"type": "Sequence", "normalizers": [normal]}}
    tokenizer |= {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, tokenizer["pre_tokenizer"]]}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    read_tokenizer(folder.parent)


def read_renderer(folder: Path) -> None:
    renderer = load_renderer(folder / "model", Render())
    _ = renderer.template_digest
    for messages, tools in ((PLAIN, None), (CALLED, TOOLS)):
        with suppress(RowError):  # the row is left out, and counted
            renderer.samples(messages, tools)


def read_tokenizer(folder: Path) -> None:
    read_renderer(folder)
    _ = generation_settings(folder / "model").stops
    model = open_checkpoint(folder / "model")
    model.tokenizer_digest()


test_hostile_templates = fuzzed(
    Target("chat template", make_templated, read_renderer, {"model/chat_template.jinja": template_damage}),
    Target(
        "tokenizer",
        make_tokenized,
        in_child(read_tokenizer),  # the library in Rust may end the process
        {
            "model/tokenizer.json": json_damage,
            "model/tokenizer_config.json": json_damage,
            "model/special_tokens_map.json": json_damage,
            "model/added_tokens.json": json_damage,
            "model/generation_config.json": json_damage,
        },
        allowed=frozenset({"os.fork"}),
        share=0.5,
    ),
)
