"""Meters of mechanism: why a normalization helps, read while a network is trained, the same for every strategy.

Read `meter.py` first: what a meter is given and what it returns. Each other file is one meter, found by its name;
`panel.py` reads those that a run asks for. A meter works on copies: nothing that it does can reach the training.
"""
