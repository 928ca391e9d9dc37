"""What a sweep brought, for people: a table, and questions with all answers side by side."""

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from spring_rag.evaluation.runner import Run, Sweep

_SHOWN_CHARACTERS = 300


def score_table(sweep: Sweep, title: str | None = None) -> Table:
    """Make a table with a row per run: exact match, F1 and containment in percent, answer length, and speed if it was measured."""
    table = Table(title=None if title is None else Text(title))  # a file's name is no markup
    table.add_column("virtual tokens")
    timed = any(run.answers_per_second is not None for run in sweep.all_runs)
    for heading in ("exact match", "F1", "contains", "tokens/answer", *(["answers/s"] if timed else [])):
        table.add_column(heading, justify="right")
    for run in sweep.all_runs:
        row = run.to_dict()
        table.add_row(
            Text(run.label),
            f"{row['exact_match']:.1%}",
            f"{row['f1']:.1%}",
            f"{row['contains']:.1%}",
            f"{row['answer_tokens']:.1f}",
            *([f"{row['answers_per_second']:.1f}"] if timed else []),
        )
    return table


def cut_short(sweep: Sweep) -> list[str]:
    """Write a sentence for each run with answers cut while the backbone was thinking: its scores don't show what it can do."""
    lines = []
    for run in sweep.all_runs:
        if count := sum(answer.cut_while_thinking for answer in run.answers):
            lines.append(
                f"{count} of {len(run.answers)} answers of {run.label} were cut while the backbone was thinking, so they hold no answer: "
                "raise --max-new-tokens, or turn thinking off (--no-thinking)."
            )
    return lines


def telling_examples(sweep: Sweep, count: int) -> list[int]:
    """Return the indices of the questions where more virtual tokens gain most, earlier questions first among equals."""
    gains = _gains(sweep)
    return sorted(range(len(gains)), key=lambda i: -gains[i])[:count]


def losing_examples(sweep: Sweep, count: int) -> list[int]:
    """Return the indices of the questions where more virtual tokens gain least, worse answers first among equals."""
    gains, after = _gains(sweep), max(sweep.runs, key=_k)
    return sorted(range(len(gains)), key=lambda i: (gains[i], after.answers[i].f1))[:count]


def side_by_side(sweep: Sweep, index: int) -> Panel:
    """Show one question, its accepted answer, and what each run answered."""
    example = sweep.examples[index]
    table = Table(show_header=False, box=None, padding=(0, 1))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for run in sweep.all_runs:
        answer = run.answers[index]
        mark = Text("✓ ", "green") if answer.exact_match else Text("✗ ", "red")
        table.add_row(f"k = {run.k}" + (" in words" if run.words else ""), mark + _shown(answer.text))
    accepted = Text("expected: ", "dim") + _shown(" | ".join(example.answers))
    return Panel(Group(accepted, table), title=_shown(example.question), title_align="left")


def shown(text: str) -> str:
    """Put text on one line, cut to what fits a report."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 1] + "…"


def _gains(sweep: Sweep) -> list[float]:
    fewest, most = min(sweep.runs, key=_k), max(sweep.runs, key=_k)
    return [after.f1 - before.f1 for before, after in zip(fewest.answers, most.answers, strict=True)]


def _k(run: Run) -> int:
    return run.k


def _shown(text: str) -> Text:
    """Show text that comes from documents, so that it is never read as markup."""
    return Text(shown(text))
