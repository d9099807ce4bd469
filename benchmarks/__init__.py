"""Speed, side by side: `make bench`. Never part of the tests: a ratio on a busy machine is a reading, not a promise."""
