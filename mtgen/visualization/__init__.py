"""Images for people: grids and layered pictures."""
