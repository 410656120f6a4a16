"""The engine `hf` on several devices: one process for each, with a model of its own, and the batches shared among them.

This process forms the same batches as with one device, and every batch is answered as a whole by one process. So the
answers have the same bits. The processes run under a guard (files/process.py) and cannot outlive this one.
"""

import contextlib
import json
import logging
import os
import select
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from shadowft_core import errors
from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate.engines.door import Deltas, Engine, Reply
from shadowft_core.evaluate.engines.finite import NotFinite
from shadowft_core.evaluate.engines.following import NEXT, read_rows
from shadowft_core.evaluate.engines.hf import Loaded, identity_of
from shadowft_core.evaluate.engines.models import without_weights
from shadowft_core.evaluate.quiet import quiet
from shadowft_core.files import process
from shadowft_core.grafting import Options, grafted_tensors

if TYPE_CHECKING:
    from shadowft_core.params import Evaluate


class Worker:
    """A process and the connection to it."""

    def __init__(self, number: int, guard: Any, log: Path) -> None:
        self.number, self.guard, self._log = number, guard, log
        self.connection: Any = None

    def connect(self, connection: socket.socket) -> None:
        self.connection = connection
        self._lines = connection.makefile("rw", encoding="utf-8")

    def send(self, **message: Any) -> None:
        try:
            self._lines.write(json.dumps(message) + "\n")
            self._lines.flush()
        except OSError:
            raise self.ended() from None

    def receive(self) -> Any:
        """Raises the error of the process, and EvaluationError if it has ended."""
        try:
            line = self._lines.readline()
        except OSError:
            line = ""
        if not line:
            raise self.ended()
        said = json.loads(line)
        if said.get("error") == NotFinite.__name__:
            error = NotFinite(said["message"])
            error.ids = tuple(said["ids"])
            raise error
        if "error" in said:
            raise getattr(errors, said["error"], EvaluationError)(said["message"])
        for warning in said["warnings"]:
            logging.getLogger("lm_eval").warning("%s", warning)
        return said["answer"]

    def ended(self) -> EvaluationError:
        """The error for a process that ended by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.guard.wait(process.GRACE)
        process.stop(self.guard)
        code = self.guard.returncode
        lines = self._log.read_text(errors="replace").split("\n")
        said = next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "no message")
        reason = ", killed, as the kernel does when memory runs out" if code == 137 else ""
        return EvaluationError(
            f"process {self.number} of the engine ended with exit code {code}{reason} ({said:.300}); lower "
            "evaluate.batch_size or evaluate.engine.devices"
        )


class Parallel:
    """Starts its processes for the first arm. After an error, they are ended."""

    def __init__(self, instruct: Path, tokenizer: Any, batch_size: int, devices: int, scratch: Path) -> None:
        self._instruct, self._tokenizer, self._batch_size = instruct, tokenizer, batch_size
        self._devices, self._scratch = devices, scratch
        self._workers: list[Worker] = []
        self._in_use = False
        self.identity: Mapping[str, Any] = identity_of(batch_size)

    def check(self, deltas: Deltas, options: Options, likelihood: Sequence[str]) -> None:
        """As `Hf.check`."""
        if deltas:
            grafted_tensors(self._instruct, deltas, options)

    @contextmanager
    def arm(self, deltas: Deltas, options: Options) -> Iterator[Loaded]:
        """As `Engine.arm`. Every process makes the arm itself, and all digests must be equal.

        Raises EvaluationError, too, if a process ends.
        """
        if self._in_use:
            raise RuntimeError("an arm is open; leave it before the next")
        self.check(deltas, options, ())
        self._in_use = True
        try:
            if not self._workers:
                self._start()
            entered = {"deltas": [(str(folder), scale) for folder, scale in deltas], "options": options.recorded()}
            digests = self._ask_all(do="enter", **entered)
            if len(set(digests)) > 1:
                raise EvaluationError(f"{self._instruct}: the processes disagree about the model: {digests}; run again")
            yield Loaded(digests[0], self._lm())
            self._ask_all(do="leave")
        except BaseException:
            self.close()  # some of them may be busy, or the arm half made
            raise
        finally:
            self._in_use = False

    def close(self) -> None:
        """End the processes."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.guard.stdin.close()
        for worker in workers:
            process.stop(worker.guard)
            if worker.connection:
                worker.connection.close()

    def _lm(self) -> Any:
        with quiet():
            from shadowft_core.evaluate.engines.batches import BatchedLM

            return BatchedLM(without_weights(self._instruct), self._tokenizer, self._batch_size, self._share)

    def _share(self, kind: str, batches: list[list[Any]]) -> Iterator[tuple[int, list[Any]]]:
        """Answer batches, each by the first process that is free; yields (number of the batch, answers)."""
        if not self._workers:
            raise EvaluationError("the processes of the engine have ended after an error; run again")
        waiting, free, busy = deque(enumerate(batches)), deque(self._workers), dict[Any, tuple[int, Worker]]()
        try:
            while waiting or busy:
                while waiting and free:
                    (number, batch), worker = waiting.popleft(), free.popleft()
                    worker.send(do="answer", kind=kind, batch=batch)
                    busy[worker.connection] = number, worker
                for connection in select.select([*busy], [], [])[0]:
                    number, worker = busy.pop(connection)
                    answers = worker.receive()
                    free.append(worker)
                    yield number, [self._read(kind, one) for one in answers]
        except BaseException:
            self.close()  # an answer may be on its way
            raise

    def _read(self, kind: str, answer: Any) -> Any:
        """An answer as `BatchedLM.answer` gives it; rows of numbers come as a file."""
        if kind == NEXT:
            return read_rows(self._scratch / answer)
        return Reply(*answer) if isinstance(answer[0], str) else tuple(answer)

    def _ask_all(self, **message: Any) -> list[Any]:
        for worker in self._workers:
            worker.send(**message)
        return [worker.receive() for worker in self._workers]

    def _start(self) -> None:
        import torch

        address = str(self._scratch / "engine")
        root = str(Path(errors.__file__).parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        gpus = visible.split(",") if visible else [str(number) for number in range(self._devices)]
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen(self._devices)
            listener.settimeout(0.2)
            for number in range(self._devices):
                environment = os.environ | {"PYTHONPATH": path}
                if torch.cuda.is_available():
                    environment["CUDA_VISIBLE_DEVICES"] = gpus[number]
                log = self._scratch / f"{number}.log"
                command = [sys.executable, "-P", "-m", "shadowft_core.evaluate.engines.worker", address, str(number)]
                with log.open("w") as file:
                    self._workers.append(Worker(number, process.start(command, env=environment, log=file), log))
            for _ in self._workers:
                self._accept(listener)
        Path(address).unlink()
        settings = {"instruct": str(self._instruct), "batch_size": self._batch_size}
        self._ask_all(do="open", **settings, threads=torch.get_num_threads())

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
                break
            except TimeoutError:
                for worker in self._workers:
                    if worker.guard.poll() is not None:
                        raise worker.ended() from None
        connection.settimeout(None)
        with connection.makefile("r", encoding="utf-8") as lines:
            number = json.loads(lines.readline())["number"]
        self._workers[number].connect(connection)


@contextmanager
def open_parallel(instruct: Path, tokenizer: Any, params: "Evaluate") -> Iterator[Engine]:
    """The engine for one Instruct folder on `params.engine.devices` devices.

    Raises EvaluationError if this machine has GPUs, but fewer.
    """
    import torch

    devices = params.engine.devices
    if torch.cuda.is_available() and torch.cuda.device_count() < devices:
        raise EvaluationError(
            f"evaluate.engine.devices is {devices}, but this machine shows {torch.cuda.device_count()} GPUs; "
            "lower it, or make more visible"
        )
    with TemporaryDirectory(prefix="shadowft-") as scratch:
        engine = Parallel(instruct, tokenizer, params.batch_size, devices, Path(scratch))
        try:
            yield engine
        finally:
            engine.close()
