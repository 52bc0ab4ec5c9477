#include "tokenizer/vocabulary.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <queue>
#include <string_view>
#include <tuple>

#include "core/api.hpp"
#include "tokenizer/unicode.hpp"

namespace cutaway {
namespace {

uint64_t checksum(const uint8_t* data, size_t size) {
    uint64_t lanes[4] = {1, 2, 3, size};
    size_t i = 0;
    for (; i + 32 <= size; i += 32) {
        for (size_t lane = 0; lane < 4; ++lane) {
            uint64_t word;
            std::memcpy(&word, data + i + lane * 8, 8);
            lanes[lane] = (lanes[lane] ^ word) * 0x9E3779B97F4A7C15;
            lanes[lane] ^= lanes[lane] >> 29;
        }
    }
    for (; i < size; ++i) lanes[i & 3] = (lanes[i & 3] ^ data[i]) * 0x9E3779B97F4A7C15;
    return mixed(lanes[0] ^ mixed(lanes[1] ^ mixed(lanes[2] ^ mixed(lanes[3]))));
}

// The checksum of the header, but for the checksum in it, and of everything behind it.
uint64_t checksum_of(Header header, const uint8_t* rest, size_t size) {
    header.checksum = checksum(rest, size);
    return checksum(reinterpret_cast<const uint8_t*>(&header), sizeof(Header));
}

// What Python gives: each symbol's text, and either pairs in order of rank or a rank for each symbol.
struct Source {
    uint32_t symbols;
    const uint8_t* text;
    const uint64_t* starts;
    const int32_t* ids;
    const int32_t* ranks;  // of symbols, -1 for none; or null
    const uint32_t* pairs;  // left, right, made; or null
    uint64_t pair_count;
    const uint8_t* unused;

    std::string_view of(uint32_t symbol) const {
        return {reinterpret_cast<const char*>(text) + starts[symbol], starts[symbol + 1] - starts[symbol]};
    }
};

class Trie {
  public:
    std::vector<Node> nodes;
    std::vector<uint32_t> symbol_of;

    explicit Trie(const Source& source) {
        std::vector<uint32_t> order(source.symbols);
        std::iota(order.begin(), order.end(), 0u);
        std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return source.of(a) < source.of(b); });
        grow();
        nodes[0].parent = kRootless;
        struct Range {
            uint32_t node;
            size_t begin, end, depth;
        };
        std::vector<Range> waiting{{0, 0, order.size(), 0}};
        std::vector<std::pair<uint8_t, size_t>> children;
        while (!waiting.empty()) {
            auto [node, begin, end, depth] = waiting.back();
            waiting.pop_back();
            if (begin < end && source.of(order[begin]).size() == depth) {
                nodes[node].base |= kEnds;
                symbol_of[node] = order[begin++];
            }
            children.clear();
            for (size_t i = begin; i < end; ++i) {
                const auto byte = static_cast<uint8_t>(source.of(order[i])[depth]);
                if (children.empty() || children.back().first != byte) children.emplace_back(byte, i);
            }
            if (children.empty()) continue;
            const uint32_t base = place(children);
            nodes[node].base |= base;
            for (size_t i = 0; i < children.size(); ++i) {
                const uint32_t child = base ^ children[i].first;
                nodes[child].parent = node;
                const size_t stop = i + 1 < children.size() ? children[i + 1].second : end;
                waiting.push_back({child, children[i].second, stop, depth + 1});
            }
        }
    }

  private:
    size_t first_free_ = 1;

    void grow() {
        nodes.resize(nodes.size() + 256, Node{0, kNone});
        symbol_of.resize(nodes.size(), kNone);
    }

    // A base from which every child falls on a free node; few places are tried, so that building stays linear.
    uint32_t place(const std::vector<std::pair<uint8_t, size_t>>& children) {
        while (first_free_ < nodes.size() && nodes[first_free_].parent != kNone) ++first_free_;
        size_t tried = 0;
        for (size_t at = first_free_; at < nodes.size() && tried < 64; ++at) {
            if (nodes[at].parent != kNone) continue;
            ++tried;
            const auto base = static_cast<uint32_t>(at) ^ children[0].first;
            if (std::all_of(children.begin(), children.end(),
                            [&](const auto& child) { return nodes[base ^ child.first].parent == kNone; })) {
                return base;
            }
        }
        const auto base = static_cast<uint32_t>(nodes.size());
        grow();
        // A bucket that was left free far behind is given up.
        if (tried == 64 && children.size() == 1) first_free_ = nodes.size() - 256;
        return base;
    }
};

struct Merge {
    int32_t rank;
    uint32_t left, right, made;
};

// Every way in which two symbols make a third whose text has a rank.
std::vector<Merge> all_splits(const Source& source, const Vocabulary& found) {
    std::vector<Merge> out;
    for (uint32_t made = 0; made < source.symbols; ++made) {
        if (source.ranks[made] < 0) continue;
        const std::string_view text = source.of(made);
        const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
        for (size_t cut = 1; cut < text.size(); ++cut) {
            const uint32_t left = found.exact(bytes, cut);
            if (left == kNone) continue;
            const uint32_t right = found.exact(bytes + cut, text.size() - cut);
            if (right != kNone) out.push_back({source.ranks[made], left, right, made});
        }
    }
    std::stable_sort(out.begin(), out.end(), [](const Merge& a, const Merge& b) { return a.rank < b.rank; });
    return out;
}

// The pairs, each with the number of its merge, where Vocabulary looks for them.
class Table {
  public:
    uint32_t bucket_bits = 1;
    std::vector<uint64_t> entries;

    Table() { clear(0); }

    // Empty, for so many pairs: at most four in a bucket of eight on average, so that few are full.
    void clear(size_t pairs) {
        bucket_bits = 1;
        while (4ull << bucket_bits < pairs) ++bucket_bits;
        entries.assign(kBucket << bucket_bits, kNoEntry);
    }

    // The first of equal pairs counts.
    void add(uint32_t left, uint32_t right, size_t number) {
        const uint64_t key = static_cast<uint64_t>(left) << 21 | right;
        size_t place = (key * kMix >> (64 - bucket_bits)) * kBucket;
        while (entries[place] != kNoEntry && entries[place] >> 22 != key) place = (place + 1) & (entries.size() - 1);
        if (entries[place] == kNoEntry) entries[place] = key << 22 | number;
    }
};

// Merges `symbols`; what merged last goes to `pair`, and its two sides to `sides`.
void merge_all(const Vocabulary& vocabulary, std::vector<uint32_t>& symbols, uint32_t* pair, uint32_t* sides);

class Compiler {
  public:
    std::vector<uint8_t> out;

    // False where the vocabulary has more symbols or pairs than the layout can say.
    bool compile(const Source& source, Header header, const uint8_t* text, const uint64_t* starts) {
        if (source.symbols == 0 || source.symbols > kMostSymbols) return false;
        Trie trie(source);
        if (trie.nodes.size() > kBase) return false;
        header.magic = kMagic;
        header.symbols = source.symbols;
        std::vector<Symbol> symbols(source.symbols);
        for (uint32_t i = 0; i < source.symbols; ++i) {
            const auto size = static_cast<uint32_t>(source.of(i).size());
            symbols[i] = {size, source.unused[i] != 0, kNone, kNone, kNone, -2, source.ids[i], 0, 0};
        }
        std::vector<uint32_t> text_starts(header.tokens + 1);
        for (uint32_t i = 0; i <= header.tokens; ++i) text_starts[i] = static_cast<uint32_t>(starts[i]);

        Table table;
        std::vector<int32_t> ranks;
        std::vector<uint32_t> made, byte_pairs;
        header.first_made = kNone;
        // First without pairs, for the look-ups that find them; then with them, for the merges of every symbol.
        write(header, trie, symbols, table, ranks, made, byte_pairs, text_starts, text);
        Vocabulary vocabulary;
        vocabulary.attach(out.data(), out.size());
        std::vector<Merge> merges;
        if (source.ranks) {
            merges = all_splits(source, vocabulary);
        } else {
            for (uint64_t i = 0; i < source.pair_count; ++i) {
                const uint32_t* pair = source.pairs + 3 * i;
                merges.push_back({static_cast<int32_t>(i), pair[0], pair[1], pair[2]});
            }
        }
        if (merges.size() > kMostPairs) return false;
        table.clear(merges.size());
        for (const Merge& merge : merges) {
            const bool again = !ranks.empty() && ranks.back() == merge.rank && made.back() == merge.made;
            header.tied |= !again && !ranks.empty() && ranks.back() == merge.rank;
            if (!again) {
                ranks.push_back(merge.rank);
                made.push_back(merge.made);
            }
            table.add(merge.left, merge.right, ranks.size() - 1);
        }
        header.first_made = made.empty() ? kNone : made[0];
        for (uint32_t i = 0; i < made.size(); ++i) {
            if (made[i] != made[0] + i) header.first_made = kNone;
        }
        write(header, trie, symbols, table, ranks, made, byte_pairs, text_starts, text);
        vocabulary.attach(out.data(), out.size());
        if (header.bytewise) {
            byte_pairs.resize(1 << 16);
            for (size_t i = 0; i < byte_pairs.size(); ++i) {
                byte_pairs[i] = vocabulary.pair(header.byte_symbols[i >> 8], header.byte_symbols[i & 0xFF]);
            }
        }
        derive(source, header, vocabulary, symbols);
        for (Symbol& symbol : symbols) {
            const auto [first, past] = std::equal_range(ranks.begin(), ranks.end(), symbol.rank);
            symbol.first = static_cast<uint32_t>(first - ranks.begin());
            symbol.past = static_cast<uint32_t>(past - ranks.begin());
        }
        // Two symbols come to lie beside each other in no text but where merging the two texts alone comes to them, and
        // then they merge: of all pairs that make a symbol, only its own is ever looked for and found.
        const auto is_made = [](const Symbol& symbol) { return symbol.left != kNone; };
        table.clear(static_cast<size_t>(std::count_if(symbols.begin(), symbols.end(), is_made)));
        for (const Symbol& symbol : symbols) {
            if (is_made(symbol)) table.add(symbol.left, symbol.right, vocabulary.pair(symbol.left, symbol.right));
        }
        header.closed = std::none_of(symbols.begin(), symbols.end(),
                                     [](const Symbol& symbol) { return symbol.id >= 0 && symbol.rank == -2; });
        header.monotone = 1;
        for (uint32_t i = 0; i < source.symbols; ++i) {
            const Symbol& symbol = symbols[i];
            if (symbol.left == kNone) continue;
            if (symbols[symbol.left].rank >= symbol.rank || symbols[symbol.right].rank >= symbol.rank) {
                header.monotone = 0;
            }
        }
        for (Node& node : trie.nodes) {
            const uint32_t symbol = trie.symbol_of[static_cast<size_t>(&node - trie.nodes.data())];
            if (symbol != kNone && symbols[symbol].rank > -2) node.base |= kReached;
        }
        write(header, trie, symbols, table, ranks, made, byte_pairs, text_starts, text);
        vocabulary.attach(out.data(), out.size());
        for (uint32_t i = 0; i < source.symbols; ++i) {
            const std::string_view bytes = source.of(i);
            symbols[i].prefix = vocabulary.longest(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size() - 1)
                                    .symbol;
        }
        write(header, trie, symbols, table, ranks, made, byte_pairs, text_starts, text);
        return true;
    }

  private:
    // How merging alone makes each symbol out of its own text: the last pair, and its rank.
    static void derive(const Source& source, const Header& header, const Vocabulary& vocabulary,
                       std::vector<Symbol>& symbols) {
        std::vector<uint32_t> parts;
        for (uint32_t i = 0; i < source.symbols; ++i) {
            const std::string_view text = source.of(i);
            const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
            parts.clear();
            for (size_t at = 0; at < text.size();) {
                const uint32_t size = header.bytewise ? 1 : character(bytes + at, text.size() - at).size;
                parts.push_back(header.bytewise ? header.byte_symbols[bytes[at]] : vocabulary.exact(bytes + at, size));
                at += size;
            }
            if (std::find(parts.begin(), parts.end(), kNone) != parts.end()) continue;
            if (parts.size() == 1) {
                symbols[i].rank = -1;
                continue;
            }
            uint32_t last[2] = {kNone, kNone};
            uint32_t pair = kNone;
            merge_all(vocabulary, parts, &pair, last);
            if (parts.size() != 1 || parts[0] != i) continue;
            symbols[i].left = last[0];
            symbols[i].right = last[1];
            symbols[i].rank = vocabulary.rank(pair);
        }
    }

    template <class T>
    void put(Header& header, Section section, const T* values, size_t count) {
        header.starts[section] = out.size();
        const auto* bytes = reinterpret_cast<const uint8_t*>(values);
        out.insert(out.end(), bytes, bytes + count * sizeof(T));
        out.resize((out.size() + 63) / 64 * 64);
    }

    void write(Header header, const Trie& trie, const std::vector<Symbol>& symbols, const Table& table,
               const std::vector<int32_t>& ranks, const std::vector<uint32_t>& made,
               const std::vector<uint32_t>& byte_pairs, const std::vector<uint32_t>& text_starts,
               const uint8_t* text) {
        std::vector<int32_t> written;
        for (const Symbol& symbol : symbols) written.push_back(symbol.unused && symbol.left != kNone ? -1 : symbol.id);
        header.plain = 1;
        for (size_t i = 0; i < written.size(); ++i) header.plain &= written[i] == static_cast<int32_t>(i);
        header.bucket_bits = table.bucket_bits;
        out.assign((sizeof(Header) + 63) / 64 * 64, 0);
        put(header, kNodes, trie.nodes.data(), trie.nodes.size());
        put(header, kSymbolOf, trie.symbol_of.data(), trie.symbol_of.size());
        put(header, kSymbols, symbols.data(), symbols.size());
        put(header, kWritten, written.data(), written.size());
        put(header, kPairs, table.entries.data(), table.entries.size());
        put(header, kRanks, ranks.data(), ranks.size());
        put(header, kMade, made.data(), made.size());
        put(header, kBytePairs, byte_pairs.data(), byte_pairs.size());
        put(header, kTextStarts, text_starts.data(), text_starts.size());
        put(header, kText, text, text_starts.back());
        header.starts[kSections] = header.size = out.size();
        header.checksum = checksum_of(header, out.data() + sizeof(Header), out.size() - sizeof(Header));
        std::memcpy(out.data(), &header, sizeof(Header));
    }
};

}  // namespace

bool Vocabulary::attach(const uint8_t* data, size_t size) {
    if (size < sizeof(Header) || reinterpret_cast<uintptr_t>(data) % 8) return false;
    header_ = reinterpret_cast<const Header*>(data);
    if (header_->magic != kMagic || header_->size != size || header_->starts[kSections] != size) return false;
    if (header_->checksum != checksum_of(*header_, data + sizeof(Header), size - sizeof(Header))) return false;
    for (int i = 0; i < kSections; ++i) {
        if (header_->starts[i] > header_->starts[i + 1] || header_->starts[i] % 64) return false;
    }
    if (header_->starts[0] < sizeof(Header)) return false;
    const auto at = [&](Section section) { return data + header_->starts[section]; };
    nodes_ = reinterpret_cast<const Node*>(at(kNodes));
    symbol_of_ = reinterpret_cast<const uint32_t*>(at(kSymbolOf));
    symbols_ = reinterpret_cast<const Symbol*>(at(kSymbols));
    pairs_ = reinterpret_cast<const uint64_t*>(at(kPairs));
    ranks_ = reinterpret_cast<const int32_t*>(at(kRanks));
    made_ = reinterpret_cast<const uint32_t*>(at(kMade));
    written_ = reinterpret_cast<const int32_t*>(at(kWritten));
    first_made_ = header_->first_made;
    bucket_bits_ = header_->bucket_bits;
    byte_pairs_ = reinterpret_cast<const uint32_t*>(at(kBytePairs));
    text_starts_ = reinterpret_cast<const uint32_t*>(at(kTextStarts));
    text_ = at(kText);
    return true;
}

// A checksum is no signature: any program that can write the cache could have made this file. Encoding and decoding check no
// index, so every one of them is checked here.
bool Vocabulary::sound() const {
    const auto in_tokens = [&](int32_t id) { return id < static_cast<int64_t>(header_->tokens); };
    if (header_->symbols > kMostSymbols || (header_->plain && header_->symbols > header_->tokens)) return false;
    if (room<uint32_t>(kTextStarts) <= header_->tokens || text_starts_[header_->tokens] > text_size()) return false;
    if (!std::is_sorted(text_starts_, text_starts_ + header_->tokens + 1)) return false;
    if (!in_tokens(header_->unknown) || !std::all_of(header_->byte_ids, header_->byte_ids + 256, in_tokens)) return false;
    if (room<int32_t>(kWritten) < header_->symbols || !std::all_of(written_, written_ + header_->symbols, in_tokens)) {
        return false;
    }
    return sound_symbols() && sound_nodes() && sound_pairs();
}

// What made a symbol is smaller and reachable; so is its prefix.
bool Vocabulary::sound_symbols() const {
    const uint32_t count = header_->symbols;
    if (room<Symbol>(kSymbols) < count) return false;
    for (const Symbol* symbol = symbols_; symbol < symbols_ + count; ++symbol) {
        if (symbol->size == 0 || symbol->size > kLongestToken || symbol->id >= static_cast<int64_t>(header_->tokens)) {
            return false;
        }
        if (symbol->prefix != kNone &&
            (symbol->prefix >= count || symbols_[symbol->prefix].size >= symbol->size || !reached(symbol->prefix))) {
            return false;
        }
        if (symbol->rank < 0) {
            if (symbol->left != kNone) return false;
            continue;
        }
        if (symbol->left >= count || symbol->right >= count || !reached(symbol->left) || !reached(symbol->right) ||
            symbols_[symbol->left].size + symbols_[symbol->right].size != symbol->size) {
            return false;
        }
    }
    const auto is_byte = [&](uint32_t symbol) { return symbol < count && symbols_[symbol].size == 1; };
    return !header_->bytewise || std::all_of(header_->byte_symbols, header_->byte_symbols + 256, is_byte);
}

// Every node's children are in the array, and a symbol is as many bytes as its node is deep.
bool Vocabulary::sound_nodes() const {
    const size_t count = room<Node>(kNodes);
    if (count == 0 || count % 256 || room<uint32_t>(kSymbolOf) < count) return false;
    for (size_t i = 0; i < count; ++i) {
        if ((nodes_[i].base & kBase) >= count) return false;
        if ((nodes_[i].base & (kEnds | kReached)) == 0) continue;
        const uint32_t symbol = symbol_of_[i];
        if (symbol >= header_->symbols || ((nodes_[i].base & kReached) && !reached(symbol))) return false;
        size_t node = i, depth = 0;
        for (; depth < symbols_[symbol].size && node != 0; ++depth) {
            node = nodes_[node].parent;
            if (node >= count) return false;
        }
        if (node != 0 || depth != symbols_[symbol].size) return false;
    }
    return true;
}

// A pair makes a symbol of its two sizes, and some bucket has an end.
bool Vocabulary::sound_pairs() const {
    if (bucket_bits_ < 1 || bucket_bits_ > 32 || room<uint64_t>(kPairs) != kBucket << bucket_bits_) return false;
    const size_t merges = std::min(room<int32_t>(kRanks), room<uint32_t>(kMade));
    const uint32_t symbols = header_->symbols;
    bool ends = false;
    for (const uint64_t* entry = pairs_; entry < pairs_ + room<uint64_t>(kPairs); ++entry) {
        if (*entry == kNoEntry) {
            ends = true;
            continue;
        }
        const auto number = static_cast<uint32_t>(*entry & kNoNumber);
        const uint64_t left = *entry >> 43, right = *entry >> 22 & kMostSymbols;
        if (number >= merges || left >= symbols || right >= symbols || made(number) >= symbols) return false;
        if (symbols_[left].size + symbols_[right].size != symbols_[made(number)].size) return false;
    }
    if (!ends || !header_->bytewise) return ends;
    if (room<uint32_t>(kBytePairs) < 1 << 16) return false;
    return std::all_of(byte_pairs_, byte_pairs_ + (1 << 16), [&](uint32_t number) {
        return number == kNone || (number < merges && made(number) < symbols);
    });
}

// A full bucket's pairs go on in the next.
uint64_t Vocabulary::beyond(Pair pair) const {
    const size_t mask = (kBucket << bucket_bits_) - 1;
    for (size_t place = static_cast<size_t>(pair.bucket - pairs_);; place = (place + 1) & mask) {
        if (pairs_[place] == kNoEntry || pairs_[place] >> 22 == pair.key) return pairs_[place];
    }
}

namespace {

void merge_all(const Vocabulary& vocabulary, std::vector<uint32_t>& symbols, uint32_t* pair, uint32_t* sides) {
    struct Noted {
        int32_t rank;
        uint32_t place, left, right, pair;
        bool operator<(const Noted& other) const {
            return std::tie(other.rank, other.place) < std::tie(rank, place);
        }
    };
    const auto size = static_cast<uint32_t>(symbols.size());
    std::vector<uint32_t> before(size), after(size);
    std::vector<Noted> heap;
    const auto noted = [&](uint32_t place, uint32_t next) -> Noted {
        const uint32_t left = symbols[place], right = symbols[next];
        const uint32_t found = left == kNone || right == kNone ? kNone : vocabulary.pair(left, right);
        return {found == kNone ? 0 : vocabulary.rank(found), place, left, right, found};
    };
    for (uint32_t i = 0; i < size; ++i) {
        before[i] = i - 1;
        after[i] = i + 1;
        if (i + 1 < size) {
            if (const Noted one = noted(i, i + 1); one.pair != kNone) heap.push_back(one);
        }
    }
    std::make_heap(heap.begin(), heap.end());
    const auto push = [&](const Noted& one) {
        if (one.pair == kNone) return;
        heap.push_back(one);
        std::push_heap(heap.begin(), heap.end());
    };
    std::vector<bool> gone(size, false);
    while (!heap.empty()) {
        std::pop_heap(heap.begin(), heap.end());
        const Noted one = heap.back();
        heap.pop_back();
        const uint32_t next = gone[one.place] ? size : after[one.place];
        if (next == size || symbols[one.place] != one.left || symbols[next] != one.right) continue;
        *pair = one.pair;
        sides[0] = one.left;
        sides[1] = one.right;
        symbols[one.place] = vocabulary.made(one.pair);
        gone[next] = true;
        const uint32_t beyond = after[one.place] = after[next];
        if (beyond < size) {
            before[beyond] = one.place;
            push(noted(one.place, beyond));
        }
        if (before[one.place] < size) push(noted(before[one.place], one.place));
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < size; i = after[i]) symbols[kept++] = symbols[i];
    symbols.resize(kept);
}

}  // namespace

void merge(const Vocabulary& vocabulary, std::vector<uint32_t>& symbols) {
    uint32_t pair = kNone, sides[2];
    merge_all(vocabulary, symbols, &pair, sides);
}

}  // namespace cutaway

// Compiles a vocabulary and returns a buffer to be read with cutaway_vocabulary_take and freed by it; its size goes
// to `size`. Null where the vocabulary is too large for the layout.
CUTAWAY_API void* cutaway_vocabulary_compile(uint32_t symbols, const uint8_t* text, const uint64_t* starts,
                                             const int32_t* ids, const int32_t* ranks, const uint32_t* pairs,
                                             uint64_t pair_count, const uint8_t* unused, uint32_t bytewise,
                                             uint32_t whole, const int32_t* byte_ids, const uint32_t* byte_symbols,
                                             int32_t unknown, uint32_t fuse, uint32_t tokens, const uint8_t* token_text,
                                             const uint64_t* token_starts, uint64_t* size) {
    cutaway::Header header{};
    header.bytewise = bytewise;
    header.whole = whole;
    header.unknown = unknown;
    header.fuse = fuse;
    header.tokens = tokens;
    std::copy_n(byte_ids, 256, header.byte_ids);
    std::copy_n(byte_symbols, 256, header.byte_symbols);
    auto compiler = std::make_unique<cutaway::Compiler>();
    const cutaway::Source source{symbols, text, starts, ids, ranks, pairs, pair_count, unused};
    if (!compiler->compile(source, header, token_text, token_starts)) return nullptr;
    *size = compiler->out.size();
    return compiler.release();
}

CUTAWAY_API void cutaway_vocabulary_take(void* compiled, uint8_t* out) {
    const std::unique_ptr<cutaway::Compiler> compiler(static_cast<cutaway::Compiler*>(compiled));
    std::memcpy(out, compiler->out.data(), compiler->out.size());
}
