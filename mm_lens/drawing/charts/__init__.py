"""Tables as pictures: curves, heads × layers, points in a plane, texts."""
