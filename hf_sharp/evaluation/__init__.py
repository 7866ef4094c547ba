"""How well a trained model does its task."""
