"""What the rewards read out of a sample: its label, and the boxed answer of a text."""

from rlcore.plugin import Sample

BOX = "\\boxed"


def label_of(sample: Sample) -> str:
    """The reference answer. Raises ValueError if there is none, since every response would score as wrong."""
    if sample.label is None:
        raise ValueError("the sample has no label to compare the response with")
    return str(sample.label)


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{…}` with its braces matched; None if there is none or it stays open."""
    start = text.rfind(BOX)
    opening = start + len(BOX)
    if start < 0 or text[opening : opening + 1] != "{":
        return None
    depth = 0
    for position in range(opening, len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return text[opening + 1 : position]
    return None
