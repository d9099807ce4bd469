"""One run, from its configuration to its end: checked, set up on its device, trained, recorded in its folder.

Read `run.py` first. `config.py` is the configuration as one typed tree, `setup.py` makes model and batches of it, and
`trained_model.py` reads them back from a finished run.
"""
