"""General services for long training runs: files, checkpoints, signals, processes and errors."""
