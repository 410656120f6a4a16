"""Which tokens are learned, for templates with and without {% generation %} markers."""

from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import TrainError
from shadowft_core.train.labels import IGNORED, Encoder
from tests.fixtures.training import TEMPLATE, word_tokenizer

TALK = [
    {"role": "user", "content": "1 plus 2"},
    {"role": "assistant", "content": "is 3"},
    {"role": "user", "content": "be kind"},
    {"role": "assistant", "content": "is 4"},
]


def marked(tokenizer: Any, messages: list[dict[str, str]], template: str) -> tuple[list[int], list[int]]:
    """Ids and labels from the {% generation %} markers of the template."""
    got = tokenizer.apply_chat_template(
        messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    pairs = zip(got["input_ids"], got["assistant_masks"], strict=True)
    return got["input_ids"], [token if learned else IGNORED for token, learned in pairs]


def test_labels_equal_the_generation_markers() -> None:
    tokenizer = word_tokenizer()
    encoder = Encoder(tokenizer, {tokenizer.eos_token_id})
    for messages in (TALK[:2], TALK, [{"role": "system", "content": "be kind"}, *TALK]):
        assert encoder.encode(messages, "row") == marked(tokenizer, messages, TEMPLATE)


@pytest.mark.parametrize(
    ("name", "stop", "eos"),
    [
        ("qwen2_5", "<|im_end|>", "<|im_end|>"),
        ("qwen3_instruct_2507", "<|im_end|>", "<|im_end|>"),
        ("llama3", "<|eot_id|>", "<|eot_id|>"),
        ("gemma3", "<end_of_turn>", "<eos>"),
        ("phi3", "<|end|>", "<|endoftext|>"),
    ],
)
@pytest.mark.parametrize("talk", [TALK[:2], TALK], ids=["one", "two"])
def test_labels_of_well_known_templates(name: str, stop: str, eos: str, talk: list[dict[str, str]]) -> None:
    """Templates that TRL ships without markers: replies and their end tokens are learned, nothing else.

    The marked twin TRL ships for training learns the same, and the white space or the eos that follows.
    """
    tokenizer = byte_tokenizer(stop, eos)
    folder = Path(trl_folder()) / "chat_templates"
    tokenizer.chat_template = (folder / f"{name}.jinja").read_text()
    encoder = Encoder(tokenizer, {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(stop)})
    ids, labels = encoder.encode(talk, "row")
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == ("bos_token" in tokenizer.chat_template)
    learned = tokenizer.decode([label for label in labels if label != IGNORED])
    assert learned == "".join(turn["content"] + stop for turn in talk if turn["role"] == "assistant")
    twin_ids, twin = marked(tokenizer, talk, (folder / f"{name}_training.jinja").read_text())
    assert tokenizer.decode(ids) == tokenizer.decode(twin_ids)
    said = tokenizer.decode([label for label in twin if label != IGNORED])
    assert "".join(said.replace("<|endoftext|>", "").split()) == "".join(learned.split())


def trl_folder() -> str:
    from importlib.util import find_spec

    found = find_spec("trl")
    assert found
    assert found.origin
    return str(Path(found.origin).parent)


def byte_tokenizer(*special: str) -> Any:
    """One token per byte; by default with a begin token before every text, like Llama's and Gemma's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: at for at, letter in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<bos>"])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token=special[-1])
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def test_a_reply_that_begins_with_white_space_keeps_its_own_tokens() -> None:
    """The prompt has the same tokens as at inference, even where the tokenizer would merge prompt and reply."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"u": 0, ":": 1, "x": 2, "::": 3, "<e>": 4}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[(":", ":")]))
    raw.pre_tokenizer = pre_tokenizers.Split("<e>", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<e>")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}u{{ m.content }}{% else %}:{{ m.content }}<e>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    ids, labels = Encoder(tokenizer, {4}).encode(
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": ":x"}], "row"
    )
    assert tokenizer("ux::x<e>", add_special_tokens=False)["input_ids"] == [0, 2, 3, 2, 4]
    assert ids == [0, 2, 1, 1, 2, 4]
    assert labels == [IGNORED] * 3 + [1, 2, 4]


def test_a_template_with_the_date_gives_the_same_ids_on_any_day() -> None:
    tokenizer = byte_tokenizer("<|im_end|>")
    tokenizer.chat_template = (
        "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}never{% endif %} " + TEMPLATE
    )
    ids, _ = Encoder(tokenizer, {tokenizer.eos_token_id}).encode(TALK[:2], "row")
    assert tokenizer.decode(ids).startswith("26 Jul 2024 ")


def test_a_template_whose_replies_cannot_be_found_names_the_row() -> None:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{{ messages|length }} : " + TEMPLATE
    with pytest.raises(TrainError, match=r"^rows\.jsonl:7: the chat template renders the first 1 turns differently"):
        Encoder(tokenizer, {3}).encode(TALK, "rows.jsonl:7")
    tokenizer.chat_template = "{{ raise_exception('no talk today') }}"
    with pytest.raises(TrainError, match=r"rows\.jsonl:8: .* rejects this row: no talk today"):
        Encoder(tokenizer, {3}).encode(TALK, "rows.jsonl:8")


def test_a_row_of_exactly_max_length_is_used(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    encoder = Encoder(word_tokenizer(), {3})
    longest = len(encoder.encode(TALK, "row")[0])
    pq.write_table(pa.Table.from_pylist([{"messages": TALK, "source": "row"}]), tmp_path / "rows.parquet")
    for limit, left_out in ((longest, 0), (longest - 1, 1)):
        encoded = encoder.encode_file(tmp_path / "rows.parquet", limit)
        assert (encoded.too_long, len(encoded.input_ids)) == (left_out, 1 - left_out)


DROPS_A_THOUGHT = (  # renders a reply differently once more turns follow, as templates of reasoning models do
    "{% for m in messages %}{% if m.role == 'user' %}user : {{ m.content }} . {% else %}"
    "assistant : {% if loop.last %}kind {% endif %}{{ m.content }} END {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


@pytest.mark.parametrize("end", [".", "<|im_end|>"], ids=["no stop id", "a stop id"])
def test_a_reply_without_a_marked_end_is_refused(end: str) -> None:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = DROPS_A_THOUGHT.replace("END", end)
    encoder = Encoder(tokenizer, {tokenizer.eos_token_id})
    if end == ".":
        with pytest.raises(TrainError, match=r"^row: .* no end token marks its end; drop or split this row"):
            encoder.encode(TALK, "row")
    else:
        ids, labels = encoder.encode(TALK, "row")
        learned = tokenizer.decode([label for label in labels if label != IGNORED])
        assert learned == "is 3 <|im_end|> kind is 4 <|im_end|>", "nothing of the user's next turn"
        assert len(ids) == len(labels)


@pytest.mark.parametrize(
    ("ending", "learned"),
    [
        ("<|im_end|> .", "is 3 <|im_end|>"),  # up to its last special token
        ("<|im_start|> : <|im_end|> .", "is 3 <|im_start|> : <|im_end|>"),
        (".", "is 3 ."),  # no special token: all of it
    ],
)
def test_without_a_stop_id_a_reply_ends_with_its_last_special_token(ending: str, learned: str) -> None:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} : {{ m.content }} "
        "{% if m.role == 'assistant' %}END {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    ).replace("END", ending)
    _, labels = Encoder(tokenizer, set()).encode(TALK[:2], "row")
    assert tokenizer.decode([label for label in labels if label != IGNORED]) == learned
