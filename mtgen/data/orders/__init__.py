"""Sample orders: position -> sample number, by seeded permutations that are computed where they are needed."""
