"""What virtual tokens cost where nothing is retrieved: `SPRING_RAG_DATA=FOLDER python benchmarks/ability.py [--model SMOLLM2]`

Measured on the default backbone with its shipped tokens, for several k:

- with k = 0, the largest difference of a logit between this and the plain backbone, on questions with passages: it must be 0
- questions of Natural Questions' test part, asked without passages: what the backbone knows by heart
- forty questions of general knowledge, with four answers to choose from by their likelihood
- the perplexity of ordinary English, XQuAD's paragraphs: for each token but the first how well it is foretold, with the virtual tokens in front

Everything but the first is measured beside k = 0 on the same questions, with intervals and paired tests.
"""

import argparse
import time
from collections.abc import Sequence
from math import exp
from statistics import mean
from typing import Any

import torch
from measure import save
from real_data import Asked, data_folder, nq_and_xquad

from spring_rag.backends.local import LocalBackend
from spring_rag.data.examples import RagExample
from spring_rag.demo.default import default_backbone
from spring_rag.demo.paths import TOKENS
from spring_rag.encoding import Encoded, encode
from spring_rag.evaluation import plain_difference, sweep
from spring_rag.evaluation.statistics import compare, interval
from spring_rag.model import SpringModel
from spring_rag.prompt import Prompt, RagPrompt, Slot, Text
from spring_rag.splice import evaluating, splice_batch

KS = (0, 10, 50)
COMPARED_LOGITS, NEW_TOKENS, BATCH = 4, 32, 48

CHOICES = (
    ("What is the capital of France?", ("Paris", "London", "Madrid", "Rome")),
    ("What is the capital of Japan?", ("Tokyo", "Seoul", "Beijing", "Bangkok")),
    ("What is the capital of Egypt?", ("Cairo", "Tunis", "Nairobi", "Athens")),
    ("What is the capital of Canada?", ("Ottawa", "Toronto", "Montreal", "Chicago")),
    ("On which continent is Brazil?", ("South America", "North America", "Africa", "Europe")),
    ("On which continent is Kenya?", ("Africa", "Asia", "Europe", "Australia")),
    ("Which ocean lies between Europe and America?", ("Atlantic", "Pacific", "Indian", "Arctic")),
    ("Which river flows through London?", ("Thames", "Seine", "Rhine", "Danube")),
    ("What is the highest mountain on Earth?", ("Mount Everest", "Mont Blanc", "Kilimanjaro", "Mount Fuji")),
    ("In which country is the Taj Mahal?", ("India", "China", "Turkey", "Iran")),
    ("Which planet is closest to the sun?", ("Mercury", "Venus", "Mars", "Jupiter")),
    ("Which planet is the largest?", ("Jupiter", "Saturn", "Earth", "Mars")),
    ("How many days are in a week?", ("seven", "five", "six", "ten")),
    ("How many months are in a year?", ("twelve", "ten", "eleven", "thirteen")),
    ("How many legs does a spider have?", ("eight", "six", "four", "ten")),
    ("How many sides does a triangle have?", ("three", "four", "five", "six")),
    ("How many minutes are in an hour?", ("sixty", "thirty", "ninety", "forty")),
    ("What do bees make?", ("honey", "milk", "silk", "wool")),
    ("What do cows eat?", ("grass", "fish", "meat", "stones")),
    ("Which animal barks?", ("dog", "cat", "cow", "duck")),
    ("Which animal lays eggs?", ("hen", "horse", "goat", "pig")),
    ("What is the opposite of hot?", ("cold", "warm", "dry", "loud")),
    ("What is the opposite of up?", ("down", "over", "near", "far")),
    ("What colour is the sky on a clear day?", ("blue", "green", "red", "brown")),
    ("What colour is fresh snow?", ("white", "black", "red", "green")),
    ("What is frozen water called?", ("ice", "steam", "sand", "oil")),
    ("At how many degrees Celsius does water boil?", ("100", "50", "70", "150")),
    ("Which gas do people need to breathe?", ("oxygen", "helium", "neon", "hydrogen")),
    ("Which metal is attracted by a magnet?", ("iron", "gold", "silver", "copper")),
    ("Which organ pumps blood?", ("heart", "liver", "lung", "stomach")),
    ("With which organ do people see?", ("eye", "ear", "nose", "tongue")),
    ("Who wrote Romeo and Juliet?", ("William Shakespeare", "Charles Dickens", "Jane Austen", "Mark Twain")),
    ("Who painted the Mona Lisa?", ("Leonardo da Vinci", "Vincent van Gogh", "Pablo Picasso", "Claude Monet")),
    ("Who developed the theory of relativity?", ("Albert Einstein", "Isaac Newton", "Charles Darwin", "Galileo Galilei")),
    ("Who was the first president of the United States?", ("George Washington", "Abraham Lincoln", "Thomas Jefferson", "John Adams")),
    ("In which year did the Second World War end?", ("1945", "1918", "1939", "1963")),
    ("Which language is spoken in Brazil?", ("Portuguese", "Spanish", "French", "Italian")),
    ("What is the currency of Japan?", ("yen", "euro", "dollar", "pound")),
    ("Which instrument has black and white keys?", ("piano", "violin", "drum", "flute")),
    ("In which season do leaves fall from the trees?", ("autumn", "spring", "summer", "winter")),
)  # fmt: skip
"""Questions with four answers, the right one first: the order isn't seen where each is weighed by itself."""


def log_likelihood(backend: LocalBackend, prompt: Encoded, target: Sequence[int], k: int) -> float:
    """Log-probability of ids that follow a prompt with k virtual tokens in its slot."""
    tokens = backend.tokens()
    assert tokens is not None
    whole = Encoded((*prompt.ids, *target), prompt.slot)
    batch = splice_batch(backend.embedding, [whole], [tokens.matrix[:k]])
    with torch.no_grad(), evaluating(backend.hf_model):
        logits = backend.hf_model(
            inputs_embeds=batch.inputs_embeds,
            attention_mask=batch.attention_mask,
            logits_to_keep=len(target) + 1,
        ).logits[0, :-1]
    found = logits.float().log_softmax(-1)
    return float(found.gather(1, torch.tensor(target, device=found.device)[:, None]).sum())


def by_heart(model: SpringModel, asked: Sequence[Asked]) -> dict[str, Any]:
    """Exact match, F1 and length of answers to questions without passages."""
    examples = [RagExample(one.question, tuple(one.answers)) for one in asked]
    found = sweep(model, examples, KS, max_new_tokens=NEW_TOKENS, batch_size=BATCH)
    runs = {run.k: run for run in found.runs}
    return {
        "questions": len(asked),
        "results": [
            {
                "k": k,
                **{
                    name: beside(run.scores(name), runs[0].scores(name) if k else None)
                    for name in ("exact_match", "f1", "contains")
                },
                "answer_tokens": round(run.mean("num_tokens"), 2),
            }
            for k, run in runs.items()
        ],
    }


def choices(model: SpringModel, backend: LocalBackend) -> dict[str, Any]:
    """The share of questions whose right answer is the likeliest, asked as the tokens were trained to be, with no passages."""
    right: dict[int, list[float]] = {}
    for question, answers in CHOICES:
        prompt = encode(RagPrompt(question, (), model.template()), model.tokenizer)
        targets = [model.tokenizer(f" {one}", add_special_tokens=False)["input_ids"] for one in answers]
        for k in KS:
            # By the token: a long answer is no worse for its length.
            scores = [log_likelihood(backend, prompt, ids, k) / len(ids) for ids in targets]
            right.setdefault(k, []).append(float(scores[0] == max(scores)))
    results = [{"k": k, "right": beside(its, right[0] if k else None)} for k, its in right.items()]
    return {"questions": len(CHOICES), "results": results}


def english(backend: LocalBackend, paragraphs: Sequence[str]) -> dict[str, Any]:
    """Perplexity of paragraphs, and how much more a token costs than with k = 0, in nats, each paragraph weighing the same."""
    encoded = [encode(Prompt(parts=(Slot(), Text(text))), backend.tokenizer) for text in paragraphs]
    costs = {
        k: [
            -log_likelihood(backend, Encoded(one.ids[:1], 0), one.ids[1:], k) / (len(one.ids) - 1)
            for one in encoded
        ]
        for k in KS
    }
    results = [
        {
            "k": k,
            "perplexity": round(exp(mean(its)), 3),
            "nats_per_token": beside(its, costs[0] if k else None),
        }
        for k, its in costs.items()
    ]
    return {
        "paragraphs": len(paragraphs),
        "tokens": sum(len(one.ids) - 1 for one in encoded),
        "results": results,
    }


def beside(scores: Sequence[float], plain: Sequence[float] | None) -> dict[str, Any]:
    """A mean with its interval, and how it differs from the plain backbone's on the same questions, unless it is its own."""
    bounds = interval(scores)
    told: dict[str, Any] = {
        "mean": round(mean(scores), 4),
        "interval": [round(bounds.low, 4), round(bounds.high, 4)],
    }
    if plain is not None:
        found = compare(scores, plain)
        told["beside_plain"] = {
            "gain": round(found.gain, 4),
            "interval": [round(found.interval.low, 4), round(found.interval.high, 4)],
            "p": round(found.p, 5),
        }
    return told


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default=default_backbone(), help="SmolLM2-135M-Instruct, if not the installed one"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--questions", type=int, default=200, help="of Natural Questions' test part")
    parser.add_argument("--paragraphs", type=int, default=80, help="of XQuAD, evenly drawn")
    arguments = parser.parse_args()
    started = time.perf_counter()
    passages, asked = nq_and_xquad(data_folder())
    model = SpringModel.from_pretrained(arguments.model, tokens=TOKENS, dtype=arguments.dtype)
    backend = model.backend
    assert isinstance(backend, LocalBackend)

    texts = list(passages.values())
    with_passages = [
        RagExample(one.question, tuple(one.answers), tuple(texts[:3]))
        for one in asked["nq/test"][:COMPARED_LOGITS]
    ]
    difference = plain_difference(model, with_passages)
    print(f"k = 0 differs from the plain backbone by {difference}", flush=True)
    measured = {"choices": choices(model, backend)}
    print(measured["choices"], flush=True)
    paragraphs = [text for one, text in passages.items() if one.startswith("xquad")]
    measured["english"] = english(backend, paragraphs[:: -(-len(paragraphs) // arguments.paragraphs)])
    print(measured["english"], flush=True)
    measured["by_heart"] = by_heart(model, asked["nq/test"][: arguments.questions])
    save(
        "ability",
        {
            "what": "SmolLM2-135M-Instruct with its shipped tokens, where nothing is retrieved; beside_plain: against k = 0 on the same questions",
            "dtype": arguments.dtype,
            "largest_difference_of_a_logit_at_k_0": difference,
            **measured,
            "seconds": round(time.perf_counter() - started),
        },
    )


if __name__ == "__main__":
    main()
