"""From conversations to token ids and labels, for any chat template: the loss counts only the assistant's tokens."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shadowft_core.errors import DataError, TrainError

IGNORED = -100  # the label that PyTorch's cross entropy skips
# Some templates write today's date into the system text. A fixed date keeps runs equal; Llama's templates use this one
# as their default.
FIXED_DAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"

Message = dict[str, str]


@dataclass
class Encoded:
    """Rows ready for the trainer. `input_ids[i]` and `labels[i]` have equal length; labels are ids or IGNORED."""

    input_ids: list[list[int]] = field(default_factory=list)
    labels: list[list[int]] = field(default_factory=list)
    too_long: int = 0
    control_tokens: int = 0

    def counts(self) -> dict[str, int]:
        """Rows used and left out, tokens of the rows used, and tokens that count in the loss."""
        return {
            "rows": len(self.input_ids),
            "too_long": self.too_long,
            "control_tokens": self.control_tokens,
            "tokens": sum(map(len, self.input_ids)),
            "learned_tokens": sum(label != IGNORED for row in self.labels for label in row),
        }


class Encoder:
    """One tokenizer and its chat template."""

    def __init__(self, tokenizer: Any, stops: set[int]) -> None:
        """`stops` are the ids that end a reply at inference: eos of the tokenizer and of generation_config.json."""
        self._tokenizer = tokenizer
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._special = sorted(special | set(tokenizer.all_special_tokens))
        self._special_ids = set(tokenizer.convert_tokens_to_ids(self._special))
        self._stops = stops
        template = tokenizer.chat_template
        self._template = FIXED_DAY + template if "strftime_now" in template else template

    def encode_file(self, path: Path, max_length: int) -> Encoded:
        """Encode a parquet file made by `prepare`.

        Rows of more than `max_length` tokens, and rows whose text contains a control token of the template (it would be
        read as one), are counted and left out. Nothing is truncated.
        """
        encoded = Encoded()
        for row in _rows(path):
            messages = row["messages"]
            if any(token in turn["content"] for turn in messages for token in self._special):
                encoded.control_tokens += 1
                continue
            input_ids, labels = self.encode(messages, row["source"])
            if len(input_ids) > max_length:
                encoded.too_long += 1
                continue
            encoded.input_ids.append(input_ids)
            encoded.labels.append(labels)
        return encoded

    def encode(self, messages: list[Message], source: str) -> tuple[list[int], list[int]]:
        """Token ids of a whole conversation, and the labels: the same id where it is learned, IGNORED elsewhere.

        A reply is learned from the end of its generation prompt through the token that ends the turn; what the template
        writes after that token is not. The text is split where a generation prompt ends and tokenised piece by piece,
        as at inference, so no token spans prompt and reply.

        Raises TrainError naming `source` when the template rejects the row, or renders the turns before a reply
        differently once the reply follows.
        """
        whole = self._render(messages, source)
        replies = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
        starts = [self._start(messages[:turn], whole, source) for turn in replies]
        input_ids = self._tokenize(whole[: starts[0]])
        labels = [IGNORED] * len(input_ids)
        for turn, start, end in zip(replies, starts, [*starts[1:], len(whole)], strict=True):
            piece = self._tokenize(whole[start:end])
            closed = whole if turn == len(messages) - 1 else self._render(messages[: turn + 1], source)
            learned = self._learned(piece, closed[start:] if whole.startswith(closed) else None, source)
            input_ids += piece
            labels += piece[:learned] + [IGNORED] * (len(piece) - learned)
        return input_ids, labels

    def _start(self, before: list[Message], whole: str, source: str) -> int:
        """Characters of `whole` before the reply to `before`."""
        prompt = self._render(before, source, add_generation_prompt=True)
        if not whole.startswith(prompt) or len(prompt) == len(whole):
            raise TrainError(
                f"{source}: the chat template renders the first {len(before)} turns differently once a reply follows, "
                "so the start of the reply is unknown; drop or split this row"
            )
        return len(prompt)

    def _learned(self, piece: list[int], reply: str | None, source: str) -> int:
        """How many ids of `piece` are learned; `reply` is its text up to the next turn, None where unknown.

        Templates that render a turn differently when more turns follow (closing eos, dropped thought) still end it with
        a stop id.
        """
        turn = self._tokenize(reply) if reply is not None else piece
        limit = len(turn) if piece[: len(turn)] == turn else len(piece)
        stops = [at for at in range(limit) if piece[at] in self._stops]
        if stops:
            return stops[0] + 1
        if reply is None:
            raise TrainError(
                f"{source}: the chat template renders a reply differently when more turns follow, and no end token "
                "marks its end; drop or split this row"
            )
        special = [at for at in range(limit) if piece[at] in self._special_ids]
        return special[-1] + 1 if special else limit

    def _tokenize(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _render(self, messages: list[Message], source: str, add_generation_prompt: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                chat_template=self._template,
            )
        except TemplateError as error:
            raise TrainError(f"{source}: the chat template rejects this row: {error}; drop or change it") from None
        return str(text)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024, columns=["messages", "source"]):
                yield from batch.to_pylist()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run `shadowft prepare` first") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not readable as parquet: {' '.join(str(error).split())}") from None
