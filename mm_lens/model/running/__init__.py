"""What happens while a model runs: attention as it is computed, its masks, and generation."""
