"""The paper's experiments on the real product, beside the unedited model and its rivals: `larimar eval NAME`."""
