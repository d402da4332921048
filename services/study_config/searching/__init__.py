"""Search algorithms and early stopping, as study files name and set them."""
