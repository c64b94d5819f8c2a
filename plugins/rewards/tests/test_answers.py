"""Which mathematical answers are the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rlcore_rewards.answers import algebra_form, same_answer, verified_equal

EQUAL = r"""
\frac{1}{2}       | 1/2               fractions, in any spelling
\frac12           | \dfrac{1}{2}
\frac{1}{2}       | 0.5
\frac{-1}{2}      | -\frac{1}{2}
1\frac{3}{4}      | \frac{7}{4}       mixed numbers
1 3/4             | 1.75
.5                | 0.50              decimals
5.0               | 5
1,000             | 1000              separators of thousands
1{,}000           | 1000
1,\!000           | 1000
\$1,250           | 1250              dollars
$18$              | 18
50\%              | 50                percent
50%               | 50
12\text{ cm}      | 12                units
12 cm^2           | 12
90^\circ          | 90
90^\circ          | 90^{\circ}
3 hours           | 3
(1,2)             | (1, 2)            tuples and intervals
\left(1,2\right)  | (1,2)
(\frac{1}{2},3)   | (1/2, 3)
(-\infty, 3]      | (-\infty,3]
1 and 2           | 1, 2
\sqrt3            | \sqrt{3}          roots
\sqrt{12}         | 2\sqrt{3}
\frac{\sqrt{3}}2  | \frac{1}{2}\sqrt{3}
\frac{\pi}{2}     | \pi/2
x = 5             | 5                 equations
(x+1)^2           | x^2+2x+1
3+4i              | 4i + 3
\text{Evelyn}     | evelyn            text
YES               | yes
"""

UNEQUAL = r"""
\frac{2}{4}       | \frac{1}{2}       a fraction must be reduced as the reference is
\frac{10}{2}      | 5                 an integer equals only an integer
5.1               | 5
5                 | -5
0.33              | \frac{1}{3}
1,000             | 1
10,00             | 1000
50\%              | 0.5
(1,2)             | (2,1)             order and brackets count
(1,2)             | [1,2]
(1,2)             | (1,2,3)
(-\infty,3)       | (-\infty,3]
\sqrt{3}          | \sqrt{2}
x+1               | x-1
2^{10}            | 1024              grouped exponents are never evaluated
abc               | cab               nor are more than two unknown letters
Tuesday           | Friday
                  | 5                 nothing is no answer
$                 | %
"""


def pairs(table: str) -> list[tuple[str, str]]:
    rows = [line.split("|") for line in table.strip("\n").splitlines()]
    return [(answer.strip(), truth.split("  ")[0].strip()) for answer, truth in rows]


@pytest.mark.parametrize(("answer", "truth"), pairs(EQUAL))
def test_equal_in_both_directions(answer, truth):
    assert same_answer(answer, truth)
    assert same_answer(truth, answer)


@pytest.mark.parametrize(("answer", "truth"), pairs(UNEQUAL))
def test_unequal_in_both_directions(answer, truth):
    assert not same_answer(answer, truth)
    assert not same_answer(truth, answer)


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        (r"\frac{2}{4}", r"\frac{1}{2}"),
        (r"\frac{x+1}{2}", r"\frac{x}{2}+\frac{1}{2}"),
        (r"\{1,2\}", r"\{2,1\}"),
        (r"50\%", "0.5"),
    ],
)
def test_math_verify_accepts_more(answer, truth):
    assert verified_equal(answer, truth)


@given(st.integers())
def test_separators_of_thousands_do_not_matter(number):
    assert same_answer(f"{number:,}", str(number))


@given(st.integers(), st.integers())
def test_integers_are_equal_only_to_themselves(one, other):
    assert same_answer(str(one), str(other)) == (one == other)


@given(
    st.integers(-999, 999),
    st.integers(1, 999),
    st.sampled_from(["{}/{}", r"\frac{{{}}}{{{}}}", r"\dfrac{{{}}}{{{}}}"]),
)
def test_a_fraction_equals_itself_in_any_spelling(top, bottom, spelling):
    assert same_answer(spelling.format(top, bottom), rf"\frac{{{top}}}{{{bottom}}}")


@given(st.text(min_size=1))
def test_any_text_equals_itself_unless_nothing_is_left_of_it(text):
    assert same_answer(text, text) or not algebra_form(text)


@given(st.text(alphabet=r"\{}[]()^_$%,.=+-*/!~ 0123abxfracsqrttextpi", max_size=12), st.just("77"))
def test_no_text_breaks_the_comparison(answer, truth):
    assert same_answer(answer, truth) in (True, False)
