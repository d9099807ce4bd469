"""One training: the loop, its optimizer and schedule, evaluations, checkpoints, and what comes of it.

Read `loop.py` first. `job.py` says what a job is and how it is asked to stop, `callbacks.py` what it reports meanwhile.
"""
