"""A real vLLM server on the CPU with a real small model: scores equal those of `hf`; `make test-vllm` runs this."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

from shadowft_core.cli import app
from shadowft_core.evaluate import load_folder, open_bench, open_engine
from shadowft_core.evaluate.engines import Deltas
from shadowft_core.evaluate.engines.endpoint import Endpoint
from shadowft_core.evaluate.engines.hf import Hf
from shadowft_core.evaluate.engines.launch import launched
from shadowft_core.evaluate.items import TaskScore
from shadowft_core.grafting import ONTO_BASE, Options, graft
from shadowft_core.params import Evaluate, Server
from tests.fixtures.smollm2 import TALK, Place, make_place

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(3600)]  # a busy machine takes ten times as long

ROOT = Path(__file__).parent.parent
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
COMMAND = (
    str(ROOT / ".venv-vllm/bin/vllm"), "serve", "{model}", "--served-model-name", "{name}", "--host", "127.0.0.1",
    "--port", "{port}", "--dtype", "float32", "--max-model-len", "512", "--enforce-eager", "--enable-lora",
    "--max-lora-rank", "16", "--lora-target-modules", *LAYERS,
)  # fmt: skip
SERVER = Server(model="instruct", command=COMMAND, concurrency=4, timeout=600)
OPTIONS = Options("all", waivers=(ONTO_BASE,))
PER_BYTE = 1e-4  # nats per byte of a reply
PER_TOKEN = 1e-3  # nats: a sum of float32 products in another order, and the rounding of the graft
Arms = list[tuple[str, dict[str, TaskScore]]]


@pytest.fixture(scope="module", autouse=True)
def cpu() -> Iterator[None]:
    """What vLLM needs on a small machine: little memory for its cache, no pinned cores, no network."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("smollm2"))


def scored(place: Place, params: Evaluate, arms: Sequence[Deltas]) -> Arms:
    with (
        open_bench(place.instruct, place.data, params, params.domain, params.guards) as bench,
        open_engine(place.instruct, bench.tokenizer, params) as engine,
    ):
        found = []
        for deltas in arms:
            engine.check(deltas, OPTIONS, bench.likelihood)
            with engine.arm(deltas, OPTIONS) as arm:
                found.append((arm.digest, bench.score(arm, "test")))
        return found


@pytest.mark.parametrize("kind", ["adapters", "dense"])
def test_the_server_scores_as_hf_does(place: Place, kind: str) -> None:
    """The Instruct with two scaled adapters, all by one process; and an arm that needs a process of its own."""
    if kind == "adapters":
        lora = place.low_rank("lora", r=8, lora_alpha=16)
        arms: list[Deltas] = [[], [(lora, 0.5)], [(lora, 1.25)]]
    else:
        arms = [[], [(place.dense(), 1.0)]]
    found, expected = scored(place, place.params(SERVER), arms), scored(place, place.params(), arms)
    assert [digest for digest, _ in found] == [digest for digest, _ in expected]
    assert len({digest for digest, _ in found}) == len(arms)
    worst = 0.0
    for (_, ours), (_, theirs) in zip(found, expected, strict=True):
        for name, score in ours.items():
            for a, b in zip(score.items, theirs[name].items, strict=True):
                assert (a.item, a.prompt, a.finish, a.tokens) == (b.item, b.prompt, b.finish, b.tokens)
                if name == "heldout":
                    worst = max(worst, abs(a.score - b.score))
                else:
                    assert (a.score, a.output) == (b.score, b.output)
    print(f"largest difference of heldout: {worst:.2e} nats per byte")
    assert worst < PER_BYTE
    heldout = [[item.score for item in scores["heldout"].items] for _, scores in found]
    # The arms differ by much more than vLLM and transformers.
    assert min(abs(a - b) for other in heldout[1:] for a, b in zip(heldout[0], other, strict=True)) > 10 * worst


def test_the_server_loads_what_export_writes_and_scores_it_as_the_graft(place: Place, tmp_path: Path) -> None:
    """Two adapters: one rank for all layers; and ranks, scalings and layers that differ."""
    mixed = {
        "r": 4, "lora_alpha": 6, "rank_pattern": {"o_proj": 8}, "alpha_pattern": {"q_proj": 3}, "use_rslora": True,
        "target_modules": r".*(q_proj|o_proj|down_proj|layers\.1\.self_attn\.k_proj)",
    }  # fmt: skip
    deltas = {"even": place.low_rank("even", r=16, lora_alpha=16), "mixed": place.low_rank("mixed", **mixed)}
    tokenizer = AutoTokenizer.from_pretrained(place.instruct)
    hf, worst = Hf(place.instruct, tokenizer, 1), 0.0
    with launched(SERVER, place.instruct) as endpoint:
        for name, delta in deltas.items():
            for scale in (0.75, 2.0):
                out = tmp_path / f"{name}-{scale}"
                words = ["export", "--for", "vllm", "--delta", f"{delta}@{scale}", "--instruct", str(place.instruct)]
                assert CliRunner().invoke(app, [*words, "--out", str(out)]).exit_code == 0
                endpoint.add_adapter(out.name, str(out))
                graft(place.instruct, [(delta, scale)], tmp_path / "grafted", OPTIONS)
                expected = likelihoods(hf.lm(load_folder(tmp_path / "grafted")))
                for (value, _), (wanted, _), tokens in zip(
                    likelihoods(completions(endpoint, out.name, tokenizer)), expected, lengths(tokenizer), strict=True
                ):
                    worst = max(worst, abs(value - wanted) / tokens)
                endpoint.remove_adapter(out.name)
    print(f"largest difference of export and graft: {worst:.2e} nats per token")
    assert worst < PER_TOKEN


def completions(endpoint: Endpoint, model: str, tokenizer: Any) -> Any:
    from shadowft_core.evaluate.engines.completions import Completions

    return Completions(endpoint, model, tokenizer, 512, [], 1.0)


def likelihoods(lm: Any) -> list[tuple[float, bool]]:
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood", {}, pair, at, ("talk", at, 1)) for at, pair in enumerate(TALK)]
    found: list[tuple[float, bool]] = lm.loglikelihood(requests)
    return found


def lengths(tokenizer: Any) -> list[int]:
    return [len(tokenizer.encode(reply, add_special_tokens=False)) for _, reply in TALK]
