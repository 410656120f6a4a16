"""Every way a server can fail is one clear error, asked again only where that can help; no answer is invented."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate import evaluate
from shadowft_core.evaluate.engines import endpoint
from shadowft_core.params import Evaluate, Server
from tests.fixtures.evaluation import World
from tests.fixtures.serving import NAME, served, with_server
from tests.servers.completions import CLOSED, Json, slow, with_logprob

KEY = "sk-not-for-logs"
COMPLETIONS = "/v1/completions"


def score(world: World, params: Evaluate, out: Path) -> None:
    evaluate(world.instruct, world.data, None, None, "shadow", params, out)


def refusal(world: World, params: Evaluate, out: Path) -> str:
    """The error of an evaluation, which writes nothing."""
    with pytest.raises(EvaluationError) as caught:
        score(world, params, out)
    assert not out.exists()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) <= 1000
    return message


def completions(answer: Any) -> Callable[[str, Json, Json], Any]:
    """A fault of answers to prompts; the question whether the server scores prompts (two tokens) passes."""
    return lambda path, body, found: answer if path == COMPLETIONS and len(body["prompt"]) > 2 else found


def changed(**fields: Any) -> Callable[[str, Json, Json], Any]:
    """A fault: a generated answer has other fields."""

    def fault(path: str, body: Json, found: Json) -> Any:
        if path == COMPLETIONS and not body.get("echo"):
            found["choices"][0] |= fields
        return found

    return fault


def usage(path: str, body: Json, found: Json) -> Any:
    """A fault: the server puts a token before the prompt, and says so only in its counts."""
    if path == COMPLETIONS and not body.get("echo"):
        found["usage"]["prompt_tokens"] += 1
        del found["choices"][0]["prompt_token_ids"]
    return found


def second_bos(path: str, body: Json, found: Json) -> Any:
    if path == COMPLETIONS and not body.get("echo"):
        found["choices"][0]["prompt_token_ids"] = [0, *body["prompt"]]
    return found


def without_logprobs(path: str, body: Json, found: Json) -> Any:
    if body.get("echo"):
        found["choices"][0]["logprobs"] = None
    return found


def moved(by: int) -> Callable[[str, Json, Json], Any]:
    """A fault: the lists of log-probabilities begin one token later, or one earlier."""

    def fault(path: str, body: Json, found: Json) -> Any:
        if body.get("echo"):
            given = found["choices"][0]["logprobs"]
            for name, one in given.items():
                given[name] = one[by:] if by > 0 else [None, *one]
        return found

    return fault


def unknown_option(path: str, body: Json, found: Json) -> Any:
    return (400, {"error": {"message": "echo is not supported"}}) if body.get("echo") else found


FAULTS: dict[str, tuple[Any, str, int]] = {
    "http 400": (completions((400, {"error": {"message": "too bad"}})), "HTTP 400, too bad", 1),
    "http 404": (completions((404, {"detail": "Not Found"})), "HTTP 404, Not Found", 1),
    "http 401": (completions((401, {"error": f"bad key {KEY}"})), "HTTP 401, bad key ***; the server wants another", 1),
    "http 429": (completions((429, {"message": "slow down"})), "HTTP 429, slow down; read the server's log", 4),
    "http 500": (completions((500, b"<html>oops</html>")), "HTTP 500, <html>oops</html>; read", 4),
    "redirect": (completions((307, {})), "HTTP 307, {}", 1),
    "connection broken": (completions(CLOSED), "the connection broke: ServerDisconnectedError", 4),
    "truncated json": (completions(b'{"choices": [{"ind'), "the answer is not JSON: '{\"choices\": [{\"ind'", 1),
    "not json": (completions(b"hello"), "the answer is not JSON: 'hello'", 1),
    "no choices": (completions({"id": 1}), "{'id': 1} does not have exactly one choice", 1),
    "null": (completions(b"null"), "None does not have exactly one choice", 1),
    "null content": (changed(text=None, token_ids=None), "an answer's text is None", 1),
    "aborted": (changed(finish_reason="abort"), "finish_reason 'abort', expected stop or length", 1),
    "no end": (changed(finish_reason=None), "finish_reason None, expected stop or length", 1),
    "counts": (usage, "sent a prompt of 5 tokens, the server read 6; it changes prompts", 1),
    "second bos": (second_bos, "sent a prompt of 5 tokens, the server read 6; it changes prompts", 1),
    "nan": (with_logprob(float("nan")), "a log-probability is nan, expected a finite number", 1),
    "infinity": (with_logprob(float("-inf")), "a log-probability is -inf, expected a finite number", 1),
    "vllm's nan": (with_logprob(-9999.0), "a log-probability is -9999.0, expected a finite number", 1),
    "null logprob": (with_logprob(None), "a log-probability is None, expected a finite number", 1),
    "no logprobs": (without_logprobs, "task choice, heldout: is scored by log-likelihood, but", 1),
    "a token late": (moved(1), "sends 2 log-probabilities, beginning with -", 1),
    "a token early": (moved(-1), "sends 4 log-probabilities, beginning with None, for a prompt of 2 tokens", 1),
    "no echo": (unknown_option, "task choice, heldout: is scored by log-likelihood, but", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_fault_is_one_clear_error(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    fault, expected, tries = FAULTS[name]
    generated = name in ("null content", "aborted", "no end", "counts", "second bos")
    with served(world, fault=fault) as (state, params):
        tasks = {"domain": ("say",), "guards": ()} if generated else {}
        message = refusal(world, params.model_copy(update={"limit": 1, **tasks}), tmp_path / "out")
        assert expected in message
        bodies = [json.dumps(body, sort_keys=True) for body in state.asked]
        assert max(bodies.count(body) for body in bodies) == tries
        assert set(state.keys) == {f"Bearer {KEY}"}
    assert KEY not in message + "".join(capsys.readouterr())


@pytest.mark.slow
def test_a_server_that_recovers_is_asked_again(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    seen: dict[str, int] = {}

    def fault(path: str, body: Json, found: Json) -> Any:
        """Every request fails twice: with HTTP 503, then without an answer."""
        key = path + json.dumps(body, sort_keys=True)
        seen[key] = seen.get(key, 0) + 1
        if path != COMPLETIONS or seen[key] > 2:
            return found
        return (503, {"message": "loading"}) if seen[key] == 1 else CLOSED

    with served(world) as (state, params):
        score(world, params, tmp_path / "plain")
        state.fault = fault
        monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "another"))  # without the journal of the first run
        score(world, params, tmp_path / "faulty")
    assert {seen[key] for key in seen if key.startswith(COMPLETIONS)} == {3}
    for name in ("scores.json", "items.jsonl"):
        assert (tmp_path / "plain/instruct" / name).read_bytes() == (tmp_path / "faulty/instruct" / name).read_bytes()


def test_an_answer_that_takes_too_long(world: World, tmp_path: Path) -> None:
    with served(world, fault=slow(1.5)) as (state, _):
        params = with_server(world, url=f"http://127.0.0.1:{state.port}/v1", timeout=0.5)
        message = refusal(world, params, tmp_path / "out")
        assert "no answer within 0.5 s; raise engine.server.timeout, lower engine.server.concurrency" in message
        assert len(state.asked) == 1


def test_no_server(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    message = refusal(world, with_server(world, url="http://127.0.0.1:9/v1"), tmp_path / "out")
    assert "http://127.0.0.1:9/v1/models: no server answers (" in message
    assert "start it, or correct engine.server.url (tried 4 times)" in message


def test_another_program_answers(world: World, tmp_path: Path) -> None:
    with served(world, fault=lambda path, body, found: [1, 2]) as (_, params):
        assert "[1, 2] is not a list of models; correct engine.server.url" in refusal(world, params, tmp_path / "out")


def test_a_name_that_the_server_lacks(world: World, tmp_path: Path) -> None:
    with served(world, name="other") as (state, params):
        message = refusal(world, params, tmp_path / "out")
        assert f"no model '{NAME}'; it has other: correct engine.server.model" in message
        assert state.asked == []


def test_a_server_of_other_weights(world: World, tmp_path: Path) -> None:
    with served(world, root=str(world.root / "tuned")) as (state, params):
        message = refusal(world, params, tmp_path / "out")
        assert "start the server with the Instruct" in message
        assert state.asked == []


def test_a_prompt_that_the_server_has_no_room_for(world: World, tmp_path: Path) -> None:
    with served(world, context=7) as (state, params):
        message = refusal(world, params.model_copy(update={"domain": ("say",), "guards": ()}), tmp_path / "out")
        assert "task say: a prompt of 5 tokens and 3 for the answer exceed the context of 7" in message
        assert "raise it in the server (--max-model-len)" in message
        assert state.asked == []


def test_settings_of_generation_that_a_server_lacks(world: World, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for file in filter(Path.is_file, world.tasks.iterdir()):
        (tasks / file.name).write_text(file.read_text().replace("do_sample:", "num_beams: 3, do_sample:"))
    with served(world) as (state, params):
        asked = params.model_copy(update={"tasks": str(tasks), "domain": ("say",), "guards": ()})
        assert "generation_kwargs has num_beams, which the engine server cannot" in refusal(
            world, asked, tmp_path / "o"
        )
        assert state.asked == []


def test_a_generation_config_that_only_transformers_honours(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "instruct"
    folder.mkdir()
    for file in world.instruct.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"no_repeat_ngram_size": 2}))
    with served(world) as (_, params), pytest.raises(EvaluationError, match="no_repeat_ngram_size would change"):
        evaluate(folder, world.data, None, None, "shadow", params, tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"command": ["serve", "{model}", "{name}"]}, r"engine\.server\.command lacks \{port\}"),
        ({"command": ["serve", "{model}", "{name}", "{port}", "--api-key", "x"]}, "remove --api-key"),
        ({"command": ["serve", "{model}", "{name}", "{port}"], "url": "http://h:1/v1"}, "remove one of the two"),
        ({"url": "http://user:secret@h/v1"}, "url"),
        ({"url": "http://h:8000"}, "url"),
    ],
)
def test_settings_that_contradict(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Server(model="m", **settings)
