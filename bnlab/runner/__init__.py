"""Many runs: a command line plans its jobs, queues each in its folder, and has them done here or by Hydra's launchers.

Read `sweep.py` first, then `supervisor.py` (one job in a watched process) and `task.py` (what a launcher carries).
`monitor.py` reads the folders to tell how jobs end, `resume.py` does those that are not final.
"""
