"""Files that ``export hf`` puts beside the weights, for ``AutoModel.from_pretrained(FOLDER, trust_remote_code=True)``.

It runs in other people's programs: nothing here may need more than PyTorch, transformers, safetensors and NumPy.
"""
