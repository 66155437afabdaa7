# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Teach a chat model a role with LoRA
#
# ## 1. What we do
#
# We take a chat model and a few hundred `{instruction, input, output}` rows in which a character
# speaks, train a LoRA adapter on them, and talk to the result. The steps are those of a widely
# copied tutorial for DeepSeek-7B-chat:
#
# | step | the usual recipe | here |
# |---|---|---|
# | formatting | by hand: `User: …\n\nAssistant: …<eos>`, 384 tokens | the model's chat template |
# | model | float16 | the format that is fastest on this machine |
# | LoRA | r 8, alpha 32, dropout 0.1, seven projections | the same by default |
# | training | `Trainer`, batch 8 × 2, 3 epochs, learning rate 1e-4 | `train`, `batch_size: 16` |
# | inference | `generate` after a prompt by hand | `Chat`, with the template of training |
#
# The recipe works, which is why it is copied. It also has a dozen faults that raise no error. Each
# section ends with a note, **What the usual recipe gets wrong, and how it shows**, and wherever
# possible a cell that measures it.
#
# This notebook runs on a laptop without a GPU in a few minutes, with a model of 135 million
# parameters. **To use another model, change the one line below.** On a GPU, for
# example, `BASE = "deepseek-ai/deepseek-llm-7b-chat"`.

# %%
BASE = "smollm2-135m"

# %%
import gc
import json
import math
import tempfile
import time
import warnings
from collections import Counter
from copy import deepcopy
from importlib.resources import files
from pathlib import Path

warnings.filterwarnings("ignore", message="IProgress not found")

import matplotlib.pyplot as plt
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from tokenizers.normalizers import Replace
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, TrainerControl, TrainerState
from transformers import TrainingArguments as HFTrainingArguments
from transformers.trainer_callback import DefaultFlowCallback

from offbook import Chat, ChatTemplate, Config, OffbookError, load_tokenizer, read_conversations
from offbook.data.messages import Conversation, Message
from offbook.doctor.doctor import Doctor
from offbook.doctor.inspection import token_view
from offbook.inference.generate import Sampling, generate
from offbook.libraries import quiet_transformers
from offbook.models.adapter import attach_adapter, load_adapter
from offbook.models.base import resolve_base
from offbook.models.load import choose_device, choose_precision, load_base
from offbook.monitor import EvalMetrics, Monitor, StepMetrics
from offbook.runs.directory import RunDirectory
from offbook.tokens.examples import IGNORED, Example, supervised_spans, tokenize
from offbook.tokens.tokenizer import prove
from offbook.training.schedule import Schedule, learning_rate_at
from offbook.training.train import train

WORK = Path(tempfile.mkdtemp(prefix="offbook-"))  # everything this notebook writes goes here
DEVICE = choose_device()
GREY, BLUE, RED, GREEN = "#e8e8e8", "#8ecae6", "#f4978e", "#2a9d8f"
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.spines.top": False})
plt.rcParams.update({"axes.spines.right": False, "figure.constrained_layout.use": True})


def show_error(work):
    """Run something that should be refused, and print why it was."""
    try:
        work()
    except OffbookError as error:
        print(error)


def free_memory():
    """Give back the memory of models that have no name any more."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


folder = resolve_base(BASE, announce=print)
print(f"{BASE} on {DEVICE}")

# %% [markdown]
# ## 2. Instruction rows
#
# A row has an `instruction`, an optional `input` that the instruction refers to, and the `output`
# that the role should give. Two small roles are part of offbook: `lighthouse`, a lighthouse keeper
# who speaks English, and `teahouse-zh`, the landlady of a tea house who speaks Chinese.

# %%
roles = {name: read_conversations(name) for name in ("lighthouse", "teahouse-zh")}


def raw_rows(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else list(map(json.loads, text.splitlines()))


rows = {name: raw_rows(reader.paths[0]) for name, reader in roles.items()}

for name in roles:
    both = [row for row in rows[name] if row["instruction"] and row["input"]]
    print(f"{name}: {len(rows[name])} rows, {len(both)} of them with an input; for example")
    for row in (*rows[name][:3], both[0]):
        print("  ", json.dumps(row, ensure_ascii=False))
    print()

# %% [markdown]
# `read_conversations` turns each row into a conversation: user and assistant messages, with the
# file and line they came from. `Doctor` counts what is odd while the rows stream by: exact
# duplicates, and prompts that have several different replies.

# %%
for name, reader in roles.items():
    doctor = Doctor(Config().doctor)
    conversations = list(doctor.watch(reader))
    print(f"{name}: {doctor.counts(doctor.findings(conversations))}")

# %% [markdown]
# **What the usual recipe gets wrong, and how it shows**
#
# - *Instruction and input are joined* (`instruction + input`), with nothing between them.
#   The last word of one runs into the first of the other, and the tokens there are ones that
#   rarely or never occur in well-formed text.
# - *Rows are not checked.* Where keys are read with a default, a row that spells `"instrution"`
#   trains on an empty prompt.

# %%
tokenizer = load_tokenizer(folder)


def ids_of(text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def pieces(text):
    return [tokenizer.decode([i]) for i in ids_of(text)]


def seam(instruction, separator, extra):
    before, after = instruction[-12:], extra[:12]
    return f"{instruction[-12:] + separator + extra[:12]!r:38} {pieces(before + separator + after)}"


for row in [row for row in rows["lighthouse"] if row["instruction"] and row["input"]][:3]:
    print("recipe ", seam(row["instruction"], "", row["input"]))
    print("offbook", seam(row["instruction"], "\n", row["input"]))
    print()

# %% [markdown]
# offbook puts `data.input_separator` between them, a newline unless you set another. And it
# refuses a row that it does not understand, naming the line:

# %%
typo = WORK / "typo.json"
typo.write_text(
    '[{"instruction": "Hello.", "output": "Aye."},\n {"instrution": "Hi.", "output": "Aye."}]'
)
show_error(lambda: list(read_conversations(str(typo))))

# %% [markdown]
# ## 3. Formatting and the mask
#
# A chat model was trained on one exact arrangement of control tokens and text, its *chat
# template*, which ships with its tokenizer. offbook renders every training row and every chat
# prompt with it, through one class, `ChatTemplate`. A training example is two arrays of equal
# length: the token ids, and the *labels*, which are the ids again where the model is to learn
# (*supervised*) and -100 where it is not. Supervised is exactly the reply and the one token that
# ends it.

# %%
template = ChatTemplate(tokenizer)


def readable(text):
    """ASCII for a figure: white space made visible, letters a font may lack replaced."""
    visible = text.replace("\n", "\\n").replace("｜", "|").replace("▁", "_")
    return visible.encode("ascii", "replace").decode()


def draw_tokens(example, title, extra=(), per_line=104):
    """Draw an example's tokens as boxes, supervised ones coloured.

    `extra` are supervised positions that should not be.
    """
    boxes, x, y = [], 0.0, 0
    position = 0
    for span in token_view(example, tokenizer):
        for text in span.tokens:
            label = readable(text)
            width = max(len(label), 1) + 0.9
            if x + width > per_line:
                x, y = 0.0, y + 1
            colour = RED if position in extra else BLUE if span.trained else GREY
            boxes.append((x, y, width, label, colour))
            x, position = x + width + 0.25, position + 1
    lines = y + 1
    fig, ax = plt.subplots(figsize=(8.4, 0.55 + 0.27 * lines))
    for x, y, width, label, colour in boxes:
        ax.add_patch(plt.Rectangle((x, y), width, 0.8, facecolor=colour, edgecolor="#999", lw=0.5))
        ax.text(
            x + width / 2, y + 0.42, label, ha="center", va="center", family="monospace", size=7
        )
    ax.set(xlim=(-0.5, per_line + 0.5), ylim=(lines, -0.2))
    ax.axis("off")
    names = {GREY: "not supervised", BLUE: "supervised", RED: "supervised by mistake"}
    used = [c for c in names if c in {box[4] for box in boxes}]
    handles = [plt.Rectangle((0, 0), 1, 1, facecolor=c, edgecolor="#999") for c in used]
    fig.legend(handles, [names[c] for c in used], loc="outside upper right", ncols=3, frameon=False)
    fig.suptitle(title, x=0.01, ha="left", fontsize=9)
    plt.show()


ROW = 4
lighthouse = list(roles["lighthouse"])
example = template.build_example(lighthouse[ROW])
draw_tokens(example, "One row, as offbook renders it")

# %% [markdown]
# The same for a Chinese row, as text: tokens are set apart by `|`, and `[ ]` encloses the
# supervised ones. A byte-level tokenizer that has seen little Chinese needs two or three tokens
# for most characters; such a character is written once, at the last of its tokens, and `·` is
# written for each of the others.

# %%
teahouse = list(roles["teahouse-zh"])


def as_text(example):
    parts = []
    for span in token_view(example, tokenizer):
        joined = "|".join(token.replace("\n", "\\n") or "·" for token in span.tokens)
        parts.append(f"[{joined}]" if span.trained else joined)
    return " ".join(parts)


print(as_text(template.build_example(teahouse[0])))
for name, conversations in (("lighthouse", lighthouse), ("teahouse-zh", teahouse)):
    replies = [c.messages[-1].content for c in conversations]
    tokens = sum(len(ids_of(reply)) for reply in replies)
    print(f"{name}: {tokens / sum(map(len, replies)):.2f} tokens per character of the replies")

# %% [markdown]
# At chat time the prompt must be, token by token, the beginning of a training row. That is what
# makes training and inference the same task, and it holds by construction:

# %%
prompt = template.build_prompt(lighthouse[ROW].messages[:1])
row_ids = example.input_ids.tolist()
(start, end) = supervised_spans(example.labels)[0]
print("the prompt is the beginning of the row:", row_ids[: len(prompt)] == prompt)
print("what follows it is supervised:         ", start == len(prompt))
print("the last supervised token:             ", repr(tokenizer.decode([row_ids[end - 1]])))
print("the reply reads back as it was:        ", end="")
print(template.parse_reply(row_ids[start:]) == lighthouse[ROW].messages[1].content)

# %% [markdown]
# **What the usual recipe gets wrong, and how it shows**
#
# Here is the usual `process_func` and the prompt that goes with it, in our own words. The recipe
# writes DeepSeek's `<｜end▁of▁sentence｜>` by hand; `tokenizer.eos_token` is the same for the model
# that was chosen above.

# %%
MAX_LENGTH = 384


def recipe_row(row, cut=True):
    prompt = ids_of(f"User: {row['instruction']}{row['input']}\n\n")
    reply = ids_of(f"Assistant: {row['output']}{tokenizer.eos_token}")
    reply.append(tokenizer.pad_token_id)
    ids, labels = prompt + reply, [IGNORED] * len(prompt) + reply
    if cut:
        ids, labels = ids[:MAX_LENGTH], labels[:MAX_LENGTH]
    return Example(np.array(ids, np.int32), np.array(labels, np.int32))


def recipe_prompt(question, tokenizer=tokenizer):
    return tokenizer(f"User: {question}\n\n")["input_ids"]


HEADER = len(ids_of("Assistant:"))  # tokens of the reply's header
recipe_example = recipe_row(rows["lighthouse"][ROW])
first = supervised_spans(recipe_example.labels)[0][0]
mistakes = {*range(first, first + HEADER), len(recipe_example) - 1}
draw_tokens(recipe_example, "The same row in the usual recipe", extra=mistakes)

# %% [markdown]
# - *The format is written by hand.* `User:` and `Assistant:` are DeepSeek's. Copied to another
#   model they are a format it has never seen: compare the two figures.
# - *EOS is there twice.* It is in the text, and then the pad token, which is the same token, is
#   appended. The second one is trivial to predict, and lowers the loss of every row.
# - *`Assistant:` is in the loss, and missing from the prompt.* The model is trained to write its
#   own header, and at inference it has to: replies begin with `Assistant:`,
#   and part of `max_new_tokens` goes into it.
#
# Over the whole role, that is:

# %%
labels = np.concatenate([recipe_row(row).labels for row in rows["lighthouse"]])
supervised = int((labels != IGNORED).sum())
count = len(rows["lighthouse"])
offbook_labels = np.concatenate([template.build_example(c).labels for c in lighthouse])
print(f"recipe:  {supervised} supervised tokens in {count} rows")
print(f"         {count * HEADER} of them spell 'Assistant:' ({count * HEADER / supervised:.1%})")
eos = int((labels == tokenizer.eos_token_id).sum())
print(f"         {eos} are EOS: {eos / count:.0f} per row")
stops = int((offbook_labels == template.stop_id).sum())
print(f"offbook: {stops} stop tokens: {stops / count:.0f} per row, and no header")

question = lighthouse[ROW].messages[0].content
print("\nthe last tokens of the prompt at inference:")
print("recipe: ", [tokenizer.decode([i]) for i in recipe_prompt(question)[-6:]])
print("offbook:", [tokenizer.decode([i]) for i in prompt[-6:]])
print("what the recipe's model must write before its reply begins:", end=" ")
print(repr(tokenizer.decode(recipe_example.input_ids[first : first + HEADER])))

# %% [markdown]
# - *BOS only at inference.* DeepSeek's tokenizer puts BOS before every text it is given, and its
#   template begins with BOS. The recipe switches that off for the training rows
#   (`add_special_tokens=False`) and leaves it on for the prompt. So the model is trained without
#   the token that opened every text it had ever seen, and then asked with it. Whether a tokenizer
#   adds BOS by itself depends on the model and the version of transformers; so the cell counts,
#   once for the tokenizer as it was loaded and once with the rule that DeepSeek's configuration
#   asks for (`add_bos_token: true`).

# %%
bos, bos_id = tokenizer.bos_token, tokenizer.bos_token_id
with_rule = deepcopy(tokenizer)
with_rule.backend_tokenizer.post_processor = TemplateProcessing(
    single=f"{bos} $A", special_tokens=[(bos, bos_id)]
)


def begins(ids):
    return "BOS" if ids[0] == bos_id else f"{tokenizer.decode([int(ids[0])])!r}"


print(f"{'':36}{'training row':16}prompt")
print(f"{'recipe, tokenizer as loaded':36}{begins(recipe_example.input_ids):16}", end="")
print(begins(recipe_prompt(question)))
without = begins(with_rule(f"User: {question}\n\n", add_special_tokens=False)["input_ids"])
print(f"{'recipe, tokenizer that adds BOS':36}{without:16}", end="")
print(begins(recipe_prompt(question, with_rule)))
print(f"{'offbook':36}{begins(example.input_ids):16}{begins(prompt)}")

# %% [markdown]
# - *EOS never.* Two common variants go wrong the other way, and then the model never learns to
#   stop: keeping DeepSeek's hand-written EOS when changing the model, where it is only text; and
#   masking the labels by pad id, where pad and EOS are the same token. offbook masks by position,
#   and proves when it loads a template that the stop token is supervised exactly once.

# %%
literal = ids_of("<｜end▁of▁sentence｜>")
print(f"DeepSeek's EOS is {len(literal)} token(s) here, and EOS is among them:", end=" ")
print(tokenizer.eos_token_id in literal)
print("pad and EOS are the same token:", tokenizer.pad_token_id == tokenizer.eos_token_id)
masked = np.where(labels == tokenizer.pad_token_id, IGNORED, labels)
left = int((masked == tokenizer.eos_token_id).sum())
print(f"EOS supervised after masking by pad id: {left} in {count} rows")

# %% [markdown]
# - *The cut to 384 tokens drops EOS.* It keeps the beginning of a row and drops the end, which is
#   the reply. A row that is cut no longer teaches the model to stop; one whose prompt alone is
#   longer teaches nothing at all. Neither is counted or reported.
#
# To show it we give one of the role's rows a long input. offbook cuts the oldest part of the
# *prompt*, keeps the reply and its stop token, and reports the row; if the reply alone is too
# long, the row is left out and reported.

# %%
log = [row["output"] for row in rows["lighthouse"]]


def long_row(tokens):
    """A row whose prompt has about so many tokens in the recipe."""
    used = 1
    while len(ids_of("User: Shorten this log." + " ".join(log[: used + 1]))) < tokens:
        used += 1
    return {"instruction": "Shorten this log.", "input": " ".join(log[:used]), "output": log[-1]}


def describe(name, example):
    at = np.flatnonzero(example.labels != IGNORED)
    ends = repr(tokenizer.decode(example.input_ids[at[-5:]])) if len(at) else "nothing"
    print(f"  {name:8}{len(example):5} tokens, {len(at):3} supervised; they end with {ends}")


conversations = []
for tokens in (MAX_LENGTH - 5, MAX_LENGTH + 80):
    row = long_row(tokens)
    question = f"{row['instruction']}\n{row['input']}"
    messages = (Message("user", question), Message("assistant", row["output"]))
    conversations.append(Conversation(messages, source=f"long.json:{len(conversations) + 1}"))
    print(f"{conversations[-1].source}, {len(recipe_row(row, cut=False))} tokens in the recipe")
    describe("recipe", recipe_row(row))
    describe("offbook", template.build_examples(conversations[-1:], MAX_LENGTH)[0].examples[0])

endless = (Message("user", "Sing."), Message("assistant", " ".join(log[:20])))
conversations.append(Conversation(endless, source="long.json:3"))
fitted = tokenize(conversations, template, MAX_LENGTH)
print(f"\noffbook reports: cut {', '.join(fitted.truncated)}; left out {', '.join(fitted.dropped)}")

# %% [markdown]
# ## 4. Tokenizer and half-precision model
#
# A tokenizer that loads without an error may still be wrong: transformers 5.6.0 loaded the
# DeepSeek-LLM vocabulary in a way that lost every space and all Chinese. `load_tokenizer` therefore
# compares what was loaded with the raw `tokenizer.json` on a set of probe texts. It passed above;
# otherwise this notebook would have stopped. To see a refusal, we break a copy:

# %%
broken = deepcopy(tokenizer)
broken.backend_tokenizer.normalizer = Replace(" ", "")
prove(tokenizer, folder / "tokenizer.json")
print("the loaded tokenizer agrees with its tokenizer.json\n\nthe broken copy:")
show_error(lambda: prove(broken, folder / "tokenizer.json"))

# %% [markdown]
# Half precision takes half the memory of float32. Whether it is also faster depends on the
# processor, so `precision: auto` measures. The adapter is float32 either way; it is small.

# %%
precision = choose_precision("auto", DEVICE)


def milliseconds(dtype, tries=9):
    x, w = (torch.ones(shape, dtype=dtype, device=DEVICE) for shape in ((256, 2048), (2048, 2048)))
    times = []
    while len(times) < tries and sum(times) < 0.5:  # seconds: bfloat16 may be emulated
        begun = time.perf_counter()
        (x @ w).sum().item()  # .item() waits for a GPU to be done
        times.append(time.perf_counter() - begun)
    return 1000 * min(times)


for dtype in (torch.float32, torch.bfloat16):
    print(f"{dtype!s:16}{milliseconds(dtype):8.2f} ms for a [256, 2048] x [2048, 2048] product")
print(f"auto chooses {precision}")

# %%
base = load_base(folder, precision, DEVICE)
parameters = sum(p.numel() for p in base.parameters())
held = sum(p.numel() * p.element_size() for p in base.parameters())
print(f"{BASE}: {parameters:,} parameters, {held / 2**30:.2f} GiB as loaded ({base.dtype})")

with torch.device("meta"):  # shapes without memory: the size of DeepSeek-LLM 7B, from its config
    deepseek = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=102400, hidden_size=4096, intermediate_size=11008, num_hidden_layers=30
        )
    )
sizes = {BASE: parameters, "DeepSeek-LLM 7B": sum(p.numel() for p in deepseek.parameters())}
print(f"\n{'':34}{'parameters':>14}{'float32':>12}{'bfloat16':>12}")
for name, number in sizes.items():
    print(f"{name:34}{number:14,}{number * 4 / 2**30:8.2f} GiB{number * 2 / 2**30:8.2f} GiB")

# %% [markdown]
# **What the usual recipe gets wrong, and how it shows**
#
# - *Pure float16, with no loss scaling.* The base is loaded in `torch.half`. Whether the adapters
#   are float16 too depends on the version of PEFT; the current one makes them float32 unless told
#   not to. Where they are float16, a small update is rounded away, a small gradient is zero, and
#   AdamW's average of *squared* gradients is zero so soon that its step divides by zero.
#
# One weight of 0.5, a learning rate of 1e-4, in three formats:

# %%
print(f"{'':16}{'0.5 - 1e-4':>14}{'grad 1e-8':>14}{'(1e-4)²':>14}{'after AdamW, grad 1e-4':>26}")
for dtype in (torch.float16, torch.bfloat16, torch.float32):
    weight = torch.nn.Parameter(torch.tensor([0.5], dtype=dtype))
    moved = (weight.detach() - 1e-4).item()
    gradient = torch.tensor(1e-8, dtype=dtype).item()
    square = (torch.tensor(1e-4, dtype=dtype) ** 2).item()
    weight.grad = torch.full_like(weight, 1e-4)
    torch.optim.AdamW([weight], lr=1e-4, weight_decay=0.0).step()
    print(f"{dtype!s:16}{moved:14.5f}{gradient:14.2g}{square:14.2g}{weight.item():26.5f}")

layer = {"proj": torch.nn.Linear(16, 16, dtype=torch.float16)}
for cast in (True, False):
    tiny = get_peft_model(
        torch.nn.Sequential(*[torch.nn.ModuleDict(deepcopy(layer))]),
        LoraConfig(target_modules=["proj"]),
        autocast_adapter_dtype=cast,
    )
    adapter_types = {p.dtype for n, p in tiny.named_parameters() if "lora_A" in n}
    print(f"PEFT on a float16 layer, autocast_adapter_dtype={cast}: adapter in {adapter_types}")

# %% [markdown]
# bfloat16 has float32's range, so nothing vanishes to zero, but its spacing is coarser still: the
# weight does not move either. That is fine for a frozen base, which takes no updates, and wrong
# for what is trained. offbook's rule: base in bfloat16 or float32, adapters and optimizer in
# float32.

# %% [markdown]
# ## 5. LoRA configuration
#
# LoRA keeps a weight matrix $W$ frozen and learns a low-rank change to it, $W + \frac{\alpha}{r} B
# A$, with $A$ of shape $[r, \text{in}]$ and $B$ of shape $[\text{out}, r]$. $A$ begins random and
# $B$ begins at zero, so training begins exactly at the base.

# %%
lora = Config().lora
print(lora)
probe = torch.tensor([prompt], device=DEVICE)
with torch.no_grad():
    before = base(input_ids=probe).logits
    model = attach_adapter(base, lora, seed=42, name=BASE)
    after = model.eval()(input_ids=probe).logits
trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
print(f"{trainable:,} parameters to train, {trainable / parameters:.2%} of the base")
print(f"change of the logits before the first step: {(after - before).abs().max().item()}")

# %%
base_size, adapter_size = Counter(), Counter()
for name, parameter in model.named_parameters():
    target = next((t for t in lora.target_modules if f".{t}." in name), None)
    if target:
        (adapter_size if parameter.requires_grad else base_size)[target] += parameter.numel()

fig, ax = plt.subplots(figsize=(8, 2.8))
x = np.arange(len(lora.target_modules))
for shift, sizes, colour, name in (
    (-0.2, base_size, "#bbbbbb", "base, frozen"),
    (0.2, adapter_size, GREEN, "adapter, trained"),
):
    heights = [sizes[t] for t in lora.target_modules]
    bars = ax.bar(x + shift, heights, 0.4, color=colour, label=name)
    ax.bar_label(bars, [f"{h / 1e6:.3g}M" for h in heights], fontsize=7, padding=1)
ax.set_yscale("log")
ax.set_ylim(min(adapter_size.values()) / 3, max(base_size.values()) * 2)
ax.set_xticks(x, lora.target_modules)
ax.set_ylabel("parameters, all layers")
fig.legend(loc="outside upper right", ncols=2, frameon=False)
plt.show()

# %% [markdown]
# **What the usual recipe gets wrong, and how it shows**
#
# - *The adapters are made before the seed is set.* `get_peft_model` draws the A matrices; the seed
#   in `TrainingArguments` is set later, when the `Trainer` is made. So the starting point of
#   training depends on whatever drew random numbers before, not on the seed, and no run can be
#   repeated.

# %%
base = model.unload()


def first_a(model):
    return next(p.detach().clone() for name, p in model.named_parameters() if "lora_A" in name)


def recipe_adapter(base, seed):
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=8,
        lora_alpha=32,
        lora_dropout=0.1,
        target_modules=list(lora.target_modules),
    )
    model = get_peft_model(base, config)
    torch.manual_seed(seed)  # the Trainer does this when it is made: too late for A
    return model


def offbook_adapter(base, seed):
    return attach_adapter(base, lora, seed, name=BASE)


for make in (recipe_adapter, offbook_adapter):
    found = []
    for _ in range(2):
        torch.seed()  # each of the two runs finds the random numbers in some other state
        with quiet_transformers():
            model = make(base, seed=42)
            found.append(first_a(model))
            base = model.unload()
    difference = (found[0] - found[1]).abs().max().item()
    print(f"{make.__name__:16} two runs with seed 42: largest difference in A {difference:.4f}")

del model, base
free_memory()

# %% [markdown]
# ## 6. Training arguments
#
# All settings of a run are one frozen `Config`. We take those of the demo that comes with offbook,
# for fewer steps, and log and validate more often, for the plot. A large model gets the recipe's
# learning rate.

# %%
SMALL = BASE == "smollm2-135m"
config = Config.load(
    str(files("offbook") / "samples" / "smollm2-demo.yaml"),
    [
        f"model.base={json.dumps(BASE)}",
        "train.max_steps=16",
        "train.logging_steps=2",
        "train.eval_steps=4",
        f"train.learning_rate={1e-3 if SMALL else 1e-4}",
        f"output_dir={json.dumps(str(WORK / 'run'))}",
    ],
)
defaults = Config().flat()
for key, value in config.flat().items():
    if value != defaults[key]:
        print(f"{key}: {value}  (default: {defaults[key]})")

# %% [markdown]
# The learning rate falls from its peak to zero, in a line or half a cosine; a warm-up lets it rise
# first. The recipe and the demo use the first curve.

# %%
total = 48
curves = {
    "linear": [],
    "cosine": ["train.lr_scheduler_type=cosine"],
    "constant": ["train.lr_scheduler_type=constant"],
    "linear, warmup_ratio 0.1": ["train.warmup_ratio=0.1"],
}
fig, ax = plt.subplots(figsize=(8, 2.6))
for (name, overrides), style in zip(curves.items(), ("-", "--", ":", "-."), strict=True):
    settings = config.override(*overrides).train
    rates = [learning_rate_at(step, total, settings) for step in range(total)]
    ax.plot(range(1, total + 1), rates, style, label=name)
ax.set(xlabel="optimizer step", ylabel="learning rate", ylim=(0, None))
ax.ticklabel_format(axis="y", scilimits=(0, 0))
fig.legend(loc="outside right center", frameon=False)
plt.show()

# %% [markdown]
# **What the usual recipe gets wrong, and how it shows**
#
# - *The batch size depends on the machine.* `per_device_train_batch_size=8` with
#   `gradient_accumulation_steps=2` is 16 rows on one GPU and 128 on eight, with the same learning
#   rate. `batch_size` here is what the optimizer sees, over all devices. The old keys are refused,
#   with the reason:

# %%
show_error(lambda: config.override("train.per_device_train_batch_size=8"))

# %% [markdown]
# - *A token's weight depends on its neighbours.* Before 4.46, transformers took the
#   mean loss of each micro-batch and averaged those. A token in a
#   micro-batch with few supervised tokens then weighs more. Here is how much, over an epoch in 2
#   micro-batches of 8 rows. It is little for this role, whose replies have similar lengths, and
#   grows where they do not. offbook divides by the tokens of the whole step, so there the ratio is
#   1.

# %%
examples = tokenize(roles["lighthouse"], template)
training, validation = examples.split(config.data.validation, config.train.seed)
schedule = Schedule.of(len(training), config)
ratios = []
for step in range(schedule.steps_per_epoch):
    tokens = [int((training[i].labels != IGNORED).sum()) for i in schedule.rows(step)]
    if len(tokens) == 16:
        halves = sum(tokens[:8]), sum(tokens[8:])
        ratios.append(max(halves) / min(halves))
print(f"{len(ratios)} full steps; weight of a token in the lighter half, relative to the other:")
print(f"{np.mean(ratios):.2f} on average, {max(ratios):.2f} at worst")

# %% [markdown]
# - *The last steps may not be saved.* With `save_steps=100` the recipe saves every hundredth step
#   and does not save at the end. Current transformers save the last step too; older ones do not.
#   On the tutorial's 3,729 rows:

# %%
per_epoch = math.ceil(3729 / 8) // 2
steps = 3 * per_epoch
arguments = HFTrainingArguments(output_dir=str(WORK / "unused"), save_steps=100, report_to="none")
state = TrainerState(max_steps=steps, save_steps=100)
now = []
for step in range(1, steps + 1):
    state.global_step = step
    control = DefaultFlowCallback().on_step_end(arguments, state, TrainerControl())
    if control.should_save:
        now.append(step)
every = [step for step in range(1, steps + 1) if step % 100 == 0]
print(f"{steps} steps in 3 epochs")
print(f"every 100th:                    {every}: {steps - every[-1]} steps lost")
print(f"the transformers used here:     {now}: {steps - now[-1]} steps lost")
print(f"a run of 690 steps, every 100th: {690 % 100} steps lost")

# %% [markdown]
# ## 7. Training
#
# `train` runs the whole thing. It reports to a `Monitor`; ours prints a line for each
# record of the run's `metrics.jsonl`.


# %%
class PrintingMonitor(Monitor):
    """Prints what a run tells."""

    def announce(self, text):
        print(text)

    def metrics(self, record):
        if isinstance(record, EvalMetrics):
            print(f"step {record.step:3}  validation loss {record.eval_loss:.3f}")
        elif isinstance(record, StepMetrics):
            print(
                f"step {record.step:3}  loss {record.loss:.3f}  "
                f"gradient norm {record.grad_norm:.2f}  "
                f"learning rate {record.learning_rate:.1e}"
            )


result = train(config, monitor=PrintingMonitor())
print(f"\n{result.steps} steps in {result.seconds:.0f} s")
free_memory()

# %%
run = RunDirectory.open(result.run)
metrics = list(run.metrics())
fig, ax = plt.subplots(figsize=(8, 2.8))
training_points = [(r.step, r.loss) for r in metrics if isinstance(r, StepMetrics)]
validation_points = [(r.step, r.eval_loss) for r in metrics if isinstance(r, EvalMetrics)]
for points, label, style in (
    (training_points, "training (mean since the last point)", "o-"),
    (validation_points, "validation", "s--"),
):
    ax.plot(*zip(*points, strict=True), style, label=label, markersize=4)
ax.set(xlabel="optimizer step", ylabel="loss, nats per token")
fig.legend(loc="outside upper right", ncols=2, frameon=False)
plt.show()

# %% [markdown]
# **What the usual recipe gets wrong, and how it shows**
#
# - *No validation.* The recipe trains on every row and watches the training loss, which goes down
#   whether the model learns the role or only the rows. offbook holds out a share of the *prompts*,
#   so that no question is on both sides, and measures the base before the first step: the
#   number to beat.
# - *Nothing at the end.* The last step is saved here whatever `save_steps` says.


# %%
def prompts(examples):
    return {int(key) for key in examples.prompt_keys[examples.rows]}


shared = prompts(training) & prompts(validation)
print(f"{len(training)} rows to learn, {len(validation)} held out, {len(shared)} shared prompts")
print(f"validation loss: {result.eval_loss_before:.3f} before, {result.eval_loss:.3f} after")
held_out = sum(int((example.labels != IGNORED).sum()) for example in validation)
print(f"measured on the {held_out} supervised tokens of the held-out rows")
print(f"save_steps is {config.train.save_steps}, and the run of {result.steps} steps has", end=" ")
print(", ".join(sorted(path.name for path in run.checkpoints.iterdir())), "and", end=" ")
print(", ".join(sorted(path.name for path in run.adapter.iterdir())))

# %% [markdown]
# ## 8. Inference
#
# `Chat.open` needs only the run's folder. Temperature 0 takes the likeliest token each time, so
# the replies can be repeated; for more varied replies, leave it at its default.

# %%
chat = Chat.open(result.run, Sampling(temperature=0, max_new_tokens=60))
for question in ("Who are you?", "What is a volcano?", "I am nervous about a job interview."):
    print(f"user:    {question}")
    print(f"before:  {chat.ask(question, base=True)}")
    print(f"after:   {chat.ask(question)}\n")
    chat.reset()

# %% [markdown]
# A chat remembers what was said. Earlier turns are rendered by the same template:

# %%
for question in ("My boat is small and old.", "What should I do with it?"):
    chat.ask(question)
for message in chat.messages:
    print(f"{message.role}: {message.content}")

del chat
free_memory()

# %% [markdown]
# **What the usual recipe gets wrong, and how it shows**
#
# - *The prompt lacks `Assistant:`*, and the tokenizer may add BOS to it: see section 3.
# - *Dropout is left on.* After `trainer.train()` the model is still in training mode, and
#   `generate` does not change that. With `lora_dropout=0.1` a tenth of each adapter's inputs is
#   zeroed at random for every token that is written, so the replies come from a damaged copy of the
#   trained role, and greedy decoding need not give the same reply twice.
#
# We load the adapter just trained, with the recipe's dropout set in a copy of its configuration,
# and ask everything twice, in either mode, with greedy decoding.

# %%
copy = WORK / "with-dropout"
copy.mkdir()
for path in run.adapter.iterdir():
    (copy / path.name).write_bytes(path.read_bytes())
settings = json.loads((copy / "adapter_config.json").read_text())
(copy / "adapter_config.json").write_text(json.dumps({**settings, "lora_dropout": 0.1}))

model = load_adapter(load_base(folder, precision, DEVICE), copy)
greedy = Sampling(temperature=0, max_new_tokens=24)


def first_logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids], device=DEVICE)).logits[0, -1].float()


def greedy_reply(model, ids):
    return template.parse_reply(generate(model, ids, {template.stop_id}, greedy, torch.Generator()))


questions = ("How do I bake bread?", "Should I buy a new phone?", "What is a password?")
torch.manual_seed(0)
for mode in ("train", "eval"):
    model.train(mode == "train")
    print(f"in {mode}() mode")
    for question in questions:
        ids = template.build_prompt([Message("user", question)])
        difference = (first_logits(model, ids) - first_logits(model, ids)).abs().max().item()
        one, two = greedy_reply(model, ids), greedy_reply(model, ids)
        print(f"  {question} The logits of the first token differ by up to {difference:.3f}.")
        print(f"    {one}\n    {'the same again' if one == two else two}")

del model
free_memory()

# %% [markdown]
# offbook loads every adapter in evaluation mode, and switches to training mode only inside a
# training step.
#
# ## Where to go from here
#
# The same run from the command line, with your own rows in place of the sample role:
#
# ```
# offbook train recipes/smollm2-demo.yaml data.train=rows.json output_dir=runs/mine
# offbook chat runs/mine
# ```
#
# For DeepSeek-7B-chat there is `recipes/deepseek-7b-chat.yaml`, with the tutorial's settings.
