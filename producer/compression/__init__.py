"""What callers use to make a model smaller: recipes and their data, the job, its report."""
