"""Trained models as graphs for other runtimes: written, compared with the model, and kept."""
