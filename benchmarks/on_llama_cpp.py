"""SmolLM2 on llama.cpp beside transformers, on the demo's questions: `python benchmarks/on_llama_cpp.py [--questions N]`

Files in more bits are made of the Q4_1 that the default backbone's package has, so that all hold the same weights; Q8_0 rounds them once more.
Answers are compared with those that transformers gives in float32 with the unpacked weights. Times are processor time of one thread, so that
whatever else a machine does counts little.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice, product
from pathlib import Path
from statistics import median
from typing import Any

import llama_cpp
import torch
from measure import ratio, save

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("tests", "tests/llamacpp")]
from near_ties import gap

from spring_rag import RagPrompt, SpringModel
from spring_rag.backends.base import Generation
from spring_rag.backends.local import LocalBackend
from spring_rag.data.examples import RagExample
from spring_rag.demo import run
from spring_rag.demo.default import default_backbone
from spring_rag.demo.paths import TOKENS
from spring_rag.encoding import encode
from spring_rag.evaluation.metrics import exact_match

KS = (0, 10, 50)
KINDS = {
    "F32": llama_cpp.LLAMA_FTYPE_ALL_F32,
    "F16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
}
NEW, WRITTEN = 32, 33
ROUNDS = 3


def make_files(folder: Path) -> dict[str, Path]:
    """The default backbone in four bits, and what llama.cpp makes of it in more."""
    source = Path(default_backbone())
    files = {}
    for kind, number in KINDS.items():
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype, settings.nthread, settings.allow_requantize = number, 1, True
        settings.pure = True
        files[kind] = folder / f"SmolLM2-135M-Instruct.{kind}.gguf"
        code = llama_cpp.llama_model_quantize(str(source).encode(), str(files[kind]).encode(), settings)
        assert code == 0
    return {"F32": files["F32"], "Q4_1": source, **files}


def load(file: Path, **settings: Any) -> SpringModel:
    return SpringModel.from_pretrained(file, tokens=TOKENS, engine="llama.cpp", n_threads=1, **settings)


def compare(
    local: SpringModel, ours: SpringModel, expected: Sequence[Generation], examples: Sequence[RagExample]
) -> dict[str, Any]:
    """How many answers differ, how near the ties were, and what both are worth, by k."""
    asked = list(product(examples, KS))
    found = answers_of(ours, examples)
    rows = {}
    for k in KS:
        those = [number for number, (_, each) in enumerate(asked) if each == k]
        gaps = [
            gap(local, _prompt(local, asked[number][0]), k, expected[number], found[number])
            for number in those
            if expected[number].token_ids != found[number].token_ids
        ]
        rows[f"k = {k}"] = {
            "different": len(gaps),
            "logit_gaps_where_they_part": sorted(round(each, 4) for each in gaps),
            "exact_match": _exact([found[number] for number in those], examples),
            "exact_match_transformers": _exact([expected[number] for number in those], examples),
        }
    return rows


def answers_of(model: SpringModel, examples: Sequence[RagExample]) -> list[Generation]:
    """To all questions, each with every k, on a context that is computed once."""
    asked = list(product(examples, KS))
    prompts = [_prompt(model, example) for example, _ in asked]
    return model.generate(prompts, num_tokens=[k for _, k in asked], max_new_tokens=NEW)


def _exact(found: Sequence[Generation], examples: Sequence[RagExample]) -> float:
    scores = [exact_match(one.text, each.answers) for one, each in zip(found, examples, strict=True)]
    return round(sum(scores) / len(scores), 4)


def _prompt(model: SpringModel, example: RagExample) -> RagPrompt:
    return RagPrompt(example.question, example.passages, model.template())


def seconds_of(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def measure_speed(file: Path, local: SpringModel, examples: Sequence[RagExample]) -> dict[str, Any]:
    """Time to the first token with 50 virtual tokens, again on the same passages, and for each further token; a new context each round."""
    ours = without_end(load(file))
    plain = llama_cpp.Llama(str(file), n_ctx=8192, n_threads=1, n_threads_batch=1, verbose=False)
    k = KS[-1]
    filler = encode("the " * k, local.tokenizer).ids[:k]
    taken: dict[str, list[float]] = {}
    lengths = []
    for number in range(ROUNDS + 1):
        example = examples[number]
        prompt, another = (
            RagPrompt(question, example.passages, local.template())
            for question in (example.question, "what does it cost?")
        )
        encoded = encode(prompt, local.tokenizer)
        ids = [*encoded.context_ids, *filler, *encoded.suffix_ids]
        pieces = plain.generate(ids, temp=0.0, repeat_penalty=1.0, reset=True)
        now = {
            "ours, first token": seconds_of(partial(_answer, ours, prompt, 1)),
            "ours, another question": seconds_of(partial(_answer, ours, another, 1)),
            "ours, kept": seconds_of(partial(_answer, ours, prompt, 1)),
            "ours, written": seconds_of(partial(_answer, ours, prompt, WRITTEN)),
            "transformers, first token": seconds_of(partial(_answer, local, prompt, 1)),
            "transformers, written": seconds_of(partial(_answer, local, prompt, WRITTEN)),
            "plain, first token": seconds_of(partial(next, pieces)),
            "plain, further": seconds_of(partial(deque, islice(pieces, WRITTEN - 1), 0)),
        }
        if number:  # the first round warms up
            lengths.append(len(ids))
            for name, value in now.items():
                taken.setdefault(name, []).append(value)
    more = WRITTEN - 1
    further = {
        "ours": [(a - b) / more for a, b in zip(taken["ours, written"], taken["ours, kept"], strict=True)],
        "transformers": [
            (a - b) / more
            for a, b in zip(taken["transformers, written"], taken["transformers, first token"], strict=True)
        ],
        "plain llama.cpp": [each / more for each in taken["plain, further"]],
    }
    first = {
        "ours": taken["ours, first token"],
        "ours, another question on the same passages": taken["ours, another question"],
        "transformers": taken["transformers, first token"],
        "plain llama.cpp": taken["plain, first token"],
    }
    return {
        "prompt_tokens": lengths,
        "seconds_to_first_token": {name: round(median(values), 4) for name, values in first.items()},
        "tokens_per_second": {name: round(1 / median(values), 1) for name, values in further.items()},
        "first_token_beside_plain": round(ratio(first["ours"], first["plain llama.cpp"]), 3),
        "each_further_token_beside_plain": round(ratio(further["ours"], further["plain llama.cpp"]), 3),
        "another_question_beside_the_first": round(ratio(taken["ours, another question"], first["ours"]), 3),
    }


def _answer(model: SpringModel, prompt: RagPrompt, written: int) -> None:
    found = model.generate(prompt, num_tokens=KS[-1], max_new_tokens=written)[0]
    assert found.usage.generated == written


def without_end(model: SpringModel) -> SpringModel:
    """The same model, whose answers are as long as they may be."""
    backend: Any = model.backend
    if isinstance(backend, LocalBackend):
        backend._eos_ids = frozenset
    else:
        backend._writer._eos_ids = frozenset()
    return model


def measure_memory(file: str, engine: str) -> None:
    """Print the most memory that this process had, in MiB, without and with a model that has answered."""
    before = _most_memory()
    model = SpringModel.from_pretrained(
        file,
        tokens=TOKENS,
        **({"engine": engine, "n_threads": 1} if engine == "llama.cpp" else {"device": "cpu"}),
    )
    model.answer("who built it?", ["The lighthouse was built by Hale and Sons. " * 100])
    print(json.dumps([before, _most_memory()]))


def _most_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def memory_of(file: Path, engine: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, __file__, "--memory", str(file), engine], capture_output=True, text=True, check=True
    )
    before, most = json.loads(done.stdout)
    return {"mib_before_loading": before, "mib_at_most": most}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=40, help="how many of the demo's")
    parser.add_argument("--memory", nargs=2, metavar=("FILE", "ENGINE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory:
        measure_memory(*args.memory)
        return
    questions = run.load_questions(limit=args.questions)
    what = (
        f"{len(questions)} of the demo's questions, SmolLM2-135M-Instruct, 5 passages, {NEW} tokens at most; times: {ROUNDS} of them with "
        f"{KS[-1]} virtual tokens, processor time of one thread, llama.cpp built for AVX2"
    )
    result: dict[str, Any] = {"what": what, "llama-cpp-python": llama_cpp.__version__}
    with tempfile.TemporaryDirectory() as name:
        files = make_files(Path(name))
        local = SpringModel.from_pretrained(files["Q4_1"], tokens=TOKENS, device="cpu")
        examples, _ = run.retrieve(run.build_index(local, Path(name, "db"), 5), questions)
        expected = answers_of(local, examples)
        result["answers"] = {}
        for kind, file in files.items():
            result["answers"][kind] = compare(local, load(file), expected, examples)
            save("on_llama_cpp", result)
        result["memory"] = {
            engine: memory_of(files["Q4_1"], engine) for engine in ("llama.cpp", "transformers")
        }
        result["speed"] = measure_speed(files["Q4_1"], without_end(local), examples)
    save("on_llama_cpp", result)


if __name__ == "__main__":
    main()
