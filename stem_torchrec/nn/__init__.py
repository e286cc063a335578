"""Building blocks of the models; they know nothing of ranks, optimizers or balancing."""
