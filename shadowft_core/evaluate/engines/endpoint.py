"""An OpenAI-compatible server over HTTP: requests, retries, and errors of one line."""

import asyncio
import json
import os
from collections.abc import Coroutine
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from shadowft_core.errors import EvaluationError

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")
KEY = "OPENAI_API_KEY"
TRIES = 4  # of one request: a busy or restarting server is asked again
FIRST_WAIT = 0.5  # seconds before the second try; before each further one, twice as long
SHOWN = 300  # characters of a server's message in an error


class _Again(Exception):
    """A failure that may pass: no connection, HTTP 429 or 5xx."""


@dataclass(frozen=True)
class Card:
    """What a server says about itself and the model under one name. None: it does not say."""

    context: int | None
    """longest prompt and answer together, in tokens"""
    root: str | None
    """the folder or name that it loaded the model from"""
    version: str | None
    """of vLLM"""
    adapters: bool
    """whether it loads adapters at run time"""


class Endpoint:
    """A server by its URL, up to and with /v1."""

    def __init__(self, url: str, timeout: float, concurrency: int) -> None:
        if missing := [name for name in ("aiohttp", "tenacity") if find_spec(name) is None]:
            raise EvaluationError(
                f"evaluate.engine.kind server needs {' and '.join(missing)}; run pip install 'shadowft[server]'"
            )
        self.url, self.concurrency = url.rstrip("/"), concurrency
        self._timeout = timeout

    def session(self) -> "aiohttp.ClientSession":
        """An HTTP session with the key of the environment; use it inside one event loop."""
        import aiohttp

        key = os.environ.get(KEY)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self.concurrency),
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )

    async def post(self, session: "aiohttp.ClientSession", path: str, body: dict[str, Any]) -> Any:
        """The JSON answer to a POST of `body`.

        Asks again while the server is unreachable or answers 429 or 5xx. Raises EvaluationError in the end, and at once
        for any other status, a time-out, or an answer that is not JSON.
        """
        return _parsed(self._at(path), await self._answered(session, "POST", path, body))

    def complete(self, body: dict[str, Any]) -> Any:
        """The answer to one completion outside an event loop. Raises EvaluationError as `post`."""
        return _parsed(self._at("/completions"), self._ask("POST", "/completions", body))

    def models(self) -> list[dict[str, Any]]:
        """The models that the server lists. Raises EvaluationError as `post`, and when the list has another form."""
        found = _parsed(self._at("/models"), self._ask("GET", "/models"))
        cards = found.get("data") if isinstance(found, dict) else None
        if not isinstance(cards, list) or not all(isinstance(card, dict) and "id" in card for card in cards):
            raise EvaluationError(
                f"{self._at('/models')}: {found!r:.{SHOWN}} is not a list of models; correct engine.server.url"
            )
        return cards

    def card(self, model: str) -> Card:
        """What the server says about `model`. Raises EvaluationError, with the names it has, if it lacks the model."""
        cards = {str(card["id"]): card for card in self.models()}
        if model not in cards:
            raise EvaluationError(
                f"{self.url}: no model {model!r}; it has {', '.join(sorted(cards)) or 'none'}: "
                "correct engine.server.model, or start the server with that name"
            )
        context, root = cards[model].get("max_model_len"), cards[model].get("root")
        return Card(
            context=context if isinstance(context, int) and context > 0 else None,
            root=root if isinstance(root, str) else None,
            version=self._version(),
            adapters=self._status("/load_lora_adapter") == 405,  # exists, for POST only
        )

    def add_adapter(self, name: str, folder: str) -> None:
        """Have the server load an adapter folder under a name. Raises EvaluationError as `post`."""
        self._ask("POST", "/load_lora_adapter", {"lora_name": name, "lora_path": folder})

    def remove_adapter(self, name: str) -> None:
        """Undo `add_adapter`. Raises EvaluationError as `post`."""
        self._ask("POST", "/unload_lora_adapter", {"lora_name": name})

    def _version(self) -> str | None:
        try:
            found = json.loads(self._ask("GET", "/version", above=True, tries=1))
        except (EvaluationError, ValueError):
            return None
        version = found.get("version") if isinstance(found, dict) else None
        return str(version) if version else None

    def _at(self, path: str, *, above: bool = False) -> str:
        return (self.url.removesuffix("/v1") if above else self.url) + path

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None, **how: Any) -> bytes:
        async def ask() -> bytes:
            async with self.session() as session:
                return await self._answered(session, method, path, body, **how)

        return run(ask())

    def _status(self, path: str) -> int:
        async def ask() -> int:
            async with self.session() as session, session.get(self._at(path), allow_redirects=False) as answer:
                return int(answer.status)

        return run(ask())

    async def _answered(
        self,
        session: "aiohttp.ClientSession",
        method: str,
        path: str,
        body: dict[str, Any] | None,
        *,
        above: bool = False,
        tries: int = TRIES,
    ) -> bytes:
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential

        url = self._at(path, above=above)
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Again),
            stop=stop_after_attempt(tries),
            wait=wait_exponential(multiplier=FIRST_WAIT),
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    return await self._once(session, method, url, body)
        except _Again as error:
            times = "once" if tries == 1 else f"{tries} times"
            raise EvaluationError(f"{url}: {error} (tried {times})") from None
        raise AssertionError("tenacity returns or raises")

    async def _once(
        self, session: "aiohttp.ClientSession", method: str, url: str, body: dict[str, Any] | None
    ) -> bytes:
        import aiohttp

        try:
            # A redirect would carry the prompts, and turn a POST into a GET; it is an error below.
            async with session.request(method, url, json=body, allow_redirects=False) as answer:
                data, status = await answer.read(), answer.status
        except TimeoutError:
            raise EvaluationError(
                f"{url}: no answer within {self._timeout:g} s; raise engine.server.timeout, lower "
                "engine.server.concurrency, or read the server's log"
            ) from None
        except aiohttp.ClientConnectorError as error:
            reason = _words(str(error.os_error.strerror or error.os_error))
            raise _Again(f"no server answers ({reason}); start it, or correct engine.server.url") from None
        except aiohttp.ClientError as error:
            raise _Again(
                f"the connection broke: {type(error).__name__} {_words(str(error))}; read the server's log"
            ) from None
        if status == 200:
            return bytes(data)
        said = _message(data)
        if status in (401, 403):
            remedy = f"correct {KEY}" if os.environ.get(KEY) else f"set {KEY}"
            raise EvaluationError(f"{url}: HTTP {status}, {said}; the server wants another key: {remedy}")
        if status == 429 or status >= 500:
            raise _Again(f"HTTP {status}, {said}; read the server's log, or lower engine.server.concurrency")
        raise EvaluationError(f"{url}: HTTP {status}, {said}")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in an event loop of its own."""
    return asyncio.run(work)


def _parsed(url: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        raise EvaluationError(
            f"{url}: the answer is not JSON: {_words(data.decode(errors='replace'))!r}; is it an OpenAI-compatible "
            "server? Correct engine.server.url"
        ) from None


def _message(data: bytes) -> str:
    """The text of an error: OpenAI's field, a plain `message` or `detail`, or the body."""
    text = data.decode(errors="replace")
    try:
        found = json.loads(text)
        found = found.get("error", found)
        text = found if isinstance(found, str) else str(found.get("message") or found.get("detail") or text)
    except (ValueError, AttributeError):
        pass
    return _words(text) or "no message"


def _words(text: str) -> str:
    """One line, shortened, without the key."""
    key = os.environ.get(KEY)
    text = " ".join(text.split())
    return (text.replace(key, "***") if key else text)[:SHOWN]
