"""Configurations: composed by Hydra, checked as files before it reads them, its complaints in bnlab's words.

Read `compose.py` first: what a command line comes to, one configuration or one for each job of a sweep. Hydra is
started in `hydra_session.py`, the one file that uses what it keeps private. What the values mean is none of this
package's business: `experiment/config.py` types them.
"""
