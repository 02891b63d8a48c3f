"""Where rows come from: files of any kind, queries and batch files, as entries that a job can take."""
