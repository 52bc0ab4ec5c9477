"""DeepSeek-V3.2 (2512.02556): DeepSeek-V3 whose queries read the keys that an indexer chooses.

The indexer rotates its heads half-split, latent attention neighbouring pairs.
"""

from cutaway.errors import UserError
from cutaway.model.config import Decoder, Encoder
from cutaway.weights import naming, rotary, rows
from cutaway.weights.families import deepseek_v3
from cutaway.weights.family import Entries, Family, Field, Row, Settings
from cutaway.weights.fields import Fields

ALIASES = ("deepseek32",)
INDEXER = f"{deepseek_v3.MLA}.indexer"


class Layers(Row):
    """Which layers are dense: those listed, or so many of the first; all are sparse in their attention."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return rows.FirstDense().read(fields, known, own)
        layers, key = known["layers"], "first_k_dense_replace"
        first = fields.integer(key, low=0) if fields.stated(key) else 3
        fields.each_layer("layer_types", layers, ("indexed_attention",))
        kinds = fields.each_layer("mlp_layer_types", layers, ("dense", "sparse"))
        dense = [n < first for n in range(layers)] if kinds is None else [kind == "dense" for kind in kinds]
        return {"dense": tuple(dense)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf:
            return rows.FirstDense().write(known, gguf)
        return {"mlp_layer_types": ["dense" if each else "sparse" for each in known["dense"]]}


class IndexSize(Field):
    """llama.cpp rotates the indexer's heads by Hadamard matrices, of which it has sizes from 64 on."""

    def write(self, known: Settings, gguf: bool) -> Entries:
        size = known["index_size"]
        if gguf and size % 64:
            raise UserError(f"an indexer with heads of {size}, no multiple of 64, is not supported in GGUF")
        return super().write(known, gguf)


class Rope(deepseek_v3.Rope):
    """llama.cpp has another architecture for these, with another formula."""

    by_all_dims = True


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    own = {name: known[name] for name in ("index_heads", "index_size")}
    return deepseek_v3.decoder(known, deepseek_v3.latent(known, "dsa", top_k=known["index_top"], **own))


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""
    of = config.blocks[0].attention
    own = {"index_heads": of.index_heads, "index_size": of.index_size, "index_top": of.top_k}
    return deepseek_v3.settings(config) | own


FAMILY = deepseek_v3.FAMILY.but(
    "deepseek_v32",
    "DeepseekV32ForCausalLM",
    hf=(
        *deepseek_v3.FAMILY.hf,
        *naming.pairs((f"{INDEXER}.k_norm", "blocks.{n}.attention.index_norm")),
        *naming.weights(
            (f"{INDEXER}.wq_b", "blocks.{n}.attention.index_query"),
            (f"{INDEXER}.wk", "blocks.{n}.attention.index_key"),
            (f"{INDEXER}.weights_proj", "blocks.{n}.attention.index_weight"),
        ),
    ),
    gguf=(
        *deepseek_v3.GGUF_MIXTURE,
        *naming.pairs(("blk.{n}.indexer.k_norm", "blocks.{n}.attention.index_norm")),
        *naming.weights(
            ("blk.{n}.indexer.attn_q_b", "blocks.{n}.attention.index_query"),
            ("blk.{n}.indexer.attn_k", "blocks.{n}.attention.index_key"),
            ("blk.{n}.indexer.proj", "blocks.{n}.attention.index_weight"),
        ),
    ),
    gguf_joined=(),
    architecture="deepseek32",
    instead=None,
    rows=(
        *(
            Layers() if isinstance(row, rows.FirstDense) else Rope() if isinstance(row, rotary.Rope) else row
            for row in deepseek_v3.FAMILY.rows
            if getattr(row, "name", "") != "interleaved"
        ),
        Field("index_heads", "index_n_heads", "attention.indexer.head_count"),
        IndexSize("index_size", "index_head_dim", "attention.indexer.key_length"),
        Field("index_top", "index_topk", "attention.indexer.top_k"),
    ),
    build=decoder,
    describe=settings,
    defaults={"context": 163840, "index_heads": 64, "index_size": 128, "index_top": 2048},
    forget=("query_latent",),
    mixers=("dsa",),
    harmless=(*deepseek_v3.FAMILY.harmless, "mlp_bias"),
)
