"""What every normalization layer stands on."""
