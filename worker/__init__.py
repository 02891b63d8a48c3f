"""What workers run: claims, micro-batches, engines, model loading, persistence."""
