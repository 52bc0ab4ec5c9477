"""DeepSeek-V3.2 (2512.02556): DeepSeek-V3 whose queries read the keys that an indexer chooses.

RoPE is half-split in the indexer, interleaved in latent attention.
"""

from cutaway.errors import UserError
from cutaway.model.config import Decoder, Encoder
from cutaway.weights import mtp, naming, rows
from cutaway.weights.families import deepseek_v3
from cutaway.weights.family import Entries, Family, Field, Settings
from cutaway.weights.fields import Fields

ALIASES = ("deepseek32",)
INDEXER = f"{deepseek_v3.MLA}.indexer"


class Layers(rows.MLPTypes):
    """Which layers are dense; all are sparse in their attention."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        fields.stated(str(self.key))  # null is refused
        fields.each_layer("layer_types", known["layers"], ("indexed_attention",))
        return super().read(fields, known, own)


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
    hf=mtp.after(
        (
            *deepseek_v3.PLAIN,
            *naming.pairs((f"{INDEXER}.k_norm", "blocks.{n}.attention.index_norm")),
            *naming.weights(
                (f"{INDEXER}.wq_b", "blocks.{n}.attention.index_query"),
                (f"{INDEXER}.wk", "blocks.{n}.attention.index_key"),
                (f"{INDEXER}.weights_proj", "blocks.{n}.attention.index_weight"),
            ),
        )
    ),
    gguf=mtp.in_gguf(
        (
            *deepseek_v3.GGUF_MIXTURE,
            *naming.pairs(("blk.{n}.indexer.k_norm", "blocks.{n}.attention.index_norm")),
            *naming.weights(
                ("blk.{n}.indexer.attn_q_b", "blocks.{n}.attention.index_query"),
                ("blk.{n}.indexer.attn_k", "blocks.{n}.attention.index_key"),
                ("blk.{n}.indexer.proj", "blocks.{n}.attention.index_weight"),
            ),
        )
    ),
    gguf_joined=(),
    architecture="deepseek32",
    instead=None,
    rows=(
        *rows.replaced(
            deepseek_v3.FAMILY.rows, Layers("first_k_dense_replace", 3), Rope(), without=("interleaved",)
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
