"""Tiny configs of further encoders, for ``test_encoders.py``: two or three a family, by what is its own."""

from typing import Any

from tests.parity.words import VOCAB

BERT: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 40}
BERT |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 1}
NARROW = BERT | {"embedding_size": 20}
PLAIN = {"eos_token_id": None, "bos_token_id": None}
EURO = {"bos_token_id": 0, "eos_token_id": 2, "mask_token_id": 3}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "electra-1": ("ElectraConfig", NARROW),
    "electra-2": (
        "ElectraConfig",
        BERT | {"embedding_size": 48, "hidden_act": "relu", "layer_norm_eps": 1e-3},
    ),
    "albert-1": ("AlbertConfig", NARROW | {"num_hidden_layers": 3, "num_hidden_groups": 1}),
    "albert-2": (
        "AlbertConfig",
        BERT
        | {"embedding_size": 48, "num_hidden_layers": 5, "num_hidden_groups": 2, "hidden_act": "gelu"}
        | {"type_vocab_size": 1},
    ),
    "mpnet-1": ("MPNetConfig", BERT),
    "mpnet-2": ("MPNetConfig", BERT | {"num_attention_heads": 3, "pad_token_id": 0, "hidden_act": "relu"}),
    "data2vec_text-1": ("Data2VecTextConfig", BERT | {"pad_token_id": 0, "type_vocab_size": 1}),
    "xlm_roberta_xl-1": ("XLMRobertaXLConfig", BERT),
    "xlm_roberta_xl-2": ("XLMRobertaXLConfig", BERT | {"layer_norm_eps": 1e-3, "hidden_act": "gelu_new"}),
    "roberta_prelayernorm-1": ("RobertaPreLayerNormConfig", BERT | {"layer_norm_eps": 1e-3}),
    "ernie-1": ("ErnieConfig", BERT),
    "ernie-2": ("ErnieConfig", BERT | {"use_task_id": True, "task_type_vocab_size": 5}),
    "megatron_bert-1": ("MegatronBertConfig", BERT | {"layer_norm_eps": 1e-3}),
    "rembert-1": ("RemBertConfig", BERT | PLAIN | {"input_embedding_size": 20, "output_embedding_size": 30}),
    "rembert-2": ("RemBertConfig", BERT | PLAIN | {"input_embedding_size": 48}),
    "roformer-1": ("RoFormerConfig", NARROW),
    "roformer-2": ("RoFormerConfig", BERT | {"embedding_size": None, "type_vocab_size": 3}),
    "bert_generation-1": ("BertGenerationConfig", BERT),
    "nomic_bert-1": ("NomicBertConfig", BERT),
    "nomic_bert-2": (
        "NomicBertConfig",
        BERT
        | {"hidden_act": "gelu", "num_attention_heads": 3, "type_vocab_size": 1}
        | {"rope_parameters": {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0}},
    ),
    "gte-1": ("GteConfig", BERT),
    "gte-2": (
        "GteConfig",
        BERT
        | {"type_vocab_size": 0, "hidden_act": "silu"}
        | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}},
    ),
    "jina_embeddings_v3-1": ("JinaEmbeddingsV3Config", BERT),
    "jina_embeddings_v3-2": ("JinaEmbeddingsV3Config", BERT | {"type_vocab_size": 2, "hidden_act": "relu"}),
    "eurobert-1": ("EuroBertConfig", BERT | EURO),
    "eurobert-2": ("EuroBertConfig", BERT | EURO | {"num_key_value_heads": 2, "head_dim": 20}),
    "eurobert-3": (
        "EuroBertConfig",
        BERT | EURO | {"attention_bias": True, "mlp_bias": True, "hidden_act": "relu", "rms_norm_eps": 1e-3},
    ),
    "esm-1": ("EsmConfig", BERT | {"pad_token_id": 0, "emb_layer_norm_before": True}),
    "esm-2": (
        "EsmConfig",
        BERT | {"position_embedding_type": "rotary", "token_dropout": True, "mask_token_id": 7},
    ),
    "squeezebert-1": ("SqueezeBertConfig", BERT | {"embedding_size": 48}),
    "deberta-1": ("DebertaConfig", BERT | RELATIVE | {"type_vocab_size": 2}),
    "deberta-2": (
        "DebertaConfig",
        BERT
        | RELATIVE
        | {"pos_att_type": "c2p", "position_biased_input": False, "max_relative_positions": 9},
    ),
    "deberta_v2-1": (
        "DebertaV2Config",
        BERT
        | RELATIVE
        | {"position_buckets": 12, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
        | {"position_biased_input": False, "pos_att_type": "p2c|c2p"},
    ),
    "deberta_v2-2": (
        "DebertaV2Config",
        BERT
        | RELATIVE
        | {"conv_kernel_size": 3, "conv_act": "gelu", "position_buckets": 8, "type_vocab_size": 2}
        | {"max_relative_positions": 30},
    ),
    "deberta_v2-3": ("DebertaV2Config", BERT | RELATIVE | {"pos_att_type": ["p2c"], "conv_kernel_size": 5}),
    "deberta_v2-4": ("DebertaV2Config", BERT | {"layer_norm_eps": 1e-3}),
    "splinter-1": ("SplinterConfig", BERT | {"question_token_id": 9, "type_vocab_size": 4}),
}
IN_GGUF = (
    "nomic_bert-1",
    "jina_embeddings_v3-1",
    "eurobert-1",
    "squeezebert-1",
    "data2vec_text-1",
    "ernie-1",
    "bert_generation-1",
    "splinter-1",
    "deberta_v2-4",
)

BART = {"vocab_size": VOCAB, "d_model": 48, "max_position_embeddings": 64, "encoder_layers": 2}
BART |= {"decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 6}
BART |= {"encoder_ffn_dim": 40, "decoder_ffn_dim": 56}
BART |= {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
T5 = {"vocab_size": VOCAB, "d_model": 48, "d_kv": 12, "d_ff": 40, "num_layers": 2, "num_heads": 3}
T5 |= {"initializer_factor": 0.2, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
GEMMA = {"vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2}
GEMMA |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "sliding_window": 6}
GEMMA |= {"query_pre_attn_scalar": 20, "max_position_embeddings": 64, "attn_logit_softcapping": 3.0}
WIDER = GEMMA | {"hidden_size": 56, "num_hidden_layers": 3, "final_logit_softcapping": 2.0}
PAIRS: dict[str, tuple[str, dict[str, Any]]] = {  # encoder-decoders
    "mt5-1": ("MT5Config", T5 | {"num_layers": 3, "num_decoder_layers": 2}),
    "mt5-2": ("MT5Config", T5 | {"feed_forward_proj": "relu", "d_kv": 20}),
    "umt5-1": ("UMT5Config", T5 | {"num_layers": 3, "num_decoder_layers": 2}),
    "umt5-2": (
        "UMT5Config",
        T5
        | {"feed_forward_proj": "gated-silu", "relative_attention_num_buckets": 12}
        | {"relative_attention_max_distance": 20, "tie_word_embeddings": False},
    ),
    "pegasus-1": ("PegasusConfig", BART | {"scale_embedding": True}),
    "pegasus-2": ("PegasusConfig", BART | {"activation_function": "relu", "tie_word_embeddings": False}),
    "mbart-1": ("MBartConfig", BART | {"scale_embedding": True}),
    "mbart-2": ("MBartConfig", BART | {"activation_function": "relu", "encoder_layers": 1}),
    "m2m_100-1": ("M2M100Config", BART),
    "m2m_100-2": ("M2M100Config", BART | {"pad_token_id": 2, "scale_embedding": False}),
    "t5gemma-1": ("T5GemmaConfig", {"encoder": GEMMA, "decoder": GEMMA, "vocab_size": VOCAB}),
    "t5gemma-2": (
        "T5GemmaConfig",
        {"encoder": GEMMA | {"attention_bias": True}, "decoder": WIDER, "vocab_size": VOCAB}
        | {"tie_word_embeddings": False},
    ),
    "plbart-1": ("PLBartConfig", BART | {"tie_word_embeddings": False}),
    "blenderbot-1": ("BlenderbotConfig", BART),
    "blenderbot-2": ("BlenderbotConfig", BART | {"scale_embedding": True, "activation_function": "relu"}),
    "blenderbot_small-1": ("BlenderbotSmallConfig", BART),
    "blenderbot_small-2": ("BlenderbotSmallConfig", BART | {"scale_embedding": True}),
}
