"""DialoGPT のほかの因果言語モデル（小さな乱数の重み）と、実物に近い形のトークナイザで、学習から生成までを試します。"""

import math

import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

import dpo_helpers as dpo

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 256}  # fmt: skip
GROUPED = {"num_key_value_heads": 1, "head_dim": 16}
CHATML = """{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
# Qwen3 と同じく、最後の回答の前に、考える過程の空の印が入る
THINKING = """{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.role == "assistant" %}<think>

</think>

{% endif %}{{ message.content }}<|im_end|>
{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""
TURNS = """{{ bos_token }}{% for message in messages %}<start_of_turn>\
{{ "model" if message.role == "assistant" else message.role }}
{{ message.content }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
# llm-jp の instruct モデルの形
SECTIONS = """{{ bos_token }}{% for message in messages %}{% if message.role == "user" %}

### 指示:
{{ message.content }}{% else %}

### 応答:
{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}

### 応答:
{% endif %}"""


def texts():
    pairs = dpo.build_pairs(200)
    marks = "### 指示:\n### 応答:\nuser\nmodel\n"
    return [f"{p}{a}" for p, a in zip(pairs["prompt"], pairs["chosen"], strict=True)] + [marks]


def byte_level(eos, pad=None, more=(), template=None):
    """Qwen や GPT-NeoX の形（バイト単位の BPE、BOS なし）です。"""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), list(dict.fromkeys([eos, *more, *([pad] if pad else [])]))
    bpe.train_from_iterator(
        texts(), trainers.BpeTrainer(vocab_size=800, initial_alphabet=alphabet, special_tokens=special)
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=eos, pad_token=pad, chat_template=template)


def sentence_pieces(eos="</s>", pad=None, more=(), template=None):
    """Llama や Gemma の形（空白を ▁ に替える Unigram、知らない文字はバイト、初めに BOS を付ける）です。"""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = ["<unk>", "<s>", "</s>", *([pad] if pad else []), *more, *(f"<0x{i:02X}>" for i in range(256))]
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    trainer = trainers.UnigramTrainer(vocab_size=900, special_tokens=special, unk_token="<unk>")
    unigram.train_from_iterator(texts(), trainer)
    unigram.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    unigram.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", unigram.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=unigram, bos_token="<s>", eos_token=eos, unk_token="<unk>", pad_token=pad,
        chat_template=template,
    )  # fmt: skip


KINDS = {
    "qwen2-chat": (Qwen2Config, GROUPED, lambda: byte_level(
        "<|im_end|>", "<|endoftext|>", ["<|im_start|>"], CHATML)),
    "qwen3-thinking": (Qwen3Config, GROUPED, lambda: byte_level(
        "<|im_end|>", "<|endoftext|>", ["<|im_start|>"], THINKING)),
    "qwen2-base": (Qwen2Config, GROUPED, lambda: byte_level("<|endoftext|>", "<|endoftext|>")),
    "gpt-neox": (GPTNeoXConfig, {}, lambda: byte_level("<|endoftext|>")),
    "llama-base": (LlamaConfig, GROUPED, sentence_pieces),
    "llm-jp-instruct": (LlamaConfig, GROUPED, lambda: sentence_pieces(pad="<pad>", template=SECTIONS)),
    "gemma2-chat": (Gemma2Config, GROUPED, lambda: sentence_pieces(
        pad="<pad>", more=["<start_of_turn>", "<end_of_turn>"], template=TURNS)),
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory):
    """小さなモデルを作って学習し、保存したものです。"""
    from transformers import AutoModelForCausalLM

    kind, options, make = KINDS[request.param]
    folder, tokenizer = tmp_path_factory.mktemp("kinds") / request.param, make()
    torch.manual_seed(0)
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id,
           "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    model = AutoModelForCausalLM.from_config(kind(vocab_size=len(tokenizer), **SIZE | options | ids))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = dpo.Config(
        base_model=str(folder), num_pairs=40, sft_epochs=0.5, max_length=256, lora_r=4, lora_alpha=64.0,
        output_dir=str(folder.with_name(f"{request.param}-run")),
    )  # fmt: skip
    run = dpo.train(config)
    dpo.evaluate_run(run)
    dpo.save_run(run)
    run.lock.release()
    return run


def test_every_kind_of_model_goes_to_the_end(run):
    assert run.history[0]["loss/preference"] == pytest.approx(math.log(2), abs=1e-3)
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in run.history)
    kinds = {name.split(".")[-4] for name, _ in run.model.named_parameters() if ".lora_A.default" in name}
    assert len(kinds) >= 4  # 注意機構と MLP の線形層のすべて


def test_training_and_scoring_see_the_same_tokens(run):
    """TRL が学習した最初の四対の対数確率は、評価の `answer_logps` と同じです。"""
    first = dpo._shuffled(run.train_pairs, run.config.seed).select(range(4))
    with dpo._using(run.model, "warmup"):
        for side in ("chosen", "rejected"):
            scored, _ = dpo.answer_logps(run.model, run.tokenizer, first["prompt"], first[side], 256)
            assert sum(scored) / 4 == pytest.approx(run.history[0][f"logps/{side}"], abs=2e-3)


def test_the_text_is_that_of_the_template(run):
    """テンプレートがあれば、それに従った一つの文になり、BOS は一つだけ、最後は終わりの印です。"""
    tokenizer, pair = run.tokenizer, run.train_pairs[0]
    ((question, answer),) = dpo.model_texts([pair["prompt"]], [pair["chosen"]], tokenizer)
    ids = tokenizer(question + answer)["input_ids"]
    assert tokenizer.bos_token_id is None or ids.count(tokenizer.bos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id and ids[:-1].count(tokenizer.unk_token_id) == 0
    bare = pair["prompt"].removeprefix("質問: ").removesuffix("\n回答:")
    if tokenizer.chat_template is None:
        assert (question, answer) == (pair["prompt"], pair["chosen"] + tokenizer.eos_token)
    else:
        assert bare in question and "質問:" not in question and pair["chosen"] in answer
        messages = [{"role": "user", "content": bare}, {"role": "assistant", "content": pair["chosen"]}]
        whole = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()
        assert (question + answer).removesuffix(tokenizer.eos_token) in (whole, whole.removesuffix(tokenizer.eos_token),
                                                                          whole.removeprefix("<s>"),
                                                                          whole.removeprefix("<s>").removesuffix("</s>"))


def test_a_saved_run_answers_as_before(run):
    saved = dpo.load_run(run.folder)
    question = "AIとは何ですか？"
    answers = [dpo.generate_response(question, each.model, each.tokenizer) for each in (run, saved)]
    assert answers[0] == answers[1] and isinstance(AutoTokenizer.from_pretrained(run.folder / "adapter").eos_token, str)


def test_dialogpt_keeps_the_plain_form(small_base):
    """DialoGPT のテンプレートは、発言をつなぐだけで役割がないので、使いません。"""
    tokenizer = AutoTokenizer.from_pretrained(small_base)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
    prompt = "質問: AIとは？\n回答:"
    assert dpo.model_texts([prompt], ["答え"], tokenizer) == [(prompt, "答え" + tokenizer.eos_token)]


def test_an_answer_that_melts_into_the_question_is_scored_as_in_training(small_base, tmp_path):
    """「:「」が一つのトークンになると、TRL は、対の二つの回答のどちらとも共通な所までを質問とします。"""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel

    letters = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = letters, decoders.ByteLevel()
    alphabet = {"initial_alphabet": letters.alphabet(), "special_tokens": ["<e>"], "show_progress": False}
    made.train_from_iterator(["回答:「はい」", "回答:「いいえ」"] * 50, trainers.BpeTrainer(vocab_size=400, **alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<e>", eos_token="<e>", pad_token="<e>")
    size = GPT2Config(vocab_size=len(tokenizer), n_positions=256, n_embd=32, n_layer=1, n_head=2, bos_token_id=0,
                      eos_token_id=0, pad_token_id=0)  # fmt: skip
    for part in (tokenizer, GPT2LMHeadModel(size)):
        part.save_pretrained(tmp_path / "base")
    rows = [{"prompt": f"質問{i}は何", "chosen": f"「はい{i}」", "rejected": f"いいえ{i}"} for i in range(40)]
    bare = "質問: 質問0は何\n回答:"
    question, chosen, rejected = tokenizer([bare, bare + rows[0]["chosen"], bare + rows[0]["rejected"]])["input_ids"]
    assert dpo._shared_prefix(question, chosen) < dpo._shared_prefix(question, rejected) == len(question)
    config = dpo.Config(base_model=str(tmp_path / "base"), sft_epochs=0.0, lora_r=8, lora_alpha=16.0,
                        output_dir=str(tmp_path / "run"))  # fmt: skip
    run = dpo.train(config, rows)
    assert run.history[0]["loss/preference"] == pytest.approx(math.log(2), abs=1e-3)
    assert run.history[0]["rewards/margins"] == pytest.approx(0, abs=1e-3)
