"""What metrics are computed with: moments, fits, neighbours, products that do not lose digits."""
