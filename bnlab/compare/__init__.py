"""Runs on disk become arms, arms become sections with intervals, differences to a baseline, and notes. No torch here.

Read `comparison.py` first: `compare` goes from folders to the result; `statistics.py` holds every formula over seeds.
"""
