"""Zero-shot semantic segmentation with a cascade of CLIP's stages."""
