"""What the Snakefile asks: targets, inputs and code of every job."""
