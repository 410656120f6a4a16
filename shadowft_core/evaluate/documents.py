"""What can be read from a document of a task: its digest, its question, what it is about, and its slice."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from shadowft_core.errors import EvaluationError
from shadowft_core.files import bytes_digest, canonical_json

PASSAGES = ("passage", "context", "article", "story", "document", "paragraph")
"""fields of a document that several questions share in common benchmarks"""
PLACE = ("shadowft_source", "shadowft_cluster")
"""columns that `heldout` adds to its rows; they are no part of the item"""


def item_digest(doc: Mapping[str, Any], prompts: Sequence[str], images: Sequence[str] = ()) -> str:
    """The digest that names an item: of its document and its prompts, and of the digests of its images."""
    content = {name: value for name, value in doc.items() if name not in PLACE} if isinstance(doc, dict) else doc
    whole = {"doc": json.loads(json.dumps(content, default=_plain)), "prompt": prompts}
    return bytes_digest(canonical_json(whole | ({"images": list(images)} if images else {})))


def question_of(task: Any, doc: Any) -> str | None:
    """The question of a document, without blanks and case that do not tell questions apart; None if it has no text."""
    text = task.doc_to_text(doc)
    if isinstance(text, int):  # the question has several versions, one for each choice
        text = "\n".join(map(str, task.doc_to_choice(doc)))
    return normal(text)


def normal(text: Any) -> str | None:
    """A text without blanks and case that do not tell questions apart; None if nothing is left."""
    return " ".join(str(text).split()).casefold() or None


def has_reference(task: Any, doc: Any) -> bool:
    """Whether a document has a reference to judge answers by: false for null, no text, and a negative label, which
    marks unlabelled rows. The harness would score them, as wrong. A task that judges answers in Python knows best."""
    if callable(task.config.process_results) or task.OUTPUT_TYPE not in ("generate_until", "multiple_choice"):
        return True
    if task.config.doc_to_target is None:
        return True
    target = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    several = target if isinstance(target, list) else [target]
    if task.OUTPUT_TYPE == "multiple_choice":
        return not any(isinstance(one, int) and one < 0 for one in several)
    empty = isinstance(doc, dict) and None in doc.values()
    return any(one is not None and str(one).strip() not in ("", *(["None"] if empty else [])) for one in several)


def about(name: str, task: Any, docs: Sequence[Any]) -> list[str]:
    """For each document, the digest of what it is about, which others can share.

    This is the value of the fields that `metadata: {cluster: FIELD or [FIELDS]}` of the task file names; else a passage
    that the documents have, unless all have the same; else the question, or the images of a question about images.
    Raises EvaluationError for a field that a document lacks.
    """
    named = _metadata(task, "cluster")
    if named is not None:
        fields = [named] if isinstance(named, str) else list(named)
        return [_digest([_field(name, "cluster", doc, field) for field in fields]) for doc in docs]
    if docs and all(isinstance(doc, dict) and doc.get(PLACE[1]) for doc in docs):
        return [str(doc[PLACE[1]]) for doc in docs]
    for field in PASSAGES:
        values = [doc.get(field) if isinstance(doc, dict) else None for doc in docs]
        texts = [value if isinstance(value, str) and value.strip() else None for value in values]
        if any(texts) and (len(set(texts)) > 1 or len(texts) == 1):
            return [_digest(text) if text else _of_question(task, doc) for text, doc in zip(texts, docs, strict=True)]
    return [_of_question(task, doc) for doc in docs]


def slices(name: str, task: Any, docs: Sequence[Any]) -> list[str]:
    """For each document, the value of the field that `metadata: {slice: FIELD}` of the task file names, or ""."""
    field = _metadata(task, "slice")
    return ["" if field is None else str(_field(name, "slice", doc, field)) for doc in docs]


def _of_question(task: Any, doc: Any) -> str:
    if getattr(task, "MULTIMODAL", False) and (images := task.doc_to_image(doc)):
        return _digest(images)
    question = question_of(task, doc)
    return _digest(doc if question is None else question)


def _metadata(task: Any, key: str) -> Any:
    found = getattr(task.config, "metadata", None)
    return found.get(key) if isinstance(found, dict) else None


def _field(name: str, key: str, doc: Any, field: str) -> Any:
    try:
        return doc[field]
    except (KeyError, TypeError, IndexError):
        has = ", ".join(map(str, doc)) if isinstance(doc, dict) else type(doc).__name__
        raise EvaluationError(
            f"task {name}: metadata.{key} names the field {field}, but a document has {has:.300}; correct the task file"
        ) from None


def _digest(value: Any) -> str:
    return bytes_digest(canonical_json(json.loads(json.dumps(value, default=_plain))))


def _plain(value: Any) -> Any:
    """A value that JSON lacks: for an image the digest of its pixels, else what the harness writes for it."""
    from lm_eval.utils import handle_non_serializable

    if hasattr(value, "tobytes") and hasattr(value, "size") and hasattr(value, "mode"):
        return {"mode": value.mode, "size": list(value.size), "pixels": bytes_digest(value.tobytes())}
    if isinstance(value, bytes):
        return bytes_digest(value)
    return handle_non_serializable(value)
