"""Tensors that only one side has: refused with a pattern that waives them, waived by --ignore, and recorded."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.delta import extract, open_delta, open_difference, require_extractable
from shadowft_core.errors import AdapterError, InputError, PairError, ShadowError, TensorMissingError, ZeroDeltaError
from shadowft_core.files import canonical_json
from shadowft_core.grafting import Options, graft, grafted_tensors
from shadowft_core.grafting.receipt import read_receipt
from shadowft_core.pair import compare_models
from shadowft_core.weights import open_checkpoint, remedy
from tests.fixtures.adapters import adapt
from tests.fixtures.models import Pair, save_tokenizer, write_model, write_weights
from tests.test_graft import BF16, F32, Tensors, bits, tensors_of

LAYER = "model.layers.{}.self_attn.q_proj.weight"
SIZES = {"model.embed_tokens.weight": (64, 16), LAYER.format(0): (40, 16), LAYER.format(1): (40, 16)}
EXTRA = {  # tensors that only one side has, and the patterns that the refusal offers
    "mtp": (("mtp.fc.weight", "mtp.layers.0.self_attn.q_proj.weight"), ["mtp.*"]),
    "a layer": ((LAYER.format(2), "model.layers.2.norm.weight"), ["model.layers.2.*"]),
    "buffers": (tuple(f"model.layers.{n}.self_attn.rotary.inv_freq" for n in (0, 1)), ["*.rotary.*"]),
    "both": (("mtp.fc.weight", "rotary.freqs"), ["mtp.*", "rotary.*"]),
}
CLASS = {"model_type": "llama", "num_hidden_layers": 2}


def tensors(seed: int, *more: str) -> Tensors:
    """Weights that are close to each other for all seeds."""
    start, noise = np.random.default_rng(0), np.random.default_rng(seed)
    found = {n: start.standard_normal(s) for n, s in SIZES.items()} | {n: start.standard_normal((8, 16)) for n in more}
    moved = {n: a + 1e-2 * noise.standard_normal(a.shape) for n, a in found.items()}
    return {n: (0.02 * a).astype(BF16) for n, a in moved.items()}


def model(folder: Path, seed: int, *more: str, **config: Any) -> Path:
    write_model(folder, tensors(seed, *more), **(CLASS | config))
    save_tokenizer(folder)
    return folder


def offered(error: ShadowError) -> list[str]:
    """The patterns of the options in a refusal, as a shell would read them."""
    words = shlex.split(str(error).partition("the missing tensors by name: ")[2].partition(" (for a project")[0])
    return words[1::2]


def pair(base: Path, instruct: Path, *ignore: str) -> dict[str, Any]:
    return compare_models(open_checkpoint(base), open_checkpoint(instruct), full=True, ignore=ignore)


@pytest.mark.parametrize("case", EXTRA)
def test_tensors_only_in_the_base_are_refused_with_a_pattern_that_works(tmp_path: Path, case: str) -> None:
    names, _ = EXTRA[case]
    base, tuned = model(tmp_path / "base", 1, *names), model(tmp_path / "tuned", 2)
    instruct, plain = model(tmp_path / "instruct", 3, *names), model(tmp_path / "plain", 3)
    for attempt in (lambda: extract(base, tuned, tmp_path / "delta"), lambda: open_difference(base, tuned)):
        with pytest.raises(TensorMissingError, match=rf"only .*base has .* \({len(names)} in all\)") as caught:
            attempt()
    patterns = offered(caught.value)
    assert len(patterns) == len(EXTRA[case][1])
    facts = extract(base, tuned, tmp_path / "delta", ignore=patterns)
    delta = open_delta(tmp_path / "delta")
    assert set(delta.names) == set(SIZES)
    assert delta.certificate["ignored"]["patterns"] == patterns
    said = [name for sides in facts["ignored"].values() for name in sides["base"]]
    assert sorted(said) == sorted(names)
    # An Instruct that has them keeps its tensors. One without them needs no option: the delta has the patterns.
    for folder in (instruct, plain):
        out = tmp_path / f"out-{folder.name}"
        graft(folder, [(tmp_path / "delta", 1.0)], out)
        own, made = tensors_of(folder), tensors_of(out)
        assert set(made) == set(own)
        for name, weights in own.items():
            moved = delta.read(name) if name in SIZES else np.zeros(1, F32)
            np.testing.assert_array_equal(made[name], (weights.astype(F32) + moved).astype(BF16))
        account = read_receipt(out)["ignored"]
        listed = sorted(name for sides in account.values() for name in sides["base"]) if account else []
        assert listed == (sorted(names) if folder == plain else [])
        difference = open_difference(base, tuned, ignore=patterns)
        once = graft(folder, [(difference, 1.0)], tmp_path / "once", Options(ignore=patterns))
        assert once["digest"] == open_checkpoint(out).digest()
        assert once["ignore"] == patterns
        assert {n for sides in read_receipt(tmp_path / "once")["ignored"].values() for n in sides["base"]} == set(names)


@pytest.mark.parametrize("case", EXTRA)
def test_tensors_only_in_base_or_instruct_are_waived_in_graft_and_pair(tmp_path: Path, case: str) -> None:
    names, _ = EXTRA[case]
    more, plain, tuned = (
        model(tmp_path / n, k, *e) for k, (n, e) in enumerate({"more": names, "plain": (), "t": ()}.items())
    )
    extract(plain, tuned, tmp_path / "delta")
    with pytest.raises(TensorMissingError, match=r"the Instruct has .*, the Base does not") as caught:
        graft(more, [(tmp_path / "delta", 1.0)], tmp_path / "out")
    made = graft(more, [(tmp_path / "delta", 1.0)], tmp_path / "out", Options(ignore=offered(caught.value)))
    assert made["ignore"] == offered(caught.value)
    expected = tensors_of(tmp_path / "out")
    assert all(bits({"": expected[n]}) == bits({"": tensors_of(more)[n]}) for n in names)
    repeated = grafted_tensors(more, [(tmp_path / "delta", 1.0)], Options(ignore=made["ignore"]))
    assert bits(dict(repeated)) == bits(expected)
    for base, instruct in ((more, plain), (plain, more)):
        with pytest.raises(PairError, match=f"{len(names)} tensors are only in the") as refusal:
            pair(base, instruct)
        found = pair(base, instruct, *offered(refusal.value))
        assert any("waived by name" in reason for reason in found["reasons"])


def test_a_pattern_may_match_tensors_of_one_side_only(tmp_path: Path) -> None:
    base, tuned = model(tmp_path / "base", 1, "mtp.fc.weight"), model(tmp_path / "tuned", 2)
    instruct = model(tmp_path / "instruct", 3)
    extract(base, tuned, tmp_path / "delta", ignore=["mtp.*"])
    plain = model(tmp_path / "plain", 1)
    for patterns, message in (
        (["mtp.*", "*q_proj*"], r"'\*q_proj\*' matches model.layers.0.*both sides"),
        (["*"], r"'\*' matches model\..*both sides"),
        (["mtp.*", "mpt.*"], r"'mpt\.\*' matches no tensor that only one side has .*a glob of whole names"),
    ):
        attempts = (
            lambda p=patterns: extract(base, tuned, tmp_path / "no", ignore=p),
            lambda p=patterns: graft(instruct, [(tmp_path / "delta", 1.0)], tmp_path / "no", Options(ignore=p)),
            lambda p=patterns: pair(base, instruct, *p),
        )
        for attempt in attempts:
            with pytest.raises(InputError, match=message):
                attempt()
    # A pattern of the delta may be repeated as an option.
    made = graft(instruct, [(tmp_path / "delta", 1.0)], tmp_path / "out", Options(ignore=["mtp.*"]))
    assert made["ignore"] == ["mtp.*"]
    # Patterns of a project may match nothing, or tensors of both sides that are not trained; never a trained tensor.
    extract(plain, tuned, tmp_path / "delta", standing=["mtp.*"])
    assert open_delta(tmp_path / "delta").ignore == ("mtp.*",)
    compare_models(open_checkpoint(base), open_checkpoint(instruct), full=False, standing=["mtp.*", "*q_proj*", "x"])
    with pytest.raises(InputError, match="both sides"):
        extract(plain, tuned, tmp_path / "no", standing=["*q_proj*"])
    assert not (tmp_path / "no").exists()


def test_no_pattern_is_offered_for_a_renamed_tensor(tmp_path: Path) -> None:
    base, tuned = (
        model(tmp_path / "base", 1, "model.a.q_proj.weight"),
        model(tmp_path / "tuned", 2, "model.b.q_proj.weight"),
    )
    other = model(tmp_path / "other", 2, "model.a.query.weight")
    for folder in (tuned, other):
        with pytest.raises(TensorMissingError, match=r"with the same tensor names$"):
            extract(base, folder, tmp_path / "delta")


def test_tensors_that_the_class_does_not_load_need_no_waiver(tmp_path: Path) -> None:
    names = ("mtp.fc.weight", "model.layers.0.self_attn.rotary_emb.inv_freq")
    base = model(tmp_path / "base", 1, *names, architectures=["Qwen3NextForCausalLM"], model_type="qwen3_next")
    tuned = model(tmp_path / "tuned", 2, architectures=["Qwen3NextForCausalLM"], model_type="qwen3_next")
    facts = extract(base, tuned, tmp_path / "delta")
    assert facts["ignored"] == {"Qwen3NextForCausalLM does not load it": {"base": sorted(names)}}
    graft(tuned, [(tmp_path / "delta", 1.0)], tmp_path / "out")
    graft(base, [(tmp_path / "delta", 1.0)], tmp_path / "onto", Options(waivers=["onto-base"]))
    assert not open_delta(tmp_path / "delta").ignore


def test_a_delta_without_ignored_tensors_does_not_mention_them(tmp_path: Path) -> None:
    """So its digest is that of a delta from before waivers existed."""
    extract(model(tmp_path / "base", 1), model(tmp_path / "tuned", 2), tmp_path / "delta")
    certificate = json.loads((tmp_path / "delta" / "delta.json").read_bytes())
    assert not {"ignored", "tokens"} & certificate.keys()
    made = graft(model(tmp_path / "instruct", 3), [(tmp_path / "delta", 1.0)], tmp_path / "out")
    assert "ignore" not in made


def test_a_trained_tensor_that_the_instruct_lacks_is_left_out_and_counted(tmp_path: Path) -> None:
    names = ("mtp.fc.weight",)
    base, tuned = (model(tmp_path / n, k, *names) for k, n in enumerate(("base", "tuned")))
    instruct = model(tmp_path / "instruct", 3)
    extract(base, tuned, tmp_path / "delta")
    with pytest.raises(TensorMissingError, match=r"mtp\.fc\.weight is missing .*--ignore 'mtp\.\*'"):
        graft(instruct, [(tmp_path / "delta", 1.0)], tmp_path / "out")
    graft(instruct, [(tmp_path / "delta", 1.0)], tmp_path / "out", Options(ignore=["mtp.*"]))
    account = read_receipt(tmp_path / "out")
    assert account["left_out"] == ["mtp.fc.weight"]
    assert 0 < account["travel"]["stays"]["fc"] < 0.2
    with pytest.raises(ZeroDeltaError, match="the scope matches none of the delta's"):
        graft(instruct, [(tmp_path / "delta", 1.0)], tmp_path / "no", Options(scope=["mtp.*"], ignore=["mtp.*"]))
    unmet = open_difference(base, tuned, ignore=["mpt.*"])  # its patterns come from the same command line
    with pytest.raises(InputError, match=r"'mpt\.\*' matches no tensor"):
        graft(instruct, [(unmet, 1.0)], tmp_path / "no", Options(ignore=["mtp.*", "mpt.*"]))
    assert not (tmp_path / "no").exists()


def test_extract_ignore_in_params_applies_to_all_stages(tmp_path: Path) -> None:
    """It applies to fetch and extract, and, through the delta, to every graft."""
    base, instruct = model(tmp_path / "base", 1, "mtp.fc.weight"), model(tmp_path / "instruct", 3, "rotary.freqs")
    model(tmp_path / "tuned", 2)
    text = (Path(__file__).parent.parent / "params.yaml").read_text(encoding="utf-8")
    text = text.replace("pico:base ", f"{base} ").replace("pico:instruct", str(instruct))

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "shadowft_core.cli", *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    stages = (
        ("fetch", "--out", "pair"),
        ("extract", "--base", "base", "--tuned", "tuned", "--out", "delta"),
        ("graft", "--instruct", "instruct", "--delta", "delta", "--scale", "1", "--out", "out"),
    )
    (tmp_path / "params.yaml").write_text(text)
    for stage in stages[:2]:
        done = run(*stage)
        assert done.returncode in (4, 5), done.stderr
        assert "extract.ignore" in done.stderr.splitlines()[-1]
    (tmp_path / "params.yaml").write_text(text.replace("ignore: []", 'ignore: ["mtp.*", "rotary.*"]'))
    for stage in stages:
        done = run(*stage)
        assert done.returncode == 0, done.stderr
    reasons = json.loads((tmp_path / "pair" / "pair.json").read_bytes())["reasons"]
    assert {"1 tensors are only in the Base, waived by name: mtp.*"} < set(reasons)
    assert read_receipt(tmp_path / "out")["ignored"] == {
        "waived by name: mtp.*": {"base": ["mtp.fc.weight"]},
        "waived by name: rotary.*": {"instruct": ["rotary.freqs"]},
    }
    by_hand = run("extract", "--base", "base", "--tuned", "tuned", "--ignore", "mtp.*", "--out", "delta2")
    assert "1 only in the base, waived by name: mtp.*" in by_hand.stdout, by_hand.stderr


def test_the_patterns_are_part_of_the_digest(tmp_path: Path) -> None:
    base, tuned = model(tmp_path / "base", 1, "mtp.fc.weight"), model(tmp_path / "tuned", 2)
    extract(base, tuned, tmp_path / "delta", ignore=["mtp.*"])
    file = tmp_path / "delta" / "delta.json"
    before, certificate = open_delta(tmp_path / "delta").digest, json.loads(file.read_bytes())
    certificate["ignored"]["patterns"].append("*")
    file.write_bytes(canonical_json(certificate))
    assert open_delta(tmp_path / "delta").digest != before


@pytest.mark.parametrize(
    ("names", "both", "patterns"),
    [
        (["mtp.a", "mtp.b.c"], ["model.a"], ["mtp.*"]),
        (["model.layers.9.a", "model.layers.9.b"], ["model.layers.8.a"], ["model.layers.9.*"]),
        (["model.layers.0.r.inv", "model.layers.11.r.inv"], ["model.layers.0.q", "model.r"], ["model.layers.*.r.*"]),
        (["model.x"], ["model.y"], ["model.x"]),
        (["a[0].w"], ["a.w"], ["a[[]0].*"]),
    ],
)
def test_an_offered_pattern_is_as_wide_as_allowed(names: list[str], both: list[str], patterns: list[str]) -> None:
    assert all(f"--ignore '{pattern}'" in remedy({"base": names}, both) for pattern in patterns)
    assert remedy({"base": names}, both).count("--ignore") == len(patterns)


def test_an_adapter_may_lack_a_layer_that_training_did_not_load(
    tmp_path: Path, tiny_llama_pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    adapt(tiny_llama_pair.base, tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    extract(tiny_llama_pair.base, tmp_path / "adapter", tmp_path / "expected")
    base, instruct = (
        shutil.copytree(side, tmp_path / side.name) for side in (tiny_llama_pair.base, tiny_llama_pair.instruct)
    )
    for folder in (base, instruct):
        held = tensors_of(folder)
        layer = {n.replace(".layers.1.", ".layers.2."): a for n, a in held.items() if ".layers.1." in n}
        write_weights(folder, held | layer)
    adapter = tmp_path / "adapter"
    with pytest.raises(AdapterError, match="is targeted but has no factors; the file is incomplete") as caught:
        extract(base, adapter, tmp_path / "delta")
    assert offered(caught.value) == ["model.layers.2.*"]
    require_extractable(base, adapter)  # the training starts, because a waiver will allow the extraction
    assert "--ignore 'model.layers.2.*'" in capsys.readouterr().err
    facts = extract(base, adapter, tmp_path / "delta", ignore=offered(caught.value))
    assert facts["ignored"] == {"waived by name: model.layers.2.*": {"base": sorted(layer)}}
    expected = open_delta(tmp_path / "expected")
    delta = open_delta(tmp_path / "delta")
    assert bits({n: delta.read(n) for n in delta.names}) == bits({n: expected.read(n) for n in expected.names})
    graft(instruct, [(tmp_path / "delta", 1.0)], tmp_path / "out")
    out = tensors_of(tmp_path / "out")
    assert all(bits({"": out[n]}) == bits({"": a}) for n, a in layer.items())
    for patterns, message in (
        (["model.layers.2.*", "*q_proj*"], r"'\*q_proj\*' matches .* both sides"),
        (["model.layers.2.*", "mtp.*"], r"'mtp\.\*' matches no tensor"),
    ):
        with pytest.raises(InputError, match=message):
            extract(base, adapter, tmp_path / "no", ignore=patterns)
