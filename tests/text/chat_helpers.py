"""Chat templates of several shapes, and conversations packed with them."""

import numpy as np

from saelab.text.chat import ROLES, SPECIAL
from saelab.text.documents import Document
from saelab.text.packing import pack

START, END, BOS = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TEMPLATES = {
    "chatml": CHATML,
    "with-bos": "{{ bos_token }}" + CHATML,
    "bos-twice": "{{ bos_token }}{{ bos_token }}" + CHATML,
    "default-system": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}" + CHATML
    ),
    "stripping": CHATML.replace("{{ m.content }}", "{{ m.content | trim }}"),
    "system-inside-user": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = '<<' + messages[0].content + '>>' %}"
        "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
        "{% for m in turns %}{% if m.role == 'user' %}[I]{{ system if loop.first }}{{ m.content | trim }}[/I]"
        "{% else %} {{ m.content | trim }} <|im_end|>{% endif %}{% endfor %}"
    ),
    "bare": "{% for m in messages %}{{ m.content }}{% endfor %}",
}
STRIPS = {"stripping", "system-inside-user"}


def with_marks(tokenizer, template=None):
    tokenizer.add_special_tokens({"additional_special_tokens": [START, END]})
    tokenizer.chat_template = template
    return tokenizer


def chat(*contents, roles=("user", "assistant"), first=0):
    turns = [{"role": roles[(first + i) % len(roles)], "content": c} for i, c in enumerate(contents)]
    return Document(id=f"chat {contents}", text="", source="test", messages=tuple(turns))


def pack_chats(tokenizer, *documents, template=None, context=10_000, **options):
    return pack(
        documents, tokenizer, context=context, packing="conversation", chat_template=template, **options
    )


def turns_of(sequences, tokenizer):
    """Role and text of every stretch of tokens of one role, in order, without the template's."""
    roles = sequences.roles & ~np.uint8(SPECIAL)
    edges = np.flatnonzero(np.diff(roles)) + 1
    stretches = zip(np.split(sequences.tokens, edges), np.split(roles, edges), strict=True)
    return [(ROLES[codes[0]], tokenizer.decode(ids.tolist())) for ids, codes in stretches if codes[0]]
