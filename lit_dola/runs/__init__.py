"""The folder of a run on disk, without Lightning: safe files, records, and resuming."""
