"""Test intervals and significance tests against known values and scipy."""

import numpy as np
import pytest
from scipy import stats

from spring_rag.evaluation.statistics import compare, interval


def test_interval_of_a_mean_is_near_the_normal_one() -> None:
    scores = np.random.default_rng(1).random(400).tolist()
    found = interval(scores)
    error = 1.96 * float(np.std(scores)) / 20
    assert found.low == pytest.approx(np.mean(scores) - error, abs=0.15 * error)
    assert found.high == pytest.approx(np.mean(scores) + error, abs=0.15 * error)
    assert interval(scores) == found


@pytest.mark.parametrize("scores", [[1.0], [0.5, 0.5, 0.5], [0.0, 0.0]])
def test_scores_that_do_not_differ_have_no_width(scores: list[float]) -> None:
    assert (interval(scores).low, interval(scores).high) == (scores[0], scores[0])


def test_exact_match_is_compared_by_mcnemars_exact_test() -> None:
    before = [1.0] * 10 + [0.0] * 20 + [1.0] * 3
    after = [1.0] * 10 + [1.0] * 20 + [0.0] * 3
    found = compare(after, before)
    assert found.gain == pytest.approx(17 / 33)
    assert found.p == pytest.approx(stats.binomtest(20, 23).pvalue)
    assert found.interval.low > 0.2


def test_f1_is_compared_by_a_permutation_test() -> None:
    rng = np.random.default_rng(2)
    before = rng.random(9)
    after = before + rng.normal(0.1, 0.2, 9)
    exact = stats.permutation_test((after - before,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert compare(after.tolist(), before.tolist()).p == pytest.approx(exact.pvalue, abs=0.02)


def test_ways_that_are_alike_are_not_told_apart() -> None:
    rng = np.random.default_rng(3)
    found = [compare(rng.random(60).tolist(), rng.random(60).tolist()).p for _ in range(40)]
    assert 0.3 < np.mean(found) < 0.7
    assert compare([0.5, 1.0], [0.5, 1.0]).p == 1.0
    assert compare([1.0, 0.0, 1.0], [0.0, 1.0, 1.0]).p == 1.0
