"""Words with stamps, in every interleaving: none is taken for another or written over unread, and nobody waits for ever.

    phase n of iteration i     slot n−1 ── every word, once its stamp is i+1 ──→ compute ── own word, stamp i+1 ──→ slot n
    behind the last phase      slot N−1 ── program 0 ──→ update ── stamp i+1 ──→ controls, for phase 0 of iteration i+1

A slot is written again one iteration later, and nothing but this order sees to it that everyone has read it by then:

    who writes phase n anew has read the controls, so program 0 had read all of phase N−1, so each program had written there,
    which it did behind all that it read of the phases before

Where `everyone` reads slot N−1, to compute for itself what program 0 does, the controls do not wait for that. But it comes
before the program's next phase 0, which is waited for by whoever writes phase N−1 anew: if that is another phase.

A small model checker in plain Python holds the protocol to this anywhere; where `spin` is installed it checks
`exchange.pml`, the same protocol once more. Both must find what is wrong with variants.

Of memory three things are assumed: a word is read and written at once, stores to one place are seen in their order, and a
program's store is not seen before its reads are done. Where stores are `late` each program sees them at some time of its own
and in any other order. That brings nothing new while a word is one store: it is as if the program had read later.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pytest

from .checker import needs_spin, spin

MODEL = Path(__file__).parent / "exchange.pml"

CONTROLS = -1  # as the number of a phase: the update behind the iteration before

# A slot, the program that writes there, and which of its words.
Word = tuple[int, int, int]
# What a word is to hold: a stamp, and in place of a value the number of the phase or update that it comes from (0: none).
Wanted = tuple[Word, int, int]
# A half of a word that is None stays as it is. Of memory: where, and what; on its way to another program.
Store = tuple[int, int | None, int | None]
# A thread: how many steps it has done, and which parts of the next are left, as bits.
Thread = tuple[int, int]
State = tuple[tuple[tuple[int, int], ...], tuple[Store, ...], tuple[Thread, ...]]


class Read(NamedTuple):
    """Poll words, in any order, each until it has its stamp; or take them as they are."""

    words: tuple[Wanted, ...]
    waits: bool = True


class Write(NamedTuple):
    """Write a word, or a half of it, at once."""

    word: Word
    stamp: int | None
    content: int | None


class Join(NamedTuple):
    """The n-th barrier of the threads of a program."""

    n: int


Step = Read | Write | Join


class Exchange(NamedTuple):
    """The protocol of P programs and N phases, and what a variant changes."""

    P: int
    N: int
    iterations: int = 3
    # How many words each program has in a slot. Whether it polls its own as well: it wrote them before, and they are there.
    words: int = 1
    own: bool = True
    # Which phases' words each phase reads; without it, those of the one before.
    reads: tuple[tuple[int, ...], ...] = ()
    # Behind the last phase all programs read its words, where otherwise program 0 does alone.
    everyone: bool = False
    # (program, phase): does nothing there; reads there, and does not write.
    idle: frozenset[tuple[int, int]] = frozenset()
    silent: frozenset[tuple[int, int]] = frozenset()
    # So many stamps, which iterations take in turn; 0: a stamp an iteration.
    stamps: int = 0
    # So many slots, which all phases take in turn, each with a stamp of its own in each iteration; 0: a slot a phase.
    slots: int = 0
    # The stamps that memory begins with.
    left: int = 0
    # Programs that take the controls as they are; that take none.
    hasty: frozenset[int] = frozenset()
    deaf: frozenset[int] = frozenset()
    # The stores of a word, in order.
    halves: tuple[str, ...] = ("both",)
    # A store is seen by each other program at some later time, in order only with those to the same place.
    late: bool = False
    # Each thread polls all words; then a barrier; then the first alone writes, or every thread does.
    threads: int = 1
    joined: bool = True
    all_write: bool = False

    def life(self, p: int, thread: int) -> tuple[Step, ...]:
        """Everything that a thread of a program does."""
        reads = self.reads or tuple((n - 1,) for n in range(self.N))
        steps: list[Step] = []
        for i in range(self.iterations):
            for n in range(self.N):
                if (p, n) not in self.idle:
                    steps += self._phase(p, thread, i, n, reads[n])
            if p == 0 or self.everyone:
                steps += self._phase(p, thread, i, self.N, (self.N - 1,))
        return tuple(steps)

    def _phase(self, p: int, thread: int, i: int, n: int, reads: tuple[int, ...]) -> Iterator[Step]:
        if CONTROLS in reads and i > 0 and p not in self.deaf:
            yield Read(self._words(0, i - 1, self.N), waits=p not in self.hasty)
        wanted: list[Wanted] = []
        for m in reads:
            for q in range(self.P):
                if m != CONTROLS and (q, m) not in self.idle | self.silent and (self.own or q != p):
                    wanted += self._words(q, i, m)
        if wanted:
            yield Read(tuple(wanted))
        if self.threads > 1 and self.joined:
            yield Join(i * (self.N + 1) + n)
        if (p, n) not in self.silent and (p == 0 or n < self.N) and (thread == 0 or self.all_write):
            for word, stamp, content in self._words(p, i, n):
                for half in self.halves:
                    yield Write(word, None if half == "value" else stamp, None if half == "stamp" else content)

    def _words(self, q: int, i: int, n: int) -> tuple[Wanted, ...]:
        turn = i * self.N + n
        slot = CONTROLS if n == self.N else turn % self.slots if self.slots else n
        stamp = turn + 1 if self.slots else i % self.stamps + 1 if self.stamps else i + 1
        return tuple(((slot, q, k), stamp, i * (self.N + 1) + n + 1) for k in range(self.words))


def violation(exchange: Exchange, watched: bool = True) -> str | None:
    """What goes wrong in some interleaving; None if nothing can.

    Every state that can be reached is visited once. A word that is written over unread is an error by itself where this is
    `watched`; otherwise it is left to its consequences.
    """
    model = Model(exchange, watched)
    seen: set[State] = {model.first}
    todo: list[State] = [model.first]
    while todo:
        state = todo.pop()
        following = list(model.following(state))
        if not following and not model.is_end(state):
            return f"waits for ever: {state}"
        for after in following:
            if isinstance(after, str):
                return f"{after}: {state}"
            if after not in seen:
                seen.add(after)
                todo.append(after)
    return None


class Model:
    """The threads' lives, and the steps that are possible from a state."""

    def __init__(self, exchange: Exchange, watched: bool) -> None:
        P, threads = exchange.P, exchange.threads
        self.watched = watched
        self.views = list(range(P)) if exchange.late else [0]  # each program's memory, or one for all
        self.programs = [p for p in range(P) for _ in range(threads)]
        self.lives = [exchange.life(p, thread) for p in range(P) for thread in range(threads)]
        steps = [(t, at, step) for t, life in enumerate(self.lives) for at, step in enumerate(life)]
        words = sorted({step.word for _, _, step in steps if isinstance(step, Write)})
        self.place = {word: k for k, word in enumerate(words)}
        self.joins = {(t, step.n): at for t, at, step in steps if isinstance(step, Join)}
        # By word and content: the thread that reads it, in which step, and which part of that.
        self.readers: dict[tuple[Word, int], list[tuple[int, int, int]]] = {}
        for t, at, step in steps:
            for k, (word, _, content) in enumerate(step.words if isinstance(step, Read) else ()):
                self.readers.setdefault((word, content), []).append((t, at, 1 << k))
        memory = ((exchange.left, 0),) * (len(words) * len(self.views))
        self.first: State = memory, (), tuple((0, parts(life, 0)) for life in self.lives)

    def is_end(self, state: State) -> bool:
        return all(at == len(life) for (at, _), life in zip(state[2], self.lives, strict=True))

    def following(self, state: State) -> Iterator[State | str]:
        """The states behind one step of one thread, or what is wrong with that step."""
        memory, stores, threads = state
        for j, store in enumerate(stores):
            if not any(overlap(store, earlier) for earlier in stores[:j]):
                yield written(memory, store), (*stores[:j], *stores[j + 1 :]), threads
        for t, (at, left) in enumerate(threads):
            step = self.lives[t][at] if at < len(self.lives[t]) else None
            if isinstance(step, Read):
                for k, (word, stamp, content) in enumerate(step.words):
                    there = memory[self.index(word, self.programs[t])]
                    if left >> k & 1 and (there[0] == stamp or not step.waits):
                        if there[1] != content:
                            yield f"taken for another: {there[1]} for {content} at {word} by program {self.programs[t]}"
                        yield memory, stores, self.moved(threads, t, left & ~(1 << k))
            elif isinstance(step, Write):
                if self.watched and self.is_unread(step, memory[self.index(step.word, self.programs[t])][1], threads):
                    yield f"written over unread: {step.word}"
                own = self.index(step.word, self.programs[t]), step.stamp, step.content
                others = [(self.index(step.word, view), step.stamp, step.content) for view in self.views]
                others.remove(own)
                # Sorted by place, since order matters nowhere else: states that differ in no more are one.
                underway = tuple(sorted([*stores, *others], key=lambda store: store[0]))
                yield written(memory, own), underway, self.moved(threads, t, 0)
            elif isinstance(step, Join):
                others = [other for other, program in enumerate(self.programs) if program == self.programs[t]]
                if all(threads[other][0] >= self.joins[other, step.n] for other in others):
                    yield memory, stores, self.moved(threads, t, 0)

    def index(self, word: Word, program: int) -> int:
        """Where a word is in memory, as that program sees it."""
        return self.place[word] + (program * len(self.place) if len(self.views) > 1 else 0)

    def is_unread(self, step: Write, content: int, threads: tuple[Thread, ...]) -> bool:
        """Whether a thread still has to read what this replaces."""
        if step.content in (None, content):
            return False
        readers = self.readers.get((step.word, content), ())
        return any(threads[t][0] < at or (threads[t][0] == at and threads[t][1] & part) for t, at, part in readers)

    def moved(self, threads: tuple[Thread, ...], t: int, left: int) -> tuple[Thread, ...]:
        at = threads[t][0]
        return *threads[:t], (at, left) if left else (at + 1, parts(self.lives[t], at + 1)), *threads[t + 1 :]


def parts(life: tuple[Step, ...], at: int) -> int:
    """All parts of a step, as bits; none behind the last step."""
    step = life[at] if at < len(life) else None
    return (1 << len(step.words)) - 1 if isinstance(step, Read) else int(step is not None)


def written(memory: tuple[tuple[int, int], ...], store: Store) -> tuple[tuple[int, int], ...]:
    k, stamp, content = store
    new = memory[k][0] if stamp is None else stamp, memory[k][1] if content is None else content
    return *memory[:k], new, *memory[k + 1 :]


def overlap(store: Store, other: Store) -> bool:
    return store[0] == other[0] and any(a is not None and b is not None for a, b in zip(store[1:], other[1:], strict=True))


# Dynamics, then cost and score side by side, the cost's gradient, and the dynamics' gradient, which needs both of them.
SIDE_BY_SIDE = ((CONTROLS,), (0,), (), (1,), (2, 3))
# A phase that reads the one before the last once more; one that reads the controls again.
FURTHER_BACK = ((CONTROLS,), (0,), (0, 1))
CONTROLS_AGAIN = ((CONTROLS,), (0, CONTROLS), (1,))


def wrong(exchange: Exchange, watched: bool = True) -> str:
    """What goes wrong, in short; nothing if nothing does."""
    return (violation(exchange, watched) or "").split(":")[0]


@pytest.mark.parametrize("P", [1, 2, 3, 4])
@pytest.mark.parametrize("N", [1, 2, 3])
def test_no_word_is_missed_and_nobody_is_left(P: int, N: int) -> None:
    assert violation(Exchange(P, N, own=P < 4)) is None


@pytest.mark.parametrize("P", [2, 3])
def test_everyone_may_read_the_last_phase_if_it_is_not_the_only_one(P: int) -> None:
    for N in (2, 3):
        assert violation(Exchange(P, N, everyone=True)) is None
    assert wrong(Exchange(P, 1, everyone=True)) == "written over unread"
    assert wrong(Exchange(P, 1, everyone=True), watched=False) == "waits for ever"


@pytest.mark.parametrize("P", [2, 3])
@pytest.mark.parametrize("reads", [SIDE_BY_SIDE, FURTHER_BACK, CONTROLS_AGAIN])
@pytest.mark.parametrize("everyone", [False, True])
def test_a_phase_may_read_others_than_the_one_before(P: int, reads: tuple[tuple[int, ...], ...], everyone: bool) -> None:
    assert violation(Exchange(P, len(reads), reads=reads, own=P < 3, everyone=everyone)) is None


@pytest.mark.parametrize("P", [2, 3])
def test_a_program_may_have_more_words_than_one(P: int) -> None:
    assert violation(Exchange(P, 2, words=2, own=P < 3)) is None


@pytest.mark.parametrize(
    ("P", "N", "reads"),
    [(2, 2, ()), (2, 3, ()), (3, 2, ()), (3, 3, ()), (2, 3, FURTHER_BACK), (2, 4, ((CONTROLS,), (0,), (0,), (1, 2)))],
)
def test_programs_may_be_idle_while_one_is_not(P: int, N: int, reads: tuple[tuple[int, ...], ...]) -> None:
    """Whoever has nothing to do in a phase does not read for it either."""
    places = [(p, n) for p in range(P) for n in range(N)]
    for count in range(len(places)):
        for idle in map(frozenset, combinations(places, count)):
            if all(any((p, n) not in idle for p in range(P)) for n in range(N)):
                assert violation(Exchange(P, N, reads=reads, idle=idle, own=False)) is None, idle


@pytest.mark.parametrize(("P", "N"), [(2, 2), (2, 3), (3, 1), (3, 2)])
def test_stores_may_be_seen_late_and_in_another_order(P: int, N: int) -> None:
    exchange = Exchange(P, N, iterations=2 if P == 3 else 3, own=P < 3, late=True)
    assert violation(exchange) is None
    assert N == 1 or violation(exchange._replace(everyone=True)) is None


@pytest.mark.parametrize("N", [1, 2, 3])
def test_two_stamps_are_enough(N: int) -> None:
    """What a reader finds is of its own iteration or the one before: stamps may begin anew where there are no more."""
    assert violation(Exchange(3, N, iterations=4, stamps=2)) is None


@pytest.mark.parametrize("N", [1, 2, 3])
def test_two_slots_are_enough_for_readers_of_one(N: int) -> None:
    """And three for those of two, where each is the slot of an earlier phase."""
    assert violation(Exchange(3, N, slots=2)) is None
    assert wrong(Exchange(2, 3, reads=FURTHER_BACK, slots=2)) == "written over unread"
    assert violation(Exchange(2, 3, reads=FURTHER_BACK, slots=3)) is None


@pytest.mark.parametrize("N", [1, 2, 3])
@pytest.mark.parametrize("all_write", [False, True])
def test_a_barrier_joins_the_threads_of_a_program_before_it_writes(N: int, all_write: bool) -> None:
    """Without it a thread that has read everything writes while another still polls for what may then be gone."""
    threads = Exchange(2, N, threads=2, all_write=all_write, everyone=N > 1)
    assert violation(threads) is None
    assert wrong(threads._replace(joined=False)) == "written over unread"
    assert wrong(threads._replace(joined=False), watched=False) == "waits for ever"


@pytest.mark.parametrize("P", [2, 3])
@pytest.mark.parametrize("N", [1, 2, 3])
def test_broken_words_are_caught(P: int, N: int) -> None:
    """Stamps that are the same in all iterations, or left by a launch before; a word that is not written at once."""
    assert wrong(Exchange(P, N, stamps=1)) == "taken for another"
    assert wrong(Exchange(P, N, left=1)) == "taken for another"
    assert wrong(Exchange(P, N, halves=("stamp", "value"))) == "taken for another"


def test_a_value_before_its_stamp_is_right_only_if_stores_stay_in_order() -> None:
    halves = Exchange(2, 2, iterations=2, halves=("value", "stamp"))
    assert violation(halves) is None
    assert wrong(halves._replace(late=True)) == "taken for another"


@pytest.mark.parametrize("P", [2, 3])
@pytest.mark.parametrize("N", [2, 3])
def test_one_slot_for_all_phases_is_caught(P: int, N: int) -> None:
    assert wrong(Exchange(P, N, slots=1)) == "written over unread"
    assert wrong(Exchange(P, N, slots=1), watched=False) == "waits for ever"


@pytest.mark.parametrize("P", [2, 3])
@pytest.mark.parametrize("N", [1, 2, 3])
def test_programs_that_do_not_wait_for_the_controls_are_caught(P: int, N: int) -> None:
    """They compute with old ones. What is unread they write over only where all of it is less than three phases back:

    who has written phase N−1 has read phase N−2, so everyone had read phase N−3, and phase 0 may be written anew.
    """
    assert wrong(Exchange(P, N, hasty=frozenset({P - 1}))) == "taken for another"
    for deaf in (frozenset({P - 1}), frozenset(range(1, P))):
        assert wrong(Exchange(P, N, deaf=deaf)) == ("written over unread" if N < 3 else "")
        assert wrong(Exchange(P, N, deaf=deaf), watched=False) == ("waits for ever" if N < 3 else "")
        assert wrong(Exchange(P, 3, deaf=deaf, reads=FURTHER_BACK)) == "written over unread"


@pytest.mark.parametrize("P", [2, 3])
def test_programs_that_read_and_are_not_waited_for_are_caught(P: int) -> None:
    """Behind what a program reads it must write, where someone reads it on the way to the update.

    And the other way round: who writes must have read something of this iteration, and not begin with a phase without.
    """
    last = P - 1
    assert wrong(Exchange(P, 2, silent=frozenset({(last, 1)}))) == "written over unread"
    assert wrong(Exchange(P, 3, silent=frozenset({(last, 2)}), idle=frozenset({(last, 0)}))) == "written over unread"
    unread = frozenset({(last, 0), (last, 1)})
    assert wrong(Exchange(P, 5, reads=SIDE_BY_SIDE, idle=unread, own=P < 3)) == "written over unread"
    to_nobody = Exchange(P, 3, reads=((CONTROLS,), (0,), (0,)), idle=frozenset({(last, 2)}))
    assert wrong(to_nobody) == "written over unread"
    assert wrong(to_nobody, watched=False) == "waits for ever"


def test_the_kernel_says_what_was_checked() -> None:
    """A word is one access, relaxed and never cached; an iteration has a stamp, a phase has a slot, and memory begins at 0.

    The update gives the controls of the iteration behind it that one's stamp.
    """
    root = Path(__file__).parents[2]

    def said(name: str) -> str:
        return (root / name).read_text(encoding="utf-8")

    exchange, relay = said("kernels/relay/exchange.py"), said("kernels/relay/plan.py")
    assert "@on st.relaxed.gpu.global.b64 [$2], word;" in exchange and "@late bra again;" in exchange
    for words in ("b64 word,", "v2.b64 {one, two},"):
        assert exchange.count(f"ld.relaxed.gpu.global.{words}") == 2, words  # at first, and while they are late
    for other in ("v2.b32", ".nc", "gl.load(", "gl.store("):
        assert other not in exchange, other
    assert "Program(number, i - first + 1, y, room)" in relay
    assert "_give_controls(control_words, 1, search" in relay
    assert "_give_controls(control_words, program.stamp + 1, search" in relay
    assert "words + (block * ALL + BEFORE) * ROWS" in said("kernels/relay/rows.py")
    assert "self.scratch.words.zero_()" in said("sgp_fast/backends/fused/relay.py")


@needs_spin
@pytest.mark.parametrize(("P", "N", "variant"), [(3, 3, []), (3, 3, ["-DEVERYONE"]), (4, 2, [])])
def test_spin_finds_nothing(P: int, N: int, variant: list[str], tmp_path: Path) -> None:
    right = spin(MODEL, tmp_path, f"-DP={P}", f"-DN={N}", *variant)
    assert "errors: 0" in right and "Warning: Search not completed" not in right, right


@needs_spin
@pytest.mark.parametrize(
    ("variant", "N", "finds"),
    [
        (["-DCONSTANT"], 3, "assertion violated (value["),
        (["-DHASTY"], 3, "assertion violated (value["),
        (["-DDEAF"], 2, "assertion violated (unread["),
        (["-DDEAF", "-DUNWATCHED"], 2, "invalid end state"),
        (["-DEVERYONE"], 1, "assertion violated (unread["),
        (["-DONE_SLOT"], 3, "assertion violated (unread["),
        (["-DSTAMP_FIRST"], 3, "assertion violated (value["),
    ],
)
def test_spin_finds_the_broken_variants(variant: list[str], N: int, finds: str, tmp_path: Path) -> None:
    found = spin(MODEL, tmp_path, "-DP=3", f"-DN={N}", *variant)
    assert "errors: 1" in found and finds in found, found
