"""Rule-based rewards for rlcore: `math`, `deepscaler`, `dapo` and `exact`.

`answers` decides whether two mathematical answers are the same; the other modules find the answer in a
response and say what it is worth. None of them imports sympy before an answer needs it.
"""
