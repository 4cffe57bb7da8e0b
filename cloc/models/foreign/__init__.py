"""Models of others behind our interface: open_clip, Hugging Face CLIP and SigLIP."""
