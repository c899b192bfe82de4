"""Pages, sheets, plots and exports of runs."""
