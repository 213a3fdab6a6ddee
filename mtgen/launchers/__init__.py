"""Ray and Slurm: place the workers, watch them and replace lost ones. The one folder that imports ray."""
