r"""Whether two mathematical answers are the same: first as normalised text, then by algebra.

The rules are those of the MATH benchmark's grader and of its sympy successor, as DeepScaleR and slime use
them: an integer matches only an integer, a fraction only the same fraction, tuples and intervals match
element by element, and an expression with more than two unknown letters is never evaluated. Text decides
nearly every sample; sympy is imported when the first answer needs it. Algebra may take for ever
(`(10^9)!`): whoever calls must be ready to kill it.
"""

import logging
import re
import warnings
from functools import lru_cache

# They report what they cannot parse; to a reward that is an answer like any other.
for library in ("pylatexenc", "math_verify"):
    logging.getLogger(library).setLevel(logging.CRITICAL)

ENCLOSING_TEXT = re.compile(r"\\text\{(.+?)\}$")
BRACKETS = "()[]"


@lru_cache(maxsize=4096)
def same_answer(answer: str, truth: str) -> bool:
    """True if `answer` equals `truth`. Neither is taken out of its box here."""
    return text_form(answer) == text_form(truth) or _same_algebra(algebra_form(answer), algebra_form(truth))


def verified_equal(answer: str, truth: str) -> bool:
    """True if the math-verify library parses both and proves them equal."""
    from math_verify import parse, verify

    # Its own time-outs rely on signals; the process that calls is killed instead.
    gold, target = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (truth, answer))
    return bool(verify(gold, target, timeout_seconds=None))


# Normal form of the text -----------------------------------------------------------------------------------

TEXT_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\n|\\!", ""),
        (r"\\\\", r"\\"),
        (r"\\[td]frac", r"\\frac"),
        (r"\\(?:left|right)(?![a-zA-Z])", ""),
        (r"\^\{\\circ\}|\^\\circ", ""),
        (r"\\\$", ""),
        (r"\\text\{ .*", ""),  # a unit: nothing else is set as text behind a space
        (r"\\%", ""),
        (r"(^|[ {])\.", r"\g<1>0."),
        (r"^[^=]{0,2}=([^=]*)$", r"\1"),  # x = 5
        (r" ", ""),
        (r"\\sqrt([^{\[])", r"\\sqrt{\1}"),
        (r"\\frac([^{\\])([^{\\])", r"\\frac{\1}{\2}"),
        (r"\\frac([^{\\])(?=\{)", r"\\frac{\1}"),
        (r"^0\.5$", r"\\frac{1}{2}"),
        (r"^(0|-?[1-9]\d*)/(0|-?[1-9]\d*)$", r"\\frac{\1}{\2}"),
    )
)


def text_form(answer: str) -> str:
    """Answer with LaTeX shorthand written out and spaces, units, percent and degree signs left out."""
    answer = _without_text(answer.strip()).strip()
    for pattern, replacement in TEXT_RULES:
        answer = pattern.sub(replacement, answer)
    return answer


def _without_text(answer: str) -> str:
    r"""Content of a `\text{…}` that encloses the whole answer."""
    enclosing = ENCLOSING_TEXT.match(answer)
    return enclosing[1] if enclosing else answer


# Normal form that sympy can read -----------------------------------------------------------------------------

UNITS = re.compile(
    r"(?:degree|centimeter|cm|meter|mile|second|minute|hour|day|week|month|year|foot|feet|inch|yard)"
    r"(?:es)?s? *(?:\^[0-9]+)?|\^ *\\circ"
)
SIGNS = re.compile(r"\\?[$%]")
POWERS_OF_TEN = {"million": "*10^6", "billion": "*10^9", "trillion": "*10^12"}
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
SYMBOLS = str.maketrans({"√": "sqrt", "π": "pi", "∞": "inf", "∪": "U", "·": "*", "×": "*"})


def algebra_form(answer: str) -> str:
    """Answer as plain text in sympy's notation, lower case, without units, braces or spaces."""
    answer = SIGNS.sub("", _without_text(answer))
    answer = re.sub(r" (?:or|and) ", " , ", answer)
    for word, factor in POWERS_OF_TEN.items():
        answer = answer.replace(word, factor)
    answer = UNITS.sub("", answer)
    if answer.startswith("{") and answer.endswith("}"):
        answer = answer[1:-1]
    answer = re.sub(r",\\! *", "", answer)
    answer = _without_latex(answer) if "\\" in answer else answer
    answer = re.sub(r"- *", "-", answer)
    answer = re.sub(r"(\d) +(?=\d)", r"\1+", answer)  # 7 3/4 is 7+3/4
    answer = re.sub(r"[ {}]", "", answer).lower()
    return _integer(answer) if _is_integer(answer) else answer


def _integer(answer: str) -> str:
    digits = THOUSANDS.sub("", answer)
    return str(int(digits)) if digits.lstrip("-").isdecimal() else str(round(float(digits)))


def _without_latex(answer: str) -> str:
    from pylatexenc.latex2text import LatexNodes2Text

    spaced = re.sub(r"\\[td]?frac", r" \\frac", answer)  # the space keeps 1\frac{3}{4} a mixed number
    try:
        return str(LatexNodes2Text().latex_to_text(spaced)).translate(SYMBOLS).strip()
    except Exception:  # what is no LaTeX fails anywhere in the parser, and stays as it is
        return answer


def _number(text: str) -> float | None:
    """The number that the text spells, with or without separators of thousands."""
    try:
        return float(THOUSANDS.sub("", text))
    except ValueError:
        return None


def _is_integer(text: str) -> bool:
    number = _number(text)
    return number is not None and abs(number) < float("inf") and abs(number - round(number)) <= 1e-7


# Equality by algebra -----------------------------------------------------------------------------------------

FRACTION = re.compile(r"-?[0-9]+.?/0*[1-9][0-9]*.?$")
# Towers and long or grouped exponents make sympy run for ever, and are nobody's final answer.
EXPLOSIVE = re.compile(r"\^[{(]|\^[0-9]+\^|\^[0-9][0-9]+")
MOST_LETTERS = 2


def _same_algebra(answer: str, truth: str) -> bool:
    if not answer:
        return False
    if answer == truth:
        return True
    answers, truths = _elements(answer), _elements(truth)
    if len(answers) != len(truths):
        return False
    if len(truths) > 1 and (answer[0], answer[-1]) != (truth[0], truth[-1]):
        return False
    return all(map(_same_element, answers, truths))


def _elements(text: str) -> list[str]:
    """Elements of a tuple or interval; one element for anything else."""
    text = THOUSANDS.sub("", text)
    inner = text[1:-1]
    bracketed = len(text) > 2 and text[0] in BRACKETS and text[-1] in BRACKETS
    return inner.split(",") if bracketed and not set(inner) & set(BRACKETS) else [text]


def _same_element(answer: str, truth: str) -> bool:
    if answer == truth:
        return True
    if FRACTION.match(answer) and FRACTION.match(truth):
        return False
    if _is_integer(answer) or _is_integer(truth):
        return _is_integer(answer) and _is_integer(truth) and _integer(answer) == _integer(truth)
    return _difference_is_zero(f"({truth})-({answer})")


def _difference_is_zero(expression: str) -> bool:
    expression = expression.replace("**", "^")
    letters = {c for c in expression.replace("sqrt", "").replace("frac", "") if c.isalpha()}
    if len(letters) > MOST_LETTERS or EXPLOSIVE.search(expression):
        return False
    import sympy
    from sympy.parsing import sympy_parser

    rules = (*sympy_parser.standard_transformations, sympy_parser.implicit_multiplication_application)
    with warnings.catch_warnings(action="ignore"):
        try:
            difference = sympy_parser.parse_expr(expression.replace("^", "**"), transformations=rules)
            return bool(sympy.simplify(difference) == 0)
        except Exception:  # its parser raises whatever tokenizer, eval and types do: such text is no answer
            return False
