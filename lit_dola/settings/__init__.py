"""Settings of any task: types, declarations and checks."""
