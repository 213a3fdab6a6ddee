"""The gradient gate, the Gramian that it forms and what they record; each weighting method is one file in `weightings/`."""
