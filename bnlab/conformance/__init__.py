"""What a normalization does, its own or another's, proved on random batches and edge cases: the card of `bnlab check`.

Read `card.py` first; the properties are one function each in `dependence.py`, `edges.py`, `exactness.py` and
`statistics.py`, and `proving.py` is what they enter themselves with.
"""
