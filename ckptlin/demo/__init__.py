"""A demonstration on real input: a small model is trained by reinforcement learning, and its run analysed."""

from ckptlin.demo.demo import DEMO_METHODS, DemoResult, run_demo
from ckptlin.demo.settings import DemoSettings
from ckptlin.demo.shipped import base_model

__all__ = ["DEMO_METHODS", "DemoResult", "DemoSettings", "base_model", "run_demo"]
