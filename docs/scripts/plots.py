"""Draw the plots in docs/images from the committed results: `python docs/scripts/plots.py [--check]`."""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
RESULTS, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
TOKENS, PLAIN, WORDS = "#ef6c00", "#90a4ae", "#1e88e5"

mpl.use("svg")
mpl.rcParams |= {
    "svg.hashsalt": "spring-rag",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def results(name: str) -> Any:
    """Return the results of a benchmark."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def demo() -> Figure:
    """Plot scores and lengths of the demo's answers over k, compared with the same backbone told in words."""
    found = results("demo")["results"]
    rows, words = found["results"], found["instructed"]
    ks = [row["k"] for row in rows]
    panels = [
        ("exact_match", "exact match (%)", 100),
        ("f1", "F1 (%)", 100),
        ("answer_tokens", "tokens per answer", 1),
    ]
    figure = Figure(figsize=(8, 2.4), layout="constrained")
    for axes, (key, title, scale) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.plot(
            range(len(ks)), [row[key] * scale for row in rows], "o-", color=TOKENS, label="virtual tokens"
        )
        axes.axhline(words[key] * scale, color=WORDS, linestyle="--", label="k = 0, told in words")
        axes.set(title=title, xlabel="k", ylim=(0, None))
        axes.set_xticks(range(len(ks)), ks)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def retrieval() -> Figure:
    """Plot how often the first five passages hold an accepted answer."""
    found = results("retrieval")["shares"]
    ways = {
        "words (the default)": found["search (the default)"],
        "plain BM25": found["BM25 without stemming, whole texts"],
    }
    figure = Figure(figsize=(7, 2.2), layout="constrained")
    axes = figure.subplots()
    sets = {"nq/test": "Natural Questions, test", "xquad": "XQuAD"}
    labels = [f"{sets[name]}: {way}" for name in sets for way in ways]
    shares = [ways[way][name] * 100 for name in sets for way in ways]
    _bars(axes, labels, shares, [TOKENS, PLAIN] * len(sets), "{:.1f} %")
    axes.set(xlim=(0, 110), xlabel="an accepted answer among the first five (% of questions)")
    return figure


def training_step() -> Figure:
    """Plot how much faster a training step is than one over the whole sequence."""
    found = results("training_step")["results"]
    sizes = {"45M float32": "42 million parameters", "170M float32": "162 million parameters"}
    against = {"long": "the whole sequence", "authors": "the authors' loop"}
    labels = [f"{size}, beside {rival}" for size in sizes.values() for rival in against.values()]
    ratios = [found[size][rival]["speed_up"] for size in sizes for rival in against]
    figure = Figure(figsize=(7, 2.2), layout="constrained")
    axes = figure.subplots()
    _bars(axes, labels, ratios, [TOKENS] * len(ratios), "{:.1f} ×")
    axes.axvline(1, color=PLAIN, linestyle="--")
    axes.set(xlim=(0, max(ratios) * 1.1), xlabel="times as fast")
    return figure


def _bars(axes: Axes, labels: list[str], values: list[float], colors: list[str], text: str) -> None:
    bars = axes.barh(labels, values, color=colors)
    axes.bar_label(bars, [text.format(value) for value in values], padding=3)
    axes.invert_yaxis()


PLOTS: dict[str, Callable[[], Figure]] = {
    "demo": demo,
    "retrieval": retrieval,
    "training_step": training_step,
}


def draw(folder: Path) -> None:
    """Return all plots, always the same bytes for the same results."""
    for name, plot in PLOTS.items():
        plot().savefig(folder / f"{name}.svg", metadata={"Date": None}, facecolor="white")


def main() -> None:
    """Draw the plots; with `--check`, only check whether they are up to date."""
    if "--check" not in sys.argv[1:]:
        draw(IMAGES)
        return
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder))
        stale = [each.name for each in Path(folder).iterdir() if each.read_bytes() != _old(each.name)]
    if stale:
        sys.exit(f"docs/images/{', '.join(sorted(stale))} is stale; draw it again: make docs-update")


def _old(name: str) -> bytes:
    path = IMAGES / name
    return path.read_bytes() if path.exists() else b""


if __name__ == "__main__":
    main()
