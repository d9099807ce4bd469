"""Step time as a paired comparison: what a strategy costs, with an interval, and who waits for a straggler.

Read `engine.py` first: contenders take steps in turn until their ratios are known. `arms.py` makes contenders of a
command line, `stepper.py` makes one of them do a step as training does it.
"""
