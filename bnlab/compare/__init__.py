"""Runs on disk, read without trust, grouped into arms and compared. No torch, no pandas, standard library only."""
