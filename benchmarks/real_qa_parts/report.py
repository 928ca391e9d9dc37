"""What the part files say together: scores with intervals, and each way beside the best words."""

import json
from pathlib import Path
from statistics import mean, median
from typing import Any

from real_qa_parts.answer import FILED_UNDER, MISSING, WAYS, Question, lines_of

from spring_rag.data.examples import UNANSWERABLE_ANSWER
from spring_rag.data.matching import normalise
from spring_rag.evaluation.metrics import exact_match, f1
from spring_rag.evaluation.statistics import compare, interval

ROWS = [name for way in WAYS for name in FILED_UNDER.get(way, (way,))]
RIVAL = "words"
_SAID = normalise(UNANSWERABLE_ANSWER)


def answers_file(results: Path, label: str, data: str, name: str) -> Path:
    """Where the answers of one way to one data set lie."""
    return results / "answers" / f"{label}-{data}-{name}.jsonl"


def table(results: Path, label: str, data: str, asked: dict[str, Question]) -> dict[str, Any] | None:
    """Scores of all ways on the questions that all have answered; None where none has answered any."""
    found = {name: _answers(answers_file(results, label, data, name)) for name in ROWS}
    found = {name: answers for name, answers in found.items() if answers}
    if not found:
        return None
    common = [one for one in asked if all(one in answers for answers in found.values())]
    if not common:
        return None
    scores = {
        name: _scores([answers[one] for one in common], [asked[one] for one in common])
        for name, answers in found.items()
    }
    rows = []
    for name, its in scores.items():
        row: dict[str, Any] = {"way": name}
        for score in ("said",) if data.endswith(MISSING) else ("exact_match", "f1", "said"):
            bounds = interval(its[score])
            row[score] = round(mean(its[score]), 4)
            row[f"{score}_interval"] = [round(bounds.low, 4), round(bounds.high, 4)]
            if RIVAL in scores and name != RIVAL:
                against = compare(its[score], scores[RIVAL][score])
                row[f"{score}_gain_over_words"] = {
                    "gain": round(against.gain, 4),
                    "interval": [round(against.interval.low, 4), round(against.interval.high, 4)],
                    "p": against.p,
                }
        row["answer_tokens"] = round(mean(its["tokens"]), 2)
        rows.append(row)
    return {"n": len(common), "rows": rows}


def seconds(results: Path, label: str) -> dict[str, float]:
    """Median seconds of an answer, asked alone, of each way that was timed."""
    took: dict[str, list[float]] = {}
    for line in lines_of(results / "times" / f"{label}.jsonl"):
        took.setdefault(line["way"], []).append(line["seconds"])
    return {name: round(median(its), 3) for name, its in took.items()}


def choices(results: Path, label: str) -> dict[str, str]:
    """The best words on the dev questions, and the best of those that also say what to answer where there is no answer."""
    tried = lines_of(words_file(results, label))
    if not tried:
        msg = "the words are not chosen yet; run the stage `words` first"
        raise SystemExit(msg)
    order = sorted(tried, key=lambda trial: (-trial["f1"], -trial["exact_match"]))
    told = next((one for one in order if one["way"].endswith(UNANSWERABLE_ANSWER)), order[0])
    chosen = {"words": order[0]["way"], "words-told": told["way"]}
    return chosen if chosen["words"] != chosen["words-told"] else {"words": order[0]["way"]}


def words_file(results: Path, label: str) -> Path:
    """Where the trials of words lie."""
    return results / "words" / f"{label}.jsonl"


def training(results: Path, label: str) -> dict[str, Any]:
    """What each trained way took; a note names what differs where it ought to be the same."""
    found = {
        way: json.loads(path.read_text(encoding="utf-8"))
        for way in WAYS
        if (path := results / "training" / f"{label}-{way}.json").exists()
    }
    for field in ("steps", "data"):
        if len({json.dumps(one[field]) for one in found.values()}) > 1:
            print(f"not the same for all ways: {field}: { {way: one[field] for way, one in found.items()} }")
    return found


def markdown(data: str, found: dict[str, Any], took: dict[str, float]) -> str:
    """A data set's rows for people."""
    scores = [score for score in ("exact_match", "f1", "said") if score in found["rows"][0]]
    heads = {"exact_match": "EM", "f1": "F1", "said": f"says “{UNANSWERABLE_ANSWER}”"}
    columns = ["way", *(heads[score] for score in scores), "tokens", "seconds", "p (F1)"]
    lines = [
        f"**{data}**, {found['n']} questions",
        "",
        "| " + " | ".join(columns) + " |",
        "| --- " * len(columns) + "|",
    ]
    for row in found["rows"]:
        cells = [row["way"]]
        for score in scores:
            low, high = row[f"{score}_interval"]
            cells.append(f"{row[score]:.3f} ({low:.3f} to {high:.3f})")
        against = row.get("f1_gain_over_words")
        cells += [
            f"{row['answer_tokens']:.1f}",
            str(took.get(row["way"], "")),
            f"{against['p']:.2g}" if against else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _answers(path: Path) -> dict[str, dict[str, Any]]:
    return {line["id"]: line for line in lines_of(path)}


def _scores(answers: list[dict[str, Any]], asked: list[Question]) -> dict[str, list[float]]:
    pairs = [(one["answer"], question.example.answers) for one, question in zip(answers, asked, strict=True)]
    return {
        "exact_match": [exact_match(*pair) for pair in pairs],
        "f1": [f1(*pair) for pair in pairs],
        "said": [float(normalise(answer) == _SAID) for answer, _ in pairs],
        "tokens": [float(one["tokens"]) for one in answers],
    }
