"""``verify``: does every promise hold on this machine, with this checkpoint."""
