"""The frozen model: loading it, reading templates, applying prompts, scoring labels. Training and serving share it."""

from app.backbone.backbone import Backbone, BackboneConfig, load_backbone
from app.backbone.generation import Generated, generate_greedy
from app.backbone.prompt import LoadedPrompt, load_prompt
from app.backbone.rows import Bos, Row, default_bos, encode_answer, encode_row
from app.backbone.scoring import answer_logprobs, score_labels
from app.backbone.soft_prompt import SoftPrompt
from app.backbone.template import Template, parse_template
from app.backbone.tokenizer import BackboneTokenizer
from app.backbone.verbalizer import Verbalizer, compile_verbalizer, label_words
from prompt_store.models import Decoding, Golden  # what a loaded prompt carries, for those who know no store

__all__ = [
    "Backbone",
    "BackboneConfig",
    "BackboneTokenizer",
    "Bos",
    "Decoding",
    "Generated",
    "Golden",
    "LoadedPrompt",
    "Row",
    "SoftPrompt",
    "Template",
    "Verbalizer",
    "answer_logprobs",
    "compile_verbalizer",
    "default_bos",
    "encode_answer",
    "encode_row",
    "generate_greedy",
    "label_words",
    "load_backbone",
    "load_prompt",
    "parse_template",
    "score_labels",
]
