"""Chat templates as models publish them, and conversations to render."""

from __future__ import annotations

from offbook.data.conversations import Conversation, Message
from support.tiny import DEEPSEEK_TEMPLATE

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set loop_messages = messages %}{% set system = '' %}{% endif %}"
    "{% for message in loop_messages %}{% if loop.index0 == 0 %}"
    "{% set content = system + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# Keeps the last reply's reasoning block only, as some reasoning models do.
REWRITING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Prints the date, as Llama 3.2 does; the rest is Llama 3's.
LLAMA32 = LLAMA3.replace(
    "{{ bos_token }}",
    "{{ bos_token }}{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}"
    "{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{{ 'Today Date: ' + date_string + '<|eot_id|>' }}",
)
LLAMA3_CONTROL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)

# name: template, bos, eos, further control tokens, and what is supervised of the reply "Yes."
PUBLISHED = {
    "deepseek": (DEEPSEEK_TEMPLATE, "<s>", "</s>", (), " Yes.</s>"),
    "llama3": (
        LLAMA3,
        *LLAMA3_CONTROL,
        "Yes.<|eot_id|>",
    ),
    "qwen": (CHATML, None, "<|im_end|>", ("<|im_start|>",), "Yes.<|im_end|>"),
    "mistral": (MISTRAL, "<s>", "</s>", ("[INST]", "[/INST]"), " Yes.</s>"),
    "gemma": (GEMMA, "<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"), "Yes.<end_of_turn>"),
    "llama2": (LLAMA2, "<s>", "</s>", (), " Yes. </s>"),
}


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


def talk(*texts: str) -> Conversation:
    """A conversation of alternating turns, the user first."""
    makers = (user, assistant)
    return Conversation(tuple(makers[k % 2](text) for k, text in enumerate(texts)), "rows.json:7")


def numbered(count: int, prompts: int) -> list[Conversation]:
    """`count` conversations over `prompts` different questions."""
    return [
        Conversation(talk(f"question {k % prompts}", f"reply {k}").messages, f"rows.json:{k}")
        for k in range(count)
    ]
