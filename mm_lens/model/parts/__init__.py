"""What is put on the parts that TransformerLens boots."""
