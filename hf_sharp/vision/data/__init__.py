"""Images with labels: sources, label noise, augmentation and batches."""
