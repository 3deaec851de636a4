"""What is said of a drawing, with values in it; called from pages and from the command line."""

from __future__ import annotations


def drawing(done: int, of: int) -> str:
    """While it draws."""
    return f"Step {done} of {of}" if done else "Getting ready"


def made_for_few_steps(name: str, steps: int, guidance: float) -> str:
    """Said when an adapter decides the sampler, and with it steps and guidance.

    >>> made_for_few_steps("lcm-lora", 8, 1.5)
    'lcm-lora was made for few steps: drawn with the LCM sampler, 8 steps, guidance 1.5. Choose a sampler to decide it.'
    """
    return (f"{name} was made for few steps: drawn with the LCM sampler, {steps} steps, guidance {guidance:g}. "
            "Choose a sampler to decide it.")
