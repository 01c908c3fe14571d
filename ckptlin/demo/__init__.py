"""A demonstration on real input: train a small model, and see what ckptlin makes of its run."""

from ckptlin.demo.demo import DEMO_METHODS, DemoResult, run_demo
from ckptlin.demo.training import DemoSettings

__all__ = ["DEMO_METHODS", "DemoResult", "DemoSettings", "run_demo"]
