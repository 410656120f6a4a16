"""A graft and a verdict from Python. Run it cell by cell, or as a whole, in a folder with these models and items."""

# %% What tuning changed in the Base, grafted on the Instruct
import json
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import shadowft_core as shadowft

print(shadowft.check_pair("models/base", "models/instruct")["verdict"])
shadowft.extract("models/base", "models/tuned", "delta")
shadowft.graft("models/instruct", [("delta", 1.0)], "grafted")
print(shadowft.read_receipt("grafted")["classes"])

# %% Both models answer the same questions, which are in nobody's training data
scores = []
for arm, folder in {"instruct": "models/instruct", "grafted": "grafted"}.items():
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    for item in map(json.loads, Path("items.jsonl").read_text().splitlines()):
        chat = [{"role": "user", "content": item.pop("question")}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        tokens = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        answer = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        scores.append({"arm": arm, "score": float(answer == item.pop("answer")), **item})

# %% Is the difference between them more than chance, and was nothing harmed?
verdict = shadowft.judge(scores, "grafted")
print(verdict["decision"], *verdict["reasons"], sep="\n")
