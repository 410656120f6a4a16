"""Reads and checks delta.json, and derives from it the tensors that the weight files must contain."""

from pathlib import Path
from typing import Any, NamedTuple

from shadowft_core.delta.format import CERTIFICATE, DENSE, FACTORS, FORMAT, KINDS
from shadowft_core.errors import DeltaError
from shadowft_core.files import bytes_digest, canonical_json, read_json_object

Layout = dict[str, tuple[str, tuple[int, ...] | None]]
"""dtype and shape of each tensor of a file; shape None allows any number of bytes"""


class Certificate(NamedTuple):
    """The parsed delta.json."""

    fields: dict[str, Any]
    digest: str
    """SHA-256 of the file: the delta's digest"""
    expected: dict[str, Layout]
    """by weight file"""


def read_certificate(path: Path) -> Certificate:
    """Read delta.json of a delta folder. Raises DeltaError if it is missing, of another format, edited or damaged.

    Raises CheckpointError if it is not a JSON object.
    """
    file = path / CERTIFICATE
    if not file.is_file():
        raise DeltaError(f"{path}: no {CERTIFICATE}; pass a folder made by `shadowft extract`")
    data = file.read_bytes()
    fields = read_json_object(file)
    if fields.get("format") != FORMAT:
        raise DeltaError(f"{file}: delta format {fields.get('format')!r}, expected {FORMAT}; extract the delta again")
    if canonical_json(fields) != data:
        raise DeltaError(f"{file}: not canonical JSON, so it was edited; fetch or extract it again")
    try:
        if fields["kind"] not in KINDS:
            raise DeltaError(f"{file}: kind {fields['kind']!r}, expected one of {', '.join(KINDS)}; extract it again")
        base = fields["base"]
        _ = base["digest"], base["tokenizer_digest"], base["tied"], base["sample"]
        expected: dict[str, Layout] = {DENSE: {}, FACTORS: {}}
        if (trainer := fields.get("trainer")) is not None:
            _ = trainer["name"], dict(trainer["facts"]), list(trainer["not_known"]), list(trainer["unreadable"])
        for name, entry in fields["tensors"].items():
            _expect(expected, name, entry, file)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DeltaError(f"{file}: damaged certificate: {error!r}; fetch or extract it again") from None
    return Certificate(fields, bytes_digest(data), expected)


def _expect(expected: dict[str, Layout], name: str, entry: dict[str, Any], file: Path) -> None:
    """Add the tensors that the weight files must contain for an entry.

    Raises KeyError, TypeError or ValueError for a damaged entry, DeltaError for an unknown form.
    """
    shape = tuple(int(n) for n in entry["shape"])
    if entry["form"] == "factors":
        rows, columns = shape
        _ = entry["digest_a"], entry["digest_b"], float(entry["scaling"])
        expected[FACTORS] |= {
            f"{name}.lora_A": ("F32", (entry["rank"], columns)),
            f"{name}.lora_B": ("F32", (rows, entry["rank"])),
        }
    elif entry["form"] in ("plain", "frames"):
        _ = entry["digest"]
        expected[DENSE][name] = ("F32", shape) if entry["form"] == "plain" else ("U8", None)
    else:
        raise DeltaError(
            f"{file}: tensor {name} has form {entry['form']!r}, expected factors, frames or plain; extract it again"
        )
