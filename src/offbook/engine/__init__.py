"""Losses and gradients, fast and proved equal to those of transformers and PEFT."""
