"""Commands that examine one trained model: probe, recalibrate, shift."""
