"""Several sets of questions, answered from several numbers of passages: sweeps side by side, and what they bring in all."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from spring_rag.callbacks import OnProgress
from spring_rag.errors import counted
from spring_rag.evaluation.datasets import Dataset, answer_retrieved
from spring_rag.evaluation.runner import Run, Sweep, sweep
from spring_rag.evaluation.statistics import Comparison, compare, interval
from spring_rag.evaluation.words import WordsTrial

if TYPE_CHECKING:
    from spring_rag.model import SpringModel

SCORES = ("exact_match", "f1")
"""The scores that get intervals and tests."""


@dataclass(frozen=True, slots=True)
class DatasetSweeps:
    """One set of questions (or all), with one sweep per number of passages."""

    name: str
    sweeps: tuple[Sweep, ...]

    @property
    def main(self) -> Sweep:
        """The sweep with the most passages."""
        return self.sweeps[-1]

    @property
    def retrieved(self) -> float:
        """Share of the questions whose passages, of the main sweep, hold an accepted answer."""
        examples = self.main.examples
        return sum(map(answer_retrieved, examples)) / len(examples)

    def to_dict(self) -> dict[str, Any]:
        """Return the main sweep's rows with intervals and comparisons, as `--json` prints them."""
        return {**tested(self.main), "retrieved": round(self.retrieved, 4), "n": len(self.main.examples)}


@dataclass(frozen=True, slots=True)
class Study:
    """All that was answered.

    Args:
        datasets: one per set of questions.
        passages: numbers of passages, ascending; one None where all that there were are used.
        plain_difference: largest difference of a logit between the plain backbone and k = 0; None if not compared.
        trials: how the ways in words did on the questions that the best one was chosen on, best first.
        without_passages: some of the questions, answered without passages; None if not asked.
        interrupted: whether some of the questions were left out, at Ctrl-C.
    """

    datasets: tuple[DatasetSweeps, ...]
    passages: tuple[int | None, ...]
    plain_difference: float | None = None
    trials: tuple[WordsTrial, ...] = ()
    without_passages: Sweep | None = None
    interrupted: bool = False

    @property
    def counted(self) -> str:
        """With how many passages the questions of `DatasetSweeps.main` were answered."""
        most = self.passages[-1]
        return "all passages" if most is None else f"at most {counted(most, 'passage')} each"

    @property
    def overall(self) -> DatasetSweeps:
        """All questions together."""
        return DatasetSweeps(
            "all",
            tuple(
                merged([dataset.sweeps[at] for dataset in self.datasets]) for at in range(len(self.passages))
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        overall = self.overall
        by_passages = [
            {"passages": count, **found.to_dict()}
            for count, found in zip(self.passages, overall.sweeps, strict=True)
        ]
        return {
            **overall.to_dict(),
            "datasets": [{"name": dataset.name, **dataset.to_dict()} for dataset in self.datasets],
            **({"passages": by_passages} if len(self.passages) > 1 else {}),
            **({"words": [trial.to_dict() for trial in self.trials]} if self.trials else {}),
            **({"without_passages": tested(self.without_passages)} if self.without_passages else {}),
            "largest_difference_of_logits_at_k_0": self.plain_difference,
        }


def study(
    model: "SpringModel",
    datasets: Sequence[Dataset],
    ks: Sequence[int],
    passages: Sequence[int] = (),
    *,
    progress: OnProgress | None = None,
    **settings: Any,
) -> Study:
    """Sweep over k on each set of questions, once per number of passages.

    Args:
        model: the backbone with its virtual tokens.
        datasets: the questions, with their passages best first.
        ks: numbers of virtual tokens.
        passages: numbers of passages; the best so many are used. Empty uses all that there are.
        progress: called with the number of answers so far, and of all.
        settings: further arguments of `runner.sweep`.

    Returns:
        All that was answered; after Ctrl-C the sets of questions that were done by then, or what was answered of the first.

    Raises:
        DataError: no questions.
        TokensError: more virtual tokens than any set has.
    """
    counts: tuple[int | None, ...] = tuple(sorted(set(passages))) or (None,)
    questions = len(counts) * sum(len(dataset.examples) for dataset in datasets)
    before = 0

    def answered(done: int, total: int) -> None:
        # Every question gets the same number of answers, so one sweep's total tells that of all.
        if progress is not None:
            each = total // len(examples)
            progress(each * before + done, each * questions)

    found: list[DatasetSweeps] = []
    sweeps: list[Sweep] = []
    try:
        for dataset in datasets:
            sweeps = []
            for count in counts:
                examples = [replace(one, passages=one.passages[:count]) for one in dataset.examples]
                sweeps.append(sweep(model, examples, ks, progress=answered, **settings))
                if sweeps[-1].interrupted:
                    raise KeyboardInterrupt
                before += len(examples)
            found.append(DatasetSweeps(dataset.name, tuple(sweeps)))
    except KeyboardInterrupt:
        if not found:
            # Sweeps side by side are of the same questions.
            sweeps = [one for one in sweeps if not one.interrupted] or sweeps
            if not sweeps:
                raise
            found, counts = [DatasetSweeps(dataset.name, tuple(sweeps))], counts[: len(sweeps)]
        return Study(tuple(found), counts, interrupted=True)
    return Study(tuple(found), counts)


def merged(sweeps: Sequence[Sweep]) -> Sweep:
    """Join the same runs on the questions of several sweeps."""
    if len(sweeps) == 1:
        return sweeps[0]
    instructed = [one.instructed for one in sweeps if one.instructed is not None]
    return Sweep(
        tuple(example for one in sweeps for example in one.examples),
        tuple(_joined(runs) for runs in zip(*(one.runs for one in sweeps), strict=True)),
        _joined(instructed) if instructed else None,
    )


def _joined(runs: Sequence[Run]) -> Run:
    answers = tuple(answer for run in runs for answer in run.answers)
    speeds = [run.answers_per_second for run in runs]
    seconds = [len(run.answers) / speed for run, speed in zip(runs, speeds, strict=True) if speed]
    speed = len(answers) / sum(seconds) if len(seconds) == len(runs) else None
    return replace(runs[0], answers=answers, answers_per_second=speed)


def baseline(found: Sweep) -> Run | None:
    """Return the run of the plain backbone, if there is one."""
    return next((run for run in found.runs if run.k == 0), None)


def comparisons(run: Run, plain: Run | None) -> dict[str, Comparison]:
    """Compare a run with the plain backbone, by score; empty for the plain backbone itself."""
    if plain is None or run is plain:
        return {}
    return {score: compare(run.scores(score), plain.scores(score)) for score in SCORES}


def tested(found: Sweep) -> dict[str, Any]:
    """Return the rows of a sweep with 95 % intervals, and for k above 0 the gain over k = 0, its interval and p."""
    plain = baseline(found)

    def row(run: Run) -> dict[str, Any]:
        bounds = {score: interval(run.scores(score)) for score in SCORES}
        gains = {score: asdict(one) for score, one in comparisons(run, plain).items()}
        intervals = {
            f"{score}_interval": [round(one.low, 4), round(one.high, 4)] for score, one in bounds.items()
        }
        return {**run.to_dict(), **intervals, **({"beside_plain": gains} if gains else {})}

    words = {"instructed": row(found.instructed)} if found.instructed else {}
    return {"results": [row(run) for run in found.runs], **words}
