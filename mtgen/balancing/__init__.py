"""The gradient gate, its Gramian and its statistics; each weighting method is one file in `weightings/`."""
