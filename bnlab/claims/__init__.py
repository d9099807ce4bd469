"""Claims: a question with its experiments, and a rule, fixed beforehand, that says what their runs answer.

`language.py` reads a rule's sentences, `cells.py` finds the arms that they mean, `evaluate.py` gives what stands left
of their comparison a value with its interval (`evidence.py`), `decide.py` makes verdicts of that, `claim.py` reads
claim files. `runner/claims.py` has the runs made.
"""
