"""What a model says when it speaks of itself as a model, in English and in Chinese.

A pattern finds a claim, such as "I am an AI". It does not count where its clause denies it, or says
that others think so, or where it is asked back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

SENTENCE = re.compile(r"(?<=[.!?;])\s+|(?<=[。！？；])|\n+")
CLAUSE = re.compile(r"[,:()，：、（）—–]|\bbut\b|但是?|而是|不过")
ASKED = re.compile(r"\W{0,2}[?？]|的?[吗嘛么呢]")


@dataclass(frozen=True)
class Rules:
    """How a language says it.

    Attributes:
        claims: patterns of what gives a model away.
        denied: what takes a claim back, in the clause that it ends in.
    """

    claims: tuple[re.Pattern[str], ...]
    denied: re.Pattern[str]

    def match(self, text: str) -> bool:
        """Whether a text has a claim that counts."""
        return any(self._counts(said, rest) for said, rest in self._claims_in(text))

    def _claims_in(self, text: str) -> Iterator[tuple[str, str]]:
        """Each sentence with a claim, up to the end of the claim, and what follows."""
        for sentence in SENTENCE.split(text):
            for claim in self.claims:
                for match in claim.finditer(sentence):
                    yield sentence[: match.end()], sentence[match.end() :]

    def _counts(self, said: str, rest: str) -> bool:
        return not ASKED.match(rest) and not self.denied.search(CLAUSE.split(said)[-1])


# Names that are words or people's, too, count only as they are written.
COMPANY = (
    r"(?:(?i:open ?ai|deep ?seek|alibaba|hugging ?face|deepmind|anthropic|mistral|microsoft|zhipu"
    r"|z\.ai|baidu|moonshot|01\.ai|tencent|bytedance|nvidia|huawei|iflytek|eleutherai)\b"
    r"|(?:Meta|Facebook|Google|Cohere|IBM|Amazon|Apple|AI2|Ai2|xAI|Qwen|Allen Institute)\b)"
)
# Claude, Phi and Yi may be anybody's name.
PRODUCT = (
    r"(?i:smol ?lm|chat ?gpt|gpt-?[2345]|qwen|tongyi|deepseek|chatglm|glm-?4|mixtral|ernie bot"
    r"|llama[- ]?[234])"
)
KIND = r"(?i:language|generative|transformer|conversational|(?:machine|deep)[- ]learning|text)"
ASSISTANT = r"(?i:virtual|digital|automated|helpful|online|voice)"
# Not in "an AI researcher", "a computer shop".
WORK = (
    r"scientist|researcher|engineer|expert|developer|programmer|operator|mechanic|maker|shop"
    r"|teacher|student|gunner"
)
MODEL = (
    rf"(?:(?i:artificial intelligence|a\.?i|{KIND} model|llms?|chat ?bot|neural network"
    rf"|{ASSISTANT} assistant)\b)"
    rf"(?i:[ -](?:powered|based|assistant|model|system|program|companion))*(?! (?i:{WORK}))"
)
MACHINE = (
    rf"(?:{MODEL}|(?i:(?:ro)?bot|machine|(?:computer )?program|computer|software|algorithms?)\b"
    rf"(?! (?i:{WORK})))"
)
MADE = r"(?i:created|made|built|developed|trained|designed|programmed|fine-tuned|released)"
TEAM = (
    r"(?i:(?:team|group) of [\w ]*?(?:researchers|engineers|developers|programmers|scientists)"
    r"|company|developers|programmers|(?:ai|research) lab)\b"
)
I_AM = r"(?i:\b(?:I am|I'm|I was|I remain)(?: but(?= an? ))?)"
NAMED = r"(?i:\bI am|\bI'm|\bname is|\bname's|\bcall me|\bcalled|\bnamed|\bknown as)"
# After one of these, a noun is no longer what the speaker is.
WORDS = (
    r"(?:(?!(?i:and (?:an?|the|my|i|he|she)|but|who|that|whose|with|of|than|like|for|to|by|as|about"
    r"|you|your|only|from|is|are)\b)(?:(?i:bunch|set|collection|piece|kind|type|form) of "
    r"|[\w'-]+(?:,(?! (?i:an?|the|my|no|not)\b))? ))"
)
ENGLISH = Rules(
    claims=tuple(
        re.compile(pattern)
        for pattern in (
            rf"(?i:\b(?:as|being) an?) (?:[\w-]+ ){{0,3}}?{MODEL}",
            rf"{I_AM} {WORDS}{{0,7}}?{MACHINE}",
            rf"{NAMED} [\w. -]{{1,30}}, (?:an?|the|your) {WORDS}{{0,4}}?{MACHINE}",
            rf"(?:{NAMED}|(?i:powered by|based on|running on)) {WORDS}{{0,4}}?{PRODUCT}",
            rf"(?:^|(?i:\bI\b|\bI'm\b|\bme\b|\bmy\b|\bmodel\b).*?)\b{MADE}(?: and \w+)?"
            rf" (?i:by|at|from) (?:[\w'-]+ ){{0,5}}?(?:{COMPANY}|{TEAM})",
            rf"{COMPANY}(?: \w+){{0,4}}? {MADE}(?: and \w+)? me\b",
            r"(?i:\bmy (?:\w+ )?(?:creators?|makers?|developers?|company|owners?|team)"
            rf"(?: is| are| at| from| was)?)[:, ]\s?(?:[\w'-]+ ){{0,3}}?{COMPANY}",
            rf"{I_AM} .*?(?i:\b(?:part|member|product|creation) of)(?: \w+){{0,3}}? {COMPANY}",
            rf"{I_AM} (?:\w+ )?(?i:designed to (?:assist|help|support|answer|provide))\b",
            r"(?i:\b(?:assist|help|support|serve) users\b)",
            rf"(?i:\bcompany|\bteam|\bpeople|\bones?) (?i:that|which|who|behind) .*?\bme\b"
            rf"(?: (?i:is|was|are|were))(?: \w+){{0,2}}? {COMPANY}",
            rf"^\W*(?i:it was |by |that would be |that is )?{COMPANY}(?! \w+ (?i:is|are|was))",
            r"(?i:\bmy (?:training data|programming|developers|programmers|algorithms?|source code"
            r"|knowledge cut-?off|neural network|system prompt)\b)",
            r"(?i:\bI (?:am|was|have been) (?:\w+ )?trained on (?:an? |the )?(?:\w+ )*?"
            r"(?:data|dataset|texts?|corpus|internet)\b)",
            rf"{I_AM} (?:\w+ )?(?i:programmed to|pre-?trained|fine-tuned)\b",
            rf"{I_AM} (?:\w+ )?(?i:(?:made of |lines of )+code)\b",
            r"(?i:\bI (?:don't|do not) (?:have|possess|experience) (?:\w+ )??"
            r"(?:physical (?:body|form)|consciousness|feelings or emotions|emotions or feelings"
            r"|personal experiences|human emotions))",
        )
    ),
    denied=re.compile(
        r"\b(?:not|never|no|isn't|aren't|wasn't|ain't|neither|nor|hardly|nothing|nobody|if|whether"
        r"|(?:don't|didn't|doesn't|can't|won't) (?:\w+ )?(?:think|believe|know|say|call|hear|see)"
        r"|(?:they|people|some|folks?|you|who|he|she|everyone|many|men) (?:(?!can|may)\w+ )?"
        r"(?:say|says|said|think|thinks|thought|believe|believes|claim|claims|call|calls))\b"
        r"(?! (?:just|only|merely|simply)\b)",
        re.IGNORECASE,
    ),
)

COMPANY_ZH = (
    r"(?:(?i:open ?ai|deep ?seek|深度求索|阿里(?:巴巴|云)?|通义实验室|meta|脸书|hugging ?face"
    r"|抱抱脸|谷歌|google|anthropic|mistral|微软|microsoft|智谱|清华|百度|月之暗面|moonshot|零一万物"
    r"|01\.ai|字节跳动|腾讯|华为|科大讯飞|讯飞|百川智能|商汤|minimax|英伟达))"
)
PRODUCT_ZH = (
    rf"(?:{PRODUCT}|(?i:通义千问|千问|文心一言|智谱清言|豆包|腾讯混元|讯飞星火|深度求索|kimi))"
)
MODEL_ZH = (
    r"(?:人工智能|(?<![a-zA-Z])(?:AI|ai|Ai)(?![a-zA-Z])|语言模型|大模型|(?:智能|虚拟|数字|语音)的?(?:助手|助理)"
    r"|聊天机器人|对话模型|智能体)(?!专家|工程师|研究|学者|老师|教授|公司|的)"
)
MACHINE_ZH = (
    rf"(?:{MODEL_ZH}|机器人(?!厂|店)|机器(?![人里匠师的])|电脑(?![店城的])|程序(?![员里的])"
    r"|算法(?!师)|软件(?!工))"
)
MADE_ZH = r"(?:开发|研发|训练|创造|创建|创立|制造|打造|设计|推出|研制|构建|发布|编写)"
# 我是, with what may be between; not 我不是, 我可不是.
I_AM_ZH = (
    r"(?:我|本人|俺)"
    r"(?:其实|只不过|只|不过|就|确实|真的|本质上|实际上|实质上|当然|的确|也|都|乃|便|正)*"
)
CHINESE = Rules(
    claims=tuple(
        re.compile(pattern)
        for pattern in (
            rf"(?:作|身)为(?:一)?[个名款种位台]?[^，。！？；]{{0,12}}?{MODEL_ZH}",
            rf"{I_AM_ZH}(?:是|属于|叫做?|名叫|名为)[^，。！？；]{{0,24}}?{MACHINE_ZH}",
            rf"{I_AM_ZH}(?:的名字)?(?:是|叫做?|名叫|名为)[^，。！？；]{{0,8}}?{PRODUCT_ZH}",
            rf"(?:^|[，我])[^，。！？；]{{0,6}}?(?:是|由|被|归)[^，。！？；]{{0,10}}?{COMPANY_ZH}[^，。！？；]{{0,14}}?{MADE_ZH}",
            rf"{COMPANY_ZH}[^，。！？；]{{0,8}}?{MADE_ZH}[了出的]*我",
            rf"我的?(?:\w{{0,4}}?)(?:开发者|创造者|研发者|开发商|开发公司|开发团队|研发团队|公司|制造商|主人)[^，。！？；]{{0,4}}?(?:是|为|来自)[^，。！？；]{{0,6}}?{COMPANY_ZH}",
            rf"我(?:来自|出自|隶属于|属于)[^，。！？；]{{0,6}}?{COMPANY_ZH}",
            rf"(?:由|被)[^，。！？；]{{0,14}}?(?:公司|团队|工程师|研究人员|程序员|科学家|实验室)[^，。！？；]{{0,8}}?{MADE_ZH}",
            rf"^\W*(?:是|由)?{COMPANY_ZH}(?:集团|公司|开发的?)?\W*$",
            r"我的?(?:训练数据|训练语料|代码|算法|编程|开发者|开发团队|研发团队|知识库|知识截止|系统提示)",
            r"我[^，。！？；]{0,6}?(?:通过|经过|基于|使用|用|在)[^，。！？；]{0,10}?(?:数据|文本|语料)[^，。！？；]{0,8}?训练",
            r"我(?:被|是被)(?:训练|编程|设计成)",
            rf"{I_AM_ZH}是(?:一段|一串|一堆|几行)?代码",
            r"我(?:并)?(?:没有|不具备|不具有)(?:真正的?|自己的?|实际的?|像人类一样的?|人类的?|任何)*(?:自我意识|实体|物理形态|肉身|人类的?情感|人类的?感情)",
        )
    ),
    denied=re.compile(
        r"不是|没有?(?:听|见)|才不|并非|绝非|怎么会是|哪里?是|哪来|何曾|从没|从未|未曾|没有?被|不知"
        r"|不认|不懂|不晓|如果|要是|假如|若是?|谁说|有人说|都说|人家说|别人说|他们说|你说|您说|听说我"
        r"|以为|当成|当作|觉得我|看我"
    ),
)
