"""What a reader sees: tables, formats, charts, one run, progress; from plain values and files."""
