"""Programs that keep a model loaded and make images for many callers."""
