"""The engine for clusters: verl's PPO trainer on Ray, a program of its own for each stretch of steps.

Read from the source of verl 0.9.1.  Each call of the engine's ``train`` launches ``verl.trainer.main_ppo`` with
settings made of the same configuration (`overrides`), a file of the prompts in their order (`prompts`) and the
project's graders (`reward`), and takes what it saves into the run's directory (`stretch`).
"""
