"""Runs for other programs: spreadsheets and pandas (csv, parquet), TensorBoard, MLflow.

Read `export.py` first; each of the others writes one form.
"""
