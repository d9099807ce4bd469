"""What a reader sees: tables, formats, charts, one run, progress; from plain values and files.

Read `console.py` first (the terminal that everything is printed to), then `columns.py` and `figures.py`, which tables
are made of; each other module shows what one command found.
"""
