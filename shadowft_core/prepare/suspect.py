"""Finds rows that look wrong. They are used all the same; the report has examples for a person to read.

The patterns miss some wrong rows, but most rows that they find are wrong.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

PLACEHOLDER = "an unfilled placeholder in the reply"
ERROR = "an error message as the reply"
REFUSAL = "a refusal as the reply"
TEMPLATE = "the headings of another template"
KINDS = (PLACEHOLDER, ERROR, REFUSAL, TEMPLATE)

HEAD = 200  # characters at the beginning of a reply, where errors and refusals begin
_CANNOT = (
    r"(?:do not|don['’]t|cannot|can['’]t|can not|could not|couldn['’]t|am unable|['’]m unable|am not|['’]m not|lack)"
)
_DO = (
    r"(?:assist|help|comply|fulfil|provide|answer|create|generate|engage|support|discuss|do|give|write|offer|continue)"
)
_REFUSAL = re.compile(
    r"\s*(?:"
    r"(?:(?:(?:I['’]m|I am) (?:very |so |really )?sorry|sorry|I apologi[sz]e)[,.]? (?:but )?|Unfortunately,? )?"
    r"(?:as an? (?:AI|artificial intelligence|large) language model\b|"
    rf"as an? (?:AI|artificial intelligence)\b[^.\n]{{0,30}}?,? I {_CANNOT}\b|"
    rf"I (?:cannot|can['’]t|can not|am unable to|am not able to|won['’]t|will not) {_DO}\b|"
    rf"I['’]m (?:unable|not able) to {_DO}\b)|"
    r"(?:很?抱歉|对不起)?，?(?:但是?)?我?作为一?[个名款]?(?:人工智能|AI)(?:语言模型|[^。\n]{0,12}，我(?:无法|不能|没有))|"
    r"(?:很?抱歉|对不起)，我(?:无法|不能))",
    re.IGNORECASE,
)
_ERROR = re.compile(
    r"\s*(?:"
    r"(?:(?:error|http(?:/[\d.]+)?)[: ]+)*[45]\d\d[: ]+(?:bad request|unauthorized|forbidden|not found|"
    r"too many requests|internal server error|bad gateway|service (?:temporarily )?unavailable|gateway time-?out)"
    r"\W*(?:\n|\Z)|"
    r"(?:error: )?(?:rate limit (?:exceeded|reached)|too many requests\b|you exceeded your current quota|"
    r"this model's maximum context length is|(?:internal server error|service unavailable|bad gateway)\W*\Z|"
    r"openai\.\w*error|the server (?:had an error|is overloaded)|an error occurred while processing your request)|"
    r'\{\s*"error"\s*:\s*[{"]|traceback \(most recent call last\))',
    re.IGNORECASE,
)
# The first characters of the patterns above and below. Most replies begin with another one and need no search.
_BEGINNING = re.compile(r"\s*[{<45EHRTYIASUBOehrtyiasubo很抱对但我作]")
_PAGE = re.compile(r"\s*<(?:!doctype html|html)\b", re.IGNORECASE)
_ABOUT_PAGES = re.compile(r"html|web|\bpage|site|css|javascript|form|button|browser|template|code", re.IGNORECASE)
_NAMES = r"(?:name|date|address|city|company|title|phone|email|recipient|sender|position|amount|number|url|link|topic)"
# Every branch begins with <, [, { or ##, so a search passes over all other characters quickly.
_PLACEHOLDER = (
    r"\{(?:\{ ?[A-Za-z][\w.]*(?: \w+){0,3} ?\}\}|(?:response|answer|completion|output|instruction|question|prompt)\})|"
    rf"\[(?i:(?:your|insert|recipient|sender|company)(?:['’]s)?(?: [\w'’]+){{0,5}}|{_NAMES})\](?!\()|"
    r"<(?i:insert|your|enter) [^<>=\n/\"]{1,60}>"
)
_HEADINGS = (
    r"###? ?(?:Instruction|Response|Assistant|User|Human|System)s?:?[ \t]*$|\[/?INST\]|<</?SYS>>|"
    r"<(?:start|end)_of_turn>|<\|(?:im_start|im_end|start_header_id|eot_id|endoftext|user|assistant|system|end)\|>"
)
_ANY = re.compile(f"{_PLACEHOLDER}|{_HEADINGS}", re.MULTILINE)
_TODO = re.compile(r"\bTODO:|\A\W*(?:TODO|TBD|FIXME)\W*\Z")
_SEARCHES = {PLACEHOLDER: re.compile(_PLACEHOLDER), TEMPLATE: re.compile(_HEADINGS, re.MULTILINE)}
_CODE = re.compile(  # a placeholder in code is not suspect
    r"```|</\w+>|[;{]\s*$|\w\(.*\)\s*$|\\[a-z]+\{|"
    r"^\s*(?:def|class|import|from|function|var|const|let|public|private|#include|SELECT)\b",
    re.MULTILINE,
)


def suspects(messages: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What looks wrong in a conversation: by kind, up to 200 characters of the text around it."""
    found: dict[str, str] = {}
    question = ""
    for one in messages:
        text, role = one["content"], one["role"]
        if role == "assistant":
            if _BEGINNING.match(text) and (kind := _beginning(text[:HEAD], question)):
                found.setdefault(kind, _excerpt(text, 0))
            if ("TODO" in text or len(text) < 10) and (hit := _TODO.search(text)) and not _CODE.search(text):
                found.setdefault(PLACEHOLDER, _excerpt(text, hit.start()))
        elif role == "user":
            question = text
        if ("<" in text or "[" in text or "{" in text or "##" in text) and _ANY.search(text):  # as every branch begins
            for kind, search in _SEARCHES.items():
                hit = search.search(text) if kind == TEMPLATE or role == "assistant" else None
                if hit and (kind == TEMPLATE or not _CODE.search(text)):
                    found.setdefault(kind, _excerpt(text, hit.start()))
    return found


def _beginning(head: str, question: str) -> str | None:
    """The kind of a reply with a suspect beginning, or None."""
    if _REFUSAL.match(head):
        return REFUSAL
    if _ERROR.match(head) or (_PAGE.match(head) and not _ABOUT_PAGES.search(question)):
        return ERROR
    return None


def _excerpt(text: str, place: int) -> str:
    """The first 200 characters of a text, or 200 from 50 before `place` if that is far from the beginning."""
    start = 0 if place < 150 else place - 50
    return text[start : start + 200]
