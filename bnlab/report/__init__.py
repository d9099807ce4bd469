"""What a reader sees: tables, formats, charts, one run, progress; from plain values and files.

Read `console.py` first (the terminal that everything is printed to), then `table.py` (the one renderer of tables),
`figures.py` (the figures in their cells) and `rows.py` (the one writer of files); each other module lays out what one
command has measured.
"""
