"""Settings: their types, declarations and checks, whatever the task."""
