"""Every operator that torch has samples for, in every spelling, between an affine and a linear layer."""
