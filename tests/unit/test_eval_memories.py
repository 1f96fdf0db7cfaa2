"""The rows of the evaluation's tables: what each recalls, and that the product's row is the product."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from jobs.evaluation.key_encoder import KeyEncoder
from jobs.evaluation.memories import AllFacts, LarimarMemory, NearestFact, Unedited, as_ask, text_of, whole
from memory_actor.errors import TextTooLong
from memory_actor.types import FactText
from tests.evaluation_lab import FAR, LONG, NEAR, SeededEncoder, facts_of, key_of, small_lab
from workers.ports import AnswerMode


@pytest.fixture
def lab(codec):
    return small_lab(codec)


@pytest.fixture
def larimar(lab):
    memory = LarimarMemory(lab)
    yield memory
    memory.close()


def test_every_fact_comes_back_whole_under_its_own_prompt(larimar, lab):
    """300 facts in several requests, one of them of two latent rows: each at its place, all tokens right."""
    facts = [*facts_of(150), LONG, *facts_of(149, start=150)]
    larimar.write(facts)
    found = larimar.recall([fact.prompt for fact in facts])
    assert [one.index for one in found] == list(range(300))
    assert all(whole(one, fact, lab.codec) for one, fact in zip(found, facts, strict=True))


def test_the_gate_hears_the_query_alone(larimar):
    """A query near a stored prompt gets its readout, one far from every prompt gets nothing; scores are the cosines."""
    facts = facts_of(20)
    larimar.write(facts)
    near, far = larimar.recall([NEAR + facts[7].prompt, FAR + facts[7].prompt])
    assert near.index == 7
    assert near.score == pytest.approx(0.9, abs=1e-3)
    assert near.condition is not None
    assert (far.index, far.condition) == (None, None)


def test_a_query_is_as_near_as_its_nearest_part(larimar, lab):
    """Two keys: the whole text is about nothing stored, the second line is a stored prompt. Same for the control."""
    facts = facts_of(20)
    control = NearestFact(lab)
    for memory in (larimar, control):
        memory.write(facts)
        (found,) = memory.recall([f"Something else first\n{facts[3].prompt}"])
        assert found.index == 3


class Judge:
    """In the place of `Matches`: a match of 0.1 for queries that begin as near misses do."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def __call__(self, queries, prompts):
        self.asked += zip(queries, prompts, strict=True)
        return [0.1 if query.startswith(NEAR) else 0.8 for query in queries]


def test_the_second_half_of_the_gate_decides_on_what_was_read(lab):
    """It is given the prompt as the memory gave it back, only for what the cosine let in, and its word is final."""
    judge = Judge()
    lab.matches, lab.bundle.manifest = judge, SimpleNamespace(verifier=SimpleNamespace(threshold=0.5))
    memory = LarimarMemory(lab)
    facts = [*facts_of(20), LONG]
    memory.write(facts)
    far, miss, right, long = memory.recall(
        [FAR + facts[7].prompt, NEAR + facts[7].prompt, facts[7].prompt, LONG.prompt]
    )
    memory.close()
    assert (far.index, miss.index, right.index, long.index) == (None, None, 7, 20)
    assert miss.condition is None
    assert miss.score == pytest.approx(0.9, abs=1e-3)
    assert judge.asked == [
        (NEAR + facts[7].prompt, facts[7].prompt),
        (facts[7].prompt, facts[7].prompt),
        (LONG.prompt, LONG.prompt),
    ]


def test_clearing_leaves_nothing_and_positions_begin_again(larimar):
    larimar.write(facts_of(3))
    larimar.clear()
    assert larimar.recall([facts_of(1)[0].prompt])[0].index is None
    larimar.write(facts_of(2, start=50))
    assert [one.index for one in larimar.recall([fact.prompt for fact in facts_of(2, start=50)])] == [0, 1]


def test_forgotten_facts_are_out_of_scope_and_the_memory_verifies(larimar):
    """The others keep their positions, and the state equals one rebuilt from the surviving facts."""
    facts = facts_of(30)
    larimar.write(facts)
    before = larimar.state_hash()
    larimar.forget([4, 20])
    found = larimar.recall([fact.prompt for fact in facts])
    assert [one.index for one in found] == [None if i in (4, 20) else i for i in range(30)]
    assert larimar.verify().identical
    assert larimar.state_hash() != before


def test_a_prompt_written_again_recalls_the_later_fact(larimar, lab):
    """In the product's memory and in the control, with the later fact's position and answer."""
    first, second = FactText("The lamp is", "green"), FactText("The lamp is", "blue")
    control = NearestFact(lab)
    for memory in (larimar, control):
        memory.write([first, *facts_of(3)])
        memory.write([second])
    (ours,), (theirs,) = larimar.recall(["The lamp is"]), control.recall(["The lamp is"])
    assert ours.index == theirs.index == 4
    assert whole(ours, second, lab.codec)
    assert theirs.facts == ("The lamp is blue",)


def test_the_control_is_the_nearest_key_at_its_threshold(lab):
    """Against a plain loop over all cosines, for queries on both sides of 0.70."""
    facts = facts_of(40)
    memory = NearestFact(lab)
    memory.write(facts[:25])
    memory.write(facts[25:])
    queries = [start + fact.prompt for fact in facts[::3] for start in ("", NEAR, FAR)] + ["What is it?"]
    for query, found in zip(queries, memory.recall(queries), strict=True):
        cosines = [float(key_of(query) @ key_of(fact.prompt)) for fact in facts]
        best = int(np.argmax(cosines))
        assert found.score == pytest.approx(cosines[best], abs=2e-3)
        assert found.index == (best if cosines[best] >= 0.70 else None)
        assert found.facts == ((text_of(facts[best]),) if cosines[best] >= 0.70 else ())
        assert found.condition is None


def test_all_facts_are_the_newest_that_fit_in_writing_order(lab, codec):
    """The chosen facts' tokens stay below the budget, and one more fact would exceed it."""
    facts = facts_of(60)
    memory = AllFacts(lab, tokens_max=300)
    memory.write(facts[:10])
    memory.write(facts[10:])
    first, second = memory.recall(["anything", "at all"])
    assert first == second
    count = len(first.facts)
    assert first.facts == tuple(text_of(fact) for fact in facts[-count:])

    def tokens(many):
        return sum(len(codec.tokens(FactText(text_of(fact) + "."))[0]) + 1 for fact in many)  # and a line's end

    assert tokens(facts[-count:]) <= 300 < tokens(facts[-count - 1 :])


def test_an_empty_memory_recalls_nothing(larimar, lab):
    for memory in (larimar, NearestFact(lab), AllFacts(lab), Unedited(lab)):
        (found,) = memory.recall(["Where is it?"])
        assert (found.index, found.condition, found.facts) == (None, None, ())


def test_whole_wants_every_token(larimar, lab):
    """The right readout of another fact, or of another target, is not the fact."""
    fact = facts_of(1)[0]
    larimar.write([fact])
    (found,) = larimar.recall([fact.prompt])
    assert whole(found, fact, lab.codec)
    assert not whole(found, FactText(fact.prompt, "person 1"), lab.codec)
    assert not whole(larimar.recall(["What is it?"])[0], fact, lab.codec)


def test_an_ask_carries_what_was_recalled(larimar):
    fact = facts_of(1)[0]
    larimar.write([fact])
    (found,) = larimar.recall([fact.prompt])
    ask = as_ask(found, "Who keeps it?", mode=AnswerMode.ANSWER, max_tokens=5)
    assert (ask.prompt, ask.mode, ask.max_tokens) == ("Who keeps it?", AnswerMode.ANSWER, 5)
    assert ask.condition is found.condition


def test_each_text_is_encoded_once_and_rows_stay_with_their_facts(codec):
    """Facts of one and two rows, asked for again in another order, one twice: the codec's own result, no new pass."""
    source = SeededEncoder(codec)
    encoder = KeyEncoder(source)
    facts = [*facts_of(3), LONG, *facts_of(2, start=3)]
    encoder.facts(facts)
    passes = len(source.encoded)
    order = [LONG, facts[5], facts[0], LONG]
    found, expected = encoder.facts(order), codec.encode(order)
    assert np.array_equal(found.latents, expected.latents)
    assert found.rows.tolist() == expected.rows.tolist() == [2, 1, 1, 2]
    assert np.abs(found.keys.astype(float) - [key_of(fact.prompt) for fact in order]).max() < 1e-3
    assert [keys.shape[0] for keys in encoder.queries(["one\ntwo", "one", "one\ntwo"])] == [2, 1, 2]
    assert len(source.encoded) == passes + 2
    assert len(encoder.facts([])) == 0


def test_a_fact_too_long_is_refused_with_its_numbers(codec):
    with pytest.raises(TextTooLong):
        KeyEncoder(SeededEncoder(codec)).facts([FactText("lamp " * 400)])
