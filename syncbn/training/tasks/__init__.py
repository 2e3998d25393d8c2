"""Training tasks: one LightningModule each."""
