"""How the images of a batch go through a residual network of which each keeps some blocks."""
