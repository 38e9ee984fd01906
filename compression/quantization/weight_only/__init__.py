"""Weights in few bits and groups that share a scale, activations in float."""
