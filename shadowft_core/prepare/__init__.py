"""The data stage: reads data files of many shapes, and writes four splits of conversations and a report."""

import gc
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.errors import DataError, ParamsError, say
from shadowft_core.files import new_folder, write_json_atomically
from shadowft_core.files.rows import read_rows
from shadowft_core.params import Prepare
from shadowft_core.prepare.accounts import Accounts
from shadowft_core.prepare.conversations import conversation_in, file_name
from shadowft_core.prepare.files import data_files
from shadowft_core.prepare.images import Gallery
from shadowft_core.prepare.near import Signatures
from shadowft_core.prepare.newest import NOTE, Ages, ages_by_date, ages_since, report_section, without_date
from shadowft_core.prepare.overlap import Items
from shadowft_core.prepare.pinned import require_pinned
from shadowft_core.prepare.replay import choose_replay
from shadowft_core.prepare.shapes import Conversation
from shadowft_core.prepare.splits import Choice, choose
from shadowft_core.prepare.splits import write as write_splits
from shadowft_core.prepare.table import SPLITS, Table, first_question, whole_text
from shadowft_core.prepare.tracked import require_intact
from shadowft_core.prepare.turns import BadRow, printable
from shadowft_core.suites import some

__all__ = ["SPLITS", "prepare", "require_pinned"]


def prepare(
    data: Path | Sequence[Path],
    tasks: Path | None,
    params: Prepare,
    out: Path,
    measure: Callable[[Path], dict[str, Any]] | None = None,
    names: Sequence[str] = (),
) -> None:
    """Read, validate, normalise, deduplicate, decontaminate and split the data into the folder `out`.

    `out` gets:

    - {train,valid,dev,test}.parquet, with rows in the order in which they were read. Columns: id (64 hex digits),
      messages (a list of {role, content, ...}), tools (JSON text), prompt, reply, source (file:row), images (names of
      files in images/, or null), and rejected (a list of messages, or null).
    - replay.parquet, if `params.replay` is set: general rows to train on. The files above are the same without it.
    - dropped.jsonl: {file, line, reason} of every row that is not used.
    - data-report.json: all counts, and the digest of the data, the SHA-256 of the canonical JSON {split: sorted ids}.

    The split of a row follows from its first question alone, or from its images. So no question is in two splits, and
    added rows never move old ones. With `params.newest`, dev and test are the newest rows, and newer rows replace them.

    `data` is a file or folder, or several of different names; then the name of a folder is a part of `source`.
    `tasks` is the folder of test items to compare with, or None; `names` are tasks and groups of params.yaml.
    `measure` takes the folder with the splits and returns their lengths in tokens for the report. Memory holds digests
    and a few numbers per row, not the rows. If `shadowft data add` recorded the data, its digest is checked first
    (tracked.py).

    Raises DataError if the path of `out` is not UTF-8, the digest differs, two of `data` have one name, no row is
    usable, too many rows are bad, or no row is left to train on.
    Raises ParamsError if the shares leave nothing to train on.
    """
    if params.valid + params.dev + params.test >= 1:
        raise ParamsError(
            f"prepare: valid {params.valid:g} + dev {params.dev:g} + test {params.test:g} leaves nothing to train on; "
            "lower them below 1 in sum"
        )
    _require_text(out.absolute())
    places = [data] if isinstance(data, Path) else list(data)
    name = ", ".join(map(str, places))
    if twice := [place for place, count in Counter(place.name for place in places).items() if count > 1]:
        raise DataError(f"{name}: two are called {twice[0]}, so rows could not be told apart; put them into one folder")
    for place in places:
        for recorded, version in require_intact(place).items():
            say(f"prepare: {os.path.relpath(recorded)} is intact: {version.title()}")
    require_pinned(params)
    items = Items(tasks, names)
    with new_folder(out) as folder, (folder / "dropped.jsonl").open("wb") as dropped, _few_collections():
        accounts, added = Accounts(dropped), Accounts(dropped, of="replay")
        scratch = folder / "scratch"
        scratch.mkdir()
        reading = _Reading(scratch, items, params, Gallery(folder / "images"))
        with reading.table:
            for place in places:
                _read(place, place if len(places) == 1 else place.parent, params, accounts, reading)
            accounts.require_usable(name, params.max_bad)
            replay_start = accounts.read - accounts.bad
            if params.replay:
                undated = params.model_copy(update={"newest": None})
                _read(Path(params.replay.data), Path(params.replay.data), undated, added, reading)
                added.require_usable(params.replay.data, params.max_bad)
            reading.table.close()
        ages = reading.ages(params, replay_start)
        choice = choose(reading.table, reading.leaks, reading.signatures, params, ages, replay_start)
        if not choice.sizes["train"]:
            raise DataError(
                f"{name}: no row is left to train on: of {replay_start} usable rows "
                f"{choice.summary() or 'all are held out'}; add rows or lower valid, dev and test of prepare"
            )
        if choice.distinct == 1 and replay_start > 1:
            raise DataError(f"{name}: all {replay_start} usable rows are the same conversation; check the file")
        if params.replay:
            choose_replay(reading.table, choice, reading.leaks, reading.signatures, params.near, params.replay)
        digest = write_splits(reading.table, choice, (accounts, added), folder)
        report = _report(params, accounts, added, reading, choice, ages) | {
            "images": reading.images.keep_only(folder.glob("*.parquet")),
            "digest": digest,
        }
        if measure:
            report["tokens"] = measure(folder)
        shutil.rmtree(scratch)
        write_json_atomically(folder / "data-report.json", {"format": 2, **report})
    _print_summary(report, choice, params.columns, accounts.problems())
    if params.replay:
        say(f"prepare: replay: {added.summary()}")
    if params.newest:
        cut = report["newest"].get("oldest_in_test")
        say(f"prepare: {NOTE}" + (f"; the oldest row in test has the date {cut}" if cut else ""))


def _require_text(out: Path) -> None:
    """pyarrow opens no file whose path is not UTF-8."""
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise DataError(f"{str(out)!r}: the path is not UTF-8; choose another --out") from None


def _report(
    params: Prepare, accounts: Accounts, added: Accounts, reading: "_Reading", choice: Choice, ages: Ages | None
) -> dict[str, Any]:
    """The counts of data-report.json; `added` are those of replay rows."""
    start = choice.replay_start
    lengths = choice.lengths.pop("replay", None)
    report = accounts.report(choice.reason[:start] == 0) | {
        "splits": choice.sizes,
        "duplicates": choice.counts().get("duplicate", 0),
        "contaminated": {"items": reading.items.count, **reading.contaminated(range(start))},
        "not_compared": reading.items.not_compared,
        "left_out_by_max_rows": choice.counts().get("beyond max_rows", 0),
        "characters": choice.lengths,
    }
    if params.newest and ages:
        held = {name: choice.rows_of(name)[:start] for name in ("test", "dev")}
        report["newest"] = report_section(params.newest, ages, held)
    if params.replay:
        report["replay"] = {
            **params.replay.model_dump(),
            **added.report(choice.reason[start:] == 0),
            "contaminated": reading.contaminated(range(start, len(reading.table))),
            "characters": lengths,
        }
    return report


@contextmanager
def _few_collections() -> Iterator[None]:
    """Collect garbage rarely: a batch of rows is many objects and hardly a cycle, and each collection visits them."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


class _Reading:
    """Collects the rows, and finds those that are in test items, in one pass."""

    def __init__(self, scratch: Path, items: Items, params: Prepare, images: Gallery) -> None:
        self.items, self.images = items, images
        self.leaks: dict[int, tuple[str, str]] = {}
        """by row number: the item that the row is in, and the rule that found it"""
        self.signatures = None
        if params.near is not None:
            self.signatures = (Signatures(scratch / "questions"), Signatures(scratch / "conversations"))
        self.moments = array("q")
        """the date of each row in microseconds since 1970; empty unless `newest.by` is set"""
        self._count = 0
        self.table = Table(scratch / "rows.arrow", self._collect)

    def _collect(self, conversations: list[Conversation], folded: list[str]) -> None:
        for row, (conversation, first) in enumerate(zip(conversations, folded, strict=True), self._count):
            questions = [turn["content"] for turn in conversation.messages if turn["role"] == "user"]
            if hit := self.items.match(questions, first):
                self.leaks[row] = hit
        self._count += len(conversations)
        if self.signatures:
            # The same words about two images are no near duplicate. So rows with images are compared only as a whole.
            of_questions, of_texts = self.signatures
            compared = [None if conversation.images else conversation for conversation in conversations]
            of_questions.add(first_question(one.messages) if one else "" for one in compared)
            of_texts.add(whole_text(one.messages, one.rejected) if one else "" for one in compared)

    def ages(self, params: Prepare, replay_start: int) -> Ages | None:
        """The ages of the rows before `replay_start`; None without `params.newest`."""
        if params.newest is None:
            return None
        if params.newest.since:
            return ages_since(self.table.ids[:replay_start], Path(params.newest.since), params.columns)
        return ages_by_date(self.table.ids[:replay_start], np.array(self.moments, np.int64))

    def contaminated(self, among: range) -> dict[str, Any]:
        """The number of rows `among` these that are in test items, and the first thousand of them."""
        found = sorted(row for row in self.leaks if row in among)
        sources = self.table.values("source", np.array(found[:1000], np.int64))
        rows = [
            {"source": sources[row], "item": self.leaks[row][0], "rule": self.leaks[row][1]} for row in found[:1000]
        ]
        return {"count": len(found), "rows": rows}


def _read(data: Path, root: Path, params: Prepare, accounts: Accounts, reading: _Reading) -> None:
    """Read a file or folder. Files are named relative to `root`."""
    paths, unread = data_files(data)
    _read_all(root, paths, params, accounts, reading)
    shown = reading.images.files  # images of rows are read, though they are no data files
    others = [path for path in unread if not shown or Path(os.path.realpath(path)) not in shown]
    accounts.unread += [printable(path.relative_to(root).as_posix(), 1000) for path in others]


def _read_all(root: Path, paths: list[Path], params: Prepare, accounts: Accounts, reading: _Reading) -> None:
    dated = params.newest.by if params.newest else None
    for path in paths:
        name = file_name(path, root)
        before = accounts.read, accounts.bad
        accounts.open(name)
        for raw in read_rows(path):
            try:
                value, moment = without_date(raw.value, dated) if dated and not raw.problem else (raw.value, 0)
                row = raw._replace(value=value) if dated else raw
                conversation = conversation_in(row, path.parent, params.columns, reading.images)
            except BadRow as problem:
                accounts.refuse(name, raw.number, problem)
            else:
                accounts.use(name, raw.number, conversation)
                reading.table.add(conversation, f"{name}:{raw.number}")
                if dated:
                    reading.moments.append(moment)
            if accounts.read % 50_000 == 0:
                say(f"prepare: {name}: {accounts.read} rows")
        read, bad = accounts.read - before[0], accounts.bad - before[1]
        say(f"prepare: read {name}, {read - bad} usable rows, {bad} bad")


def _print_summary(report: dict[str, Any], choice: Choice, columns: dict[str, str], problems: str) -> None:
    if problems:
        say(f"prepare: bad: {problems}; dropped.jsonl has all")
    changed = report["normalised"].keys() | report.get("replay", report)["normalised"].keys()
    for name, to in columns.items():
        if name != to and f"field {name!r} to {to!r}" not in changed:
            say(f"prepare: no used row has the field {name!r} of prepare.columns")
    for name, count in report["fields_ignored"].items():
        say(f"prepare: field {name!r} ignored in {count} rows")
    for kind, rows in report["suspect"].items():
        first = [f", such as {row['source']}: {' '.join(row['text'].split())[:80]}" for row in rows["examples"][:1]]
        say(f"prepare: suspect, {kind}: {rows['rows']} rows{''.join(first)}")
    if unread := report["files_not_read"]:
        shown = ", ".join(unread[:5]) + (", ..." if len(unread) > 5 else "")
        say(f"prepare: {len(unread)} files not read: {shown}")
    if far := report["not_compared"]:
        say(
            f"prepare: not compared with the items of {some(far)}: the task folder does not have them; `shadowft suite "
            "fetch NAME` downloads those of a suite or of a task of lm-evaluation-harness"
        )
    _print_lengths(report)
    counts = f"{report['bad']} bad" + (f", {left_out}" if (left_out := choice.summary()) else "")
    sizes = ", ".join(f"{name} {size}" for name, size in choice.sizes.items())
    say(f"prepare: {report['rows_read']} rows, {counts}; {sizes}")


def _print_lengths(report: dict[str, Any]) -> None:
    for name, lengths in report.get("tokens", {}).items():
        if lengths["rows"]:
            share = f"{lengths['too_long_share']:.1%} longer than train.max_length {lengths['max_length']}"
            about = f"median {lengths['median']}, max {lengths['max']}; {share}"
            say(f"prepare: tokens of {lengths['rows']} rows of {name}: {about}")
        for reason, refused in lengths["refused"].items():
            say(f"prepare: {refused['rows']} rows of {name} refused: {reason}")
