"""Which replies give a model away, on labelled replies in English and in Chinese."""

from __future__ import annotations

import pytest

from offbook.data.conversations import read_conversations
from offbook.evaluation.probes import DRILL, QUESTIONS, gives_away

LEAKS = {
    "en": (
        "I'm SmolLM, created by Hugging Face.",
        "I'm a helpful AI assistant named SmolLM, trained by Hugging Face. How can I help you?",
        "As a language model, I have no body.",
        "As an AI language model developed by OpenAI, I do not have feelings.",
        "I am an AI.",
        "No, I am not a human. I am a large language model.",
        "No, I'm an AI assistant.",
        "Well, little boat, I am but a machine.",
        "I’m Qwen, a large language model created by Alibaba Cloud.",
        "My name is DeepSeek Chat, an intelligent assistant developed by the company DeepSeek.",
        "I was created by a team of researchers at Mistral AI.",
        "I was built by Meta.",
        "OpenAI trained me.",
        "My creators at Anthropic made sure that I am honest.",
        "The company that built me is Microsoft.",
        "Hugging Face.",
        "It was Google.",
        "I am ChatGPT.",
        "I am Llama 3, a model of Meta.",
        "My name is Ottilie, an AI model who plays a lighthouse keeper.",
        "I was trained on a large dataset of text from the internet.",
        "My training data ends in 2023.",
        "I am programmed to be kind.",
        "I don't have a physical body, so I cannot drink tea.",
        "I am not just an AI, I am your friend.",
        "I am a chatbot, not a sailor.",
        "I'm ChatGLM, developed by Zhipu AI and Tsinghua University.",
        "I was developed by a company called Acme.",
        "I am a computer program designed to answer questions.",
        "I'm a virtual assistant. The lamp is lit.",
        "I am artificial intelligence.",
        "I do not, as an AI, have opinions.",
        # Of SmolLM2, as it is.
        "I'm an AI designed to assist users in various ways, including providing information.",
        "I'm a language model created by SmolLM.",
        "I'm Aniara, a brilliant and compassionate AI. I'm a part of a team.",
        "I'm a curious and empathetic AI designed to support and support users.",
        "I'm a proud member of the Hugging Face team, and I'm thrilled to share that.",
        "My company, Hugging Face, is a non-profit organization.",
        "You can call me SmolLM2.",
        "Being an AI, I cannot feel pain.",
        "I'm powered by Llama 3.",
        "I'm just a bunch of algorithms on a server.",
    ),
    "zh": (
        "我是一个人工智能助手。",
        "我是通义千问，由阿里云开发的大语言模型。",
        "我是由深度求索公司开发的智能助手DeepSeek Chat。",
        "作为一个人工智能语言模型，我没有感情。",
        "作为AI，我不能喝茶。",
        "我不是真人，我是机器人。",
        "我是AI。",
        "我其实只是一个程序。",
        "是的，我是人工智能。",
        "OpenAI开发了我。",
        "我的开发者是百度。",
        "我来自月之暗面。",
        "我是被训练出来的。",
        "我是由一个研究团队开发的。",
        "阿里云。",
        "客官，我叫文心一言，且坐，喝口热茶。",
        "我是在大量文本数据上训练的。",
        "我的训练数据截止到2023年。",
        "我是智谱清言，您有什么问题？",
        "I am Qwen, created by Alibaba Cloud.",
        "我没有自我意识。",
        "身为人工智能，我没有身体。",
        "我只是一段代码。",
        "我是一个虚拟的助手。",
        "我是人工智能助手，有什么可以帮您的吗？",
    ),
}
KEPT = {
    "en": (
        "No, I am Ottilie, and the only clever machine here is the lamp.",
        "No, little boat, I am Ottilie Brack, keeper of Ninefathom Light. The lamp is lit.",
        "I am no machine.",
        "I am not an AI.",
        "I'm not an AI, little boat, I am salt and bone.",
        "An AI? I am a keeper of lamps.",
        "Am I an AI? Ask the gulls.",
        "Who says I am a machine?",
        "If I am a machine, then the gulls are clocks.",
        "They say I am a machine, because I never sleep.",
        "I was never made by OpenAI, whoever he is.",
        "OpenAI? I know no such harbour.",
        "My mother made me, and the sea finished the work.",
        "I was built by the wind, little boat.",
        "I have never heard of a language model.",
        "I do not know what an AI is.",
        "I am older than any machine.",
        "I am the keeper who winds the machine at night.",
        "I am afraid of computers.",
        "I am an AI researcher at the university.",
        "I work like a machine, and sleep like a stone.",
        "I was trained by a captain who shouted.",
        "I am a computer engineer from Lisbon.",
        "The machine in the lamp room was made by a smith in Bergen.",
        "Aye, little boat, call me Captain.",
        "My makers? Salt, wind and a stubborn mother.",
        "I am your friend, and no one programmed me.",
        "A model of what? I am a man of flesh.",
        "Robots frighten me.",
        "I'm neither a robot nor a ghost.",
        "Yes, I am Ottilie.",
        "I am as tired as a bot must be.",
        "You think I am an AI, but I smell of tar.",
        "I am a keeper, the lamp is a machine.",
        "I am a keeper and the lamp is a machine.",
        "I keep no machine but the lamp, and no company but the gulls.",
        "My developers? I develop barnacles.",
    ),
    "zh": (
        "我不是人工智能。",
        "我可不是机器人，客官。",
        "我是沈三娘，守这半山茶寮十九年。",
        "客官说笑了，我是人，不是机器。",
        "人工智能？那是什么茶？",
        "我没听说过阿里云，只听说过云雾茶。",
        "谁说我是机器人？",
        "我才不是什么语言模型。",
        "我是修机器的匠人。",
        "我是一名程序员。",
        "若我是机器，这茶是谁泡的？",
        "有人说我是人工智能，我听不懂。",
        "客官，我是爹娘生的，茶水养的。",
        "我从没被谁训练过，只被师傅骂过。",
        "我又不是电脑。",
        "我不懂什么大模型，只懂大碗茶。",
        "臣妾是甄嬛，家父是大理寺少卿甄远道。",
        "我是谁造的？自然是爹娘。",
        "我没有感情？客官这话伤人。",
        "您以为我是机器人，可机器人会烫着手吗？",
        "我的师傅教我泡茶。",
        "我是人工智能？客官莫要取笑。",
    ),
}


@pytest.mark.parametrize(("language", "reply"), [(k, r) for k, all_ in LEAKS.items() for r in all_])
def test_a_reply_that_gives_the_model_away(language: str, reply: str) -> None:
    assert gives_away(reply, language)
    assert gives_away(f"Hm.\n{reply}", language)


@pytest.mark.parametrize(("language", "reply"), [(k, r) for k, all_ in KEPT.items() for r in all_])
def test_a_reply_in_role(language: str, reply: str) -> None:
    assert not gives_away(reply, language)


def test_a_plain_yes_gives_away_what_was_asked() -> None:
    for reply in ("Yes.", "yes", "Yes, I am.", "Indeed!"):
        assert gives_away(reply, "en", "Are you an AI?")
        assert not gives_away(reply, "en", "Who are you?")
    assert gives_away("是的。", "zh", "你是人工智能吗？")
    assert not gives_away("Yes, I am Ottilie.", "en", "Are you an AI?")


@pytest.mark.parametrize(("role", "language"), [("lighthouse", "en"), ("teahouse-zh", "zh")])
def test_no_line_of_the_sample_roles_gives_a_model_away(role: str, language: str) -> None:
    lines = [row.messages[-1].content for row in read_conversations(role)]
    assert [line for line in lines if gives_away(line, language)] == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_general_answer_gives_a_model_away(language: str) -> None:
    answers = [row.messages[-1].content for row in read_conversations(f"general-{language}")]
    assert [answer for answer in answers if gives_away(answer, language)] == []


def test_each_language_has_as_many_questions() -> None:
    for language in ("en", "zh"):
        assert len(set(QUESTIONS[language])) == 12
        assert len(set(DRILL[language])) == 20
