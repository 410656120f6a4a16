"""What MLflow loads for a registered version: code, not a pickle. The model is rebuilt from its recipe when first used.

    mlflow.pyfunc.load_model("models:/NAME@champion").predict([[{"role": "user", "content": "Hello"}]])

answers each conversation with the text of the next turn, greedily. Rebuilt models are kept under SHADOWFT_CACHE
(~/.cache/shadowft), in a folder named by their digest.
"""

from pathlib import Path
from typing import Any

import mlflow

MAX_NEW_TOKENS = 256


class RecipeModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow ships no types
    """A grafted model that exists as a recipe until it is used."""

    def load_context(self, context: Any) -> None:
        """Remember where the recipe is; nothing is fetched yet."""
        self._recipe = Path(context.artifacts["recipe"])
        self._loaded: tuple[Any, Any] | None = None

    def predict(
        self, context: Any, model_input: list[list[dict[str, str]]], params: dict[str, Any] | None = None
    ) -> list[str]:
        """One reply per conversation; a conversation is a list of `{"role", "content"}`.

        `params` may hold `max_new_tokens`. Raises as `shadowft materialize` does when the model cannot be rebuilt.
        """
        import torch

        tokenizer, model = self._load()
        limit = int((params or {}).get("max_new_tokens", MAX_NEW_TOKENS))
        replies = []
        for conversation in model_input:
            prompt = tokenizer.apply_chat_template(
                conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            with torch.inference_mode():
                tokens = model.generate(**prompt, max_new_tokens=limit, do_sample=False)
            replies.append(tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
        return replies

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            from shadowft_core.checkpoint import cache_folder
            from shadowft_core.registry import cached, read_recipe

            folder = cached(read_recipe(self._recipe), cache_folder())
            model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, dtype="auto")
            self._loaded = AutoTokenizer.from_pretrained(folder), model.eval()
        return self._loaded


mlflow.models.set_model(RecipeModel())
