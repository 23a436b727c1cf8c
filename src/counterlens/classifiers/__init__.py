"""The models being explained: one architecture per file, and their training."""
