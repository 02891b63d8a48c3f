"""Schema revisions; they import nothing of ours."""
