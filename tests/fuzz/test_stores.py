"""Damaged stores: claims, manifests and chunks of deltas, records, the ledger of champions, the looks at test items."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from shadowft_core import store as stores
from shadowft_core.files import bytes_digest, canonical_json
from shadowft_core.params import Store
from shadowft_core.promotion.chain import Links
from shadowft_core.promotion.ledger import Ledger
from shadowft_core.promotion.looks import Looks
from tests.fixtures.deltas import noise, trusted, write_delta
from tests.fuzz.damage import bytes_damage, json_damage
from tests.fuzz.harness import Target, fuzzed
from tests.test_looks import INSTRUCT, items, model, take

DIGEST = "sha256:" + "a" * 64


def store_in(folder: Path) -> Store:
    return Store(uri=str(folder / "store"))


def make_deltas(folder: Path) -> None:
    store = store_in(folder)
    trusted(store)
    delta = write_delta(folder / "delta", {"a": noise(1, 40)})
    (folder / "digest").write_text(stores.publish(delta, store))
    shutil.rmtree(delta)
    stores.keep_record(canonical_json({"format": 1}), store)


def seal_deltas(folder: Path) -> None:
    """The claim names the digest and the size of the damaged manifest, which stands under its digest."""
    (claim,) = (folder / "store/deltas").iterdir()
    try:
        fields = json.loads(claim.read_bytes())
        name = fields["manifest"].removeprefix("sha256:")
        manifest = folder / "store/objects/sha256" / name[:2] / name
        raw = manifest.read_bytes()
        if bytes_digest(raw) == fields["manifest"]:
            return
        digest = bytes_digest(raw)
        place = folder / "store/objects/sha256" / digest[7:9] / digest[7:]
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(raw)
        claim.write_bytes(canonical_json(fields | {"manifest": digest, "manifest_bytes": len(raw)}))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return


def damage_object(raw: bytes) -> Any:
    return json_damage(raw) if raw.startswith(b"{") else bytes_damage(raw)


def read_deltas(folder: Path) -> None:
    store, digest = store_in(folder), (folder / "digest").read_text()
    stores.ls(store)
    stores.check(store, state=Path(os.environ["SHADOWFT_CACHE"], "check.txt"))
    stores.fetch_delta(digest, store, folder.parent / "out")


def make_ledger(folder: Path) -> None:
    store = store_in(folder)
    trusted(store)
    ledger = Ledger(store, "m")
    facts = {"version": 1, "model": DIGEST, "recipe": DIGEST, "verdict": DIGEST, "decision": "promote"}
    facts |= {"override": False, "reason": "better", "run_id": "r", "source": "s"}
    for action in ("promote", "promote", "rollback"):
        tip = ledger.tip()
        ledger.append(tip, tip.entry.previous if tip.entry and action == "rollback" else None, action=action, **facts)


def make_looks(folder: Path) -> None:
    store = store_in(folder)
    trusted(store)
    for number in (1, 2):
        take(store, number, items(0, 10 * number))


def seal_chain(folder: Path) -> None:
    """An entry that was damaged stands under its digest, and the one after it, or the head, names it."""
    for head in folder.glob("store/*/*/head"):
        try:
            heads = json.loads(head.read_bytes())
            place = head.parent / "entries" / Path(heads["entry"]).name.removeprefix("sha256:")
            raw = place.read_bytes()
            digest = bytes_digest(raw)
            (head.parent / "entries" / digest[7:]).write_bytes(raw)
            head.write_bytes(canonical_json(heads | {"entry": digest}))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return


def seal_items(folder: Path) -> None:
    """The last look names the digest of the damaged record of its items."""
    for record in (folder / "store/records").iterdir():
        raw = record.read_bytes()
        if (digest := bytes_digest(raw)) != f"sha256:{record.name}":
            record.with_name(digest[7:]).write_bytes(raw)
            for entry in folder.glob("store/looks/*/entries/*"):
                entry.write_bytes(entry.read_bytes().replace(record.name.encode(), digest[7:].encode()))
    seal_chain(folder)


def read_chain(links: Links[Any]) -> None:
    chain = links.chain()
    _ = chain.remarks


def read_looks(folder: Path) -> None:
    looks = Looks(store_in(folder), INSTRUCT)
    read_chain(looks)
    for look in looks.chain().entries:
        looks.items_of(look)
    looks.counted(looks.chain().entries, items(0, 5), model(3))
    looks.means(items(0, 10))


test_hostile_stores = fuzzed(
    Target(
        "store",
        make_deltas,
        read_deltas,
        {"store/deltas/*": json_damage, "store/objects/*/*/*": damage_object, "store/records/*": json_damage},
        seal=seal_deltas,
    ),
    Target(
        "ledger",
        make_ledger,
        lambda folder: read_chain(Ledger(store_in(folder), "m")),
        {"store/ledger/*/head": json_damage, "store/ledger/*/entries/*": json_damage},
        seal=seal_chain,
    ),
    Target(
        "looks",
        make_looks,
        read_looks,
        {"store/looks/*/head": json_damage, "store/looks/*/entries/*": json_damage, "store/records/*": json_damage},
        seal=seal_items,
    ),
)
