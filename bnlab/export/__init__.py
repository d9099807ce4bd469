"""Runs for other programs: spreadsheets and pandas (csv, parquet), TensorBoard, MLflow."""
