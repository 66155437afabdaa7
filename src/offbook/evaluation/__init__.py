"""Is it good, and what did it cost: scores of a trained model, and a verdict."""
