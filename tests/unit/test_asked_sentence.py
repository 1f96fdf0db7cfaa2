"""Which sentence of a query asks: hand-made texts, and what holds for any text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.asked_sentence import asked_sentence, key_texts

ONE_SENTENCE = [
    "",
    "  \n\t ",
    "?",
    "Hello. ",
    "one line\n\n  \n",
    "Where is it?\n---",
    "Where is the spare key?!",
    "The mother tongue of Danielle Darrieux is",
    "Where was J. R. R. Tolkien born?",
    "Ashbel P. Willard took up work in",
    "P. D. James is employed by",
    "Who is Dr. Smith, and who is Mrs. Brown of St. Ives?",
    "Tell me of Dr. Who and Prof. Quatermass",
    "Gen. Lee and Col. Sanders met in",
    "Exeter City F.C. plays in",
    "Who owns Exeter City F.C.?",
    "The U.S. Open is held in",
    "The U.N. Headquarters, the D.C. Circuit and the A.V. Club are in",
    "Ph.D. Students and B.Sc. Students work where?",
    "Who met Kobe Bryant at 9 a.m. Monday?",
    "The headquarters of Apple Inc. Cupertino is in",
    "Sammy Davis Jr. Boulevard and Main St. Station are in",
    "Symphony No. 5, Op. 67 was written by",
    "Born Jan. 5, 1901 (see p. 55, vol. 3), where did he die?",
    "What is 3.5 times 2.25?",
    "Shaquille O'Neal vs. Kobe Bryant was won by",
    "Cities, e.g. Paris, i.e. Capitals",
    "ASP.NET MVC Framework was created by",
    "GO!GO!7188 was started in",
    "Adam Adamant Lives! debuted on",
    "Who Wants to Be a Millionaire? was created by",
    "Yahoo! News is from",
    "The answer is yes. and where is it",
    "And now... something else",
    "Where is it? :)",
]

SEVERAL = [
    (
        "It has six petals. What is the mother tongue of Danielle Darrieux?",
        "What is the mother tongue of Danielle Darrieux?",
    ),
    ("It has six petals. The mother tongue of Danielle Darrieux is", "The mother tongue of Danielle Darrieux is"),
    ("Where is Ana's badge? She lost it in May.", "Where is Ana's badge?"),
    ("Where is Ana? Where is her badge?", "Where is her badge?"),
    ("Where is Ana? She left. Who has the key? Nobody knows. Help", "Who has the key?"),
    ("What does Art Tatum play? They play", "What does Art Tatum play?"),
    ("It rained. It snowed. It hailed", "It hailed"),
    ("J. R. R. Tolkien wrote it. Where was he born?", "Where was he born?"),
    ("Mr. Brown lives in St. Ives. Where does Mrs. Brown live?", "Where does Mrs. Brown live?"),
    ("It opened at 9 a.m. Where is it?", "Where is it?"),
    ("He lives in Washington D.C. Where does she live?", "Where does she live?"),
    ("It is Apple Inc. Who founded it?", "Who founded it?"),
    ("This is plan A. What is plan B?", "What is plan B?"),
    ("We are on Main St. Which number is it?", "Which number is it?"),
    ("He said no. 7 days later, who said yes?", None),  # "no." before a number is an abbreviation
    ("He said no. She said yes.", "She said yes."),
    ("Turn to p. 55. What does it say?", "What does it say?"),
    ("There are eggs, milk, etc. The key is in", "The key is in"),
    ("It was written in 1984. 1985 was which year?", "1985 was which year?"),
    ("1. What is it?", "What is it?"),
    ("Jeopardy! Who hosts it?", "Who hosts it?"),
    ("The house burns! The key is in", "The key is in"),
    ("Yes… Where is it?", "Where is it?"),
    ("Wait... Where is it?", "Where is it?"),
    ("Really?! Tell me.", "Really?!"),
    ("(It rained.) Where is it?", "Where is it?"),
    ("It rained. (Where is it?)", "(Where is it?)"),
    ('He said "Stop!" Who was it?', "Who was it?"),
    ("It rained. \u201cWhere is it?\u201d", "\u201cWhere is it?\u201d"),
    ("He asked \u2018where?\u2019 Nobody knew.", "He asked \u2018where?\u2019"),
    ("Llueve. ¿Dónde está?", "¿Dónde está?"),
    ("Il pleut. Élodie habite où ?", "Élodie habite où ?"),
    ("It is cold. \u00c9lodie lives in", "\u00c9lodie lives in"),
    ("first line\nsecond line", "second line"),
    ("where is it?\r\nthank you", "where is it?"),
    ("first\u2028second", "second"),
    ("  It rained.   Where is it?  \n", "Where is it?"),
    ("... --- Where is it? It rained.", "... --- Where is it?"),
]


@pytest.mark.parametrize("text", ONE_SENTENCE)
def test_one_sentence_has_none(text):
    """One sentence, whatever its abbreviations and names: there is nothing to single out."""
    assert asked_sentence(text) is None


@pytest.mark.parametrize(("text", "asked"), SEVERAL)
def test_the_last_question_else_the_last_sentence(text, asked):
    assert asked_sentence(text) == asked


#: What sentence ends are made of, and what breaks them.
WORDS = st.sampled_from(["It", "rained", "Dr", "No", "J", "U.S", "Inc", "Yahoo", "Who", "is", "7", "3.5", "é", "É"])
MARKS = st.sampled_from([".", "?", "!", "…", "...", "。", "-", '"', "(", ")", "\u201c", "\u2019"])
GAPS = st.sampled_from([" ", "  ", "\n", "\t", "\u2028", "\x85"])


@given(st.one_of(st.lists(WORDS | MARKS | GAPS, max_size=30).map("".join), st.text(max_size=60)))
def test_the_result_is_one_sentence_of_the_text(text):
    """A part of the text and less than all of it, stripped, with a letter or digit, and no two sentences itself."""
    asked = asked_sentence(text)
    if asked is not None:
        assert asked in text
        assert asked == asked.strip()
        assert len(asked) < len(text.strip())
        assert any(character.isalnum() for character in asked)
        assert asked_sentence(asked) is None


STATEMENTS = [
    "It has six petals.",
    "Mr. Brown rained on J. R. R. Tolkien's parade!",
    "Done…",
    "(He left.)",
    "Is it 5 p.m.?",
]
QUESTIONS = [
    "Who is Dr. Smith?",
    "What is the U.S. Open?",
    "Does Apple Inc. sell No. 5?",
    "7 is what?",
    "\u201cWho?\u201d",
]


@given(
    st.lists(st.sampled_from(STATEMENTS), min_size=1, max_size=5),
    st.sampled_from(QUESTIONS),
    st.sampled_from([" ", "\n"]),
)
def test_a_question_is_found_behind_any_statements(statements, question, gap):
    assert asked_sentence(gap.join([*statements, question])) == question


def test_the_texts_of_many_queries():
    """Queries first and in order, then the asked sentences; each query knows its own."""
    texts, rows = key_texts(["Who? Me", "a", "It rained. Why?"])
    assert texts == ["Who? Me", "a", "It rained. Why?", "Who?", "Why?"]
    assert rows == [[0, 3], [1], [2, 4]]
    assert key_texts([]) == ([], [])


@pytest.mark.parametrize(
    "unit",
    ["It rained. ", "A. ", ".", ".)", "? ", "a ", " ", "\n", '"', "U.S.", "(", "Dr. No. 5", "a.", "!?"],
    ids=repr,
)
def test_time_is_linear(unit):
    """A hundred kilobytes of anything take milliseconds: quadratic work would take minutes."""
    text = unit * (100_000 // len(unit))
    started = time.process_time()
    asked_sentence(text + "x")
    assert time.process_time() - started < 2.0  # measured: 0.06 s at most
