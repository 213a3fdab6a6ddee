"""How good a run is: one pass over real and one over generated data feed every metric."""
