"""A tiny real pair: a Base pretrained on texts about a small world, and the Instruct post-trained from it.

Both are Qwen3 models of about 0.1 million parameters with a word-level tokenizer, trained from scratch in about two
minutes on one core, and saved as ordinary Hugging Face folders. The pair shows that the pipeline works and decides. It
is no evidence for or against the method: on models of this size a graft is better, equal or worse than direct tuning,
depending on the seed, the style of the data and the learning rate. docs/demo.md says how the settings were chosen.
"""

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from shadowft_core.demo.pico.world import END_OF_TEXT, END_OF_TURN, SPECIAL, TURN, UNKNOWN, World, vocabulary
from shadowft_core.errors import InputError
from shadowft_core.files import (
    bytes_digest,
    cache_folder,
    canonical_json,
    file_digest,
    new_folder,
    write_json_atomically,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

PRETRAIN_STEPS = 3500
POSTTRAIN_STEPS = 300
SOURCES = [  # the pair depends on these files, and on the versions of three libraries
    Path(__file__).with_name(name) for name in ("__init__.py", "world.py")
]
ROWS, BLOCK = 32, 32  # of pretraining: rows a step, tokens a row
LESSONS = 64  # of post-training: conversations a step
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '" + TURN + "' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '" + END_OF_TURN + "' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + '" + END_OF_TURN + "' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + TURN + "assistant\\n' }}{% endif %}"
)


def resolve(reference: str) -> tuple[Path, str]:
    """The folder and the label of `pico:base` or `pico:instruct`. Raises InputError for any other reference."""
    name = reference.removeprefix("pico:")
    if name not in ("base", "instruct"):
        raise InputError(f"{reference}: unknown; use pico:base or pico:instruct")
    return build_pair() / name, "embedded tiny pair"


def build_pair(seed: int = 0, pretrain_steps: int = PRETRAIN_STEPS, posttrain_steps: int = POSTTRAIN_STEPS) -> Path:
    """The folder with `base/` and `instruct/`, trained at the first call and cached for later ones.

    It is $SHADOWFT_CACHE/pico/KEY (default ~/.cache/shadowft/pico/KEY), where KEY is the digest of the arguments, of
    SOURCES and of the versions of torch, transformers and tokenizers. Of several processes that call this at once, one
    trains and the others wait for it. A pair of fewer steps knows little, and is enough for tests of the mechanics.
    Progress goes to stderr.
    """
    made_of = {
        "sources": {file.name: file_digest(file) for file in SOURCES},
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "seed": seed,
        "steps": [pretrain_steps, posttrain_steps],
    }
    key = bytes_digest(canonical_json(made_of)).removeprefix("sha256:")[:16]
    cache = cache_folder() / "pico"
    pair = cache / key
    if not pair.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with _file_lock(cache / f"{key}.lock"):
            if not pair.is_dir():
                with new_folder(pair) as folder:
                    train_pair(folder, seed, pretrain_steps, posttrain_steps)
                    write_json_atomically(folder / "pico.json", made_of)
    return pair


def train_pair(
    folder: Path, seed: int = 0, pretrain_steps: int = PRETRAIN_STEPS, posttrain_steps: int = POSTTRAIN_STEPS
) -> None:
    """Train both models on one thread and save them as `folder`/base and `folder`/instruct; same arguments, same bits.

    The caller's random state and thread count are restored.
    """
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    world, reader, speaker = World(seed), build_tokenizer(), build_tokenizer(chat=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            end_of_text, end_of_turn = reader.convert_tokens_to_ids([END_OF_TEXT, END_OF_TURN])
            config = Qwen3Config(
                vocab_size=len(reader), hidden_size=64, intermediate_size=160, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=128,
                tie_word_embeddings=False, bos_token_id=None, eos_token_id=end_of_text, pad_token_id=end_of_text,
                dtype="float32",
            )  # fmt: skip
            model = Qwen3ForCausalLM(config)
            model.generation_config = GenerationConfig(eos_token_id=end_of_text, pad_token_id=end_of_text)
            _train(model, _pretraining_batches(world, reader, pretrain_steps), pretrain_steps, 3e-3, "pretrain base")
            _save(model, build_tokenizer(), folder / "base")

            model.config.eos_token_id = end_of_turn
            model.generation_config = GenerationConfig(
                eos_token_id=[end_of_turn, end_of_text], pad_token_id=end_of_text
            )
            _train(
                model,
                _post_training_batches(world, speaker, posttrain_steps),
                posttrain_steps,
                1.5e-4,
                "post-train instruct",
            )
            _save(model, build_tokenizer(chat=True), folder / "instruct")
    finally:
        torch.set_num_threads(threads)


def build_tokenizer(*, chat: bool = False) -> "PreTrainedTokenizerFast":
    """The word-level tokenizer: lower-cases, splits at spaces and punctuation; with `chat` it has the chat template."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(vocabulary())}
    core = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[^\w\s]"), "isolated")]
    )
    core.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END_OF_TURN if chat else END_OF_TEXT, pad_token=END_OF_TEXT, unk_token=UNKNOWN,
        additional_special_tokens=[TURN, END_OF_TURN], model_max_length=128, clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE if chat else None,
    )  # fmt: skip


Batch = dict[str, "torch.Tensor"]


def _pretraining_batches(world: World, tokenizer: "PreTrainedTokenizerFast", steps: int) -> Iterator[Batch]:
    """Pretraining batches, int64 (ROWS, BLOCK): each row is filled with documents, the last of them truncated."""
    import torch

    documents = world.documents()
    for _ in range(steps):
        texts = (f"{text} {END_OF_TEXT}" for text in documents)
        encoded = iter(tokenizer(list(islice(texts, ROWS * 7)))["input_ids"])
        rows = []
        for _ in range(ROWS):
            row: list[int] = []
            while len(row) < BLOCK:
                row += next(encoded)
            rows.append(row[:BLOCK])
        ids = torch.tensor(rows)
        yield {"input_ids": ids, "labels": ids}


def _post_training_batches(world: World, tokenizer: "PreTrainedTokenizerFast", steps: int) -> Iterator[Batch]:
    """Post-training batches, int64 (LESSONS, longest): a conversation a row, labels -100 outside the reply."""
    import torch

    lessons = world.lessons()
    for _ in range(steps):
        conversations = [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
            for prompt, reply in islice(lessons, LESSONS)
        ]
        batch = tokenizer.apply_chat_template(
            conversations, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, padding=True,
            padding_side="right", return_tensors="pt",
        )  # fmt: skip
        ids, mask = batch["input_ids"], torch.as_tensor(batch["assistant_masks"]).bool()
        yield {
            "input_ids": ids,
            "attention_mask": batch["attention_mask"],
            "labels": torch.where(mask, ids, torch.full_like(ids, -100)),
        }


def _train(model: "Qwen3ForCausalLM", batches: Iterator[Batch], steps: int, rate: float, name: str) -> None:
    """AdamW on every parameter; warm-up over 5 % of the steps, then a cosine to zero."""
    import torch
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(
        optimizer, num_warmup_steps=max(1, steps // 20), num_training_steps=steps
    )
    model.train()
    for step, batch in enumerate(batches, start=1):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            print(f"pico: {name}: step {step}/{steps} loss {loss.item():.3f}", file=sys.stderr, flush=True)


def _save(model: "Qwen3ForCausalLM", tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.eval()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _file_lock(lock: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel releases it when the process ends, however it ends."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("pico: another process trains this pair; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
