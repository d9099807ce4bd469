"""Configurations: composed by Hydra, checked as files before it reads them, its complaints in bnlab's words.

Read `compose.py` first. What the values mean is none of this package's business: `experiment/config.py` types them.
"""
