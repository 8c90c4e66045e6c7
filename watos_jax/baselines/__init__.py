"""Other ways to train a model, priced with the same workload and operators."""
