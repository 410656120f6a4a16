"""One of the processes of engines/parallel.py: answers the batches that its parent sends. Run with SOCKET NUMBER.

Messages are lines of JSON. The parent sends {"do": ...} and gets {"answer": ..., "warnings": [...]} or {"error": class,
"message": ...} for each; `ids` of an error are those of `NotFinite`.
"""

import json
import socket
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from shadowft_core.errors import EvaluationError, ShadowError
from shadowft_core.evaluate.engines.door import Reply
from shadowft_core.evaluate.engines.finite import NotFinite
from shadowft_core.evaluate.engines.following import NEXT, write_rows
from shadowft_core.evaluate.engines.hf import Hf
from shadowft_core.evaluate.quiet import quiet
from shadowft_core.grafting import options_of
from shadowft_core.rendering import load_tokenizer


class Work:
    """The engine of this process, and its open arm. Each method is what a message can ask for."""

    engine: Hf

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.arm = ExitStack()
        self.lm: Any = None

    def open(self, instruct: str, batch_size: int, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.engine = Hf(Path(instruct), load_tokenizer(Path(instruct)), batch_size)

    def enter(self, deltas: list[tuple[str, float]], options: dict[str, Any]) -> str:
        opened = self.engine.arm([(Path(folder), scale) for folder, scale in deltas], options_of(options))
        arm = self.arm.enter_context(opened)
        self.lm = arm.lm
        return arm.digest

    def answer(self, kind: str, batch: list[Any]) -> list[Any]:
        answers = self.lm.answer(kind, batch)
        if kind == NEXT:
            return [write_rows(self.scratch, rows) for rows in answers]
        return [[str(one), one.finish, one.tokens] if isinstance(one, Reply) else one for one in answers]

    def leave(self) -> None:
        self.lm = None
        self.arm.close()


def main(address: str, number: int) -> None:
    """Serve until the parent closes the connection."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    lines, work = connection.makefile("rw", encoding="utf-8"), Work(Path(address).parent)

    def send(message: dict[str, Any]) -> None:
        lines.write(json.dumps(message) + "\n")
        lines.flush()

    send({"number": number})
    for line in lines:
        asked = json.loads(line)
        try:
            with quiet() as warnings:
                answer = getattr(work, asked.pop("do"))(**asked)
            send({"answer": answer, "warnings": warnings})
        except ShadowError as error:
            ids = list(error.ids) if isinstance(error, NotFinite) else []
            send({"error": type(error).__name__, "message": str(error), "ids": ids})
        except Exception as error:
            traceback.print_exc()
            said = " ".join(traceback.format_exception_only(error)[-1].split())
            send({"error": EvaluationError.__name__, "message": f"process {number} of the engine: {said:.300}"})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
