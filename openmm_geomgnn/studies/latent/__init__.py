"""What the features of networks hold: how alike they are, what can be read from them, and what they look like."""
