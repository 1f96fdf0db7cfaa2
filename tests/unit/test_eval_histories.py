"""Random histories end in the state of a memory that never saw what was forgotten; what a script says is done."""

import random

import numpy as np
import pytest

from jobs.evaluation.bare_memory import BareMemory, taken
from jobs.evaluation.histories import Script, Stage
from memory_actor.types import EncodedFacts
from tests.memory_fixtures import SMALL, encoded_facts, sign_latents, texts_of, unit_keys

COUNT = 30
ROWS = [1 + index % 3 for index in range(COUNT)]
FACTS = encoded_facts(unit_keys(1, COUNT), sign_latents(2, sum(ROWS)), ROWS)


def drawn(seed, forgotten=range(0, COUNT, 2)):
    return Script.drawn(COUNT, list(forgotten), random.Random(seed))


@pytest.mark.parametrize("seed", range(20))
def test_a_script_writes_all_and_forgets_the_doomed_after_they_were_written(seed):
    """Every fact is written once; exactly the doomed are forgotten, each after its own write."""
    live, written = set(), []
    for is_write, positions in drawn(seed).steps:
        if is_write:
            written += positions
            live |= set(positions)
        else:
            assert set(positions) <= live
            live -= set(positions)
    assert sorted(written) == list(range(COUNT))
    assert live == set(range(1, COUNT, 2))


def test_scripts_differ():
    """Twenty draws give many orders."""
    assert len({drawn(seed).steps for seed in range(20)}) == 20


def test_facts_are_taken_with_all_their_rows():
    """A selection keeps each fact's latents together, in the order asked for."""
    part = taken(FACTS, [4, 0])
    starts = np.cumsum([0, *ROWS])
    assert part.rows.tolist() == [2, 1]
    assert np.array_equal(part.latents, FACTS.latents[[starts[4], starts[4] + 1, 0]])
    assert np.array_equal(part.keys, FACTS.keys[[4, 0]])


def test_histories_end_where_a_memory_begins_that_never_saw_the_forgotten():
    """On a real engine: hashes are equal after every history, and differ once a forgotten fact is left in."""
    with Stage(SMALL) as stage:
        for seed in range(5):
            rng = random.Random(seed)
            with stage.played(drawn(seed), texts_of(COUNT), FACTS) as played:
                assert sorted(played.ids) == list(range(1, COUNT, 2))
                assert played.state_hash() == played.never_saw(rng)
        with stage.played(drawn(0, forgotten=range(2, COUNT, 2)), texts_of(COUNT), FACTS) as played:
            played.ids.pop(0)  # "a memory that never saw fact 0" against one that still holds it
            assert played.state_hash() != played.never_saw(random.Random(0))


def test_the_open_gate_reads_whatever_is_nearest():
    """A key that nothing stored is near to is still answered, from the address of the key itself."""
    with Stage(SMALL) as stage, stage.played(drawn(0), texts_of(COUNT), FACTS) as played:
        keys = -FACTS.keys[1:2]
        assert played.read_softly(keys).readout is not None


def test_a_bare_memory_recalls_what_was_written():
    """Its snap read returns the latents of the fact whose key is asked."""
    keys = unit_keys(3, 6)
    facts = EncodedFacts(keys, sign_latents(4, 6), *[np.ones(6, np.int32)] * 3)
    memory = BareMemory(SMALL)
    memory.write(facts, [f"f{i}" for i in range(6)])
    found = memory.recall(keys[2:3])
    assert found.fact_id == "f2"
    assert np.array_equal(found.readout.round()[0], facts.latents[2])
