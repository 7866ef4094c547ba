"""Image classification: models, data and Trainers, as the papers on sharpness-aware training have them."""
