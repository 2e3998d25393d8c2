"""What synchronized batch normalization's messages cost: measured, modelled, and predicted for GPUs."""
