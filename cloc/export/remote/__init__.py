"""Files that ``export hf`` puts beside the weights, for ``AutoModel.from_pretrained(FOLDER, trust_remote_code=True)``.

Nothing here may need more than PyTorch, transformers, safetensors, NumPy and Pillow: it runs in other people's programs.
"""
