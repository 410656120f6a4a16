"""The fields that we read from the small JSON files of a model folder; all readers of such a field use these types."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from shadowft_core.files import Fields, read_json_object, read_record
from shadowft_core.files.record import check_record
from shadowft_core.limits import CONFIG_BYTES, TOKENS

SAVE_AGAIN = "correct the field, or save the model again"
TokenId = Annotated[int, Field(ge=0, lt=TOKENS)]
Count = Annotated[int, Field(ge=1, lt=1 << 31)]


class LanguageConfig(Fields):
    """The fields of config.json, or of its language model's part, that decide how weights are read."""

    model_type: str | None = None
    architectures: list[str] | None = None
    tie_word_embeddings: bool | None = None
    quantization_config: dict[str, Any] | None = None
    vocab_size: Count | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None


class ModelConfig(LanguageConfig):
    """config.json as a whole."""

    configuration_files: list[Literal["config.json"]] | None = None
    """others, such as config.4.0.0.json, would be loaded by transformers in place of the file that is checked"""
    text_config: LanguageConfig | None = None
    vision_config: dict[str, Any] | None = None


class AddedToken(Fields):
    """A special token with its settings."""

    content: str


class NamedTemplate(Fields):
    """One of several chat templates."""

    template: str


Token = str | AddedToken | None


class SpecialTokens(Fields):
    """special_tokens_map.json."""

    bos_token: Token = None
    eos_token: Token = None
    unk_token: Token = None
    sep_token: Token = None
    pad_token: Token = None
    cls_token: Token = None


class TokenizerConfig(SpecialTokens):
    """tokenizer_config.json and chat_template.json: templates and special tokens."""

    fast_tokenizer_files: list[Literal["tokenizer.json"]] | None = None
    """as `configuration_files`: others, even outside of the folder, would be loaded in place of tokenizer.json"""
    chat_template: str | list[NamedTemplate] | dict[str, str] | None = None

    @property
    def templates(self) -> list[str]:
        held = self.chat_template or []
        if isinstance(held, str):
            return [held]
        return list(held.values()) if isinstance(held, dict) else [one.template for one in held]


class GenerationConfig(Fields):
    """generation_config.json: the ids that end a reply, and what changes greedy answers on a server."""

    eos_token_id: TokenId | list[TokenId] | None = None
    repetition_penalty: float | None = Field(None, gt=0)

    @property
    def stops(self) -> list[int]:
        found = self.eos_token_id
        return found if isinstance(found, list) else [] if found is None else [found]


class PairSide(Fields):
    """A model of a pair in pair.json."""

    ref: str | None = None
    digest: str | None = None


class PairFields(Fields):
    """pair.json, which `fetch` writes: its two models, and the tokens that the Base never trained."""

    base: PairSide = PairSide()
    instruct: PairSide = PairSide()
    untrained_tokens: list[Any] | None = None


F = TypeVar("F", bound=Fields)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as a whole, with the fields of `ModelConfig` checked.

    Raises CheckpointError when it is missing, not a JSON object, or has a field of another type or range.
    """
    path = folder / "config.json"
    config = read_json_object(path, CONFIG_BYTES)
    check_record(config, ModelConfig, path, SAVE_AGAIN)
    return config


def read_settings(folder: Path, name: str, form: type[F]) -> F:
    """The fields of a JSON file in a model folder; their defaults if there is no such file.

    Raises CheckpointError, naming file and field, for a field of another type or range.
    """
    path = folder / name
    return read_record(path, form, SAVE_AGAIN, largest=CONFIG_BYTES) if path.exists() else form()
