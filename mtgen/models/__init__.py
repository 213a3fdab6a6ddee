"""The networks of a run put together, averaged, loaded and sampled, and the files that go with them."""
