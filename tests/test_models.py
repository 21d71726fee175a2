"""DialoGPT のほかの因果言語モデル（小さな乱数の重み）と、実物に近い形のトークナイザで、学習から生成までを試します。"""

import copy
import math
import re

import pytest
import torch
import transformers
from conftest import finish
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import dpo_helpers as dpo

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16,
        "num_key_value_heads": 1, "max_position_embeddings": 512}  # fmt: skip
CHATML = """{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.role == "assistant" %}<think>

</think>

{% endif %}{{ message.content }}<|im_end|>
{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""  # Qwen3 と同じく、最後の回答の前に、考える過程の空の印が入る
TURNS = """{{ bos_token }}{% for message in messages %}<start_of_turn>\
{{ "model" if message.role == "assistant" else message.role }}
{{ message.content }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
MELTED = [{"prompt": f"質問: 質問{i}は何\n回答:", "chosen": f"「はい{i}」", "rejected": f"いいえ{i}"}
          for i in range(40)]  # fmt: skip


def byte_level(eos, pad, *more, texts=None, template=None):
    """Qwen や GPT-NeoX の形（バイト単位の BPE、BOS なし）です。"""
    made, letters = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer, made.decoder = letters, decoders.ByteLevel()
    special = list(dict.fromkeys((eos, pad, *more)))
    trainer = trainers.BpeTrainer(vocab_size=800, initial_alphabet=letters.alphabet(), special_tokens=special)
    made.train_from_iterator(texts or dpo.build_pairs(200)["chosen"], trainer)
    names = {"eos_token": eos, "pad_token": pad, "chat_template": template}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def sentence_pieces(*more, template=None):
    """Llama や Gemma の形（Unigram、知らない文字はバイト、初めに BOS を付ける）です。"""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", "<pad>", *more, *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.UnigramTrainer(vocab_size=900, special_tokens=special, unk_token="<unk>")
    made.train_from_iterator(dpo.build_pairs(200)["chosen"], trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, **names)


KINDS = {  # 名前: (設定のクラス, トークナイザ)
    "qwen2": ("Qwen2Config", lambda: byte_level("<|endoftext|>", "<|endoftext|>")),
    "qwen3-chat": ("Qwen3Config", lambda: byte_level("<|im_end|>", "<|endoftext|>", "<|im_start|>", template=CHATML)),
    "gpt-neox": ("GPTNeoXConfig", lambda: byte_level("<|endoftext|>", "<|pad|>")),
    "llama": ("LlamaConfig", sentence_pieces),
    "gemma2-chat": ("Gemma2Config", lambda: sentence_pieces("<start_of_turn>", "<end_of_turn>", template=TURNS)),
    # 「:「」が一つのトークンになり、質問の終わりと回答の初めが溶け合う
    "melting": ("GPT2Config", lambda: byte_level("<e>", "<e>", texts=["回答:「はい」", "回答:「いいえ」"] * 50)),
}


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory):
    """小さなモデルを作って学習し、保存した (Run, TRL が学習に使ったデータ) です。"""
    kind, make = KINDS[request.param]
    folder, tokenizer, seen = tmp_path_factory.mktemp("kinds"), make(), []
    torch.manual_seed(0)
    ids = {name: getattr(tokenizer, name) for name in ("eos_token_id", "bos_token_id", "pad_token_id")}
    size = getattr(transformers, kind)(vocab_size=len(tokenizer), **SIZE, **ids)
    for part in (transformers.AutoModelForCausalLM.from_config(size), tokenizer):
        part.save_pretrained(folder / "base")
    config = dpo.Config(base_model=str(folder / "base"), num_pairs=40, sft_epochs=0.2, max_length=256, lora_r=4,
                        lora_alpha=64.0, output_dir=str(folder / "run"))  # fmt: skip

    class Watch(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
            seen.append(train_dataloader.dataset)

    return finish(config, MELTED if request.param == "melting" else None, callbacks=[Watch()]), seen[-1]


def test_every_kind_of_model_trains_and_a_saved_run_answers_as_before(trained):
    run, _ = trained
    assert run.history[0]["loss/preference"] == pytest.approx(math.log(2), abs=1e-3)
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in run.history)
    kinds = {name.split(".")[-4] for name, _ in run.model.named_parameters() if ".lora_A.default" in name}
    assert len(kinds) >= 3  # 注意機構と MLP の線形層のすべて
    saved, question = dpo.load_run(run.config.folder), "AIとは何ですか？"
    answers = [dpo.generate_response(question, each.model, each.tokenizer) for each in (run, saved)]
    assert answers[0] == answers[1]
    alone = transformers.AutoTokenizer.from_pretrained(run.config.folder / "adapter")  # アダプタのフォルダだけで使う人
    asked = alone.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True,
                                      enable_thinking=False, return_dict=True)["input_ids"]  # fmt: skip
    assert [asked] == dpo.prompt_tokens([question], run.tokenizer)


@pytest.mark.colab
def test_training_scoring_and_generation_see_the_same_tokens(trained):
    """`tokenize_pairs` は TRL が学習に使ったトークン番号と同じで、生成の質問も同じ始まりです。BOS は一つまでです。"""
    run, data = trained
    tokens = dpo.tokenize_pairs(run.train_pairs, run.tokenizer)
    prompts = dpo.prompt_tokens(run.train_pairs["prompt"], run.tokenizer)
    for pair, row, ids, prompt in zip(run.train_pairs, data, tokens, prompts, strict=True):
        assert ids == {name: list(row[name]) for name in ids}
        assert prompt[: len(ids["prompt_ids"])] == ids["prompt_ids"]
        assert prompt.count(run.tokenizer.bos_token_id) <= 1 and ids["chosen_ids"] != ids["rejected_ids"]
        assert (len(prompt) > len(ids["prompt_ids"])) == ("「はい" in pair["chosen"])
    with dpo.with_adapter(run.model, "sft"):
        first = dpo.pair_logps(run.model, run.tokenizer, run.train_pairs.select(range(4)), 256).mean(axis=0)
    assert first == pytest.approx([run.history[0][f"logps/{side}"] for side in ("chosen", "rejected")], abs=2e-3)


@pytest.mark.colab
def test_dialogpt_keeps_the_plain_form(small_base):
    """DialoGPT のテンプレートは、発言をつなぐだけで役割がないので、使いません。"""
    tokenizer, pairs = transformers.AutoTokenizer.from_pretrained(small_base), dpo.build_pairs(20)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
    for pair, ids in zip(pairs, dpo.tokenize_pairs(pairs, tokenizer), strict=True):
        whole = f"質問: {pair['prompt']}\n回答:{pair['chosen']}{tokenizer.eos_token}"
        assert ids["prompt_ids"] + ids["chosen_ids"] == tokenizer(whole)["input_ids"]
        assert ids["prompt_ids"] == tokenizer(f"質問: {pair['prompt']}\n回答:")["input_ids"]
    (turns,) = dpo.prompt_tokens(["システム: 簡潔に\n質問: あ\n回答: い\n質問: う"], tokenizer)
    assert tokenizer.decode(turns) == f"簡潔に\n質問: あ\n回答:い{tokenizer.eos_token}質問: う\n回答:"
    (ended,) = dpo.tokenize_pairs(Dataset.from_list([pairs[0] | {"chosen": f"はい{tokenizer.eos_token}"}]), tokenizer)
    assert ended["chosen_ids"].count(tokenizer.eos_token_id) == 1  # もう付いていれば、重ねない


def named(tokenizer):
    """名前の付いたテンプレートが、いくつかあるトークナイザです。"""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "role"}
    return tokenizer


@pytest.mark.colab
def test_earlier_turns_and_the_system_message_reach_the_template(small_base):
    tokenizer = dpo.load_tokenizer(small_base)
    tokenizer.chat_template = CHATML
    (turns,) = dpo.prompt_tokens(["システム: 簡潔に\n質問: あ\n回答: い\n質問: う"], tokenizer)
    assert turns == dpo.prompt_tokens(["システム: 簡潔に\n質問: あ\n回答: い\n質問: う"], named(tokenizer))[0]
    said = re.findall(r"<\|im_start\|>(\w+)\n(?:<think>\s*</think>\s*)?(.*)<\|im_end\|>", tokenizer.decode(turns))
    assert said == [("system", "簡潔に"), ("user", "あ"), ("assistant", "い"), ("user", "う")]


SHAPES = {  # 実物の書き方に近い、テンプレートの形
    "llama3": """{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>

{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}""",
    "llm-jp": """{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}

### 指示:
{{ m.content }}{% elif m.role == 'system' %}{{ m.content }}{% else %}

### 応答:
{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}

### 応答:
{% endif %}""",
    "alpaca": """{% if messages[0].role != 'system' %}次の質問に答えてください。{% endif %}{% for m in messages %}
{{ {'system': '', 'user': '### Instruction:', 'assistant': '### Response:'}[m.role] }}
{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}
{% endfor %}{% if add_generation_prompt %}
### Response:
{% endif %}""",
    "chatml": CHATML, "gemma": TURNS, "plain": dpo.PLAIN_TEMPLATE,
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_our_tokens_are_those_of_the_template(shape):
    """質問と回答のトークン番号をつなぐと、`apply_chat_template` で会話をそのまま直したものと同じです。"""
    tokenizer = byte_level("<|eos|>", "<|eos|>", "<|bos|>")
    tokenizer.bos_token, tokenizer.chat_template = "<|bos|>", SHAPES[shape]
    prompt = "システム: 簡潔に\n質問: あ\n回答: い\n質問: う"
    turns = [("system", "簡潔に"), ("user", "あ"), ("assistant", "い"), ("user", "う")]
    pairs = Dataset.from_list([{"prompt": prompt, "chosen": "はい", "rejected": "いや"}])
    (ids,) = dpo.tokenize_pairs(pairs, tokenizer)
    for side, answer in (("chosen_ids", "はい"), ("rejected_ids", "いや")):
        said = [{"role": role, "content": text} for role, text in (*turns, ("assistant", answer))]
        whole = tokenizer.apply_chat_template(said, enable_thinking=False, tokenize=False)
        assert tokenizer.decode(ids["prompt_ids"] + ids[side]) == whole and whole.count("う") == 1
        assert answer in tokenizer.decode(ids[side]) and "う" not in tokenizer.decode(ids[side])


def test_a_base_that_does_not_fit_its_tokenizer_or_is_an_adapter_is_refused(small_run, tmp_path):
    def refused(name, tokenizer=None, folder=None):
        folder = folder or tmp_path / name
        if tokenizer:
            small_run.model.get_base_model().config.save_pretrained(folder)
            transformers.AutoModelForCausalLM.from_config(small_run.model.config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        with pytest.raises(dpo.HelperError) as error:
            dpo.load_model(dpo.Config(base_model=str(folder), max_length=64))
        return str(error.value)

    wide = copy.deepcopy(small_run.tokenizer)
    wide.add_tokens([f"<語{i}>" for i in range(len(wide), small_run.model.config.vocab_size + 9)])
    wide.eos_token = wide.convert_ids_to_tokens(len(wide) - 1)
    assert "語彙 3000" in refused("wide", wide)
    silent = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>")
    assert "何も読み取れません" in refused("silent", silent)
    assert "merge_and_unload" in refused("adapter", folder=small_run.config.folder / "adapter")


def test_a_tokenizer_that_always_starts_with_bos_keeps_it():
    """Llama の形（テンプレートなし）では、BOS が一つ、質問の前に付きます。"""
    tokenizer, pairs = sentence_pieces(), dpo.build_pairs(20)
    for pair, ids in zip(pairs, dpo.tokenize_pairs(pairs, tokenizer), strict=True):
        assert ids["prompt_ids"] == tokenizer(f"質問: {pair['prompt']}\n回答:")["input_ids"]
        assert ids["prompt_ids"].count(tokenizer.bos_token_id) == 1


@pytest.mark.colab
def test_the_tiny_model_is_made_on_the_spot_and_its_loss_falls(tmp_path, monkeypatch, capsys):
    """時間を省くため、一部の文だけを読ませます。"""
    texts = dpo.base_texts(dpo.Config())[:160]
    monkeypatch.setattr(dpo, "base_texts", lambda config: texts)
    config = dpo.Config(base_model="offline-tiny", max_length=300, output_dir=str(tmp_path))

    def stop(text, history, batch_size, steps):
        dpo.terminal_line(text, history, batch_size, steps)
        if history[-1]["step"] == steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dpo.load_model(config, stop)
    assert not dpo.is_finished(config, dpo.build_pairs(24))  # 途中の保存だけなら、ほかの実行のフォルダではない
    shown = capsys.readouterr().err
    model, tokenizer = dpo.load_model(config, dpo.terminal_line)
    again = re.findall(r"元のモデル (\d+)/40", capsys.readouterr().err)
    assert again == ["40"] and not list(tmp_path.iterdir())  # 36 ステップ目の保存から
    losses = [float(value) for value in re.findall(r"元のモデル \d+/40  損失 ([\d.]+)", shown)]
    assert losses[-1] < losses[0] - 1
    assert 0.8e6 < model.num_parameters() < 2e6 and isinstance(dpo.generate_response("AIとは？", model, tokenizer), str)
