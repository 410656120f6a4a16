"""The loader that MLflow calls for a registered version. The code is installed; the registry holds only a recipe.

    mlflow.pyfunc.load_model("models:/NAME@champion").predict({"messages": [{"role": "user", "content": "Hello"}]})

returns one reply per conversation. The first load rebuilds the model from its recipe, bit for bit, and stores it under
SHADOWFT_CACHE (~/.cache/shadowft), in a folder named by its digest. SHADOWFT_STORE_URI and SHADOWFT_STORE_ENDPOINT name
the store; without them, a recipe may name a folder, but no server.
"""

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadowft_core.errors import CheckpointError, InputError, RegistryError
from shadowft_core.recipe_model.registered import Registered, read_registered
from shadowft_core.recipe_model.requests import Conversation, Settings, conversations, settings
from shadowft_core.registry.serving import MAX_NEW_TOKENS

if TYPE_CHECKING:
    from shadowft_core.params import Store


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> "RecipeModel":
    """Load a version. MLflow calls this with the folder it downloaded.

    Raises RegistryError, before any request to a store, when the recipe is not the registered one; LedgerError when the
    alias `champion` names the version but the ledger names another; and what `shadowft materialize` raises, because the
    record must be in the store and the model must have the recipe's digest.
    """
    from shadowft_core.files import cache_folder
    from shadowft_core.registry import cached, store_for

    if model_config:
        raise InputError(f"model_config: {sorted(model_config)[0]} is not known; a version takes no settings")
    found = read_registered(Path(path))
    store = store_for(found.recipe)
    _require_record(found, store)
    return RecipeModel(cached(found.recipe, cache_folder(), store))


def _require_record(found: Registered, store: "Store") -> None:
    """Require that ledger and store agree with MLflow's name and alias, which anyone who can write there can change."""
    from shadowft_core.promotion import recipe_named, require_alias_agrees
    from shadowft_core.store import record

    if found.registry is None or found.number is None:
        if record(found.digest, store) is None:
            raise RegistryError(
                f"recipe {found.digest} is not in store {store.uri}; set SHADOWFT_STORE_URI to its store, or register "
                "the run again"
            )
        return
    require_alias_agrees(found.registry, store, found.number, found.digest)
    reference = f"models:/{found.registry.name}/{found.number}"
    if recipe_named(reference, found.registry, store) != found.recipe:
        raise RegistryError(f"{reference}: its recipe changed while it was loaded; load it again")


class RecipeModel:
    """A loaded model folder with the `predict` that MLflow expects; it answers one conversation at a time."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from shadowft_core.loading import load, load_model

        self._tokenizer = load(AutoTokenizer, folder)
        if not self._tokenizer.chat_template:
            raise CheckpointError(f"{folder}: its tokenizer has no chat template; use a chat model")
        model, keys = load_model(AutoModelForCausalLM, folder, dtype="auto")
        if odd := sorted(f"{kind} {name}" for kind, names in keys.items() for name in map(str, names)):
            raise CheckpointError(
                f"{folder}: does not match {type(model).__name__}: {odd[0]} ({len(odd)} in all); delete the folder and "
                "load the version again"
            )
        self._model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self._lock = threading.Lock()  # a server calls `predict` from many threads

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[str]:
        """One reply per conversation. requests.py has the accepted forms, registry/serving.py the parameters.

        Raises MlflowException (INVALID_PARAMETER_VALUE, one line) for a malformed request.
        """
        from mlflow.exceptions import MlflowException

        try:
            chats, how = conversations(model_input), settings(params, MAX_NEW_TOKENS)
            with self._lock:
                prompts = [self._prompt(number, one) for number, one in enumerate(chats, 1)]
                return [self._reply(prompt, how) for prompt in prompts]
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None

    def _prompt(self, number: int, conversation: Conversation) -> Any:
        """Token ids and mask, [1, tokens] each. Raises InputError if the template refuses it, or if it is too long."""
        from jinja2 import TemplateError

        try:
            prompt = self._tokenizer.apply_chat_template(
                conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        except TemplateError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"conversation {number}: the model's chat template refuses it: {reason:.200}") from None
        tokens, limit = prompt["input_ids"].shape[1], self._positions()
        if limit is not None and tokens >= limit:
            raise InputError(
                f"conversation {number}: {tokens} tokens, the model takes {limit} including its reply; shorten it"
            )
        return prompt.to(self._model.device)

    def _positions(self) -> int | None:
        return getattr(self._model.config.get_text_config(), "max_position_embeddings", None)

    def _reply(self, prompt: Any, how: Settings) -> str:
        import torch
        from transformers import StoppingCriteriaList

        begin = prompt["input_ids"].shape[1]
        room = (limit := self._positions()) and limit - begin
        drawn: dict[str, Any] = {"do_sample": True, "temperature": how.temperature} if how.temperature else {}

        def text(tokens: Any) -> str:
            return str(self._tokenizer.decode(tokens[0, begin:], skip_special_tokens=True))

        def stopped(tokens: Any, scores: Any, **_: Any) -> Any:
            return torch.full((1,), any(stop in text(tokens) for stop in how.stop), device=tokens.device)

        with torch.inference_mode():
            tokens = self._model.generate(
                **prompt,
                max_new_tokens=min(how.max_new_tokens, room or how.max_new_tokens),
                stopping_criteria=StoppingCriteriaList([stopped] if how.stop else []),
                **({"do_sample": False} | drawn),
            )
        reply = text(tokens)
        return reply[: min([len(reply), *(at for stop in how.stop if (at := reply.find(stop)) >= 0)])]
