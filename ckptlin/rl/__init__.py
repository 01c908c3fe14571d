"""Reinforcement learning with verifiable rewards, and RL-Extra: makes checkpoints and uses predictions.

`ckptlin.rl.trainer.train` trains a run by a configuration (`ckptlin.rl.config`); engines lie below it.
"""
