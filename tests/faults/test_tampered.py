"""A person with write access changes a delta in the store, with matching digests in manifest and claim."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shadowft_core import store as room
from shadowft_core.delta import open_delta
from shadowft_core.errors import ShadowError
from shadowft_core.files import bytes_digest, canonical_json
from tests.faults.conftest import Place, Published, contents, object_key
from tests.faults.victim import ended, spawn, verb
from tests.fixtures.models import Pair

ROOT = Path(__file__).parent.parent.parent


def tamper(place: Place, digest: str, file: str, number: int, bit: int) -> None:
    """Flip one bit of one chunk, store it under its new digest, and name it in manifest and claim."""
    claim_key = f"deltas/{digest.removeprefix('sha256:')}"
    claim = json.loads(place.read(claim_key))
    manifest = json.loads(place.read(object_key(claim["manifest"])))
    entry = manifest["files"][file]
    parts = [bytearray(place.read(object_key(name))) for name, _ in entry["chunks"]]
    parts[number][bit % (8 * len(parts[number])) // 8] ^= 1 << bit % 8
    entry["chunks"] = [[bytes_digest(bytes(part)), len(part)] for part in parts]
    if "digest" in entry:
        entry["digest"] = bytes_digest(b"".join(parts))
    place.write(object_key(entry["chunks"][number][0]), bytes(parts[number]))
    raw = canonical_json(manifest)
    place.write(object_key(bytes_digest(raw)), raw)
    place.write(claim_key, canonical_json(claim | {"manifest": bytes_digest(raw), "manifest_bytes": len(raw)}))


@pytest.mark.faults
def test_a_tampered_chunk_with_matching_digests_is_not_grafted(
    fresh_place: Callable[[], Place], delta: Published, tiny_pair: Pair, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    def graft(folder: Path, out: Path) -> int:
        line = ["graft", "--instruct", str(tiny_pair.instruct), "--delta", str(folder), "--scale", "0.75"]
        line += ["--params", str(ROOT / "params.yaml"), "--out", str(out)]
        return ended(spawn(verb, line, {}, tmp_path / "log", None))

    assert graft(delta.folder, tmp_path / "right") == 0, (tmp_path / "log").read_text()
    place, rng = fresh_place(), random.Random(0)
    room.publish(delta.folder, place.direct)
    claim_key = f"deltas/{delta.digest.removeprefix('sha256:')}"
    good = place.read(claim_key)
    manifest = json.loads(place.read(object_key(json.loads(good)["manifest"])))
    at_fetch = at_graft = harmless = 0
    for file, entry in manifest["files"].items():
        for number in range(len(entry["chunks"])):
            tamper(place, delta.digest, file, number, rng.randrange(2**30))
            out = tmp_path / "out"
            try:
                room.fetch_delta(delta.digest, place.direct, out, lambda found, known: open_delta(found).verify(known))
            except ShadowError:
                at_fetch += 1
                assert not out.exists()
            else:
                assert file != "delta.json"
                if graft(out, tmp_path / "grafted") == 0:  # an insignificant bit in the text of a header
                    harmless += 1
                    assert contents(tmp_path / "grafted") == contents(tmp_path / "right")
                    shutil.rmtree(tmp_path / "grafted")
                else:
                    at_graft += 1
                    assert not (tmp_path / "grafted").exists()
                shutil.rmtree(out)
            place.write(claim_key, good)
    assert at_graft == 0
    assert at_fetch > harmless <= 1
    figures(f"{at_fetch + at_graft + harmless} chunks tampered: {at_fetch} refused by fetch, {at_graft} by graft")
