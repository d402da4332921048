"""Publishing exported models: to a folder, or to Hugging Face's hub, verified first and whole or not at all."""
