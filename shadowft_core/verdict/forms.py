"""A verdict in the forms that other programs show: Markdown, and JUnit's XML for CI."""

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

REFUTED = {"worse", "tie", "harmed"}
_MARKS = re.compile(r"[\\|`*~$]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")  # emphasis, code, links, cells
_OPENING, _ESCAPED = re.compile(r"^(\d*)([#>+.)-])"), r"\g<1>\\\g<2>"  # a heading, quotation or list
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def markdown(judged: Mapping[str, Any]) -> str:
    """Decision, reasons, claims and arms of a verdict.json of format 2 as a Markdown page."""
    claims = [
        [
            claim["role"] + ("" if claim["gate"] else " (not part of the decision)"),
            f"{claim['arm']} against {claim['against']}",
            ", ".join(claim["tasks"]),
            f"{claim['difference']:+.3f} [{claim['interval'][0]:+.3f}, {claim['interval'][1]:+.3f}]",
            "" if claim["margin"] is None else f"{claim['margin']:g}",
            "< 0.0001" if claim["p_adjusted"] < 0.0001 else f"{claim['p_adjusted']:.4f}",
            f"{claim['alpha']:.4g}",
            claim["outcome"],
        ]
        for claim in judged["claims"]
    ]
    arms = [
        [name, *("" if (mean := arm[group]) is None else _mean(mean) for group in ("domain", "guards"))]
        for name, arm in judged["arms"].items()
    ]
    look = judged["look"]
    return "\n".join(
        [
            f"# Verdict: {judged['decision']}",
            "",
            f"Candidate: {_cell(judged['candidate'] or 'none')}. "
            f"{'Ships' if judged['decision'] == 'promote' else 'Stays'}: {_cell(judged['arm'])}. "
            f"Look {look['number']} at these items: level {look['alpha']:.4g}, "
            f"{look['left']:.4g} of alpha left after it.",
            "",
            *(f"- {_OPENING.sub(_ESCAPED, _cell(reason))}" for reason in judged["reasons"]),
            "",
            *_table(["claim", "arms", "tasks", "difference [95 %]", "margin", "p", "level", "outcome"], claims),
            "",
            *_table(["arm", "domain [95 %]", "guards [95 %]"], arms),
            "",
        ]
    )


def junit(judged: Mapping[str, Any]) -> bytes:
    """The claims of the gate as test cases: a refuted one or a tie fails, one with too few items is skipped.

    Without a candidate, one case fails.
    """
    gate = [claim for claim in judged["claims"] if claim["gate"]]
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(root, "testsuite", name="shadowft verdict")
    suite.set("tests", str(max(len(gate), 1)))
    suite.set("failures", str(sum(c["outcome"] in REFUTED for c in gate) if gate else 1))
    suite.set("skipped", str(sum(c["outcome"] == "too few items" for c in gate)))
    suite.set("errors", "0")
    for claim in gate:
        over = "over" if claim["claim"] == "superiority" else "to"
        name = f"{claim['claim']} {over} {claim['against']}, {claim['role']} {', '.join(claim['tasks'])}"
        case = ElementTree.SubElement(suite, "testcase", classname=f"verdict.{claim['role']}", name=_xml(name))
        kind = "failure" if claim["outcome"] in REFUTED else "skipped" if claim["outcome"] == "too few items" else ""
        if kind:
            ElementTree.SubElement(case, kind, message=_xml(claim["reason"]))
    if not gate:
        case = ElementTree.SubElement(suite, "testcase", classname="verdict", name="candidate")
        ElementTree.SubElement(case, "failure", message=_xml("; ".join(judged["reasons"][:1])))
    found: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return found + b"\n"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(map(_cell, row))} |" for row in (header, ["---"] * len(header), *rows)]


def _cell(text: str) -> str:
    """One line of text that Markdown and HTML show as it is; other control and bidirectional characters as escapes."""
    visible = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in " ".join(text.split()))
    return _MARKS.sub(r"\\\g<0>", visible).replace("&", "&amp;").replace("<", "&lt;")


def _mean(mean: Mapping[str, Any]) -> str:
    return f"{mean['mean']:.3f} [{mean['interval'][0]:.3f}, {mean['interval'][1]:.3f}]"


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold."""
    return _NOT_XML.sub("\ufffd", text)
