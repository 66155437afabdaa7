"""The Go template of a Modelfile writes what the chat template does, by Go's `text/template`."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from offbook.data.messages import Message
from offbook.errors import ModelError
from offbook.export.ollama import go_template, modelfile
from offbook.tokens.template import ChatTemplate
from support.templates import FORMATS, talk
from support.tiny import make_tokenizer

TEXTS = (
    "hello",
    'a "quoted" \\ text {{ .Content }} `back` $x \'',
    "臣妾谢皇上！🙂",
    "two\n\nlines\twith a tab",
    "a\u3000wide\u200bspace",
)
NUMBERED = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[Round ' ~ (loop.index0 // 2 + 1) ~ '] ' + message['content'] + '\n' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
PROGRAM = """
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type Message struct{ Role, Content string }
type Case struct {
	Template, System string
	Messages         []Message
}

func main() {
	var cases []Case
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	texts := []string{}
	for _, c := range cases {
		out := new(strings.Builder)
		if err := template.Must(template.New("").Parse(c.Template)).Execute(out, c); err != nil {
			panic(err)
		}
		texts = append(texts, out.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
"""


def published(name: str, folder: Path) -> ChatTemplate:
    form = FORMATS[name]
    tokenizer = make_tokenizer(folder, form.template, form.bos, form.eos, form.special, form.added)
    return ChatTemplate(tokenizer)


def conversations() -> list[tuple[Message, ...]]:
    """Of one to three turns, with and without system text, which end with a user turn."""
    texts = itertools.cycle(TEXTS)
    return [
        (*opening, *talk(*itertools.islice(texts, length)).messages)
        for opening in ((), (Message("system", next(texts)),))
        for length in (1, 3, 5)
        for _ in TEXTS
    ]


def test_a_template_that_is_no_concatenation_is_refused(tmp_path: Path) -> None:
    template = ChatTemplate(make_tokenizer(tmp_path, NUMBERED))
    with pytest.raises(ModelError, match="no template of Ollama's writes what the chat template"):
        go_template(template, [])


@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed")
def test_go_writes_the_same_text(tmp_path: Path) -> None:
    cases, expected = [], []
    for name in FORMATS:
        template = published(name, tmp_path / name)
        go = go_template(template, conversations())
        for messages in conversations():
            system = messages[0].content if messages[0].role == "system" else ""
            turns = [{"Role": m.role, "Content": m.content} for m in messages]
            cases.append({"Template": go, "System": system, "Messages": turns})
            expected.append(template.render(messages, add_generation_prompt=True))
    (tmp_path / "main.go").write_text(PROGRAM)
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin:/usr/local/go/bin"}
    done = subprocess.run(
        ["go", "run", str(tmp_path / "main.go")],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


def test_a_modelfile() -> None:
    text = modelfile("m.gguf", "{{ .Prompt }}", {"top_k": 0, "stop": ["</s>", '"']}, "Be\nbrief.")
    assert text == (
        'FROM ./m.gguf\nTEMPLATE """{{ .Prompt }}"""\nPARAMETER top_k 0\n'
        'PARAMETER stop "</s>"\nPARAMETER stop "\\""\nSYSTEM """Be\nbrief."""\n'
    )
    with pytest.raises(ModelError, match=r"data\.system: a Modelfile cannot hold"):
        modelfile("m.gguf", "", {}, 'a """ b')
