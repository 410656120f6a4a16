"""The sections of params.yaml about evaluation."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from shadowft_core.limits import ENTRIES, VALUE_COUNT
from shadowft_core.params.section import Count, Positive, Processes, Prompt, Section, Text, Texts

Part = Annotated[float, Field(ge=0, le=1)]


class Generation(Section):
    """Prompts and limits of answers, the same for every arm and recorded in scores.json. Decoding is greedy."""

    system: Prompt | None = Field(None, min_length=1, description="system turn before every prompt; none when null")
    thinking: Literal["template", "on", "off"] = Field(
        "template", description="the template's variable enable_thinking: not set, true or false"
    )
    thinking_tokens: Count | None = Field(
        None,
        description="tokens for thoughts, in addition to those of the answer; null: no thoughts are expected",
    )
    max_tokens: Count | None = Field(None, description="tokens of an answer; max_gen_toks of the task when null")

    @field_validator("thinking", mode="before")
    @classmethod
    def _written_without_quotes(cls, value: Any) -> Any:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value  # YAML reads on as true

    @model_validator(mode="after")
    def _thoughts_need_room(self) -> Self:
        if self.thinking == "on" and self.thinking_tokens is None:
            raise ValueError("thinking is on, but thinking_tokens is not set; set how many tokens thoughts may have")
        if self.thinking == "off" and self.thinking_tokens is not None:
            raise ValueError(f"thinking is off, but thinking_tokens is {self.thinking_tokens}; remove one of them")
        return self


URL = "http://127.0.0.1:8000/v1"


class Server(Section):
    """An OpenAI-compatible server of the Instruct (vLLM, SGLang, llama.cpp). Its key, if it needs one, comes from the
    environment variable OPENAI_API_KEY."""

    url: Text = Field(URL, pattern=r"^https?://[^@?\s]+/v1/?$", description="up to and with /v1")
    model: Text = Field(min_length=1, description="the server's name for the Instruct")
    concurrency: Processes = Field(8, description="requests in flight")
    timeout: Positive = Field(600, description="seconds to wait for an answer")
    command: tuple[Prompt, ...] = Field(
        (),
        max_length=ENTRIES,
        description="command that starts the server, one word per item; {model}, {name} and {port} are replaced. "
        "Needed for deltas that a server cannot load as a LoRA adapter: each such arm gets a server of its own. "
        "Without it, the server at `url` must be running",
    )

    @model_validator(mode="after")
    def _one_way_to_a_server(self) -> Self:
        if not self.command:
            return self
        text = " ".join(self.command)
        if missing := [name for name in ("{model}", "{name}", "{port}") if name not in text]:
            raise ValueError(f"engine.server.command lacks {' and '.join(missing)}; their values differ at each start")
        if "--api-key" in text:
            raise ValueError("engine.server.command has a key, and scores record the command: remove --api-key")
        if self.url != URL:
            raise ValueError(
                f"engine.server has the url {self.url} and a command; the command starts servers on ports of their "
                "own: remove one of the two"
            )
        return self


class Engine(Section):
    """Where the models run."""

    kind: Literal["hf", "server"] = Field("hf", description="transformers in this process, or a server")
    devices: Processes = Field(1, description="hf: processes that share the items, one per GPU")
    server: Server | None = None

    @model_validator(mode="after")
    def _server_needs_its_settings(self) -> Self:
        if (self.kind == "server") != (self.server is not None):
            raise ValueError(f"engine.kind is {self.kind} and engine.server is {self.server}; set both or neither")
        if self.kind == "server" and self.devices > 1:
            raise ValueError(f"engine.devices is {self.devices}, but a server manages its own GPUs; remove it")
        return self


class Limits(Section):
    """Largest shares of a task's answers that may be in doubt. Above one of them, the stage fails for the Instruct, and
    flags the scores of any other arm."""

    cut: Part = Field(0.5, description="reached the token limit, or never ended their thought")
    empty: Part = Field(0.5, description="have no text")
    unparsed: Part = Field(0.9, description="have no answer that the task's filter or scorer finds")
    unstopped: Part = Field(0.9, description="ended in a way that the engine does not report")


class Evaluate(Section):
    """The tasks that every arm is scored on, with the same items, prompts and template."""

    tasks: Text = Field(min_length=1, description="folder of lm-evaluation-harness task files")
    domain: Texts = Field(min_length=1, description="test tasks that the training should improve")
    guards: Texts = Field((), description="test tasks that must not get worse")
    metrics: dict[Text, Text] = Field(
        {},
        max_length=ENTRIES,
        description="by task or group: the metric that decides, METRIC or FILTER/METRIC; else the first listed",
    )
    limit: Count | None = Field(None, description="items per task; all when null")
    batch_size: Count = Field(64, description="prompts per forward pass")
    engine: Engine = Engine()
    generation: Generation = Generation()
    allow_code_execution: bool = Field(
        False, description="run programs that a model wrote, in a sandbox, and Python files that task files name"
    )
    kl_answers: int = Field(
        64,
        ge=0,
        le=VALUE_COUNT,
        description="answers of the Instruct on which KL(Instruct || arm) is measured; 0: not measured",
    )
    limits: Limits = Limits()
