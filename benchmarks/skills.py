"""What the skills are worth beside simpler ways: `python benchmarks/skills.py NAME QUESTIONS [--limit N] [--dtype bfloat16]`

QUESTIONS is a file of questions with ten retrieved passages each, of which five are shown; one in four questions loses the passages that hold
its answer, and what is ranked behind takes their place. A folder with questions.jsonl and passages.jsonl is read as SQuAD 2.0 is laid out here:
each question with the paragraph that answers it or seems to, and nothing taken away.

Every question's record goes into `results/skills/NAME.jsonl`, from which a run that was broken off goes on. `results/skills.json` sums up:

- `answerable` by AUROC, beside the plain backbone asked in words (probability of yes), and the log-probability of the answer, its sum and its
  mean per token. Differences come with 95 % intervals by paired bootstrap.
- `cite`, if there is a set for it, by how often the first passage that it names holds the answer, of the questions that have such a passage,
  beside the first passage, the one with most words in common with the answer, and the plain backbone asked in words.
- `check`, with --check, by AUROC on one right or wrong answer to each question, beside the plain backbone asked in words; records go to `NAME-check.jsonl`.
- exact match of the surest 80 % beside that of all.
- seconds of the answer and all skills together beside the answer alone, in turns.
"""

import argparse
import hashlib
import json
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from measure import RESULTS, alternate, ratio, save
from scipy import stats

from spring_rag import RagPrompt, RagTemplate, SpringModel
from spring_rag.asking import ask, attached_skills
from spring_rag.backends.base import GenerationSettings
from spring_rag.cli.console import Progress
from spring_rag.data.examples import RagExample, load_examples
from spring_rag.data.matching import normalise
from spring_rag.demo.default import default_backbone
from spring_rag.demo.paths import SKILLS, TOKENS
from spring_rag.encoding import encode
from spring_rag.evaluation.choices import accuracy, at_coverage, auroc, calibration_error, citation_scores
from spring_rag.evaluation.metrics import exact_match
from spring_rag.evaluation.statistics import compare, interval
from spring_rag.skills import Skill, skill_of
from spring_rag.skills.answerable import Answerable
from spring_rag.skills.asking import ask_skill
from spring_rag.skills.check import Check
from spring_rag.skills.cite import Cite
from spring_rag.skills.samples import Sample, samples
from spring_rag.skills.skill import held

PASSAGES, NEW, TIMED, SEED, COVERAGE, RESAMPLES = 5, 32, 8, 0, 0.8, 1999
ONE = GenerationSettings(max_new_tokens=1)
LIKELIHOODS = ("log-probability", "log-probability per token")


class YesOrNoInWords(Skill):
    """The plain backbone asked in words, for a yes or no."""

    yes = "Yes"
    choosing = Skill.choosing

    def targets(self, passages: int) -> tuple[str, ...]:  # noqa: ARG002
        return ("Yes", "No")


class AnswerableInWords(YesOrNoInWords, Answerable):
    """The plain backbone asked in words."""

    line = (
        "Question: {question}\nDo the passages above contain the answer to this question? Answer Yes or No."
    )


class CiteInWords(Cite):
    """The plain backbone asked in words."""

    line = "Question: {question}\nWhich passage contains the answer to this question? Answer with its number only."
    choosing = Skill.choosing

    def targets(self, passages: int) -> tuple[str, ...]:
        return tuple(map(str, range(1, passages + 1)))


class CheckInWords(YesOrNoInWords, Check):
    """The plain backbone asked in words."""

    line = "Question: {question}\nDo the passages above support this answer? Answer Yes or No."


def questions(path: Path, task: str) -> list[Sample]:
    """The samples of a set, in an order of chance."""
    if path.is_dir():
        texts = {one["id"]: f"{one['title']}\n{one['text']}" for one in _lines(path / "passages.jsonl")}
        found = []
        for one in _lines(path / "questions.jsonl"):
            passages = tuple(texts[each] for each in one["passages"])
            example = RagExample(one["question"], tuple(one["golden_answers"]), passages)
            found.append(Sample(example, example.question, passages, "yes" if example.answers else "no"))
    else:
        found = samples(skill_of(task), load_examples(path).examples, PASSAGES, SEED)
    random.Random(SEED).shuffle(found)
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def record(model: SpringModel, sample: Sample) -> dict[str, Any]:
    """All that is known of one question."""
    question, passages = sample.question, sample.passages
    prompt = RagPrompt(question, passages, model.template())
    settings = GenerationSettings(max_new_tokens=NEW, logprob=True)
    asked = ask(model.backend, prompt, None, None, settings, None)
    generations = model.backend.generate(asked.requests, settings)
    told = asked.read(generations)
    assert told.logprob is not None
    yes, numbers = (in_words(model, skill, sample) for skill in (AnswerableInWords(), CiteInWords()))
    return {
        "question": _digest(sample),
        "truth": sample.target == "yes",
        "holding": [n for n, one in enumerate(passages, 1) if held(one, sample.example.answers)],
        "answer": told.text,
        "exact_match": exact_match(told.text, sample.example.answers) if sample.example.answers else 0.0,
        "answerable": told.answerable,
        "citations": told.citations,
        "yes in words": yes[0],
        "citation in words": 1 + max(range(len(numbers)), key=numbers.__getitem__) if numbers else 1,
        "most words in common": _most_words(told.text, passages),
        **dict(zip(LIKELIHOODS, (told.logprob, told.logprob / told.usage.generated), strict=True)),
    }


def in_words(model: SpringModel, skill: Skill, sample: Sample) -> list[float]:
    """Probabilities of a skill's targets from the plain backbone in its chat template."""
    prompt = RagPrompt(sample.question, sample.passages, RagTemplate(question=skill.line, chat=True))
    asked = ask_skill(skill, prompt, encode(prompt, model.tokenizer), model.tokenizer, num_tokens=0)
    return asked.probabilities(model.backend.generate(asked.requests, ONE))


def check_record(model: SpringModel, sample: Sample) -> dict[str, Any]:
    """All that is known of one answer that is judged."""
    assert sample.claim is not None
    claimed = replace(sample, question=f"{sample.question}\nAnswer: {sample.claim}")
    return {
        "question": _digest(sample),
        "truth": sample.target == "yes",
        "check": model.check(sample.example.question, sample.claim, sample.passages),
        "yes in words": in_words(model, CheckInWords(), claimed)[0],
    }


def _digest(sample: Sample) -> str:
    """What a record is known by: it holds no text of the data but answers."""
    return hashlib.sha256(sample.question.encode()).hexdigest()[:12]


def _most_words(answer: str, passages: Sequence[str]) -> int:
    words = set(normalise(answer).split())
    common = [len(words & set(normalise(one).split())) for one in passages]
    return 1 + max(range(len(passages)), key=common.__getitem__)


def sureness(task: str, others: Sequence[str], records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the probability of a skill's yes is worth, beside other ways."""
    truths = [one["truth"] for one in records]
    scores = {way: [one[way] for one in records] for way in (task, *others)}
    ours = scores[task]
    return {
        "questions": len(records),
        "true": sum(truths) / len(truths),
        "auroc": {way: auroc(each, truths) for way, each in scores.items()},
        "interval": _bootstrap(lambda p, t: auroc(p, t), ours, truths),
        "gain over": {
            way: {
                "gain": auroc(ours, truths) - auroc(each, truths),
                "interval": _bootstrap(lambda p, q, t: auroc(p, t) - auroc(q, t), ours, each, truths),
            }
            for way, each in scores.items()
            if way != task
        },
        "accuracy at 0.5": accuracy(ours, truths),
        "always yes": sum(truths) / len(truths),
        "calibration error": calibration_error(ours, truths),
    }


def _bootstrap(statistic: Callable[..., float], *scores: Sequence[float]) -> list[float]:
    found = stats.bootstrap(
        scores,
        statistic,
        paired=True,
        vectorized=False,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return [float(found.low), float(found.high)]


def passages(records: Sequence[dict[str, Any]], cites: bool) -> dict[str, Any]:
    """How often each way names a passage that holds the answer; `cite` too, if its tokens were attached."""
    having = [one for one in records if one["holding"] and len(one["holding"]) < PASSAGES]
    named: dict[str, Callable[[dict[str, Any]], int]] = {
        "cite": lambda one: (one["citations"] or [0])[0],
        "first passage": lambda _: 1,
        "most words in common": lambda one: one["most words in common"],
        "citation in words": lambda one: one["citation in words"],
    }
    if not cites:
        del named["cite"]
    hits = {way: [float(number(one) in one["holding"]) for one in having] for way, number in named.items()}
    found: dict[str, Any] = {
        "questions": len(having),
        "names one that holds the answer": {
            way: {"share": statistics.mean(each), "interval": asdict(interval(each))}
            for way, each in hits.items()
        },
    }
    if cites:
        cited, holding = [one["citations"] for one in records], [one["holding"] for one in records]
        others = {way: each for way, each in hits.items() if way != "cite"}
        found["gain over"] = {way: asdict(compare(hits["cite"], each)) for way, each in others.items()}
        found["all citations"] = asdict(citation_scores(cited, holding))
    return found


def selective(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    right = [one["exact_match"] for one in records]
    return {
        "exact match of all": statistics.mean(right),
        f"of the surest {COVERAGE:.0%} by": {
            way: at_coverage([one[way] for one in records], right, COVERAGE)
            for way in ("answerable", "yes in words", *LIKELIHOODS)
        },
    }


def timed(model: SpringModel, some: Sequence[Sample]) -> dict[str, Any]:
    """Seconds of a question, with skills and without."""
    alone = SpringModel.from_backend(model.backend)

    def answers() -> None:
        for one in some:
            alone.answer(one.question, one.passages, max_new_tokens=NEW)

    def asks() -> None:
        for one in some:
            model.ask(one.question, one.passages, max_new_tokens=NEW)

    seconds = alternate({"answer": answers, "answer and skills": asks}, rounds=3)
    return {
        "seconds of a question": {
            name: statistics.median(each) / len(some) for name, each in seconds.items()
        },
        "ratio": ratio(seconds["answer and skills"], seconds["answer"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name")
    parser.add_argument("questions", type=Path)
    parser.add_argument("--limit", type=int, default=100, help="number of questions, drawn by chance")
    parser.add_argument("--dtype", default="auto", help="of the backbone")
    parser.add_argument("--model", default=None, help="the backbone; the default one if not given")
    parser.add_argument("--skills", type=Path, default=SKILLS, help="folder with a set for each skill")
    parser.add_argument("--check", action="store_true", help="measure check alone")
    parser.add_argument(
        "--time", action="store_true", help="measure seconds alone; with nothing else running"
    )
    args = parser.parse_args()
    model = SpringModel.from_pretrained(args.model or default_backbone(), tokens=TOKENS, dtype=args.dtype)
    for task in ("check",) if args.check else ("answerable", "cite"):
        if (args.skills / task).exists():
            model.add_skill(args.skills / task)
    found = questions(args.questions, "check" if args.check else "answerable")[: args.limit]
    attached = attached_skills(model.backend)
    result: dict[str, Any] = {"dtype": str(args.dtype)}
    if args.time:
        result["time"] = {"asked": sorted(attached), **timed(model, found[:TIMED])}
    elif args.check:
        result["check"] = sureness("check", ["yes in words"], records(args, model, found))
    else:
        done = records(args, model, found)
        others = ["yes in words", *LIKELIHOODS]
        result |= {"answerable": sureness("answerable", others, done), "selective": selective(done)}
        if any(len(one.passages) > 1 for one in found):
            result["passages"] = passages(done, "cite" in attached)
    summary = RESULTS / "skills.json"
    sets = json.loads(summary.read_text(encoding="utf-8"))["sets"] if summary.exists() else {}
    known = sets.get(args.name, {})
    digests = {task: model.backend.bank[name].digest for task, name in attached.items()}
    if not args.time:
        result["tokens"] = {**known.get("tokens", {}), **digests}
    save("skills", {"sets": {**sets, args.name: {**known, **result}}})


def records(args: argparse.Namespace, model: SpringModel, found: Sequence[Sample]) -> list[dict[str, Any]]:
    """The records of all questions; those that a run before has written are kept."""
    path = RESULTS / "skills" / f"{args.name}{'-check' * args.check}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = _lines(path) if path.exists() else []
    if [one["question"] for one in done] != [_digest(one) for one in found[: len(done)]]:
        msg = f"{path} holds other questions; delete it first"
        raise SystemExit(msg)
    make = check_record if args.check else record
    with Progress("asking") as progress, path.open("a", encoding="utf-8") as file:
        for number, sample in enumerate(found[len(done) :], len(done) + 1):
            done.append(make(model, sample))
            file.write(json.dumps(done[-1], ensure_ascii=False) + "\n")
            file.flush()
            progress(number, len(found))
    return done


if __name__ == "__main__":
    main()
