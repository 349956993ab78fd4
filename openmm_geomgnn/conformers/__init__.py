"""Conformers for pre-training: where they come from (`sources`), and how they become a store (`build`)."""
