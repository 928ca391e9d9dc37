"""SmolLM2 on llama.cpp beside transformers: `python benchmarks/on_llama_cpp.py STAGE …`

Each stage is short, goes on where it stopped, and adds to results/on_llama_cpp.json:

    answer   questions with one KIND of file on one ENGINE; lines in --work
    compare  what those answers are worth, and where a KIND's on llama.cpp part from those of transformers with the same file unpacked to float32
    speed    one KIND: to the first token, to that of another question, for each further one; beside transformers and plain llama.cpp
    memory   at most, on both engines
    gemma    a FILE of a real Gemma 3, which scales what it looks up: is it read, and does it answer as transformers does?

Files of other kinds are made of the Q4_1 that the default backbone's package has: F32 holds the same weights, and to the virtual tokens, which were
trained on these in full precision, the others are what somebody deploys. Questions are the demo's, or --questions names JSON lines with retrieved
passages ({"id", "question", "golden_answers", "ret_passages"}). Times are processor time of one thread, taken in turns, so that whatever else a
machine does counts little. Run it with the Python of `make test-llama-cpp`.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import llama_cpp
import torch
from measure import RESULTS, ratio, save
from real_qa_parts.answer import Question, add_lines, lines_of
from real_qa_parts.answer import questions as retrieved_questions

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("tests", "tests/llamacpp")]
from near_ties import gap

from spring_rag import RagPrompt, SpringModel
from spring_rag.backends.base import Generation, Usage
from spring_rag.backends.llama_cpp import LlamaCppBackend
from spring_rag.data.examples import RagExample
from spring_rag.demo import run
from spring_rag.demo.default import default_backbone
from spring_rag.demo.paths import TOKENS
from spring_rag.encoding import encode
from spring_rag.evaluation.metrics import exact_match, f1
from spring_rag.evaluation.statistics import compare as beside
from spring_rag.evaluation.statistics import interval
from spring_rag.tokens import VirtualTokens

NAME = "on_llama_cpp"
KS = (0, 10, 50)
SHIPPED = "Q4_1"
KINDS = {
    "F32": llama_cpp.LLAMA_FTYPE_ALL_F32,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    SHIPPED: None,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
}
ENGINES = ("llama.cpp", "transformers")
NEW, WRITTEN = 32, 25
GEMMA_PASSAGES = (
    "The lighthouse at Grey Point was built in 1887 by the firm of Hale and Sons, of Leith.",
    "Its lamp burned oil until 1931, and was seen eighteen miles out.",
)
GEMMA_QUESTIONS = ("Who built the lighthouse?", "When was it built?", "What did its lamp burn?", "How far was it seen?")  # fmt: skip


def file_of(work: Path, kind: str) -> Path:
    """The default backbone in so many bits, made by llama.cpp's own quantiser unless it is there."""
    source = Path(default_backbone())
    number = KINDS[kind]
    if number is None:
        return source
    file = work / f"SmolLM2-135M-Instruct.{kind}.gguf"
    if not file.exists():
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype, settings.nthread, settings.allow_requantize = number, 1, True
        part = file.with_suffix(".part")
        if llama_cpp.llama_model_quantize(str(source).encode(), str(part).encode(), settings):
            msg = f"llama.cpp can't make {file}"
            raise SystemExit(msg)
        part.rename(file)
    return file


def load(engine: str, file: Path, tokens: str | Path | None) -> SpringModel:
    told: dict[str, Any] = {"n_threads": 1, "engine": engine} if engine == "llama.cpp" else {}
    return SpringModel.from_pretrained(file, tokens=tokens, device="cpu", **told)


def answers_file(args: argparse.Namespace, engine: str) -> Path:
    return Path(args.work) / f"{args.data}-{engine}-{row_of(args)}.jsonl"


def row_of(args: argparse.Namespace) -> str:
    """The kind of file, and the folder of the virtual tokens unless they are the demo's."""
    return args.kind if args.tokens == TOKENS else f"{args.kind} {args.tokens.name}"


def asked(args: argparse.Namespace) -> list[Question]:
    """The first --limit questions. What the demo retrieves is written down, so that all see the same passages."""
    if args.questions:
        return retrieved_questions(args.questions, args.data, args.limit)
    file = args.work / "demo.jsonl"
    known = lines_of(file)
    more = run.load_questions()[len(known) : args.limit]
    if more:
        local = load("transformers", file_of(args.work, SHIPPED), TOKENS)
        examples, _ = run.retrieve(run.build_index(local, args.work / "db", 5), more)
        add_lines(
            file,
            [
                {"id": one.id, "question": each.question, "golden_answers": each.answers, "ret_passages": each.passages}
                for one, each in zip(more, examples, strict=True)
            ],
        )  # fmt: skip
    return [
        Question(
            line["id"],
            RagExample(line["question"], tuple(line["golden_answers"]), tuple(line["ret_passages"])),
        )
        for line in lines_of(file)[: args.limit]
    ]


def prompt_of(model: SpringModel, example: RagExample) -> RagPrompt:
    return RagPrompt(example.question, example.passages, model.template())


def answer(args: argparse.Namespace) -> None:
    """A question at a time, with every k on a context that is computed once."""
    lines = answers_file(args, args.engine)
    done = {line["id"] for line in lines_of(lines)}
    left = [one for one in asked(args) if one.id not in done]
    if not left:
        return
    model = load(args.engine, file_of(args.work, args.kind), args.tokens)
    for number, one in enumerate(left, 1):
        found = model.generate(
            [prompt_of(model, one.example)] * len(KS), num_tokens=list(KS), max_new_tokens=NEW
        )
        texts = {str(k): each.text for k, each in zip(KS, found, strict=True)}
        ids = {str(k): each.token_ids for k, each in zip(KS, found, strict=True)}
        add_lines(lines, [{"id": one.id, "answers": texts, "token_ids": ids}])
        print(f"{number} of {len(left)}", file=sys.stderr, flush=True)


def compare(args: argparse.Namespace) -> None:
    questions = {one.id: one.example for one in asked(args)}
    found, expected = (
        {line["id"]: line for line in lines_of(answers_file(args, engine))} for engine in ENGINES
    )
    if not found:
        msg = f"{args.kind} has answered nothing of {args.data} on llama.cpp: run the stage answer first"
        raise SystemExit(msg)
    with_demos = argparse.Namespace(**{**vars(args), "tokens": TOKENS})
    demos = {line["id"]: line for line in lines_of(answers_file(with_demos, ENGINES[0]))}
    rows: dict[str, Any] = {}
    both = [one for one in questions if one in found and one in expected]
    local = load("transformers", file_of(args.work, args.kind), args.tokens) if both else None
    for k in map(str, KS):
        row: dict[str, Any] = _scores(found, questions, k)
        rows[f"k = {k}"] = row
        if args.tokens != TOKENS:
            row["gain_over_the_demos_tokens"] = _gain(found, demos, questions, k)
        if local is not None:
            parted = [one for one in both if found[one]["token_ids"][k] != expected[one]["token_ids"][k]]
            row["exact_match_transformers"] = _scores(expected, questions, k)["exact_match"]
            row["both_answered"] = len(both)
            row["different"] = len(parted)
            row["logit_gaps_where_they_part"] = sorted(
                round(
                    gap(
                        local,
                        prompt_of(local, questions[one]),
                        int(k),
                        *(_as_generation(each[one], k) for each in (expected, found)),
                    ),
                    4,
                )
                for one in parted
            )
    digest = VirtualTokens.from_pretrained(args.tokens).digest
    counted = {"questions": len(found.keys() & questions.keys()), "tokens": digest}
    add(["answers", args.data, row_of(args)], {**counted, **rows})


def _scores(lines: dict[str, Any], questions: dict[str, RagExample], k: str) -> dict[str, Any]:
    pairs = [(lines[one]["answers"][k], each.answers) for one, each in questions.items() if one in lines]
    found: dict[str, Any] = {}
    for name, score in (("exact_match", exact_match), ("f1", f1)):
        scores = [score(*pair) for pair in pairs]
        span = interval(scores)
        found[name] = round(mean(scores), 4)
        found[f"{name}_interval"] = [round(span.low, 4), round(span.high, 4)]
    return found


def _gain(
    lines: dict[str, Any], others: dict[str, Any], questions: dict[str, RagExample], k: str
) -> dict[str, Any]:
    """Exact match beside that of other lines, on the questions of both."""
    both = [one for one in questions if one in lines and one in others]
    ours, theirs = (
        [exact_match(each[one]["answers"][k], questions[one].answers) for one in both]
        for each in (lines, others)
    )
    return asdict(beside(ours, theirs))


def _as_generation(line: dict[str, Any], k: str) -> Generation:
    return Generation(line["answers"][k], "stop", Usage(0, 0, 0, 0), tuple(line["token_ids"][k]))


def speed(args: argparse.Namespace) -> None:
    """With all virtual tokens; plain llama.cpp has as many of its own in their place. Every question has a context of its own, and those
    before it are kept."""
    file = file_of(args.work, args.kind)
    ours, local = (load(engine, file, TOKENS) for engine in ENGINES)
    assert isinstance(ours.backend, LlamaCppBackend)
    ours.backend._writer._eos_ids = frozenset()
    plain = llama_cpp.Llama(str(file), n_ctx=8192, n_threads=1, n_threads_batch=1, verbose=False)
    filler = encode("the " * KS[-1], local.tokenizer).ids[: KS[-1]]
    measured = args.work / f"speed-{args.kind}.jsonl"
    done = {line["id"] for line in lines_of(measured)}
    for one in [one for one in asked(args) if one.id not in done]:
        prompt = prompt_of(local, one.example)
        another = RagPrompt("what does it cost?", one.example.passages, local.template())
        encoded = encode(prompt, local.tokenizer)
        ids = [*encoded.context_ids, *filler, *encoded.suffix_ids]
        pieces = plain.generate(ids, temp=0.0, repeat_penalty=1.0, reset=True)
        line = {
            "id": one.id,
            "tokens": len(ids),
            "ours": seconds_of(partial(_answer, ours, prompt, 1)),
            "plain llama.cpp": seconds_of(partial(next, pieces)),
            "ours, another question on the same passages": seconds_of(partial(_answer, ours, another, 1)),
            "transformers": seconds_of(partial(_answer, local, prompt, 1)),
            "ours, further": _further(ours, prompt),
            "plain llama.cpp, further": median(seconds_of(partial(next, pieces)) for _ in range(WRITTEN)),
        }
        add_lines(measured, [line])
        print(line, file=sys.stderr, flush=True)
    lines = lines_of(measured)
    taken = {name: [line[name] for line in lines] for name in lines[0] if name not in ("id", "tokens")}
    each = {name: [line[f"{name}, further"] for line in lines] for name in ("ours", "plain llama.cpp")}
    found = {
        "prompt_tokens": [line["tokens"] for line in lines],
        "seconds_to_first_token": {name: round(median(some), 3) for name, some in taken.items() if "further" not in name},
        "tokens_per_second": {name: round(1 / median(some), 1) for name, some in each.items()},
        "first_token_beside_plain": round(ratio(taken["ours"], taken["plain llama.cpp"]), 3),
        "each_further_token_beside_plain": round(ratio(each["ours"], each["plain llama.cpp"]), 3),
        "another_question_beside_the_first": round(ratio(taken["ours, another question on the same passages"], taken["ours"]), 3),
    }  # fmt: skip
    add(["speed", args.kind], found)


def seconds_of(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def _answer(model: SpringModel, prompt: RagPrompt, written: int) -> None:
    model.generate(prompt, num_tokens=KS[-1], max_new_tokens=written)


def _further(ours: SpringModel, prompt: RagPrompt) -> float:
    """Median seconds from one token to the next."""
    assert isinstance(ours.backend, LlamaCppBackend)
    engine: Any = ours.backend._writer._engine
    decode, ends = engine.decode, []

    def noted(*told: Any) -> Any:
        logits = decode(*told)
        ends.append(time.process_time())
        return logits

    engine.decode = noted
    try:
        _answer(ours, prompt, WRITTEN)
    finally:
        engine.decode = decode
    ends = ends[1 - WRITTEN :]  # before them virtual tokens and suffix were read
    return median(after - before for before, after in pairwise(ends))


def memory(args: argparse.Namespace) -> None:
    file = file_of(args.work, args.kind)
    for engine in ENGINES:
        command = [sys.executable, __file__, "one-memory", str(file), engine]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        add(["memory", args.kind, engine], json.loads(done.stdout))


def one_memory(args: argparse.Namespace) -> None:
    """Print the most memory that this process had, in MiB, without and with a model that has answered."""
    before = _most_memory()
    load(args.engine, args.file, TOKENS).answer(
        "who built it?", ["The lighthouse was built by Hale and Sons. " * 100]
    )
    print(json.dumps({"mib_before_loading": before, "mib_at_most": _most_memory()}))


def _most_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def gemma(args: argparse.Namespace) -> None:
    """Virtual tokens here are the rows of a text in the table: what they say must come out of the look-up scaled, or it is noise."""
    if not args.file.is_file():
        print(f"skipped: there is no {args.file}")
        return
    ours = load("llama.cpp", args.file, None)
    local = load("transformers", args.file, None)
    ids = torch.tensor(encode("Answer in a word or two.\n", local.tokenizer).ids)
    assert isinstance(ours.backend, LlamaCppBackend)
    with ours.backend.embedding.table() as table:
        rows = table[ids]
    prompts = [RagPrompt(question, GEMMA_PASSAGES) for question in GEMMA_QUESTIONS]
    answers = []
    for model in (ours, local):
        model.add_tokens("default", VirtualTokens(rows))
        answers.append(model.generate(prompts, max_new_tokens=NEW))
    gaps = [
        round(gap(local, prompt, len(rows), mine, theirs), 4)
        for prompt, theirs, mine in zip(prompts, *answers, strict=True)
        if mine.token_ids != theirs.token_ids
    ]
    found = {
        "file": args.file.name,
        "questions": len(prompts),
        "different": len(gaps),
        "logit_gaps_where_they_part": sorted(gaps),
        "answers": [each.text.strip() for each in answers[0]],
    }
    add(["gemma"], found)


def add(path: Sequence[str], found: dict[str, Any]) -> None:
    """Put what a stage has found into its place in the result."""
    file = RESULTS / f"{NAME}.json"
    result = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    result.pop("machine", None)
    result |= {
        "what": f"SmolLM2-135M-Instruct with its {KS[-1]} virtual tokens, 5 passages, {NEW} tokens at most; times: processor time of one thread, "
        "medians",
        "llama-cpp-python": llama_cpp.__version__,
    }
    place = result
    for name in path[:-1]:
        place = place.setdefault(name, {})
    place[path[-1]] = found
    save(NAME, result)


STAGES: dict[str, Callable[[argparse.Namespace], None]] = {
    "answer": answer,
    "compare": compare,
    "speed": speed,
    "memory": memory,
    "gemma": gemma,
    "one-memory": one_memory,
}


def arguments() -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--work", type=Path, default=Path("build/on_llama_cpp"), help="folder for files and answers"
    )
    common.add_argument("--kind", choices=KINDS, default=SHIPPED, help="of the file")
    common.add_argument("--questions", type=Path, help="JSON lines with passages; the demo's if not given")
    common.add_argument("--data", default="demo", help="what the questions are called")
    common.add_argument("--limit", type=int, default=40, help="how many of them")
    common.add_argument(
        "--tokens", type=Path, default=TOKENS, help="folder of virtual tokens; the demo's if not given"
    )
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = parser.add_subparsers(dest="stage", required=True)
    answering = stages.add_parser("answer", parents=[common])
    answering.add_argument("--engine", choices=ENGINES, default=ENGINES[0])
    for name in ("compare", "speed", "memory"):
        stages.add_parser(name, parents=[common])
    stages.add_parser("gemma").add_argument("file", type=Path)
    one = stages.add_parser("one-memory")
    one.add_argument("file", type=Path)
    one.add_argument("engine", choices=ENGINES)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    if "work" in args:
        args.work.mkdir(parents=True, exist_ok=True)
    STAGES[args.stage](args)


if __name__ == "__main__":
    main()
