"""Keys of a model's configuration that do not change what its decoder computes."""

from collections.abc import Mapping
from typing import Any

_KEYS = """
    architectures auto_map dtype id2label label2id model_type num_labels name_or_path problem_type torch_dtype
    transformers_version transformers_weights transformers.js_config use_cache use_return_dict tokenizer_class
    task_specific_params custom_pipelines finetuning_task prefix license

    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id unk_token_id

    attention_dropout attn_pdrop embd_pdrop resid_pdrop hidden_dropout classifier_dropout classifier_dropout_prob
    gradient_checkpointing router_aux_loss_coef chunk_size_feed_forward pretraining_tp reorder_and_upcast_attn
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    summary_last_dropout n_ctx max_window_layers max_sequence_length model_max_length
    attn_implementation use_flash_attention use_flash_attention_2 flash_attention use_flash_attn torchscript
    output_attentions output_hidden_states return_dict

    max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores return_dict_in_generate
    forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens
"""
IDLE = frozenset(_KEYS.split())
"""Names and classes, tokens, what is dropped in somebody else's training, how others compute, how they generate."""

_IDLE_BEGINNINGS = ("_", "unsloth_")
"""Notes that tools make for themselves."""

_RESCALING = ("rope_theta", "rope_type", "type", "original_max_position_embeddings")


def unknown_key(raw: Mapping[str, Any], known: frozenset[str]) -> str | None:
    """The first key of a `config.json` that says something and is neither known nor idle.

    What is null, false, zero or empty says nothing: transformers' own decoders ask for no key that is not theirs.

    Args:
        raw: the configuration.
        known: keys that are read.
    """
    for key, value in raw.items():
        if value and key not in known and key not in IDLE and not key.startswith(_IDLE_BEGINNINGS):
            return key
    return None


def unknown_rope_key(parameters: Mapping[str, Any], known: frozenset[str]) -> str | None:
    """The same of the rotary settings; a partial factor of one is the whole."""
    for key, value in parameters.items():
        if (
            value
            and key not in known
            and key not in _RESCALING
            and (key, value) != ("partial_rotary_factor", 1)
        ):
            return key
    return None
