"""Tuning a language model with LoRA to describe faces: settings, instruction records, training."""

from affect.agent_training.train import train_au_agent

__all__ = ["train_au_agent"]
