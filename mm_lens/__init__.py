"""TransformerLens for vision-language models: hook points, metrics and profiles per modality."""
