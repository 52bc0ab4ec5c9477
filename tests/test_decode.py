"""The decoding loop, on an engine whose logits are scripted or depend on all it read; bytes are tokens."""

from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.errors import UserError
from cutaway.generate.batch.request import ContextFullError, Piece
from cutaway.generate.batch.sequence import SequenceOutput
from cutaway.generate.decode import finish, generate
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.session import Session
from cutaway.generate.stop_scan import StopScan
from cutaway.tokenizer.decode import EACH, FIRST, KEEP, ONE, Decoder, Lead

END = 256
VOCAB = 257


class Held:
    """A state that is the list of ids it was given."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    @property
    def length(self) -> int:
        return len(self.ids)

    def truncate(self, length: int) -> None:
        del self.ids[length:]


class Window(Held):
    """A state that cannot go back."""

    def truncate(self, length: int) -> None:
        del self.ids[length // 2 :]
        raise UserError("a window has dropped what came before")


class Hashing:
    """Logits are a function of every id read and its order, so a wrong state changes what follows."""

    vocab = VOCAB

    def __init__(self, max_context: int = 64, state: type[Held] = Held) -> None:
        self.max_context = max_context
        self.state = state
        self.reads: list[int] = []

    def new_state(self) -> Held:
        return self.state()

    def prefill(self, ids: Sequence[int], state: Held) -> np.ndarray:
        assert len(ids) > 0
        state.ids.extend(ids)
        self.reads.append(len(ids))
        assert len(state.ids) <= self.max_context
        return self.after(state.ids)

    def step(self, id: int, state: Held) -> np.ndarray:
        return self.prefill([id], state)

    def after(self, ids: list[int]) -> np.ndarray:
        seed = np.random.SeedSequence([len(ids), *ids])
        logits = np.random.Generator(np.random.PCG64(seed)).standard_normal(self.vocab).astype(np.float32)
        logits[END] = -100.0
        return logits


class Scripted(Hashing):
    """Says the bytes of a text and then the end token, whatever it reads."""

    def __init__(self, text: str | bytes, prompt: int = 1, max_context: int = 1000) -> None:
        super().__init__(max_context)
        shown = text.encode() if isinstance(text, str) else text
        self.script = [*shown, *([END] * 50)]
        self.prompt = prompt

    def after(self, ids: list[int]) -> np.ndarray:
        logits = np.zeros(self.vocab, dtype=np.float32)
        logits[self.script[len(ids) - self.prompt]] = 5.0
        return logits


class Bytes:
    """One id a byte, and an end token; streams whole characters."""

    bos: int | None = None
    eos_ids = (END,)

    def __len__(self) -> int:
        return VOCAB

    def stream(self) -> "ByteStream":
        return ByteStream()


class ByteStream:
    def __init__(self) -> None:
        self.held = b""

    def push(self, id: int) -> str:
        self.held += bytes([id]) if id < 256 else b"<end>"
        try:
            text = self.held.decode()
        except UnicodeDecodeError:
            return ""
        self.held = b""
        return text

    def follow(self, ids: Iterable[int]) -> None:
        for id in ids:
            self.push(id)

    def finish(self) -> str:
        return self.held.decode(errors="replace")


class Words(Bytes):
    """Ids name whole words."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words

    def __len__(self) -> int:
        return len(self.words)

    def stream(self) -> "WordStream":
        return WordStream(self.words)


class WordStream:
    def __init__(self, words: Sequence[str]) -> None:
        self.words = words

    def push(self, id: int) -> str:
        return self.words[id]

    def follow(self, ids: Iterable[int]) -> None:
        pass

    def finish(self) -> str:
        return ""


def run(text: str | bytes, **options) -> tuple[list[Piece], str]:
    pieces = list(generate(Scripted(text), Bytes(), [7], SamplingParams(**options)))
    return pieces, "".join(piece.text for piece in pieces)


def test_it_says_what_the_model_says_and_stops_at_the_end_token():
    pieces, text = run("Hello, wörld ☕!")
    done = pieces[-1].generation
    assert done is not None
    assert text == done.text == "Hello, wörld ☕!"
    assert bytes(done.ids).decode() == text
    assert (done.finish_reason, done.stop, done.prompt_ids, done.max_context) == ("stop", END, (7,), 1000)
    assert [piece.id for piece in pieces[:-1]] == list(done.ids)
    assert pieces[-1].id is None
    assert all(piece.generation is None for piece in pieces[:-1])
    assert len(done.logprobs) == len(done.top_logprobs) == len(done.ids)


def test_no_piece_holds_half_a_character():
    pieces, text = run("a☕é")
    assert [piece.text for piece in pieces] == ["a", "", "", "☕", "", "é", ""]
    assert text == "a☕é"


def test_a_character_that_never_completes_is_shown_at_the_end():
    assert run(b"a\xe2\x98")[1] == "a\ufffd"
    assert run(b"a\xe2\x98", stop=["\ufffd"])[1] == "a"


def test_max_tokens_ends_with_length_and_reads_no_more_than_it_needs():
    engine = Scripted("abcdef")
    done = finish(generate(engine, Bytes(), [7], SamplingParams(max_tokens=3)))
    assert (done.text, done.finish_reason, done.stop) == ("abc", "length", None)
    assert engine.reads == [1, 1, 1]


@pytest.mark.parametrize(
    ("max_tokens", "reason"), [(None, "context"), (100, "context"), (6, "length"), (7, "context")]
)
def test_a_full_context_says_so(max_tokens, reason):
    engine = Hashing(max_context=10)
    done = finish(generate(engine, Bytes(), [1, 2, 3, 4], SamplingParams(max_tokens=max_tokens)))
    assert (len(done.ids), done.finish_reason) == (6, reason)
    assert done.max_context == 10


@pytest.mark.parametrize("length", [10, 11, 400])
def test_a_prompt_that_fills_the_context_is_refused_at_once_with_both_numbers(length):
    with pytest.raises(ContextFullError, match=rf"{length} ids .* holds 10\b") as refused:
        generate(Hashing(max_context=10), Bytes(), [1] * length, SamplingParams())
    assert (refused.value.length, refused.value.max_context) == (length, 10)
    assert len(finish(generate(Hashing(max_context=10), Bytes(), [1] * 9, SamplingParams())).ids) == 1


def test_an_empty_prompt_begins_with_bos_or_is_refused():
    with pytest.raises(UserError, match="prompt is empty"):
        generate(Hashing(), Bytes(), [], SamplingParams())
    tokenizer = Bytes()
    tokenizer.bos = 0
    assert finish(generate(Hashing(), tokenizer, [], SamplingParams(max_tokens=1))).prompt_ids == (0,)


@pytest.mark.parametrize("id", [-1, VOCAB])
def test_an_id_outside_the_vocabulary_is_refused(id):
    with pytest.raises(UserError, match=f"id {id} at position 1 .* 0 to 256"):
        generate(Hashing(), Bytes(), [3, id], SamplingParams())


def test_stop_ids_end_without_being_in_the_text_and_ignore_eos_goes_past_the_end():
    pieces, text = run("abc", stop_ids=[ord("c")])
    done = pieces[-1].generation
    assert done is not None
    assert (text, done.ids, done.stop) == ("ab", (97, 98), ord("c"))
    pieces, text = run("abc", ignore_eos=True, max_tokens=5)
    assert text == "abc<end><end>"
    assert run("abc", ignore_eos=True, stop_ids=[END])[1] == "abc"


def test_a_stop_string_is_cut_at_its_start_and_never_shown():
    pieces, text = run("one\n\nUser: two", stop=["\n\nUser:", "never"])
    done = pieces[-1].generation
    assert done is not None
    assert text == done.text == "one"
    assert (done.finish_reason, done.stop) == ("stop", "\n\nUser:")
    assert bytes(done.ids) == b"one\n\nUser:"


def test_what_only_began_like_a_stop_is_shown_after_all():
    pieces, text = run("a<b<bc<b", stop=["<bd"])
    assert text == "a<b<bc<b"
    assert [piece.text for piece in pieces] == ["a", "", "", "<b", "", "<bc", "", "", "<b"]


def test_a_stop_string_inside_a_token_is_cut_inside_it():
    words = ["", "Hello", " wor", "ld. Bye", " now"]

    class Engine(Scripted):
        vocab = 5

        def __init__(self) -> None:
            super().__init__(b"")
            self.script = [1, 2, 3, 4]

    done = finish(generate(Engine(), Words(words), [0], SamplingParams(stop=[". "])))
    assert (done.text, done.ids) == ("Hello world", (1, 2, 3))


texts = st.text(alphabet="ab<", max_size=24)


@settings(deadline=None, max_examples=300)
@given(texts, st.lists(st.text(alphabet="ab<", min_size=1, max_size=4), max_size=3), st.data())
def test_where_a_stop_cuts_does_not_depend_on_the_tokens(text, stops, data):
    def scanned(pieces):
        scan, shown = StopScan(stops), ""
        for piece in pieces:
            shown += scan.push(piece)
            assert not any(stop in shown for stop in stops)
            if scan.found:
                return shown, scan.found
        return shown + scan.finish(), None

    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    shown, found = scanned(pieces)
    assert (shown, found) == scanned(list(text))
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert shown == (text[: min(ends)[1]] if ends else text)


def test_logprobs_are_of_the_untouched_distribution():
    pieces, _ = run("abc", logprobs=2, temperature=0.7, seed=1, logit_bias={5: 90.0}, max_tokens=3)
    logits = np.zeros(VOCAB)
    logits[ord("a")] = 5.0
    judged = logits - np.log(np.exp(logits).sum())
    assert pieces[0].id == 5
    assert pieces[0].logprob == pytest.approx(judged[5], abs=1e-5)
    assert [id for id, _ in pieces[0].top_logprobs] == [ord("a"), 0]
    assert [value for _, value in pieces[0].top_logprobs] == pytest.approx(
        [judged[ord("a")], judged[0]], abs=1e-5
    )


def test_one_seed_gives_one_text():
    def ids(seed):
        options = SamplingParams(temperature=1.0, top_p=0.9, seed=seed, max_tokens=20)
        return finish(generate(Hashing(), Bytes(), [1, 2], options)).ids

    assert ids(3) == ids(3)
    assert ids(3) != ids(4)


def test_a_repetition_penalty_sees_the_prompt_and_the_answer():
    class Flat(Hashing):
        def after(self, ids):
            return np.linspace(2, 1, VOCAB, dtype=np.float32)

    done = finish(generate(Flat(), Bytes(), [0, 1], SamplingParams(repetition_penalty=10.0, max_tokens=3)))
    assert done.ids == (2, 3, 4)


def answer(engine: Hashing, prompt: Sequence[int], session: Session | None) -> tuple[int, ...]:
    return finish(generate(engine, Bytes(), prompt, SamplingParams(max_tokens=5), session)).ids


@pytest.mark.parametrize("state", [Held, Window])
@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=2, max_size=5))
def test_a_session_answers_as_a_fresh_start_would(state, prompts):
    engine = Hashing(state=state)
    session = Session(engine)
    for prompt in prompts:
        assert answer(engine, prompt, session) == answer(Hashing(), prompt, None)


def test_a_session_tells_how_much_of_a_prompt_is_read():
    engine = Hashing()
    session, seen, prefill = Session(engine), list[tuple[int, int]](), engine.prefill

    def watched(ids, state):
        seen.append(session.reading)
        return prefill(ids, state)

    engine.prefill = watched
    for prompt in ([1, 2, 3], [1, 2, 3, 4, 5]):
        session.prefill(prompt)
        seen.append(session.reading)
    assert seen == [(0, 3), (3, 3), (3, 5), (5, 5)]


def test_a_session_reads_only_what_is_new():
    engine = Hashing()
    session = Session(engine)
    first = answer(engine, [1, 2, 3], session)
    assert session.ids == (1, 2, 3, *first[:-1])
    engine.reads.clear()
    done = finish(generate(engine, Bytes(), [1, 2, 3, *first, 9], SamplingParams(max_tokens=1), session))
    assert engine.reads == [2]
    assert done.timings.prefill_tokens == 2
    engine.reads.clear()
    answer(engine, [1, 2, 3], session)
    assert engine.reads[0] == 1
    engine.reads.clear()
    answer(engine, [1, 2, 8, 8], session)
    assert engine.reads[0] == 2


def test_after_an_interruption_a_session_reads_from_the_beginning():
    class Interrupted(Hashing):
        at = 6

        def prefill(self, ids, state):
            state.ids.extend(ids)
            if len(state.ids) == self.at:
                raise KeyboardInterrupt
            self.reads.append(len(ids))
            return self.after(state.ids)

    engine = Interrupted()
    session = Session(engine)
    with pytest.raises(KeyboardInterrupt):
        answer(engine, [1, 2, 3], session)
    engine.at = -1
    assert answer(engine, [1, 2, 3, 4], session) == answer(Hashing(), [1, 2, 3, 4], None)
    assert session.ids[:4] == (1, 2, 3, 4)


def test_a_state_interrupted_between_its_layers_is_not_trusted_though_its_length_is_right():
    class Torn(Hashing):
        def step(self, id, state):
            state.ids[-1] = 250  # the first layers have read on, the last, which counts, has not
            raise KeyboardInterrupt

    engine = Torn()
    session = Session(engine)
    with pytest.raises(KeyboardInterrupt):
        answer(engine, [1, 2, 3], session)
    assert session.ids == (1, 2, 3)
    logits, read = session.prefill([1, 2, 3, 4])
    assert read == 4
    assert np.array_equal(logits, engine.after([1, 2, 3, 4]))


def test_closing_the_pieces_early_leaves_a_usable_session():
    engine = Hashing()
    session = Session(engine)
    pieces = generate(engine, Bytes(), [1, 2, 3], SamplingParams(), session)
    shown = [next(pieces).id for _ in range(3)]
    pieces.close()
    prompt = [1, 2, 3, *(id for id in shown if id is not None), 9]
    engine.reads.clear()
    assert answer(engine, prompt, session) == answer(Hashing(), prompt, None)
    assert engine.reads[0] == 2


def test_an_id_that_is_no_token_is_never_chosen():
    class Padded(Hashing):
        vocab = 8

        def after(self, ids):
            return np.arange(8, dtype=np.float32)

    words = ["a", "b", "c"]
    done = finish(generate(Padded(), Words(words), [7, 0], SamplingParams(max_tokens=2, logprobs=3)))
    assert done.ids == (2, 2)
    assert [id for id, _ in done.top_logprobs[0]] == [2, 1, 0]
    judged = np.log(np.exp(2) / np.exp([0, 1, 2]).sum())
    assert done.logprobs[0] == pytest.approx(judged, abs=1e-6)
    for asked, refusal in (({"logprobs": 4}, "has 3 tokens"), ({"logit_bias": {3: 1.0}}, "from 0 to 2")):
        with pytest.raises(UserError, match=refusal):
            generate(Padded(), Words(words), [0], SamplingParams(**asked))


def test_the_answer_is_what_it_adds_to_the_prompt():
    class Led(ByteStream):
        """Takes one space off the front of a text, as SentencePiece does."""

        begun = False

        def push(self, id):
            text = super().push(id)
            begun, self.begun = self.begun, True
            return text if begun else text.removeprefix(" ")

    class Leading(Bytes):
        def stream(self):
            return Led()

    assert finish(generate(Scripted(" Paris"), Leading(), [7], SamplingParams())).text == " Paris"
    half = Scripted(b"\x98\x95!", prompt=2)
    assert finish(generate(half, Bytes(), [32, 0xE2], SamplingParams())).text == "☕!"


def test_timings_count_what_was_read():
    done = finish(generate(Scripted("abcdef", prompt=3), Bytes(), [7, 7, 7], SamplingParams()))
    timings = done.timings
    assert (timings.prefill_tokens, timings.decode_tokens) == (3, 6)
    assert timings.prefill_tokens_per_second > 0
    assert timings.decode_tokens_per_second > 0
    assert timings.first_token_seconds >= timings.prefill_seconds > 0
    assert (
        finish(
            generate(Scripted("a"), Bytes(), [7], SamplingParams(max_tokens=1))
        ).timings.decode_tokens_per_second
        == 0
    )


PARTS = [bytes([n]) for n in (0x61, 0x20, 0xC3, 0xA4, 0xE2, 0x98, 0x95, 0xF0, 0x9F, 0x80, 0xFF)]
PARTS += [b"", b" ab", "☕".encode(), b"\xa4\xe2", b"\xf0\x9f\x98", b"end"]


@pytest.mark.parametrize("rule", [KEEP, EACH, ONE, FIRST])
@given(before=st.lists(st.integers(0, len(PARTS) - 1)), after=st.lists(st.integers(0, len(PARTS) - 1)))
def test_what_follows_a_text_is_the_same_whether_the_text_was_read_or_skimmed(
    rule: str, before: list[int], after: list[int]
) -> None:
    def written(decoder: Decoder) -> list[str]:
        return [*map(decoder.push, after), decoder.finish()]

    def skipped(id: int) -> bool:
        return id == len(PARTS) - 1

    whole, skimmed = (Decoder(PARTS.__getitem__, Lead(rule), skipped) for _ in range(2))
    for id in before:
        whole.push(id)
    skimmed.follow(before)
    assert written(skimmed) == written(whole)


def test_a_prompts_tokens_are_not_looked_up_but_for_its_ends() -> None:
    """The first look at a token is slower than others: it would say that another's prompt had it."""
    asked: list[int] = []

    def bytes_of(id: int) -> bytes:
        asked.append(id)
        return b"word"

    Decoder(bytes_of, Lead(KEEP)).follow(range(1000))
    assert asked == [0, 999]


def test_a_prompts_tokens_are_looked_up_when_its_first_token_is_chosen_and_not_before() -> None:
    """Looked up before the request waits, they would decide by time which step it joins."""
    followed: list[int] = []

    class Recording(ByteStream):
        def follow(self, ids: Iterable[int]) -> None:
            followed.extend(ids)

    class Recorded(Bytes):
        def stream(self) -> ByteStream:
            return Recording()

    engine = Scripted("ab", prompt=2)
    output = SequenceOutput(engine, Recorded(), (7, 8), SamplingParams())
    assert not followed
    for read in ([7, 8], [7, 8, 9]):
        output.append(engine.after(read))
        assert followed == [7, 8]
