"""Test skills: what is asked, what is right, and how a choice is read."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spring_rag.data.examples import RagExample
from spring_rag.data.matching import normalise
from spring_rag.errors import TokensError
from spring_rag.prompt import RagTemplate
from spring_rag.skills import SKILLS, skill_of
from spring_rag.skills.calibration import calibrated, fit_calibration, fit_ranked, ranked
from spring_rag.skills.choosing import Choice, Words, Written, branches, probabilities
from spring_rag.skills.cite import citations
from spring_rag.skills.samples import samples
from spring_rag.skills.wrong_answers import wrong_answer

LIGHT = "The lighthouse. Hale and Sons built it in 1887. Its keeper was Ada Brown."
SHIP = "A ship. It was built in 1901 by Miller and Co. Its captain was Tom Reed."
HILL = "A hill. Sheep graze on it in summer."
ABOUT_LIGHT = [
    RagExample("Who built the lighthouse?", ("Hale and Sons",), (LIGHT, SHIP, HILL)),
    RagExample("When was the lighthouse built?", ("1887",), (LIGHT, SHIP, HILL)),
    RagExample("Who kept the lighthouse?", ("Ada Brown",), (LIGHT, SHIP, HILL)),
]


def test_every_skill_has_a_line_that_a_template_takes() -> None:
    for name, skill in SKILLS.items():
        assert skill.name == name
        assert RagTemplate(question=skill.line).question == skill.line
        assert skill.yes is None or skill.yes in skill.targets(3)


def test_an_unknown_task_is_named_with_those_that_there_are() -> None:
    with pytest.raises(
        TokensError, match="no skill is called 'sing'; there are answer, answerable, cite, check"
    ):
        skill_of("sing")


class TestAnswerable:
    skill = SKILLS["answerable"]

    def test_one_context_gets_questions_that_it_answers_and_others_that_it_does_not(self) -> None:
        mixed = 0
        for seed in range(60):
            drawn = [self.skill.passages(one, ABOUT_LIGHT, 3, Random(seed), 0.5) for one in ABOUT_LIGHT]
            assert len(set(drawn)) == 1, "mates share their context"
            targets = {self.skill.target(one, None, drawn[0]) for one in ABOUT_LIGHT}
            mixed += targets == {"yes", "no"}
            for one in ABOUT_LIGHT:
                stands = any(one.answers[0] in passage for passage in drawn[0])
                assert self.skill.target(one, None, drawn[0]) == ("yes" if stands else "no")
        assert mixed > 10

    def test_the_number_of_passages_gives_nothing_away(self) -> None:
        counts: dict[str, set[int]] = {"yes": set(), "no": set()}
        for seed in range(80):
            drawn = self.skill.passages(ABOUT_LIGHT[0], ABOUT_LIGHT[:1], 2, Random(seed), 0.5)
            counts[self.skill.target(ABOUT_LIGHT[0], None, drawn)].add(len(drawn))
        assert counts["yes"] == counts["no"] == {2}


class TestCite:
    skill = SKILLS["cite"]

    def test_the_target_is_the_number_of_the_best_passage_that_holds_the_answer(self) -> None:
        example = RagExample("Who?", ("Ada Brown",), (LIGHT, "Ada Brown was a singer.", HILL))
        assert self.skill.target(example, None, [HILL, "Ada Brown was a singer.", LIGHT]) == "3"
        assert self.skill.target(example, None, [HILL, "Ada Brown was a singer."]) == "2"
        assert self.skill.target(example, None, [HILL]) == "none"
        assert self.skill.targets(2) == ("1", "2", "none")
        assert self.skill.right(example, None, [HILL, "Ada Brown was a singer.", LIGHT]) == ("2", "3")
        assert self.skill.right(example, None, [HILL]) == ("none",)

    @pytest.mark.parametrize(
        ("told", "cited"),
        [
            ([0.1, 0.6, 0.2, 0.1], [2]),
            ([0.3, 0.5, 0.1, 0.1], [2, 1]),
            ([0.2, 0.2, 0.1, 0.5], []),
            ([1.0], []),
        ],
    )
    def test_the_likeliest_are_cited_unless_none_is_likelier(
        self, told: list[float], cited: list[int]
    ) -> None:
        assert citations(told) == cited


class TestCheck:
    skill = SKILLS["check"]

    def test_wrong_answers_are_of_the_same_kind_and_from_the_passages(self) -> None:
        claims = {self.skill.claim(ABOUT_LIGHT[1], ABOUT_LIGHT, (LIGHT, SHIP), Random(i)) for i in range(20)}
        assert claims == {"1887", "1901"}
        claims = {self.skill.claim(ABOUT_LIGHT[0], ABOUT_LIGHT, (LIGHT, SHIP), Random(i)) for i in range(30)}
        assert claims == {"Hale and Sons", "Ada Brown"}, "other questions' answers come first"

    def test_a_right_answer_needs_a_passage_that_holds_it(self) -> None:
        example = ABOUT_LIGHT[1]
        assert self.skill.target(example, "1887", [LIGHT]) == "yes"
        assert self.skill.target(example, "1901", [LIGHT, SHIP]) == "no"
        assert self.skill.target(example, "1887", [SHIP]) == "no"

    def test_it_is_as_likely_as_its_tokens_one_after_the_other(self) -> None:
        choosing = Written((4, 5, 2))
        assert choosing.places == [((), (4,)), ((4,), (5,)), ((4, 5), (2,))]
        found = choosing.probabilities([{4: math.log(0.5)}, {5: math.log(0.8)}, {2: math.log(0.5)}])
        assert found == pytest.approx([0.2, 0.8])


@pytest.mark.parametrize(
    ("accepted", "passage", "expected"),
    [
        ("1887", "Built in 1901, with 3,000 lamps.", {"1901", "3,000"}),
        ("May 18, 2018", "It came out on June 2, 2011.", {"June 2, 2011"}),
        ("Tom Reed", "Then Ada Brown spoke.", {"Then Ada Brown", "Ada Brown"}),
        ("old stones", "they use fresh bricks there", {"they use", "fresh bricks", "bricks there"}),
        ("1887", "No numbers here.", {None}),
    ],
)
def test_wrong_answers(accepted: str, passage: str, expected: set[str | None]) -> None:
    found = {wrong_answer([accepted], [], [passage], Random(i)) for i in range(30)}
    assert found <= expected
    assert found


@settings(deadline=None)
@given(st.text(min_size=1), st.lists(st.text(min_size=1), max_size=4), st.lists(st.text(), max_size=3))
def test_no_wrong_answer_is_a_right_one(accepted: str, others: list[str], passages: list[str]) -> None:
    found = wrong_answer([accepted], others, passages, Random(0))
    assert found is None or normalise(found) != normalise(accepted)


class TestChoosing:
    def test_one_place_is_enough_where_candidates_part_once(self) -> None:
        assert branches([(5, 2), (6, 2)]) == {(): (5, 6)}
        assert branches([(4, 5, 2), (4, 6, 2)]) == {(4,): (5, 6)}

    def test_ten_begins_as_one_does(self) -> None:
        one, ten, two = (4, 1, 2), (4, 1, 0, 2), (4, 9, 2)
        places = branches([one, ten, two])
        assert places == {(4,): (1, 9), (4, 1): (2, 0)}
        told = {
            (4,): {1: math.log(0.6), 9: math.log(0.2)},
            (4, 1): {2: math.log(0.25), 0: math.log(0.75)},
        }
        assert probabilities([one, ten, two], told) == pytest.approx([0.15 / 0.8, 0.45 / 0.8, 0.2 / 0.8])

    def test_what_cannot_be_is_no_number_that_overflows(self) -> None:
        told = {(): {1: -2000.0, 2: -3000.0}}
        assert probabilities([(1,), (2,)], told) == [1.0, 0.0]


class TestWords:
    def test_what_is_likely_to_come_next_is_shared_by_whose_words_it_is(self) -> None:
        words = Words((), [{1, 2}, {2, 3}, {4}])
        assert words.places == [((), (1, 2, 3, 4))]
        told = {1: math.log(0.1), 2: math.log(0.2), 3: math.log(0.1), 4: math.log(0.1)}
        assert words.probabilities([told]) == pytest.approx([0.4, 0.4, 0.2])

    def test_words_of_a_right_one_are_right(self) -> None:
        assert Words((7,), [{1}, {3}]).choice([0]) == Choice((7,), (1,), ({1: 1.0, 3: 0.0},))
        (shares,) = Words((), [{1, 2}, {2, 3}, {4}]).choice([0]).among
        assert shares == {1: 1.0, 2: 0.5, 3: 0.0, 4: 0.0}
        (shares,) = Words((), [{1, 2}, {2, 3}, {4}]).choice([0, 1]).among
        assert shares == {1: 1.0, 2: 1.0, 3: 1.0, 4: 0.0}

    def test_where_a_right_one_has_no_words_nothing_is_wrong(self) -> None:
        assert Words((), [set(), {2, 3}]).choice([0]).among == ({2: 1.0, 3: 1.0},)
        assert Words((), [set(), {2, 3}]).probabilities([{2: -2000.0, 3: -2000.0}]) == [0.5, 0.5]
        assert Words((), [set()]).choice([0]).target

    def test_many_are_asked_for_at_once(self) -> None:
        words = Words((), [set(range(200)), set(range(150, 300))])
        assert [len(ids) for _, ids in words.places] == [300]
        found = [{one: math.log(1 / 300) for one in ids} for _, ids in words.places]
        assert words.probabilities(found) == pytest.approx([175 / 300, 125 / 300])


class TestCalibration:
    def test_a_curve_is_fitted_to_how_often_it_is_true(self) -> None:
        sure = [0.99] * 100
        curve = fit_calibration(
            [*sure, *[0.01] * 100], [*[True] * 70, *[False] * 30, *[False] * 80, *[True] * 20]
        )
        assert curve is not None
        assert calibrated(0.99, curve) == pytest.approx(0.7, abs=0.02)
        assert calibrated(0.01, curve) == pytest.approx(0.2, abs=0.02)
        assert 0 <= calibrated(0.0, curve) < calibrated(1.0, curve) <= 1

    def test_nothing_is_fitted_to_examples_that_are_alike(self) -> None:
        assert fit_calibration([0.3, 0.6], [True, True]) is None
        assert calibrated(0.3, None) == 0.3


class TestRanks:
    def test_passages_are_mostly_right_as_they_are_ranked(self) -> None:
        sure, unsure = [0.1, 0.8, 0.1], [0.4, 0.5, 0.1]
        right = [{0}] * 70 + [{1}] * 30
        powers = fit_ranked([unsure] * 70 + [sure] * 30, right)
        assert powers is not None
        meant = ranked(unsure, powers)
        assert sum(meant) == pytest.approx(1)
        assert max(range(3), key=meant.__getitem__) == 0
        assert max(range(3), key=ranked(sure, powers).__getitem__) == 1

    def test_ranks_alone_where_words_say_nothing(self) -> None:
        powers = fit_ranked([[0.5, 0.5, 0.0]] * 100, [{0}] * 80 + [{1}] * 20)
        assert powers is not None
        assert ranked([0.5, 0.5, 0.0], powers)[:2] == pytest.approx([0.8, 0.2], abs=0.03)

    def test_without_a_calibration_nothing_changes(self) -> None:
        assert ranked([0.2, 0.3, 0.5], None) == [0.2, 0.3, 0.5]
        assert fit_ranked([], []) is None


def test_samples_are_as_retrieved_but_for_those_that_are_robbed() -> None:
    found = samples(SKILLS["answerable"], ABOUT_LIGHT * 20, 2, seed=0)
    assert found == samples(SKILLS["answerable"], ABOUT_LIGHT * 20, 2, seed=0)
    robbed = [one for one in found if one.target == "no"]
    assert 5 < len(robbed) < 30
    assert all(one.passages == (SHIP, HILL) for one in robbed)
    assert all(one.passages == (LIGHT, SHIP) for one in found if one.target == "yes")
