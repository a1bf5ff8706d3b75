import pytest
from hypothesis import given
from hypothesis import strategies as st

from saelab.features.names import LONGEST, NameFacts, name_of
from saelab.features.records import TokenEffect, TokenShare
from saelab.text.vocabulary import Vocabulary

WORDS = [
    "the",
    " the",
    "The",
    "0",
    "1",
    " 42",
    "\n",
    "    ",
    "(",
    "self",
    ".",
    "END",
    "Mixed",
    "a",
    "x\u202ey",
    "word",
    "Washington",
    "President",
    "California",
]
VOCABULARY = Vocabulary([word.encode() for word in WORDS], WORDS, [False] * len(WORDS))


def facts(tokens, *, n_fires=100, previous=None, following=None, first=0.0, promoted=()):
    return NameFacts(
        n_fires=n_fires,
        tokens=[TokenShare(token=WORDS.index(word), share=share, n_fires=1) for word, share in tokens],
        previous=None if previous is None else (WORDS.index(previous[0]), previous[1]),
        next=None if following is None else (WORDS.index(following[0]), following[1]),
        first_position_share=first,
        promoted=[TokenEffect(token=WORDS.index(word), logit=1.0) for word in promoted],
    )


@pytest.mark.parametrize(
    ("given_facts", "name"),
    [
        (facts([], n_fires=0), "never active"),
        (facts([("self", 0.83), ("a", 0.1)]), 'on "self" (83%)'),
        (facts([("self", 0.83)], previous=("the", 0.9)), 'on "self" (83%)'),
        (facts([("word", 0.2), ("a", 0.1)], previous=(".", 0.71)), 'after "." (71%)'),
        (facts([("word", 0.2)], following=("(", 0.64), previous=("a", 0.6)), 'before "(" (64%)'),
        (facts([("word", 0.2)], first=0.9), "on first positions (90%)"),
        (facts([("0", 0.3), ("1", 0.2), (" 42", 0.1)]), 'on digits "0" "1" "42" (60%)'),
        (facts([("the", 0.3), ("The", 0.2), (" the", 0.1)]), 'on "the" in all spellings (60%)'),
        (facts([("\n", 0.4), ("    ", 0.3)]), 'on white space "↵" "␣␣␣␣" (70%)'),
        (facts([("word", 0.05), ("a", 0.04)], promoted=["self", "("]), 'promotes "self" "("'),
        (facts([("word", 0.2), ("a", 0.1), ("self", 0.05)]), 'on "word" "a" "self" (35%)'),
        (
            facts([("Washington", 0.25), ("President", 0.2), ("California", 0.1)]),
            'on Capitalised words "Washington" "President" (55%)',
        ),
        (facts([("x\u202ey", 0.9)]), 'on "xU+202Ey" (90%)'),
    ],
)
def test_the_plainest_statistic_gives_the_name(given_facts, name):
    assert name_of(given_facts, VOCABULARY) == name


def test_a_share_is_that_of_the_tokens_shown():
    long = [" environmental protection", " internationally agreed", " representatives"]
    vocabulary = Vocabulary([word.encode() for word in long], long, [False] * 3)
    shares = [TokenShare(token=i, share=share, n_fires=1) for i, share in enumerate((0.2, 0.1, 0.05))]
    made = NameFacts(
        n_fires=1, tokens=shares, previous=None, next=None, first_position_share=None, promoted=[]
    )
    assert name_of(made, vocabulary) == 'on "environmental␣p…" "internationally…" (30%)'


@given(st.lists(st.tuples(st.text(max_size=40), st.floats(0, 1)), min_size=1, max_size=20))
def test_any_text_gives_one_short_line(tokens):
    words = [word for word, _ in tokens]
    vocabulary = Vocabulary([None] * len(words), words, [False] * len(words))
    name = name_of(
        NameFacts(
            n_fires=1,
            tokens=[TokenShare(token=i, share=share, n_fires=1) for i, (_, share) in enumerate(tokens)],
            previous=(0, 0.99),
            next=None,
            first_position_share=None,
            promoted=[TokenEffect(token=0, logit=1.0)],
        ),
        vocabulary,
    )
    assert 0 < len(name) <= LONGEST and name.isprintable()
