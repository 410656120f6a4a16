"""The engine `server`: an OpenAI-compatible server (vLLM, SGLang, llama.cpp), in an environment of its own.

A LoRA delta at any scale is served as an adapter of the one Instruct: nothing is merged on disk. The server applies it
unmerged and unrounded, so its answers can differ from those of the grafted folder by what the rounding to the model's
dtype changes (docs/evaluation.md gives the figures); `digest` is that of the grafted folder. Any other delta needs
`engine.server.command`: its graft is written to a temporary folder, served by a process of its own, and deleted.
"""

import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadowft_core.errors import AdapterError, CheckpointError, EvaluationError, say
from shadowft_core.evaluate.engines.door import Deltas, Engine
from shadowft_core.evaluate.engines.endpoint import Card, Endpoint
from shadowft_core.evaluate.engines.launch import launched
from shadowft_core.evaluate.engines.models import described
from shadowft_core.evaluate.quiet import quiet
from shadowft_core.export import Adapter, plan_adapter
from shadowft_core.files import read_json_object
from shadowft_core.grafting import Options, graft, grafted_tensors
from shadowft_core.limits import CONFIG_BYTES
from shadowft_core.params import Server
from shadowft_core.weights import model_digest, open_checkpoint
from shadowft_core.weights.settings import Count, GenerationConfig, read_settings

if TYPE_CHECKING:
    from shadowft_core.params import Evaluate

# Settings of generation_config.json that change greedy answers in transformers, and that servers do not know.
UNKNOWN = (
    "bad_words_ids", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "min_length",
    "min_new_tokens", "no_repeat_ngram_size", "sequence_bias", "suppress_tokens",
)  # fmt: skip
SAMPLE = "The harbour is quiet at five, and 17 boats wait for the tide: who will be first to leave?"
SAMPLED = 16  # tokens of SAMPLE
LOUD = 64  # a delta this many times as large shows in 16-bit answers


class _Language(GenerationConfig):
    """What config.json tells of the language model."""

    max_position_embeddings: Count | None = None


class _Config(_Language):
    text_config: _Language | None = None


@dataclass(frozen=True)
class Served:
    """A model of a server, as the harness takes it."""

    digest: str
    lm: Any


class ServerEngine:
    """One Instruct on a server: that of the URL, or one that `command` starts."""

    def __init__(self, instruct: Path, tokenizer: Any, server: Server, running: ExitStack) -> None:
        self._instruct, self._tokenizer, self._server = instruct, tokenizer, server
        self._running = running
        """the process of the Instruct's server, if it is ours and runs"""
        self._endpoint: Endpoint | None = None
        self._generation = generation_settings(instruct)
        card = self._card
        self.identity: Mapping[str, Any] = {
            "engine": "server",
            "url": None if server.command else server.url,
            "model": server.model,
            "version": card.version,
            "context": card.context,
            "command": list(server.command),
        }

    def check(self, deltas: Deltas, options: Options, likelihood: Sequence[str]) -> None:
        if not _is_untouched(deltas, options):
            self._adapter(deltas, options)
        if likelihood:
            self._lm(self._open(), self._server.model).require_likelihood(likelihood)

    @contextmanager
    def arm(self, deltas: Deltas, options: Options) -> Iterator[Served]:
        if _is_untouched(deltas, options):
            yield self._untouched()
            return
        adapter = self._adapter(deltas, options)
        if adapter is None:
            with self._own_process(deltas, options) as arm:
                yield arm
            return
        digest = _grafted_digest(self._instruct, deltas, options)
        with self._loaded(adapter, digest) as name:
            if digest != self._digest and self._sound(name) == self._sound(self._server.model):
                self._require_applied(deltas, options, digest)
            yield Served(digest, self._lm(self._open(), name))

    def _untouched(self) -> Served:
        return Served(self._digest, self._lm(self._open(), self._server.model))

    @cached_property
    def _digest(self) -> str:
        return open_checkpoint(self._instruct).digest()

    @cached_property
    def _card(self) -> Card:
        """Of the Instruct. Raises EvaluationError when the server has another model under the name."""
        endpoint = self._open()
        card = endpoint.card(self._server.model)
        if card.root is not None and Path(card.root).is_dir():  # a server on this machine: the weights can be compared
            try:
                served = open_checkpoint(Path(card.root)).digest()
            except CheckpointError:
                return card  # its own format, such as GGUF
            if served != self._digest:
                raise EvaluationError(
                    f"{endpoint.url}: {self._server.model} is {card.root} with digest {served}, the Instruct "
                    f"{self._instruct} has {self._digest}; start the server with the Instruct"
                )
        return card

    def _open(self) -> Endpoint:
        """The Instruct's server; started again if it made room for another."""
        if self._endpoint is None:
            server = self._server
            if server.command:
                self._endpoint = self._running.enter_context(launched(server, self._instruct))
            else:
                self._endpoint = Endpoint(server.url, server.timeout, server.concurrency)
        return self._endpoint

    def _close(self) -> None:
        self._running.close()
        self._endpoint = None

    def _adapter(self, deltas: Deltas, options: Options) -> Adapter | None:
        """The arm as an adapter; None if it needs a server process of its own.

        Raises EvaluationError if there is no command for that, and what `graft.make_plan` raises.
        """
        try:
            if options.dtype != "instruct":
                raise AdapterError(f"its graft has the dtype {options.dtype}, and an adapter leaves that of the server")
            if not self._card.adapters:
                raise AdapterError(
                    f"{self._open().url} loads no adapters at run time (vLLM: --enable-lora, and "
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment)"
                )
            return plan_adapter(self._instruct, deltas, options)
        except AdapterError as error:
            if self._server.command:
                return None
            folders = ", ".join(str(folder) for folder, _ in deltas)
            reason = str(error).partition("; use `shadowft export")[0]
            raise EvaluationError(
                f"{folders}: cannot be served as an adapter: {reason}; set evaluate.engine.server.command, so that "
                "such an arm gets a server of its own, or evaluate.engine.kind: hf"
            ) from None

    def _sound(self, model: str) -> Any:
        """The log-probabilities of a fixed text by a model of the server; a new object if it sends none."""
        ids = self._tokenizer(SAMPLE, add_special_tokens=False)["input_ids"][:SAMPLED]
        body = {"model": model, "prompt": ids, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        try:
            found = self._open().complete(body)
            return found["choices"][0]["logprobs"]["token_logprobs"] or object()
        except (EvaluationError, LookupError, TypeError):
            return object()

    def _require_applied(self, deltas: Deltas, options: Options, digest: str) -> None:
        """Raise EvaluationError if an adapter changes no bit of the answers, and not even LOUD times the delta does.

        vLLM serves the untouched model, without an error, if its settings or the names of its modules leave out those
        of the adapter (vllm-project/vllm#34186, #55193).
        """
        loud = [(folder, LOUD * scale) for folder, scale in deltas]
        scale_for = tuple((pattern, LOUD * scale) for pattern, scale in options.scale_for)
        adapter = plan_adapter(self._instruct, loud, replace(options, scale_for=scale_for))
        with self._loaded(adapter, digest) as name:
            applied = self._sound(name) != self._sound(self._server.model)
        if not applied:
            raise EvaluationError(
                f"{self._open().url}: answers with the adapter of {', '.join(str(folder) for folder, _ in deltas)} to "
                "the bit as without it, so the server leaves it out; correct its settings (vLLM: "
                "--lora-target-modules), or set evaluate.engine.kind: hf"
            )

    @contextmanager
    def _loaded(self, adapter: Adapter, digest: str) -> Iterator[str]:
        """Load an adapter under a name of its own, so that no cache of the server confuses two."""
        with tempfile.TemporaryDirectory(prefix="shadowft-adapter-") as place:
            folder = Path(place, "adapter")
            adapter.write(folder)
            with self._loaded_folder(folder, digest) as name:
                yield name

    @contextmanager
    def _loaded_folder(self, folder: Path, digest: str) -> Iterator[str]:
        name = f"shadowft-{digest.removeprefix('sha256:')[:12]}-{uuid.uuid4().hex[:8]}"
        endpoint = self._open()
        try:
            endpoint.add_adapter(name, str(folder))
        except EvaluationError as error:
            raise EvaluationError(
                f"{error}; the server must read {folder} (TMPDIR chooses the place) and take its rank (vLLM: "
                "--max-lora-rank)"
            ) from None
        try:
            yield name
        finally:
            try:
                endpoint.remove_adapter(name)
            except EvaluationError as error:  # the scores stand; the server keeps one adapter more
                say(f"evaluate: adapter {name} is not unloaded: {error}")

    @contextmanager
    def _own_process(self, deltas: Deltas, options: Options) -> Iterator[Served]:
        with tempfile.TemporaryDirectory(prefix="shadowft-arm-") as place:
            folder = Path(place, "model")
            recipe = graft(self._instruct, deltas, folder, options)
            self._close()  # two models may not fit
            with launched(self._server, folder) as endpoint:
                endpoint.card(self._server.model)
                yield Served(recipe["digest"], self._lm(endpoint, self._server.model))

    def _lm(self, endpoint: Endpoint, model: str) -> Any:
        with quiet():
            from shadowft_core.evaluate.engines.completions import Completions

            config = read_settings(self._instruct, "config.json", _Config)
            text = config.text_config or config
            ends = self._generation if "eos_token_id" in self._generation.model_fields_set else text
            return Completions(
                endpoint,
                model,
                self._tokenizer,
                context=self._card.context or text.max_position_embeddings or sys.maxsize,
                stop_ids=ends.stops,
                repetition_penalty=self._generation.repetition_penalty or 1.0,
            )


@contextmanager
def open_server(instruct: Path, tokenizer: Any, params: "Evaluate") -> Iterator[Engine]:
    """The engine for one Instruct folder. Processes that it starts end with the block.

    Raises EvaluationError when the server of `params.engine` does not answer, lacks the model, serves other weights, or
    cannot be started.
    """
    server = params.engine.server
    if server is None:
        raise EvaluationError("evaluate.engine.server is missing; give the server's url and model")
    with ExitStack() as running:
        yield ServerEngine(instruct, tokenizer, server, running)


def _is_untouched(deltas: Deltas, options: Options) -> bool:
    """Whether the graft is the Instruct, bit for bit, because every scale is 0."""
    return options.dtype == "instruct" and not any(scale for _, scale in (*deltas, *options.scale_for))


def _grafted_digest(instruct: Path, deltas: Deltas, options: Options) -> str:
    """The model digest of the folder that `graft` would write; holds one tensor at a time."""
    return model_digest({name: described(array) for name, array in grafted_tensors(instruct, deltas, options)})


def generation_settings(instruct: Path) -> GenerationConfig:
    """generation_config.json. Raises EvaluationError for a setting that only transformers honours."""
    path = instruct / "generation_config.json"
    settings = read_json_object(path, CONFIG_BYTES) if path.is_file() else {}
    if odd := [name for name in UNKNOWN if settings.get(name)]:
        raise EvaluationError(
            f"{path}: {', '.join(odd)} would change the answers of `hf` only; use evaluate.engine.kind: hf"
        )
    return read_settings(instruct, path.name, GenerationConfig)
