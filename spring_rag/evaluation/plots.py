"""Plots of a report, as SVG texts."""

import io
from collections.abc import Sequence

from spring_rag.evaluation.choices import Coverage
from spring_rag.evaluation.runner import Run, Sweep
from spring_rag.evaluation.statistics import interval
from spring_rag.evaluation.study import SCORES
from spring_rag.extras import extra

with extra("train"):
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = {"exact_match": "exact match", "f1": "F1"}


def score_over_k(found: Sweep) -> str:
    """Plot exact match and F1 over the number of virtual tokens, a line per set, with 95 % intervals; words are a dashed line."""
    figure, axes = _figure("virtual tokens (k)")
    sets = list(dict.fromkeys(run.tokens for run in found.runs if run.k)) or [None]
    for ax, score in zip(axes, SCORES, strict=True):
        for name in sets:
            runs = sorted(
                (run for run in found.runs if not run.k or run.tokens == name), key=lambda run: run.k
            )
            _line(ax, [run.k for run in runs], runs, score, name or "virtual tokens")
        if found.instructed is not None:
            ax.axhline(
                100 * found.instructed.mean(score), linestyle="--", color="gray", label="told in words, k = 0"
            )
        # Small ks tell most, and would lie close together on a linear axis.
        ax.set_xscale("symlog", linthresh=1)
        ks = sorted({run.k for run in found.runs})
        ax.set_xticks(ks, labels=[str(k) for k in ks], minor=False)
        ax.minorticks_off()
    return _svg(figure, axes)


def score_over_passages(counts: Sequence[int], sweeps: Sequence[Sweep]) -> str:
    """Plot exact match and F1 over the number of passages, a line per run."""
    figure, axes = _figure("passages")
    for ax, score in zip(axes, SCORES, strict=True):
        for runs in zip(*(found.all_runs for found in sweeps), strict=True):
            _line(ax, counts, runs, score, runs[0].label)
        ax.set_xticks(list(counts))
    return _svg(figure, axes)


def risk_coverage_plot(found: Sequence[Coverage]) -> str:
    """Plot the exact match of the answered questions over their share, the surest answers first."""
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    ax = figure.subplots()
    ax.plot([100 * one.coverage for one in found], [100 * one.score for one in found])
    ax.axhline(100 * found[-1].score, linestyle="--", color="gray", label="all answered")
    ax.set_xlabel("% of the questions answered")
    ax.set_ylabel("exact match of those, %")
    ax.grid(alpha=0.3)
    return _svg(figure, [ax])


def _figure(label: str) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = list(figure.subplots(1, 2, sharey=True))
    for ax, score in zip(axes, SCORES, strict=True):
        ax.set_title(_TITLES[score])
        ax.set_xlabel(label)
        ax.set_ylabel("%")
        ax.grid(alpha=0.3)
    return figure, axes


def _line(ax: Axes, xs: Sequence[int], runs: Sequence[Run], score: str, label: str) -> None:
    means = [100 * run.mean(score) for run in runs]
    bounds = [interval(run.scores(score)) for run in runs]
    below = [max(0.0, mean - 100 * one.low) for mean, one in zip(means, bounds, strict=True)]
    above = [max(0.0, 100 * one.high - mean) for mean, one in zip(means, bounds, strict=True)]
    ax.errorbar(xs, means, yerr=[below, above], marker="o", capsize=3, label=label)


def _svg(figure: Figure, axes: Sequence[Axes]) -> str:
    for ax in axes:
        ax.set_ylim(-3, 103)
    # Names of sets and instructions are text, not TeX.
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, [label.replace("$", r"\$") for label in labels], loc="outside lower center", ncols=3
    )
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "spring-rag", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
