"""Cost of synchronized batch normalization's messages: measured, modelled, and predicted for GPUs."""
