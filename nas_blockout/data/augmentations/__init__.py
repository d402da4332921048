"""Published augmentations of more than a few lines, each as its draws and what they do to a batch."""
