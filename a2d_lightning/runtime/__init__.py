"""What any long run needs, whatever it learns: files, checkpoints, signals, processes, errors."""
