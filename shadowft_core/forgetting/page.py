"""The ledger as one page: no other file is loaded, and no text of a prompt or an answer can act in it."""

from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from shadowft_core.forgetting.text import both, change, kl_mean, kl_sentence, number, share, visible

if TYPE_CHECKING:
    from jinja2 import Environment

SCRIPT = """
const flips = [...document.querySelectorAll("details.flip")];
const controls = ["words", "task", "kind"].map(id => document.getElementById(id));
const filter = () => {
  const [words, task, kind] = controls.map(control => control.value);
  const parts = words.toLowerCase().split(/\\s+/).filter(Boolean);
  let shown = 0;
  for (const flip of flips) {
    const text = flip.textContent.toLowerCase();
    flip.hidden = (task && flip.dataset.task !== task) || (kind && flip.dataset.kind !== kind)
      || !parts.every(part => text.includes(part));
    shown += !flip.hidden;
  }
  document.getElementById("shown").textContent = `${shown} of ${flips.length} shown`;
};
controls.forEach(control => control.addEventListener("input", filter));
document.getElementById("filters").hidden = false;
filter();
"""


def templates(package: str) -> "Environment":
    """The templates beside a package's code, and those here, with the filters that a page about arms needs.

    Every value is escaped, with control and bidirectional characters shown as such; an unknown name is an error.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("shadowft_core.forgetting", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters |= {"share": share, "both": both, "kl": kl_mean, "kl_sentence": kl_sentence}
    return environment


def render(found: Mapping[str, Any]) -> str:
    """The page as HTML. The template engine escapes every value; the page's policy allows its own script alone."""
    from markupsafe import Markup

    environment = templates("shadowft_core.forgetting")
    environment.filters |= {"num": number, "signed": change}
    page: str = environment.get_template("compare.html").render(
        **found,
        sides=("reference", "arm"),
        script=Markup(SCRIPT),  # noqa: S704  the page's own, no value in it
        script_digest=b64encode(sha256(SCRIPT.encode("utf-8")).digest()).decode(),
    )
    return page
