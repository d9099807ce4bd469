"""What runs and sweeps leave on disk: written so that a kill at any moment loses nothing, read without trust.

Read `run_folder.py` first (a run's folder and its state), then `read.py`, which every command that looks at runs uses.
"""
