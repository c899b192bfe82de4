"""Lightning callbacks: writing results, signals, progress and image loggers."""
