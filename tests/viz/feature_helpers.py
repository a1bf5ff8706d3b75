"""A feature made up by hand, with text that would do harm if it became markup."""

from saelab.features.records import (
    Companion,
    Example,
    FeatureDetail,
    FeatureRow,
    FeatureView,
    Histogram,
    Neighbor,
    TokenEffect,
    TokenShare,
)
from saelab.text.vocabulary import Vocabulary

EVIL = '<b onclick="x">&amp;</b><script>alert(1)</script>'
WORDS = (
    " the", EVIL, "\n    ", "\u202egnp.exe", "مرحبا", " \N{GRINNING FACE}", b"\xf0\x9f", b"\x98\x80", "\t", "<|end|>"
)  # fmt: skip


def made_vocabulary():
    raw = [word if isinstance(word, bytes) else word.encode() for word in WORDS]
    texts = [one.decode(errors="replace") for one in raw]
    return Vocabulary(raw, texts, [word == "<|end|>" for word in WORDS])


def made_row(feature=7, n_fires=6, **changes):
    plain = dict.fromkeys(FeatureRow.__dataclass_fields__)
    dead = n_fires == 0
    plain |= {
        "feature": feature,
        "n_fires": n_fires,
        "density": n_fires / 1000,
        "n_documents": min(n_fires, 2),
    }
    plain |= {"decoder_norm": 1.25, "encoder_bias": -0.5, "flags": int(dead), "name": "never active"}
    if not dead:
        plain |= {"max_act": 4.0, "mean_active": 2.0, "p50": 1.5, "p90": 3.5, "p99": 3.9, "skew": -0.25}
        plain |= {"top_token": 1, "top_token_share": 0.5, "name": f'on "{EVIL}"'}
        plain |= {"first_position_share": 0.125}
    return FeatureRow(**plain | changes)


def made_example(kind="top", rank=0, activation=4.0, number=0, window_hash=None):
    return Example(
        feature=7, kind=kind, bin=number, rank=rank, activation=activation, token_index=101, document=1, first=100,
        tokens=tuple(range(len(WORDS))), activations=(0.0, activation, 0.5, *([0.0] * (len(WORDS) - 3))),
        window_hash=rank if window_hash is None else window_hash,
    )  # fmt: skip


def made_view(n_fires=6, **changes):
    dead = n_fires == 0
    none = Histogram(edges=(), counts=())
    detail = FeatureDetail(
        feature=7,
        activations=none if dead else Histogram(edges=(0.0, 2.0, 4.0), counts=(n_fires - 1, 1)),
        log_activations=(),
        intervals=none if dead else Histogram(edges=(0.0, 2.0, 4.0), counts=(n_fires - 1, 1)),
        promoted=(TokenEffect(token=1, logit=0.75), TokenEffect(token=6, logit=0.5)),
        suppressed=(TokenEffect(token=2, logit=-0.5),),
        logits=Histogram(edges=(-1.0, 0.0, 1.0), counts=(4, 6)),
        tokens=() if dead else (TokenShare(token=1, share=0.5, n_fires=3),),
        positions=() if dead else (0.5, 0.5),
    )
    examples = {
        "top": tuple(made_example(rank=rank) for rank in range(10)),
        "interval": (made_example("interval", 0, 1.0), made_example("interval", 0, 3.0, 1)),
        "random": (made_example("random", 0, 1.5), made_example("random", 1, 1.5, window_hash=0)),
        "non-active": (made_example("non-active", 0, 0.0),),
    }
    plain = {
        "row": made_row(n_fires=n_fires),
        "detail": detail,
        "examples": {} if dead else examples,
        "neighbors": (Neighbor(other=3, cosine=0.9),),
        "companions": (Companion(other=4, n_sampled=6, n_both=3, p_other=0.5, lift=5.0, phi=0.25),),
        "names": {3: EVIL, 4: "on tabs"},
        "n_tokens": 1000,
        "source": f"run {EVIL}; 1,000 tokens of a text",
    }
    return FeatureView(**plain | changes)
