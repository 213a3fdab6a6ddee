"""One file a kind of feature extractor; each registers what makes a network (uint8 images `[B,3,H,W]` -> `[B,D]`) of a file."""
