"""Normalization strategies, one module each.

`strategy.py` says what all of them have in common; read it first, then `batch.py`. The others in the order of what they
need: stateless ones (`layer`, `group`, `rms`, ...), those with running statistics over `running.py` (`ghost`, `renorm`,
`streaming`, `online`, `sync`, `noisy`), and those whose statistics are put in from outside (`population`, `frozen`).
`formula.py`, `share.py` and `recurrence.py` are arithmetic that several of them share, `derivatives.py` what they owe
to second derivatives and torch.func. A new strategy is a new module: the registry `strategy.strategies` imports all of
them at the first look-up.
"""
