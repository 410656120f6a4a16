"""Stock chat templates, each with a byte-level tokenizer that knows the control tokens the template writes."""

import importlib.resources
import re
from typing import Any

CONTROL = re.compile(  # what looks like a control token
    r"<\|[^|<>'\"]{1,40}\|>"
    r"|<｜[^｜<>'\"]{1,40}｜>|<(?:start|end)_of_(?:turn|utterance)>|\[/?INST\]|<\|?/?turn\|?>|\[gMASK\]|<sop>"
)


def stock_templates() -> dict[str, str]:
    """The templates that TRL carries, by name, without its variants for training."""
    folder = importlib.resources.files("trl") / "chat_templates"
    files = [file for file in folder.iterdir() if file.name.endswith(".jinja")]
    return {
        file.name.removesuffix(".jinja"): file.read_text(encoding="utf-8")
        for file in sorted(files, key=lambda file: file.name)
        if not file.name.endswith("_training.jinja")
    }


def tokenizer_for(template: str) -> tuple[Any, set[int]]:
    """A tokenizer with one token a byte and the template's control tokens, and the ids that stop generation."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(set(CONTROL.findall(template)))})
    tokenizer.chat_template = template
    ends = [name for name in ENDS if name in tokenizer.get_vocab()]
    if "<|return|>" in ends:
        ends.remove("<|end|>")  # gpt-oss ends a channel with it
    return tokenizer, {tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(ends)}


ENDS = (
    *("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|return|>", "<|call|>", "<|user|>", "<|observation|>"),
    *("<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>", "<|endoftext|>", "<turn|>", "<|eot|>", "<end_of_utterance>"),
)
