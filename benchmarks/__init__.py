"""Side-by-side measurements; every figure of a table comes from one run on one machine."""
