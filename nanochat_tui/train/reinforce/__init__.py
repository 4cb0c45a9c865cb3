"""Reinforcement learning: GRPO and MaxRL with rollouts and rewards that the caller hands in."""
