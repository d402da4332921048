"""What all figures share: the canvas they are drawn on, colors and fonts, labels that do not overlap, SVG."""
