"""Training of the paper's codec: sentences, episodes through the memory and the loss. `larimar train codec` runs it."""
