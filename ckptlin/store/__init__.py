"""The trajectory store: a zarr v3 group of all trajectories of a run."""
