"""Models that score pictures against texts."""
