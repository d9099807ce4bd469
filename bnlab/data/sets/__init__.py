"""The data sets, found by the registry `bnlab.data.dataset.datasets`; `digits.py` is the plainest to read first."""
