"""Networks that ask a strategy for their norm layers, one module each.

Read `model.py` first: the keys that all have, the block they are made of, and how weights are drawn. A new model is a
new module: the registry `model.models` imports all of them at the first look-up.
"""
