"""What callers use: the client, job handles, readers and writers, the command line."""
