"""What stands first and last on a card: front matter for the Hugging Face Hub, what the model is, how it is used; and
what it cannot do."""

from __future__ import annotations

import json

from pretraining.card.records import Run
from pretraining.card.writing import millions

_ARCHITECTURE = {"causal": "llama", "masked": "bert", "seq2seq": "t5"}
_IS = {
    "causal": "a Llama-architecture decoder",
    "masked": "a BERT, an encoder that fills in masked words",
    "seq2seq": "a T5 encoder-decoder",
}
_PIPELINE = {"causal": "text-generation", "masked": "fill-mask", "seq2seq": "text2text-generation"}
_USE = {
    "causal": """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForCausalLM.from_pretrained("{folder}")
ids = tokenizer("Review: A quiet film that stays with you.\\nSentiment:", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=1)[0, ids.shape[1] :]))""",
    "masked": """from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForMaskedLM.from_pretrained("{folder}")
ids = tokenizer("Review: A quiet film that stays with you.\\nSentiment:<mask>", return_tensors="pt").input_ids
masked = (ids[0] == tokenizer.mask_token_id).nonzero()[0, 0]
print(tokenizer.decode(model(input_ids=ids).logits[0, masked].argmax()))""",
    "seq2seq": """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForSeq2SeqLM.from_pretrained("{folder}")
ids = tokenizer("Review: A quiet film that stays with you.\\nSentiment:", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=2)[0], skip_special_tokens=True))""",
}


def front_matter(run: Run) -> list[str]:
    """YAML; strings are written as JSON's, which are YAML's."""
    said = run.recipe.card
    head = {"language": said.language, "license": said.licence}
    if said.licence_name:
        head |= {"license_name": said.licence_name, "license_link": "README.md"}
    head |= {"library_name": "transformers", "pipeline_tag": _PIPELINE[run.family]}
    tags = [_ARCHITECTURE[run.family], "chorus", "prompt-tuning", "trained-from-scratch"]
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    return ["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---", ""]


def what_lines(run: Run) -> list[str]:
    said = run.provenance
    learnt = ", then ".join(f"{steps:,} `{name}`" for name, steps in said["objectives"].items())
    return [
        f"# {run.name}",
        "",
        f"{_IS[run.family][0].upper()}{_IS[run.family][1:]} of {millions(run.parameters)} parameters for English,"
        f" trained from scratch on {millions(run.tokens)} tokens (steps: {learnt}) for Chorus, which serves many tasks"
        " with one model and a small trained prompt for each. It is there so that everything can be tried where no"
        " model hub is at hand: it puts short texts into classes, by its words alone or, better, with a tuned prompt.",
        "",
        "Weights are in bfloat16; they are the "
        + ("moving average over the last steps." if said["weights"] == "moving average" else "last step's.")
        + " This card and its picture are made by `python -m pretraining card` from what the run recorded.",
        "",
        "## How to use it",
        "",
        f"With transformers, where `{run.name}` is the folder that holds this card:",
        "",
        "```python",
        *_USE[run.family].format(folder=run.name).splitlines(),
        "```",
        "",
        "With Chorus, which then trains prompts for it by `/v1/train` or `chorus train`:",
        "",
        "```",
        f"chorus up --model {run.name}",
        "```",
    ]


def limits_lines(run: Run) -> list[str]:
    held_out = ", ".join(run.provenance["held_out"]) or "none"
    generates = {
        "causal": "It follows no instructions, and what it writes freely soon loses its thread.",
        "masked": "It fills in single words and writes no text.",
        "seq2seq": "It follows no instructions, and writes a few words at best.",
    }[run.family]
    return [
        "## What it cannot do",
        "",
        f"- **No knowledge, no reasoning.** {millions(run.parameters)} parameters hold words and common turns of"
        " phrase, few facts, and no arithmetic or steps of thought. An answer that needs them is a guess.",
        f"- **No long or free text.** {generates} It reads at most {run.recipe.shape.context:,} tokens, and was trained"
        f" on windows of {_longest_window(run):,} at most.",
        "- **English alone**, mostly of encyclopedias, film reviews, news, novels and captions of photographs; other"
        " languages, code and dialects are noise to it.",
        "- **Wordings matter.** Without a tuned prompt it answers in the wordings of its exercises and fails in others."
        " Probabilities are not calibrated: Chorus's cards say how far they are to be trusted.",
        "- **Biases.** It repeats what its texts said, prejudices about gender, origin, religion and age included. Film"
        " reviews give names and groups a mood, captions describe people by their looks, novels are of their century."
        " Nothing was filtered for that, and it was not measured.",
        "- **Out of scope:** decisions about people (hiring, credit, health, law, moderation without a human),"
        " statements of fact, and commercial use where a source's terms forbid it.",
        f"- **What its figures are worth.** Sets held out of pretraining by every split: {held_out}. Of all other sets,"
        " train rows were seen, so their dev and test rows are new sentences of a known kind, not a new task.",
    ]


def _longest_window(run: Run) -> int:
    """Of the phases that the model has been in."""
    phases = run.recipe.phases
    begins = [0, *run.recipe.phase_ends()[:-1]]
    return max(phase.length for phase, begin in zip(phases, begins, strict=True) if begin < run.step)
