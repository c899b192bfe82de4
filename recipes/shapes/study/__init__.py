"""The study of docs/study.md: ``make study``."""
