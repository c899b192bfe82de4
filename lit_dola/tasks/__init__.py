"""One LightningModule per task, on top of a shared base."""
