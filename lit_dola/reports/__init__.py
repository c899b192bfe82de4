"""Pages, sheets, plots and exports made from runs."""
