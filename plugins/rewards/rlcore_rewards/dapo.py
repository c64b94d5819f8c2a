"""`dapo`: the answer after the last `Answer:` near the end of the response, +1 if right and -1 if not.

The rule is that of DAPO (https://arxiv.org/abs/2503.14476), whose normalisation is Minerva's
(https://arxiv.org/abs/2206.14858, appendix D.1). A label that is no integer is compared as normalised text.
"""

import re

from rlcore.plugin import RewardResult, Sample, reward
from rlcore_rewards.text import label_of

# An answer stands at the end; what comes earlier is reasoning, in which "Answer:" may be a quotation.
TAIL_CHARACTERS = 300
ANSWER = re.compile(r"answer\s*:\s*([^\n]+)", re.IGNORECASE)

# Minerva's tables, in their order: replacing " " before "mbox" or removing "square" before "units" matters.
REPLACED = (
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
)
REMOVED = (
    *(
        "square",
        "ways",
        "integers",
        "dollars",
        "mph",
        "inches",
        "hours",
        "km",
        "units",
        "\\ldots",
        "sue",
        "points",
    ),
    *(
        "feet",
        "minutes",
        "digits",
        "cents",
        "degrees",
        "cm",
        "gm",
        "pounds",
        "meters",
        "meals",
        "edges",
        "students",
    ),
    *("childrentickets", "multiples", "\\text{s}", "\\text{.}", "\\text{\ns}", "\\text{}^2", "\\text{}^3"),
    *("\\text{\n}", "\\text{}", "\\mathrm{th}", "^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}", '"', "\\dots"),
    *("<|im_end|>", "<|endoftext|>"),
)
WRAPPERS = (r"\\text\{(.*?)\}", r"\\textbf\{(.*?)\}", r"\\overline\{(.*?)\}", r"\\boxed\{(.*)\}")
IN_DOLLARS = re.compile(r"[^$]*\$(.*?)\$.*", re.DOTALL)


@reward
def dapo(sample: Sample) -> RewardResult:
    """+1 or -1; `acc` is 1 or 0, `format` whether `Answer:` was there."""
    label = reference(label_of(sample))
    found = ANSWER.findall(sample.response[-TAIL_CHARACTERS:])
    correct = bool(found) and normalized(found[-1]) == label
    return RewardResult(1.0 if correct else -1.0, {"acc": float(correct), "format": float(bool(found))})


def reference(label: str) -> str:
    """The label as a prediction must read: an integer without point or leading zeros, other text normalised."""
    text = normalized(label)
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else text


def normalized(answer: str) -> str:
    """Minerva's normal form of a final answer."""
    answer = answer.rpartition("=")[2]
    for before, after in REPLACED:
        answer = answer.replace(before, after)
    for expression in REMOVED:
        answer = answer.replace(expression, "")
    answer = IN_DOLLARS.sub(r"\1", answer)
    for wrapper in WRAPPERS:
        answer = re.sub(wrapper, r"\1", answer)
    answer = re.sub(r"frac([^{])(.)", r"frac{\1}{\2}", answer)
    answer = re.sub(r"sqrt([^{])", r"sqrt{\1}", answer).replace("$", "")
    digits = answer.replace(",", "")
    return digits if digits.isdigit() else answer.strip()
