"""Messages to text, token ids and labels: the one rendering that training and evaluation share."""

from shadowft_core.rendering.images import Processor, load_processor
from shadowft_core.rendering.lengths import learned_parts, split_lengths
from shadowft_core.rendering.pairs import Pair, render_pair
from shadowft_core.rendering.rows import prepared_rows, shows_images
from shadowft_core.rendering.samples import IGNORED, Renderer, RowError, Sample
from shadowft_core.rendering.template import Message
from shadowft_core.rendering.tokenizer import load_renderer, load_tokenizer, stop_ids

__all__ = [
    "IGNORED",
    "Message",
    "Pair",
    "Processor",
    "Renderer",
    "RowError",
    "Sample",
    "learned_parts",
    "load_processor",
    "load_renderer",
    "load_tokenizer",
    "prepared_rows",
    "render_pair",
    "shows_images",
    "split_lengths",
    "stop_ids",
]
