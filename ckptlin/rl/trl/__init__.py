"""The default engine: TRL's trainers on transformers and accelerate.

What TRL counts, updates, is turned into steps here; what it does not write, step 0, and what it would write
half or rotate away, is written by `ckptlin.rl.run_directory` instead.
"""
