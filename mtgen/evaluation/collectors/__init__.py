"""What metrics hold of a stream: sums, counts and subsamples, with a state that can be saved and restored."""
