"""How the states of sampled tokens get from a forward pass to where they are kept."""
