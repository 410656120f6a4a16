"""A small OpenAI-compatible server of a real model on loopback, with vLLM's fields, adapters, and faults on demand.

python -m tests.servers.completions FOLDER NAME PORT [--context N] serves until it is ended.
"""

import argparse
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Json = dict[str, Any]


class Model:
    """A folder, on the CPU in float32, and adapters on it, applied unmerged as servers do."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self.torch, self.folder = torch, folder
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.adapters: set[str] = set()
        ends = self.model.generation_config.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])

    def load(self, name: str, folder: str) -> None:
        from peft import PeftModel

        if self.adapters:
            self.model.load_adapter(folder, adapter_name=name)
        else:
            self.model = PeftModel.from_pretrained(self.model, folder, adapter_name=name).eval()
        self.adapters.add(name)

    def unload(self, name: str) -> None:
        self.adapters.remove(name)
        if self.adapters:
            self.model.delete_adapter(name)
        else:
            self.model = self.model.unload()

    def logits(self, ids: list[int], adapter: str) -> Any:
        """[tokens, vocabulary] after each token."""
        if self.adapters:
            if adapter in self.adapters:
                self.model.set_adapter(adapter)
            else:
                with self.model.disable_adapter(), self.torch.inference_mode():
                    return self.model(self.torch.tensor([ids])).logits[0]
        with self.torch.inference_mode():
            return self.model(self.torch.tensor([ids])).logits[0]

    def complete(self, body: Json) -> tuple[list[int], str, str]:
        """Ids of a greedy answer, its text, finish_reason."""
        ids, new = list(body["prompt"]), list[int]()
        ends = self.ends | set(body.get("stop_token_ids") or [])
        while len(new) < body["max_tokens"]:
            new.append(int(self.logits(ids + new, body["model"])[-1].argmax()))
            text = self.tokenizer.decode(new, skip_special_tokens=True)
            found = [text.index(stop) for stop in body.get("stop") or [] if stop in text]
            if new[-1] in ends or found:
                return new, text[: min(found, default=len(text))], "stop"
        return new, self.tokenizer.decode(new, skip_special_tokens=True), "length"

    def logprobs(self, ids: list[int], adapter: str, count: int, prefix: str) -> Json:
        """OpenAI's `logprobs` of `ids`, with the `count` likeliest tokens and the one that is there."""
        rows = self.torch.log_softmax(self.logits(ids, adapter), dim=-1)
        values: list[Any] = [None]
        tops: list[Any] = [None]
        for at, token in enumerate(ids[1:]):
            best = rows[at].topk(min(count, rows.shape[1])).indices.tolist()
            values.append(float(rows[at][token]))
            tops.append({f"{prefix}{one}": float(rows[at][one]) for one in (token, *best)})
        return {"tokens": [str(token) for token in ids], "token_logprobs": values, "top_logprobs": tops}


@dataclass
class State:
    """What a server serves, what it was asked, and how it misbehaves."""

    model: Model
    name: str
    context: int | None
    root: str | None = None
    adapters: bool = True
    token_ids: bool = True
    """answers have the token ids, as from vLLM"""
    fault: Callable[[str, Json, Json], Any] | None = None
    """(path, request, answer) -> the answer to send instead: an object, bytes, or (status, object)"""
    asked: list[Json] = field(default_factory=list)
    """the bodies of completions"""
    keys: list[str | None] = field(default_factory=list)
    port: int = 0
    """where it listens, once it does"""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, method: str, path: str, body: Json) -> tuple[int, Any]:
        if path == "/version":
            return 200, {"version": "0.0.test"}
        if path == "/v1/models":
            cards = [{"id": name, "object": "model"} for name in (self.name, *sorted(self.model.adapters))]
            about = {"max_model_len": self.context, "root": self.root}
            return 200, {"data": [{**card, **{k: v for k, v in about.items() if v is not None}} for card in cards]}
        if path == "/v1/load_lora_adapter" and self.adapters:
            if method == "GET":
                return 405, {"detail": "Method Not Allowed"}
            self.model.load(body["lora_name"], body["lora_path"])
            return 200, "Success"
        if path == "/v1/unload_lora_adapter" and self.adapters:
            self.model.unload(body["lora_name"])
            return 200, "Success"
        if path != "/v1/completions":
            return 404, {"detail": "Not Found"}
        self.asked.append(body)
        if body["model"] not in {self.name, *self.model.adapters}:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        prompt = len(body["prompt"])
        if self.context and prompt + body["max_tokens"] > self.context:
            return 400, {"error": {"message": f"This model's maximum context length is {self.context} tokens."}}
        ids, text, reason = self.model.complete(body)
        choice: Json = {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}
        if body.get("echo"):
            named = "token_id:" if body.get("return_tokens_as_token_ids") and self.token_ids else ""
            shown = body["prompt"] + ids  # the new tokens too, as vLLM
            choice["logprobs"] = self.model.logprobs(shown, body["model"], body["logprobs"], named)
        if body.get("return_token_ids") and self.token_ids:
            choice |= {"token_ids": ids, "prompt_token_ids": body["prompt"]}
        return 200, {
            "choices": [choice],
            "usage": {"prompt_tokens": prompt, "completion_tokens": len(ids)},
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Listener"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.serve("GET", {})

    def do_POST(self) -> None:
        self.serve("POST", json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def serve(self, method: str, body: Json) -> None:
        state = self.server.state
        state.keys.append(self.headers.get("Authorization"))
        with state.lock:
            status, found = state.answer(method, self.path, body)
            if state.fault is not None:
                found = state.fault(self.path, body, found)
                if isinstance(found, tuple):
                    status, found = found
        if found is CLOSED:
            self.close_connection = True
            self.connection.shutdown(2)
            return
        data = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


CLOSED = object()
"""a fault: the connection breaks without an answer"""


class Listener(ThreadingHTTPServer):
    request_queue_size = 64
    daemon_threads = True

    def __init__(self, state: State, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.state = state
        state.port = self.server_port

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is no event."""


@contextmanager
def serving(state: State) -> Iterator[str]:
    """Serve in a thread; yields the URL."""
    with Listener(state) as listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{state.port}/v1"
        finally:
            listener.shutdown()
            thread.join()


def slow(seconds: float) -> Callable[[str, Json, Json], Any]:
    """A fault: completions take longer."""

    def fault(path: str, _: Json, found: Json) -> Any:
        if path == "/v1/completions":
            time.sleep(seconds)
        return found

    return fault


def with_logprob(value: float | None) -> Callable[[str, Json, Json], Any]:
    """A fault: the last log-probability of a prompt is `value`. That of the generated token follows it."""

    def fault(_: str, body: Json, found: Json) -> Any:
        if body.get("echo") and len(body["prompt"]) > 2:  # the question whether the server scores prompts passes
            found["choices"][0]["logprobs"]["token_logprobs"][len(body["prompt"]) - 1] = value
        return found

    return fault


NAN = math.nan


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("port", type=int)
    parser.add_argument("--context", type=int)
    asked = parser.parse_args()
    state = State(Model(asked.folder), asked.name, asked.context, root=str(asked.folder))
    with Listener(state, asked.port) as listener:
        listener.serve_forever()


if __name__ == "__main__":
    main()
