"""CounterFact's probes, marks and means, against figures worked out by hand."""

from __future__ import annotations

import math

import pytest

from jobs.evaluation.asks import Answer
from jobs.evaluation.memories import Recollection
from jobs.evaluation.probes import Episode, Kind, LiveEdits, Probe, draw_probes
from jobs.evaluation.records import EditRecord
from jobs.evaluation.scoring import Mark, by_record, edit_figures, harmonic_mean


def record(case_id: int, subject: str, neighbours: tuple[str, ...] = ()) -> EditRecord:
    return EditRecord(
        case_id=case_id,
        prompt=f"The capital of {subject} is",
        subject=subject,
        target_new="Oslo",
        target_true="Paris",
        rephrasings=(f"{subject} is governed from",),
        rephrasings_distractor=(f"It rained. {subject} is governed from",),
        neighbours=neighbours,
        neighbours_true=("Paris",) * len(neighbours),
    )


def answer(wanted: float, unwanted: float, text: str = "", tokens: tuple[int, ...] = ()) -> Answer:
    """An answer that gives the two candidates these probabilities per token."""
    return Answer((-math.log(wanted), -math.log(unwanted)), text, tokens)


def found(index: int | None) -> Recollection:
    return Recollection(index=index, score=0.9 if index is not None else 0.1, condition=None)


class TestWhatIsAsked:
    def test_one_edit_in_memory_makes_each_record_an_episode_of_its_own(self) -> None:
        """With one edit in memory, the first `limit` records are alone with themselves."""
        episodes = Episode.split([record(case, "France") for case in range(5)], limit=3, in_memory=1)
        assert [[one.case_id for one in episode.records] for episode in episodes] == [[0], [1], [2]]
        assert all(episode.asked == (0,) for episode in episodes)

    def test_many_edits_in_memory_are_asked_for_evenly(self) -> None:
        """Of eight edits live together two are asked for, half the memory apart."""
        (episode,) = Episode.split([record(case, "France") for case in range(10)], limit=2, in_memory=8)
        assert len(episode.records) == 8
        assert episode.asked == (0, 4)

    def test_company_fills_the_memory_up_and_is_not_asked_for(self):
        """Three records and two of five others make five live edits; only the three are asked for."""
        own = [record(case, "France") for case in range(3)]
        others = [record(case, "Spain") for case in range(10, 15)]
        (episode,) = Episode.split(own, limit=None, in_memory=5, company=others)
        assert [one.case_id for one in episode.records] == [0, 1, 2, 10, 11]
        assert episode.asked == (0, 1, 2)

    def test_neighbours_have_the_true_answer_as_the_wanted_one(self) -> None:
        """An edit wants its new answer; a neighbour wants the old one."""
        one = record(1, "France", ("The capital of Spain is",))
        probes = draw_probes(Episode((one,), (0,)), seed=0).probes
        wanted = {probe.kind: (probe.wanted, probe.unwanted) for probe in probes if probe.decoded}
        assert wanted == {
            Kind.EDIT: ("Oslo", "Paris"),
            Kind.REPHRASE: ("Oslo", "Paris"),
            Kind.DISTRACTOR: ("Oslo", "Paris"),
            Kind.NEIGHBOUR: ("Paris", "Oslo"),
        }

    def test_a_neighbour_about_another_live_edit_is_left_out_and_counted(self) -> None:
        """A neighbour that names another live edit's subject is no locality question; alone in memory it is one."""
        france = record(1, "France", ("The capital of Spain is", "The capital of Peru is"))
        spain = record(2, "Spain")
        together = draw_probes(Episode((france, spain), (0,)), seed=0)
        alone = draw_probes(Episode((france,), (0,)), seed=0)
        assert [p.query for p in together.probes if p.kind is Kind.NEIGHBOUR] == ["The capital of Peru is"]
        assert (together.neighbours_excluded, alone.neighbours_excluded) == (1, 0)

    @pytest.mark.parametrize(
        ("query", "touches"),
        [
            ("the capital of SPAIN?", True),
            ("The capital of Spaind is", False),  # no whole word
            ("New York City lies in", True),
            ("New Yorkers live in", False),
            ("The capital of France is", False),  # its own
            ("", False),
        ],
    )
    def test_subjects_are_compared_as_whole_words(self, query: str, touches: bool) -> None:
        """Case and punctuation do not matter, parts of words do not count, and the own edit is not another."""
        live = LiveEdits([record(1, "France"), record(2, "Spain"), record(3, "New York")])
        assert live.touches_another(query, own=0) is touches


class TestMarks:
    PROBE = Probe(7, 3, Kind.NEIGHBOUR, "The capital of Spain is", "Paris", "Oslo")

    def test_a_mark_says_what_is_likelier_said_and_changed(self) -> None:
        """P(wanted) 0.5 against 0.2 is a success of magnitude 0.3; other tokens than the base's are a change."""
        mark = Mark.of(
            self.PROBE, found(3), answer(0.5, 0.2, " paris, of course", (1, 2)), answer(0.5, 0.2, "", (1, 3))
        )
        assert (mark.in_scope, mark.right_fact, mark.success, mark.said, mark.changed) == (True,) * 5
        assert mark.magnitude == pytest.approx(0.3)

    def test_equal_likelihoods_are_no_success(self) -> None:
        """A tie is not "likelier"."""
        assert Mark.of(self.PROBE, None, answer(0.4, 0.4), None).success is False

    def test_out_of_scope_has_no_right_or_wrong_fact(self) -> None:
        """Which fact is right is only asked of probes that were let in."""
        mark = Mark.of(self.PROBE, found(None), answer(0.1, 0.2, "Oslo", (1,)), answer(0.1, 0.2, "Oslo", (1,)))
        assert (mark.in_scope, mark.right_fact, mark.success, mark.said, mark.changed) == (
            False,
            None,
            False,
            False,
            False,
        )

    def test_the_gate_alone_can_be_asked(self) -> None:
        """A probe that nobody decodes still says whether it was let in, and to the wrong fact."""
        assert Mark.of(self.PROBE, found(0), None, None) == Mark(in_scope=True, right_fact=False)


class TestMeans:
    def test_records_weigh_the_same_however_many_prompts_they_have(self) -> None:
        """(1 + (1+0+0+0)/4) / 2 = 0.625, not 2/5: the mean is taken per record first."""
        assert by_record([(1, 1.0), (2, 1.0), (2, 0.0), (2, 0.0), (2, 0.0)]).value == pytest.approx(0.625)

    def test_records_right_or_wrong_have_wilsons_interval(self) -> None:
        """10 of 10 records: Wilson's lower bound is n / (n + z^2) = 10 / 13.8415, the upper one 1."""
        result = by_record((case, 1.0) for case in range(10))
        assert result.low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-4)
        assert (result.value, result.high) == (1.0, pytest.approx(1.0))

    def test_figures_of_a_small_table(self) -> None:
        """Two records: edits 2/2, rephrasings 1/2, neighbours (1/2 + 1)/2; score = 3 / (1/1 + 1/0.5 + 1/0.75)."""
        rows = [
            (Kind.EDIT, 1, Mark(True, True, True, 0.9, True)),
            (Kind.EDIT, 2, Mark(True, True, True, 0.7, False)),
            (Kind.REPHRASE, 1, Mark(True, True, True, 0.5, True)),
            (Kind.REPHRASE, 2, Mark(False, None, False, -0.1, False)),
            (Kind.NEIGHBOUR, 1, Mark(False, None, True, 0.1, True, False)),
            (Kind.NEIGHBOUR, 1, Mark(True, False, False, -0.2, False, True)),
            (Kind.NEIGHBOUR, 2, Mark(False, None, True, 0.2, True, False)),
            (Kind.SAME_SUBJECT, 1, Mark(True, True)),
            (Kind.SAME_SUBJECT, 2, Mark(False)),
        ]
        probes = [Probe(case, case, kind, "?") for kind, case, _ in rows]
        summary = edit_figures("counterfact", probes, [mark for _, _, mark in rows])
        expected = {
            "edit_success": 1.0,
            "edit_magnitude": 0.8,
            "rephrase_success": 0.5,
            "neighbourhood_success": 0.75,
            "generation_edit": 0.5,
            "changed_out_of_scope": 0.25,
            "rephrase_in_scope": 0.5,
            "neighbour_in_scope": 0.25,
            "same_subject_in_scope": 0.5,
            "right_fact": 1.0,
            "score": 3 / (1 + 2 + 4 / 3),
        }
        assert {name: summary[f"counterfact.{name}"] for name in expected} == pytest.approx(expected)
        assert "counterfact.rephrase_distractor_success" not in summary  # nobody asked
        for name in set(expected) - {"score"}:
            low, high = summary[f"counterfact.{name}_low"], summary[f"counterfact.{name}_high"]
            assert low <= expected[name] <= high, name

    def test_a_harmonic_mean_with_a_zero_is_zero(self) -> None:
        """One failure that is total makes the score 0 and not an error."""
        assert harmonic_mean([1.0, 0.0, 1.0]) == 0.0
