"""Pictures for people: grids of images, flat and in layers."""
