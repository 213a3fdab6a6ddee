"""Ray and Slurm: start workers, watch them and replace lost ones. The only folder that imports ray."""
