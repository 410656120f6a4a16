"""The looks at test items: counted in a real store, whatever is interrupted, raced or moved back."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shadowft_core import promotion
from shadowft_core.errors import LedgerError, StoreCorruptError
from shadowft_core.files import canonical_json
from shadowft_core.params import Registry, Store
from shadowft_core.promotion.looks import ItemSet, Look, Looks
from shadowft_core.store import open_store
from shadowft_core.verdict.looks import alpha_left, alpha_of
from tests.fixtures.arms import arm

ROOT = Path(__file__).parent.parent
INSTRUCT = "sha256:" + "1" * 64


def items(first: int = 0, last: int = 40, **changed: Any) -> ItemSet:
    """The items `first` to `last` of a task."""
    facts: dict[str, Any] = {"template_digest": "t", "generation": {"system": None}, "metric": "acc"} | changed
    digests = [f"sha256:{number:016x}{'f' * 48}" for number in range(first, last)]
    about = [digest.replace("f", "e") for digest in digests]
    tasks = {"skill": (facts.pop("metric"), digests, facts.pop("about", about))}
    return ItemSet.of(facts["template_digest"], facts["generation"], tasks)


def model(number: int) -> str:
    return f"sha256:{number:064x}"


def take(
    store: Store | Looks, number: int, asked: ItemSet | None = None, name: str = "m", instruct: str = INSTRUCT
) -> Any:
    looks = store if isinstance(store, Looks) else Looks(store, instruct)
    facts = {"model_name": name, "means": {model(number): 0.5}, "commit": "c" * 40, "dirty": False, "costs": []}
    return looks.take(asked or items(), model(number), **facts)


def entries(store: Store) -> list[Look]:
    return Looks(store, INSTRUCT).chain().entries


def test_each_candidate_is_a_look_and_the_same_one_again_is_none(store: Store) -> None:
    first = take(store, 1)
    assert (first.number, first.earlier) == (1, [])
    assert take(store, 1) == first, "the same candidate on the same items"
    second = take(store, 2, name="another model")
    assert [(one.number, one.look.candidate, one.overlap) for one in second.earlier] == [(1, model(1), 40)]
    assert second.number == 2
    assert take(store, 1) == first, "its number stays, whatever came later"
    assert take(store, 3, instruct=model(9)).number == 1, "another Instruct has a chain of its own"
    assert [look.candidate for look in entries(store)] == [model(1), model(2)]
    kept = store.uri if not store.uri.startswith("s3") else None
    if kept:
        record = json.loads(
            next(Path(kept, "records").glob(entries(store)[0].items.removeprefix("sha256:"))).read_text()
        )
        assert record["tasks"]["skill"]["items"][3] == f"{3:016x}"


def test_one_shared_item_counts_and_fresh_items_start_again(store: Store) -> None:
    take(store, 1)
    assert take(store, 2, items(40, 80)).number == 1, "fresh items"
    both = take(store, 3, items(39, 41))
    assert [(one.number, one.look.candidate, one.overlap) for one in both.earlier] == [
        (1, model(1), 1),
        (2, model(2), 1),
    ]
    assert both.number == 3
    assert take(store, 4).number == 3, "looks 1 and 3 share items with it, look 2 does not"
    assert take(store, 5, items(80, 90)).number == 1


@pytest.mark.parametrize(
    "changed", [{"metric": "f1"}, {"generation": {"system": "Think."}}, {"template_digest": "other"}]
)
def test_other_scores_of_the_same_candidate_are_another_look(folder_store: Store, changed: dict[str, Any]) -> None:
    """The verdict has another chance if the same answers are scored by another metric, or asked for in another way."""
    assert take(folder_store, 1).number == 1
    assert take(folder_store, 1, items(**changed)).number == 2


def test_without_a_candidate_there_is_no_look(store: Store) -> None:
    facts: dict[str, Any] = {"model_name": "m", "means": {}, "commit": None, "dirty": None, "costs": []}
    assert Looks(store, INSTRUCT).take(items(), None, **facts).number == 0
    assert list(open_store(store).list("looks")) == []
    take(store, 1)
    found = Looks(store, INSTRUCT).take(items(), None, **facts)
    assert (found.look, [one.look.candidate for one in found.earlier]) == (None, [model(1)])
    assert len(entries(store)) == 1


def test_52_weekly_looks_on_one_chain(folder_store: Store) -> None:
    spent, looks = 0.0, Looks(folder_store, INSTRUCT)
    for week in range(1, 53):
        number = take(looks, week).number
        assert number == week
        spent += alpha_of(0.05, number)
        assert spent + alpha_left(0.05, number) == pytest.approx(0.05, abs=1e-12)
    assert [look.number for look in entries(folder_store)] == list(range(1, 53))
    assert take(folder_store, 20).number == 20
    assert take(folder_store, 53, items(1000, 1040)).number == 1


RACER = """
import sys
from shadowft_core.params import Store
from tests.test_looks import take
store = Store.model_validate_json(sys.argv[1])
sys.stdin.read(1)
print(take(store, int(sys.argv[2])).number)
"""


def test_of_eight_processes_each_gets_a_number_of_its_own(store: Store) -> None:
    """Candidate 5 races with itself: both processes get the same look."""
    candidates = [1, 2, 3, 4, 5, 5, 6, 7]
    command = [sys.executable, "-c", RACER, store.model_dump_json()]
    racers = [
        subprocess.Popen([*command, str(one)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for one in candidates
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("g")
        racer.stdin.flush()
    numbers = [int(racer.communicate(timeout=300)[0]) for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 8
    assert numbers[4] == numbers[5]
    assert sorted(set(numbers)) == list(range(1, 8))
    assert len(entries(store)) == 7
    assert sorted(look.candidate for look in entries(store)) == [model(one) for one in range(1, 8)]


KILLED = """
import os, signal, sys
from shadowft_core.params import Store
from shadowft_core.promotion.chain import Links
from tests.test_looks import take
real = getattr(Links, sys.argv[3])
def killed(*arguments):
    if sys.argv[4] == "after":
        real(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(Links, sys.argv[3], killed)
take(Store.model_validate_json(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("step", "when", "looks"),
    [("write", "before", 0), ("write", "after", 1), ("point", "before", 1), ("point", "after", 1)],
)
def test_an_interrupted_look_is_not_free(folder_store: Store, step: str, when: str, looks: int) -> None:
    """Once its entry is written, it counts for the next candidate and is no new look for the same one."""
    take(folder_store, 1)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, folder_store.model_dump_json(), "2", step, when],
        cwd=ROOT,
        check=False,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert take(folder_store, 3).number == 2 + looks
    assert take(folder_store, 2).number == (2 if looks else 3)
    assert len(entries(folder_store)) == 3
    assert Looks(folder_store, INSTRUCT).chain().dangling == []


def head_of(store: Store) -> Path:
    return Path(store.uri, "looks", "1" * 64, "head")


def test_a_head_moved_back_by_one_gives_no_free_look(folder_store: Store) -> None:
    take(folder_store, 1)
    before = head_of(folder_store).read_bytes()
    take(folder_store, 2)
    head_of(folder_store).write_bytes(before)
    assert take(folder_store, 3).number == 3
    assert take(folder_store, 2).number == 2


def test_a_head_moved_back_further_is_an_error(folder_store: Store) -> None:
    take(folder_store, 1)
    before = head_of(folder_store).read_bytes()
    for number in (2, 3):
        take(folder_store, number)
    head_of(folder_store).write_bytes(before)
    with pytest.raises(
        LedgerError, match=r"looks with the Instruct sha256:1.* ends at entry 1, yet entry 3 .* moved back"
    ):
        take(folder_store, 4)
    head_of(folder_store).unlink()
    with pytest.raises(LedgerError, match="the head was moved back"):
        take(folder_store, 4)


def test_an_edited_or_missing_entry_or_record_is_an_error(folder_store: Store) -> None:
    first = take(folder_store, 1).look
    take(folder_store, 2)
    path = head_of(folder_store).parent / "entries" / first.digest.removeprefix("sha256:")
    raw = path.read_bytes()
    path.write_bytes(canonical_json(json.loads(raw) | {"candidate": model(7)}))
    with pytest.raises(LedgerError, match="was edited"):
        take(folder_store, 3)
    path.unlink()
    with pytest.raises(LedgerError, match="is missing; restore it"):
        take(folder_store, 3)
    path.write_bytes(raw)
    record = Path(folder_store.uri, "records", first.items.removeprefix("sha256:"))
    kept = record.read_bytes()
    record.write_bytes(kept.replace(b"acc", b"bcc"))
    with pytest.raises(StoreCorruptError, match="is damaged"):
        take(folder_store, 3)
    record.unlink()
    with pytest.raises(LedgerError, match=r"the items of entry 1, record sha256:\w+, are missing"):
        take(folder_store, 3, items(0, 50))
    record.write_bytes(kept)
    assert take(folder_store, 3).number == 3


def test_means_are_those_of_exactly_these_items(folder_store: Store) -> None:
    take(folder_store, 1)
    take(folder_store, 2, items(0, 41))
    looks = Looks(folder_store, INSTRUCT)
    assert looks.means(items()) == {model(1): 0.5}
    assert looks.means(items(0, 41)) == {model(2): 0.5}
    assert looks.means(items(5, 9)) == {}
    facts = {"model_name": "m", "items": items().digest, "commit": None, "dirty": None, "costs": []}
    looks.write(looks.next(looks.tip(), candidate=model(3), means={model(3): 0.25}, **facts))
    assert looks.means(items()) == {model(1): 0.5, model(3): 0.25}, "an interrupted look counts, too"


def test_copies_and_order_of_items_do_not_matter() -> None:
    import numpy as np

    one = ItemSet.of_arm(arm("a", {"skill": ("domain", np.ones(3)), "general": ("guard", np.ones(9))}))
    other = ItemSet.of("template", None, {"skill": ("acc", ["000002", "000000", "000001", "000001"], ["a passage"])})
    assert (one, one.digest) == (other, other.digest)
    assert (one.shared(other), other.tasks["skill"].about) == (3, [])


def test_the_same_questions_with_another_prompt_are_no_fresh_items(folder_store: Store) -> None:
    take(folder_store, 1)
    questions = [f"sha256:{number:016x}{'e' * 48}" for number in range(35, 200)]
    found = take(folder_store, 2, items(500, 540, about=questions))
    assert [(one.look.candidate, one.overlap) for one in found.earlier] == [(model(1), 5)]


def test_history_lists_looks_with_what_is_left(folder_store: Store, tmp_path: Path) -> None:
    registry = Registry(name="m", tracking_uri=f"sqlite:///{tmp_path}/none.db")
    for number in (1, 2):
        take(folder_store, number)
    take(folder_store, 3, name="other")
    take(folder_store, 4, name="other", instruct=model(8))
    rows = promotion.looked(registry, folder_store, 0.05)
    assert [(row["number"], row["look"], row["model_name"], row["decision"]) for row in rows] == [
        (1, 1, "m", None), (2, 2, "m", None), (3, 3, "other", None),
    ]  # fmt: skip
    assert [row["alpha"] for row in rows] == pytest.approx([0.04, 0.005, 0.01 / 6])
    assert [row["left"] for row in rows] == pytest.approx([0.01, 0.005, 0.01 / 3])
    assert not (tmp_path / "none.db").exists()
