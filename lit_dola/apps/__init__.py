"""Programs that keep a model loaded and generate images for many callers."""
