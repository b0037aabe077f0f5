"""The chat template of models that have none."""

DEFAULT_TEMPLATE = """\
{%- if bos_token %}{{ bos_token }}{% endif -%}
{%- for message in messages -%}
{{ '<|' + message['role'] + '|>\\n' }}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\\n' }}
{%- else -%}
{{ message['content'] + '\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}
"""
"""For a model that has no template: a line that names the role, the content, and after an answer the end-of-sequence
token. It needs no token that the model does not have, and it is saved with the tokenizer."""
