"""`larimar eval`: Larimar's experiments, each against honest baselines on the same decoder in the same run."""
